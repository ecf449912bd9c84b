//! What a guest may reach.
//!
//! Addresses fall into three sorts: never reachable from a guest by address (loopback, multicast…),
//! reachable only if a rule names them (private, link-local and cloud metadata…), and public.
//! A domain rule is checked when the guest asks for the name; the addresses in the answer are then
//! pinned, so that a connection is judged by the answer that the guest got.

mod address;
mod pins;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use address::{AddressSort, address_sort};
pub(crate) use pins::Pins;
pub use rule::{Cidr, DomainPattern, PortRange, Rule, RuleError, Target};

/// Where a service of the host is looked for that listens on its loopback.
pub const HOST_LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// What is open without being named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyMode {
    /// The internet; nothing private, link-local or of the host.
    #[default]
    Public,
    /// Nothing. With `host_streams` or a rule for the engine: the engine alone; with more rules: an
    /// allow-list.
    Engine,
    /// Nothing at all: rules and host ports have no effect, names are not resolved.
    None,
}

/// What a guest may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is open without being named.
    pub mode: PolicyMode,
    /// What is open beside that.
    pub allow: Vec<Rule>,
    /// Ports of the host's loopback that the guest reaches at the gateway's address.
    pub host_ports: BTreeSet<u16>,
    /// Ports at the gateway's address that lead, for TCP alone, to the first of these addresses of
    /// the host's loopback that answers. They go before `host_ports`.
    pub host_streams: BTreeMap<u16, Vec<IpAddr>>,
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP.
    Stream,
    /// UDP and ICMP.
    Datagram,
}

/// Judgement on a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A rule names it.
    Named,
    /// Allowed as a part of the internet, unless it turns out to be the host itself.
    Public,
    Denied,
}

impl Policy {
    /// Whether the guest may reach this address. The gateway's addresses are not judged here.
    pub(crate) fn judge(&self, address: IpAddr, port: u16, pins: &Pins, now: Duration) -> Verdict {
        let sort = address_sort(address);
        match (self.mode, sort) {
            (PolicyMode::None, _) | (_, AddressSort::Never) => Verdict::Denied,
            (PolicyMode::Public | PolicyMode::Engine, AddressSort::Named | AddressSort::Public) => {
                let named = self.allow.iter().any(|rule| match &rule.target {
                    Target::Network(cidr) => cidr.contains(address) && rule.ports.contains(port),
                    Target::Domain(_) => false,
                }) || pins.allows(address, port, now);
                match (named, self.mode, sort) {
                    (true, _, _) => Verdict::Named,
                    (false, PolicyMode::Public, AddressSort::Public) => Verdict::Public,
                    (false, _, _) => Verdict::Denied,
                }
            }
        }
    }

    /// Where a port of the gateway leads on the host; empty: nowhere.
    pub(crate) fn host_addresses(&self, transport: Transport, port: u16) -> Vec<IpAddr> {
        if self.mode == PolicyMode::None {
            return Vec::new();
        }
        match (transport, self.host_streams.get(&port)) {
            (Transport::Stream, Some(addresses)) => addresses.clone(),
            (Transport::Stream, None) | (Transport::Datagram, _) => {
                let open = self.host_ports.contains(&port);
                open.then_some(HOST_LOOPBACK)
                    .into_iter()
                    .flatten()
                    .collect()
            }
        }
    }

    /// The port ranges that a name opens, if it may be asked for. `name` is without its final dot.
    pub(crate) fn allows_name(&self, name: &str) -> Option<Vec<PortRange>> {
        let ports: Vec<PortRange> = self
            .allow
            .iter()
            .filter_map(|rule| match &rule.target {
                Target::Domain(pattern) if pattern.matches(name) => Some(rule.ports),
                Target::Domain(_) | Target::Network(_) => None,
            })
            .collect();
        match self.mode {
            PolicyMode::None => None,
            PolicyMode::Public => Some(ports),
            PolicyMode::Engine => (!ports.is_empty()).then_some(ports),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(policy: &Policy, address: &str, port: u16) -> Verdict {
        policy.judge(
            address.parse().unwrap(),
            port,
            &Pins::default(),
            Duration::ZERO,
        )
    }

    #[test]
    fn public_is_the_internet_alone() {
        let policy = Policy::default();
        assert_eq!(verdict(&policy, "1.1.1.1", 443), Verdict::Public);
        assert_eq!(verdict(&policy, "2606:4700::1111", 443), Verdict::Public);
        for denied in [
            "10.0.0.1",
            "169.254.169.254",
            "127.0.0.1",
            "fd00::1",
            "::1",
            "fe80::1",
        ] {
            assert_eq!(verdict(&policy, denied, 80), Verdict::Denied, "{denied}");
        }
        assert!(policy.host_addresses(Transport::Stream, 80).is_empty());
        assert_eq!(policy.allows_name("example.com"), Some(vec![]));
    }

    #[test]
    fn rules_open_what_they_name() {
        let policy = Policy {
            mode: PolicyMode::Engine,
            allow: vec![
                "10.0.0.0/8:443".parse().unwrap(),
                "*.example.com".parse().unwrap(),
            ],
            host_ports: BTreeSet::from([49134]),
            ..Policy::default()
        };
        assert_eq!(verdict(&policy, "10.2.3.4", 443), Verdict::Named);
        assert_eq!(verdict(&policy, "10.2.3.4", 80), Verdict::Denied);
        assert_eq!(verdict(&policy, "1.1.1.1", 443), Verdict::Denied);
        assert_eq!(
            policy.host_addresses(Transport::Datagram, 49134),
            HOST_LOOPBACK
        );
        assert!(policy.allows_name("www.example.com").is_some());
        assert!(policy.allows_name("example.org").is_none());
    }

    #[test]
    fn no_rule_opens_the_hosts_loopback() {
        let policy = Policy {
            allow: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ..Policy::default()
        };
        for denied in [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert_eq!(verdict(&policy, denied, 80), Verdict::Denied, "{denied}");
        }
        assert_eq!(verdict(&policy, "192.168.1.1", 80), Verdict::Named);
    }

    #[test]
    fn none_ignores_everything_named() {
        let policy = Policy {
            mode: PolicyMode::None,
            allow: vec!["0.0.0.0/0".parse().unwrap(), "example.com".parse().unwrap()],
            host_ports: BTreeSet::from([80]),
            host_streams: BTreeMap::from([(80, HOST_LOOPBACK.to_vec())]),
        };
        assert_eq!(verdict(&policy, "1.1.1.1", 80), Verdict::Denied);
        assert!(policy.host_addresses(Transport::Stream, 80).is_empty());
        assert_eq!(policy.allows_name("example.com"), None);
    }

    #[test]
    fn a_stream_to_the_host_is_one_port_and_address_and_no_datagram() {
        let engine: IpAddr = "127.0.0.2".parse().unwrap();
        let policy = Policy {
            mode: PolicyMode::Engine,
            host_streams: BTreeMap::from([(49134, vec![engine])]),
            ..Policy::default()
        };
        assert_eq!(policy.host_addresses(Transport::Stream, 49134), [engine]);
        assert!(policy.host_addresses(Transport::Stream, 49135).is_empty());
        assert!(policy.host_addresses(Transport::Datagram, 49134).is_empty());
    }
}
