//! What one guest's network looks like.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::Duration;

use crate::policy::Policy;

/// Every worker has a stack of its own, so all may use the same addresses.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
/// The gateway: default route, DNS server, `host.iii.internal`.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);
/// Prefix length of the two.
pub const IPV4_PREFIX: u8 = 30;
/// The guest's unique local address (RFC 4193).
pub const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd69, 0x6969, 0x6969, 0, 0, 0, 0, 2);
/// The gateway's.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd69, 0x6969, 0x6969, 0, 0, 0, 0, 1);
/// Prefix length of the two: with a wider one, the guest would look for every other address of it on
/// a link that has nobody else, and wait, instead of hearing from the gateway.
pub const IPV6_PREFIX: u8 = 126;
/// Hardware address of the guest's interface (locally administered).
pub const GUEST_MAC: [u8; 6] = [0x02, 0x69, 0x69, 0x69, 0x00, 0x02];
/// Hardware address of the gateway.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x69, 0x69, 0x69, 0x00, 0x01];
/// Bytes of the largest IP packet; what virtio-net takes as `host_mtu`. Large packets are where
/// the throughput comes from: there is no segmentation offload on this link.
pub const DEFAULT_MTU: u16 = 65520;
/// Smallest MTU that IPv6 permits (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;
/// Name of the gateway, for the guest.
pub const HOST_NAME: &str = "host.iii.internal";
/// Its second name.
pub const GATEWAY_NAME: &str = "gateway.iii.internal";
/// The port on which the gateway answers DNS.
pub const DNS_PORT: u16 = 53;

/// A port of the guest that the host publishes.
#[derive(Debug)]
pub struct PublishedPort {
    /// Bound and listening. The loop accepts on it only while its budget allows.
    pub listener: TcpListener,
    /// Where the guest listens.
    pub guest_port: u16,
}

/// What one guest's network looks like, and how much of the host it may use.
#[derive(Debug)]
pub struct NetworkConfig {
    /// Frames with another source are dropped.
    pub guest_mac: [u8; 6],
    /// Answered to ARP and neighbour solicitations for the gateway's addresses.
    pub gateway_mac: [u8; 6],
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// The guest's only IPv4 address.
    pub guest_v4: Ipv4Addr,
    /// The gateway's.
    pub gateway_v4: Ipv4Addr,
    /// The guest's only routed IPv6 address.
    pub guest_v6: Ipv6Addr,
    /// The gateway's.
    pub gateway_v6: Ipv6Addr,
    /// What the guest may reach.
    pub policy: Policy,
    /// Ports of the guest open to the host.
    pub published: Vec<PublishedPort>,
    /// Bytes of all TCP buffers together. Stops a guest that opens thousands of connections, or
    /// never reads, from eating the host's memory.
    pub buffer_budget: usize,
    /// TCP connections of both directions. Stops a guest from using up the host's descriptors.
    pub max_connections: usize,
    /// Connections whose host side is not connected yet. Stops a SYN flood from filling the
    /// connection table (and the host's) with attempts that lead nowhere.
    pub max_held_syns: usize,
    /// UDP and ICMP mappings; the one that was idle longest gives way. Stops a port scan from
    /// using up the host's descriptors.
    pub max_datagram_flows: usize,
    /// DNS questions without an answer yet; more get SERVFAIL at once. Stops a flood of questions
    /// from becoming unbounded work behind the [`crate::DnsService`].
    pub max_dns_in_flight: usize,
    /// A question unanswered for so long gets SERVFAIL. Below the five seconds after which
    /// resolvers ask again.
    pub dns_deadline: Duration,
    /// A connect on the host, or a published connection's handshake with the guest, may take so
    /// long.
    pub connect_deadline: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            guest_mac: GUEST_MAC,
            gateway_mac: GATEWAY_MAC,
            mtu: DEFAULT_MTU,
            guest_v4: GUEST_IPV4,
            gateway_v4: GATEWAY_IPV4,
            guest_v6: GUEST_IPV6,
            gateway_v6: GATEWAY_IPV6,
            policy: Policy::default(),
            published: Vec::new(),
            buffer_budget: 64 << 20,
            max_connections: 1024,
            max_held_syns: 256,
            max_datagram_flows: 512,
            max_dns_in_flight: 256,
            dns_deadline: Duration::from_millis(4500),
            connect_deadline: Duration::from_secs(20),
        }
    }
}

impl NetworkConfig {
    /// A copy for a successor loop; the listeners are duplicated.
    pub fn try_clone(&self) -> io::Result<Self> {
        let published = self
            .published
            .iter()
            .map(|port| {
                Ok(PublishedPort {
                    listener: port.listener.try_clone()?,
                    guest_port: port.guest_port,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            policy: self.policy.clone(),
            published,
            ..*self
        })
    }

    /// Why this configuration cannot work, if it cannot.
    pub(crate) fn fault(&self) -> Option<String> {
        if self.mtu < MIN_MTU {
            return Some(format!("the mtu {} is below {MIN_MTU}", self.mtu));
        }
        if self.mtu > DEFAULT_MTU {
            return Some(format!("the mtu {} is above {DEFAULT_MTU}", self.mtu));
        }
        if self.guest_v4 == self.gateway_v4 || self.guest_v6 == self.gateway_v6 {
            return Some("guest and gateway have the same address".to_owned());
        }
        if self.guest_mac == self.gateway_mac {
            return Some("guest and gateway have the same hardware address".to_owned());
        }
        None
    }
}
