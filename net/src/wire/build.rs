//! Frames for the guest.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::checksum::Checksum;
use super::parse::{IpPacket, Segment};
use super::{
    ETHERNET_HEADER, ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, LinkAddresses, TCP_HEADER, UDP_HEADER,
    ethertype, flags, icmp, protocol,
};
use crate::link::Transmitter;

/// Hops that the guest sees; there is one.
const HOP_LIMIT: u8 = 64;
/// Of an offending packet, an ICMP error quotes at most so much (RFC 1812 §4.3.2.3 and RFC 4443
/// §3.1 set the limit for the whole message higher).
const QUOTE_LIMIT: usize = 512;

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    /// The policy forbids it.
    Prohibited,
}

impl Unreachable {
    fn code(self, version4: bool) -> u8 {
        match (self, version4) {
            (Self::Network, _) => 0,
            (Self::Host, true) => 1,
            (Self::Host, false) => 3,
            (Self::Port, true) => 3,
            (Self::Port, false) => 4,
            (Self::Prohibited, true) => 13,
            (Self::Prohibited, false) => 1,
        }
    }
}

/// Makes frames from the gateway to the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameWriter {
    link: LinkAddresses,
}

impl FrameWriter {
    pub(crate) fn new(link: LinkAddresses) -> Self {
        Self { link }
    }

    fn ethernet_header(&self, frame: &mut [u8], ethertype: u16) {
        frame[..6].copy_from_slice(&self.link.guest_mac);
        frame[6..12].copy_from_slice(&self.link.gateway_mac);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    }

    /// A frame around an IP packet of `length` bytes that `write` makes whole.
    pub(crate) fn ip_packet<R>(
        &self,
        transmitter: &mut Transmitter,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        transmitter.push(ETHERNET_HEADER + length, |frame| {
            let result = write(&mut frame[ETHERNET_HEADER..]);
            let version6 = frame
                .get(ETHERNET_HEADER)
                .is_some_and(|byte| byte >> 4 == 6);
            let ethertype = if version6 {
                ethertype::IPV6
            } else {
                ethertype::IPV4
            };
            self.ethernet_header(frame, ethertype);
            result
        })
    }

    /// A frame around a payload of `length` bytes that `write` fills.
    fn ip_payload(
        &self,
        transmitter: &mut Transmitter,
        (source, destination): (IpAddr, IpAddr),
        number: u8,
        length: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let header_length = header_length(source);
        self.ip_packet(transmitter, header_length + length, |packet| {
            ip_header(
                &mut packet[..header_length],
                source,
                destination,
                number,
                length,
            );
            write(&mut packet[header_length..]);
        });
    }

    /// Says where the gateway is.
    pub(crate) fn arp_reply(&self, transmitter: &mut Transmitter) {
        transmitter.push(ETHERNET_HEADER + 28, |frame| {
            self.ethernet_header(frame, ethertype::ARP);
            let packet = &mut frame[ETHERNET_HEADER..];
            packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
            packet[8..14].copy_from_slice(&self.link.gateway_mac);
            packet[14..18].copy_from_slice(&self.link.gateway_v4.octets());
            packet[18..24].copy_from_slice(&self.link.guest_mac);
            packet[24..28].copy_from_slice(&self.link.guest_v4.octets());
        });
    }

    /// Says where the gateway is (RFC 4861 §4.4).
    pub(crate) fn neighbor_advertisement(&self, transmitter: &mut Transmitter, to: Ipv6Addr) {
        let (source, destination) = (self.link.gateway_v6.into(), to.into());
        self.ip_packet(transmitter, IPV6_HEADER + 32, |packet| {
            let (header, body) = packet.split_at_mut(IPV6_HEADER);
            ip_header(header, source, destination, protocol::ICMPV6, 32);
            header[7] = 255;
            body.fill(0);
            body[0] = icmp::V6_NEIGHBOR_ADVERTISEMENT;
            // Router, solicited, override.
            body[4] = 0xe0;
            body[8..24].copy_from_slice(&self.link.gateway_v6.octets());
            // Target link-layer address, in units of 8 bytes.
            body[24..26].copy_from_slice(&[2, 1]);
            body[26..32].copy_from_slice(&self.link.gateway_mac);
            fill_checksum(body, 2, source, destination, protocol::ICMPV6);
        });
    }

    /// A UDP datagram.
    pub(crate) fn udp(
        &self,
        transmitter: &mut Transmitter,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) {
        let length = UDP_HEADER + data.len();
        let addresses = (source.ip(), destination.ip());
        self.ip_payload(transmitter, addresses, protocol::UDP, length, |body| {
            body[..2].copy_from_slice(&source.port().to_be_bytes());
            body[2..4].copy_from_slice(&destination.port().to_be_bytes());
            body[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            body[8..].copy_from_slice(data);
            fill_checksum(body, 6, source.ip(), destination.ip(), protocol::UDP);
            if body[6..8] == [0, 0] {
                // Zero would mean that there is none (RFC 768).
                body[6..8].copy_from_slice(&[0xff, 0xff]);
            }
        });
    }

    /// An echo reply; `rest` is what follows the identifier.
    pub(crate) fn echo_reply(
        &self,
        transmitter: &mut Transmitter,
        source: IpAddr,
        destination: IpAddr,
        identifier: u16,
        rest: &[u8],
    ) {
        let (number, kind) = match source {
            IpAddr::V4(_) => (protocol::ICMP, icmp::ECHO_REPLY),
            IpAddr::V6(_) => (protocol::ICMPV6, icmp::V6_ECHO_REPLY),
        };
        let addresses = (source, destination);
        self.ip_payload(transmitter, addresses, number, 6 + rest.len(), |body| {
            body[..2].copy_from_slice(&[kind, 0]);
            body[4..6].copy_from_slice(&identifier.to_be_bytes());
            body[6..].copy_from_slice(rest);
            fill_checksum(body, 2, source, destination, number);
        });
    }

    /// A reset for a segment that belongs to no connection (RFC 9293 §3.10.7.1).
    pub(crate) fn tcp_reset(
        &self,
        transmitter: &mut Transmitter,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
    ) {
        let addresses = (packet.destination, packet.source);
        self.ip_payload(transmitter, addresses, protocol::TCP, TCP_HEADER, |body| {
            body.fill(0);
            body[..2].copy_from_slice(&segment.destination_port.to_be_bytes());
            body[2..4].copy_from_slice(&segment.source_port.to_be_bytes());
            body[12] = ((TCP_HEADER / 4) << 4) as u8;
            if segment.flags & flags::ACK != 0 {
                body[4..8].copy_from_slice(&segment.acknowledgement.to_be_bytes());
                body[13] = flags::RST;
            } else {
                let acknowledgement = segment.sequence.wrapping_add(segment.length());
                body[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
                body[13] = flags::RST | flags::ACK;
            }
            fill_checksum(body, 16, addresses.0, addresses.1, protocol::TCP);
        });
    }

    /// Destination unreachable for a packet of the guest's.
    pub(crate) fn unreachable(
        &self,
        transmitter: &mut Transmitter,
        reason: Unreachable,
        packet: &[u8],
    ) {
        let quote = &packet[..packet.len().min(QUOTE_LIMIT)];
        let version4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
        let (number, kind, source, destination): (_, _, IpAddr, IpAddr) = if version4 {
            let (source, destination) = (self.link.gateway_v4, self.link.guest_v4);
            (
                protocol::ICMP,
                icmp::UNREACHABLE,
                source.into(),
                destination.into(),
            )
        } else {
            let (source, destination) = (self.link.gateway_v6, self.link.guest_v6);
            (
                protocol::ICMPV6,
                icmp::V6_UNREACHABLE,
                source.into(),
                destination.into(),
            )
        };
        let length = ICMP_HEADER + quote.len();
        self.ip_payload(transmitter, (source, destination), number, length, |body| {
            body[..ICMP_HEADER].fill(0);
            body[0] = kind;
            body[1] = reason.code(version4);
            body[ICMP_HEADER..].copy_from_slice(quote);
            fill_checksum(body, 2, source, destination, number);
        });
    }
}

/// The header of a UDP datagram from the guest, to be quoted in an ICMP error.
pub(crate) fn quoted_udp(guest: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let header_length = header_length(guest.ip());
    let mut packet = vec![0; header_length + UDP_HEADER];
    let (header, body) = packet.split_at_mut(header_length);
    ip_header(header, guest.ip(), remote.ip(), protocol::UDP, UDP_HEADER);
    body[..2].copy_from_slice(&guest.port().to_be_bytes());
    body[2..4].copy_from_slice(&remote.port().to_be_bytes());
    body[4..6].copy_from_slice(&(UDP_HEADER as u16).to_be_bytes());
    packet
}

/// Bytes of the IP header of this address's family.
pub(crate) fn header_length(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => IPV4_HEADER,
        IpAddr::V6(_) => IPV6_HEADER,
    }
}

fn ip_header(
    header: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    payload_length: usize,
) {
    header.fill(0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((IPV4_HEADER + payload_length) as u16).to_be_bytes());
            // Don't fragment.
            header[6] = 0x40;
            header[8] = HOP_LIMIT;
            header[9] = number;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = Checksum::default().add(header).finish();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (source, destination) => {
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload_length as u16).to_be_bytes());
            header[6] = number;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&ipv6(source).octets());
            header[24..40].copy_from_slice(&ipv6(destination).octets());
        }
    }
}

/// Both ends of a packet are of one family; this is where a type for that would begin.
fn ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn fill_checksum(body: &mut [u8], at: usize, source: IpAddr, destination: IpAddr, number: u8) {
    body[at..at + 2].fill(0);
    let sum = if number == protocol::ICMP {
        Checksum::default()
    } else {
        Checksum::pseudo_header(source, destination, number, body.len())
    };
    let checksum = sum.add(body).finish();
    body[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
