//! Addresses that a domain rule has opened: those in the DNS answers that the guest was given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::address::{AddressSort, address_sort, is_cloud_metadata};
use super::rule::PortRange;

/// Most pinned addresses; the one that would expire first gives way. Stops a guest that asks for
/// ever new names below an allowed domain from eating memory.
const LIMIT: usize = 4096;
/// Programs keep addresses longer than their time to live.
const MIN_LIFETIME: Duration = Duration::from_secs(300);
/// A name's owner may say a week; a restart of the program asks again.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct Pin {
    ports: Vec<PortRange>,
    expires: Duration,
}

/// Addresses opened by DNS answers.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    by_address: HashMap<IpAddr, Pin>,
}

impl Pins {
    /// Opens an address. One that is never reachable stays so: the owner of an allowed domain must
    /// not be able to point it at the host, nor at a cloud's metadata.
    pub(crate) fn pin(&mut self, address: IpAddr, ports: &[PortRange], ttl: u32, now: Duration) {
        if ports.is_empty()
            || is_cloud_metadata(address)
            || address_sort(address) == AddressSort::Never
        {
            return;
        }
        if self.by_address.len() >= LIMIT && !self.by_address.contains_key(&address) {
            self.make_room(now);
        }
        let lifetime = Duration::from_secs(u64::from(ttl)).clamp(MIN_LIFETIME, MAX_LIFETIME);
        let pin = self.by_address.entry(address).or_insert(Pin {
            ports: Vec::new(),
            expires: Duration::ZERO,
        });
        pin.expires = pin.expires.max(now + lifetime);
        for range in ports {
            if !pin.ports.contains(range) {
                pin.ports.push(*range);
            }
        }
    }

    pub(crate) fn allows(&self, address: IpAddr, port: u16, now: Duration) -> bool {
        self.by_address.get(&address).is_some_and(|pin| {
            now < pin.expires && pin.ports.iter().any(|range| range.contains(port))
        })
    }

    fn make_room(&mut self, now: Duration) {
        self.by_address.retain(|_, pin| now < pin.expires);
        if self.by_address.len() >= LIMIT {
            let first = self
                .by_address
                .iter()
                .min_by_key(|(_, pin)| pin.expires)
                .map(|(address, _)| *address);
            if let Some(address) = first {
                self.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_expire_and_are_bounded() {
        let mut pins = Pins::default();
        let https = [PortRange::new(443, 443).unwrap()];
        let address: IpAddr = "10.1.1.1".parse().unwrap();
        pins.pin(address, &https, 3600, Duration::ZERO);
        assert!(pins.allows(address, 443, Duration::from_secs(3599)));
        assert!(!pins.allows(address, 80, Duration::ZERO));
        assert!(!pins.allows(address, 443, Duration::from_secs(3600)));
        for number in 0..2 * LIMIT as u32 {
            pins.pin(
                IpAddr::V4((0x0b00_0000 + number).into()),
                &https,
                1,
                Duration::ZERO,
            );
        }
        assert_eq!(pins.by_address.len(), LIMIT);
    }

    #[test]
    fn an_answer_cannot_open_the_host_or_metadata() {
        let mut pins = Pins::default();
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "fd00:ec2::254",
            "::1",
            "fe80::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            pins.pin(address, &[PortRange::ALL], 60, Duration::ZERO);
            assert!(!pins.allows(address, 80, Duration::ZERO), "{address}");
        }
    }
}
