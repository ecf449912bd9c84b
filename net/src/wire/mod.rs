//! Bytes on the link: what a frame from the guest is, and how frames for the guest are made.

mod build;
mod checksum;
mod parse;
#[cfg(test)]
mod tests;

pub(crate) use build::{FrameWriter, Unreachable, header_length, quoted_udp};
pub(crate) use parse::{Echo, parse_echo, parse_udp};
pub use parse::{Inbound, IpPacket, Reject, Segment, parse_frame};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ETHERNET_HEADER: usize = 14;
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const ICMP_HEADER: usize = 8;

pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
}

pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6_FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
}

pub(crate) mod icmp {
    pub(crate) const ECHO_REPLY: u8 = 0;
    pub(crate) const UNREACHABLE: u8 = 3;
    pub(crate) const ECHO: u8 = 8;
    pub(crate) const V6_UNREACHABLE: u8 = 1;
    pub(crate) const V6_ECHO: u8 = 128;
    pub(crate) const V6_ECHO_REPLY: u8 = 129;
    pub(crate) const V6_NEIGHBOR_SOLICITATION: u8 = 135;
    pub(crate) const V6_NEIGHBOR_ADVERTISEMENT: u8 = 136;
}

pub(crate) mod flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// The four addresses and two hardware addresses of a guest's link.
#[derive(Clone, Copy, Debug)]
pub struct LinkAddresses {
    /// The guest's hardware address.
    pub guest_mac: [u8; 6],
    /// The gateway's hardware address.
    pub gateway_mac: [u8; 6],
    /// The guest's IPv4 address.
    pub guest_v4: Ipv4Addr,
    /// The gateway's IPv4 address.
    pub gateway_v4: Ipv4Addr,
    /// The guest's IPv6 address.
    pub guest_v6: Ipv6Addr,
    /// The gateway's IPv6 address.
    pub gateway_v6: Ipv6Addr,
}

impl LinkAddresses {
    /// Whether `address` is one of the gateway's.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.gateway_v4) || address == IpAddr::V6(self.gateway_v6)
    }

    /// Whether `address` is one of the guest's.
    pub(crate) fn is_guest(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.guest_v4) || address == IpAddr::V6(self.guest_v6)
    }
}
