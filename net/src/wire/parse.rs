//! Frames from the guest, checked. Nothing here trusts a byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    ETHERNET_HEADER, ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, LinkAddresses, TCP_HEADER, ethertype,
    flags, icmp, protocol,
};

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Too short, or its headers contradict each other.
    Malformed,
    /// Its hardware or IP source is not the guest's.
    Spoofed,
    /// A protocol that the gateway does not speak.
    Unsupported,
    /// A fragment of a packet.
    Fragment,
    /// What a sound guest says without needing an answer: address detection, router
    /// solicitation, multicast memberships.
    Noise,
}

/// A frame from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// An ARP request for the gateway's address.
    ArpRequest,
    /// A neighbour solicitation for the gateway's address, from this address.
    NeighborSolicitation {
        /// Whom to answer.
        source: Ipv6Addr,
    },
    /// An IP packet with the guest's own source address.
    Ip(IpPacket<'a>),
}

/// A whole IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Header and payload, without the frame's padding.
    pub bytes: &'a [u8],
    /// From the header.
    pub source: IpAddr,
    /// From the header.
    pub destination: IpAddr,
    /// The payload's protocol.
    pub protocol: u8,
    /// Without header and options.
    pub payload: &'a [u8],
}

/// What the flow table needs of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source port, not 0.
    pub source_port: u16,
    /// Destination port, not 0.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number, whether or not it counts.
    pub acknowledgement: u32,
    /// The flag byte.
    pub flags: u8,
    /// Header and options.
    pub header_length: usize,
    /// The data.
    pub payload: &'a [u8],
}

/// Reads a frame of at most `mtu` bytes beyond its Ethernet header.
pub fn parse_frame<'a>(
    frame: &'a [u8],
    link: &LinkAddresses,
    mtu: u16,
) -> Result<Inbound<'a>, Reject> {
    let (header, payload) = frame
        .split_at_checked(ETHERNET_HEADER)
        .ok_or(Reject::Malformed)?;
    if header[6..12] != link.guest_mac {
        return Err(Reject::Spoofed);
    }
    // Multicast frames carry the first words of a guest that resolves addresses (ARP and neighbour
    // solicitation). One that does not (IFF_NOARP) writes its own address for all others'.
    let to = &header[0..6];
    if to != link.gateway_mac && to != link.guest_mac && header[0] & 1 == 0 {
        return Err(Reject::Unsupported);
    }
    match be16(header, 12) {
        ethertype::IPV4 => parse_ipv4(payload, link, mtu).map(Inbound::Ip),
        ethertype::IPV6 => parse_ipv6(payload, link, mtu),
        ethertype::ARP => parse_arp(payload, link),
        _ => Err(Reject::Unsupported),
    }
}

fn parse_arp<'a>(packet: &'a [u8], link: &LinkAddresses) -> Result<Inbound<'a>, Reject> {
    let packet = packet.get(..28).ok_or(Reject::Malformed)?;
    // Ethernet and IPv4, in 6 and 4 bytes (RFC 826).
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(Reject::Unsupported);
    }
    if packet[8..14] != link.guest_mac {
        return Err(Reject::Spoofed);
    }
    let sender = ipv4_at(packet, 14);
    let target = ipv4_at(packet, 24);
    // A sender of zero is a probe for a duplicate address (RFC 5227).
    match (be16(packet, 6), sender) {
        (1, sender) if sender == link.guest_v4 && target == link.gateway_v4 => {
            Ok(Inbound::ArpRequest)
        }
        (1 | 2, sender) if sender == link.guest_v4 || sender.is_unspecified() => Err(Reject::Noise),
        (1 | 2, _) => Err(Reject::Spoofed),
        _ => Err(Reject::Unsupported),
    }
}

fn parse_ipv4<'a>(frame: &'a [u8], link: &LinkAddresses, mtu: u16) -> Result<IpPacket<'a>, Reject> {
    let header = frame.get(..IPV4_HEADER).ok_or(Reject::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total_length = usize::from(be16(header, 2));
    if header[0] >> 4 != 4 || header_length < IPV4_HEADER || total_length < header_length {
        return Err(Reject::Malformed);
    }
    let bytes = frame.get(..total_length).ok_or(Reject::Malformed)?;
    let source = ipv4_at(header, 12);
    let destination = ipv4_at(header, 16);
    if source != link.guest_v4 {
        // Zero: a client that asks for its address (RFC 2131).
        return Err(if source.is_unspecified() {
            Reject::Noise
        } else {
            Reject::Spoofed
        });
    }
    if destination.is_multicast() {
        return Err(Reject::Noise);
    }
    // More fragments follow, or this is not the first.
    if be16(header, 6) & 0x3fff != 0 || total_length > usize::from(mtu) {
        return Err(Reject::Fragment);
    }
    Ok(IpPacket {
        bytes,
        source: source.into(),
        destination: destination.into(),
        protocol: header[9],
        payload: &bytes[header_length..],
    })
}

fn parse_ipv6<'a>(frame: &'a [u8], link: &LinkAddresses, mtu: u16) -> Result<Inbound<'a>, Reject> {
    let header = frame.get(..IPV6_HEADER).ok_or(Reject::Malformed)?;
    let total_length = IPV6_HEADER + usize::from(be16(header, 4));
    if header[0] >> 4 != 6 {
        return Err(Reject::Malformed);
    }
    let bytes = frame.get(..total_length).ok_or(Reject::Malformed)?;
    let payload = &bytes[IPV6_HEADER..];
    let source = ipv6_at(header, 8);
    let destination = ipv6_at(header, 24);
    let own = source == link.guest_v6 || source.is_unicast_link_local();
    if !own && !source.is_unspecified() {
        return Err(Reject::Spoofed);
    }
    if header[6] == protocol::ICMPV6 && payload.first() == Some(&icmp::V6_NEIGHBOR_SOLICITATION) {
        let target = payload.get(8..24).ok_or(Reject::Malformed)?;
        // RFC 4861 §7.1.1: a hop limit of 255 proves that it comes from the link.
        return if target == link.gateway_v6.octets() && own && header[7] == 255 {
            Ok(Inbound::NeighborSolicitation { source })
        } else {
            Err(Reject::Noise)
        };
    }
    if source != link.guest_v6 || destination.is_multicast() {
        return Err(Reject::Noise);
    }
    if header[6] == protocol::IPV6_FRAGMENT || total_length > usize::from(mtu) {
        return Err(Reject::Fragment);
    }
    Ok(Inbound::Ip(IpPacket {
        bytes,
        source: source.into(),
        destination: destination.into(),
        protocol: header[6],
        payload,
    }))
}

impl<'a> Segment<'a> {
    /// Reads the header of a TCP segment.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Reject> {
        let header = bytes.get(..TCP_HEADER).ok_or(Reject::Malformed)?;
        let header_length = usize::from(header[12] >> 4) * 4;
        if header_length < TCP_HEADER {
            return Err(Reject::Malformed);
        }
        let payload = bytes.get(header_length..).ok_or(Reject::Malformed)?;
        let (source_port, destination_port) = (be16(header, 0), be16(header, 2));
        if source_port == 0 || destination_port == 0 {
            return Err(Reject::Malformed);
        }
        Ok(Self {
            source_port,
            destination_port,
            sequence: be32(header, 4),
            acknowledgement: be32(header, 8),
            flags: header[13],
            header_length,
            payload,
        })
    }

    /// A client's first segment.
    pub(crate) fn is_initial_syn(&self) -> bool {
        self.flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.flags & flags::RST != 0
    }

    /// Sequence numbers that it takes up.
    pub(crate) fn length(&self) -> u32 {
        self.payload.len() as u32
            + u32::from(self.flags & flags::SYN != 0)
            + u32::from(self.flags & flags::FIN != 0)
    }
}

/// What the translator needs of a UDP datagram: source port, destination port, data.
pub(crate) fn parse_udp(bytes: &[u8]) -> Result<(u16, u16, &[u8]), Reject> {
    let header = bytes.get(..8).ok_or(Reject::Malformed)?;
    let length = usize::from(be16(header, 4));
    let data = bytes.get(8..length).ok_or(Reject::Malformed)?;
    match (be16(header, 0), be16(header, 2)) {
        (0, _) | (_, 0) => Err(Reject::Malformed),
        (source, destination) => Ok((source, destination, data)),
    }
}

/// What the translator needs of an ICMP echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) identifier: u16,
    /// Sequence number and data, as they are sent back.
    pub(crate) rest: &'a [u8],
}

/// Reads an echo request of either family.
pub(crate) fn parse_echo<'a>(packet: &IpPacket<'a>) -> Result<Echo<'a>, Reject> {
    let header = packet.payload.get(..ICMP_HEADER).ok_or(Reject::Malformed)?;
    let request = if packet.protocol == protocol::ICMP {
        icmp::ECHO
    } else {
        icmp::V6_ECHO
    };
    if header[0] != request || header[1] != 0 {
        return Err(Reject::Noise);
    }
    Ok(Echo {
        identifier: be16(header, 4),
        rest: &packet.payload[6..],
    })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn ipv4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn ipv6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets)
}
