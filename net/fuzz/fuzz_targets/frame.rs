//! Frames from the guest: `cargo +nightly fuzz run frame`.
#![no_main]

use iii_net::config::{
    GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_IPV4, GUEST_IPV6, GUEST_MAC,
};
use iii_net::wire::{Inbound, LinkAddresses, Segment, parse_frame};

const LINK: LinkAddresses = LinkAddresses {
    guest_mac: GUEST_MAC,
    gateway_mac: GATEWAY_MAC,
    guest_v4: GUEST_IPV4,
    gateway_v4: GATEWAY_IPV4,
    guest_v6: GUEST_IPV6,
    gateway_v6: GATEWAY_IPV6,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(Inbound::Ip(packet)) = parse_frame(bytes, &LINK, 65520) {
        let segment = Segment::parse(packet.payload);
        assert!(segment.is_err() || packet.payload.len() >= 20);
    }
});
