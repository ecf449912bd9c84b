//! Sorts of addresses, after IANA's special-purpose registries (RFC 6890).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How an address may become reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSort {
    /// By no rule: from the gateway it would mean the host itself, nobody, or everybody.
    Never,
    /// By a rule that names it: private, link-local, shared, reserved, cloud metadata.
    Named,
    /// A part of the internet.
    Public,
}

/// Azure's host endpoint: metadata and secrets behind an address that looks public.
const AZURE_WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Endpoints that hand out a cloud machine's credentials. Some are private or look public; none
/// may be opened by a domain name that somebody else controls.
pub(crate) fn is_cloud_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_link_local()
                || address == AZURE_WIRE_SERVER
                || matches!(address.octets(), [100, 100, 100, 200] | [192, 0, 0, 192])
        }
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.segments()[..3] == [0xfd00, 0xec2, 0]
        }
    }
}

/// Which sort an address is of.
pub fn address_sort(address: IpAddr) -> AddressSort {
    match address {
        IpAddr::V4(address) => sort_v4(address),
        IpAddr::V6(address) => sort_v6(address),
    }
}

fn sort_v4(address: Ipv4Addr) -> AddressSort {
    match address.octets() {
        [0 | 127 | 224..=239, ..] | [255, 255, 255, 255] => AddressSort::Never,
        [10 | 240..=255, ..]
        | [100, 64..=127, ..]
        | [169, 254, ..]
        | [172, 16..=31, ..]
        | [192, 168, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => AddressSort::Named,
        _ if address == AZURE_WIRE_SERVER => AddressSort::Named,
        _ => AddressSort::Public,
    }
}

fn sort_v6(address: Ipv6Addr) -> AddressSort {
    match address.segments() {
        // ::/96 holds the unspecified address, loopback, and addresses that mean IPv4 ones.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0xff00..=0xffff, ..] => AddressSort::Never,
        // NAT64 (RFC 6052): as far away as the IPv4 address within.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            sort_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        // 2001::/23 (protocol assignments, Teredo), documentation, 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => {
            AddressSort::Named
        }
        [0x2000..=0x3fff, ..] => AddressSort::Public,
        _ => AddressSort::Named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        use AddressSort::{Named, Never, Public};
        for (address, sort) in [
            ("0.1.2.3", Never),
            ("8.8.8.8", Public),
            ("9.255.255.255", Public),
            ("10.255.255.255", Named),
            ("100.63.255.255", Public),
            ("100.64.0.1", Named),
            ("100.100.100.200", Named),
            ("127.9.9.9", Never),
            ("168.63.129.16", Named),
            ("169.254.169.254", Named),
            ("172.15.0.1", Public),
            ("172.31.0.1", Named),
            ("192.0.0.192", Named),
            ("192.0.2.1", Named),
            ("198.19.0.1", Named),
            ("203.0.113.9", Named),
            ("239.1.1.1", Never),
            ("240.0.0.1", Named),
            ("::", Never),
            ("::1", Never),
            ("::ffff:10.0.0.1", Never),
            ("::127.0.0.1", Never),
            ("64:ff9b::8.8.8.8", Public),
            ("64:ff9b::10.0.0.1", Named),
            ("64:ff9b::127.0.0.1", Never),
            ("64:ff9b:1::1", Named),
            ("2001::1", Named),
            ("2001:db8::1", Named),
            ("2001:4860:4860::8888", Public),
            ("2002:a00:1::", Named),
            ("2a00::1", Public),
            ("3fff::1", Named),
            ("fd00:ec2::254", Named),
            ("fe80::1", Named),
            ("ff02::1", Never),
        ] {
            assert_eq!(address_sort(address.parse().unwrap()), sort, "{address}");
        }
    }
}
