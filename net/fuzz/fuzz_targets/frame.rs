//! Frames from the guest. The first byte says how much of a frame's head is put right before it is
//! read: nothing, the Ethernet header, or the source address as well. Left to chance, no frame would
//! come past the first comparison.
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
    let Some((repair, rest)) = bytes.split_first() else {
        return;
    };
    let mut frame = rest.to_vec();
    mend(&mut frame, *repair);
    if let Ok(Inbound::Ip(packet)) = parse_frame(&frame, &LINK, 65520) {
        assert!(packet.payload.len() <= packet.bytes.len() && packet.bytes.len() <= frame.len());
        let segment = Segment::parse(packet.payload);
        assert!(segment.is_err() || packet.payload.len() >= 20);
    }
});

fn mend(frame: &mut [u8], repair: u8) {
    let (ethertype, source_at): (u16, _) = match repair % 4 {
        0 => return,
        1 => (0x0806, 14 + 8),
        2 => (0x0800, 14 + 12),
        _ => (0x86dd, 14 + 8),
    };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &GATEWAY_MAC);
    put(6, &GUEST_MAC);
    put(12, &ethertype.to_be_bytes());
    if repair & 4 != 0 {
        match ethertype {
            0x0806 => {
                put(14, &[0, 1, 8, 0, 6, 4]);
                put(source_at, &GUEST_MAC);
            }
            0x0800 => put(source_at, &GUEST_IPV4.octets()),
            _ => put(source_at, &GUEST_IPV6.octets()),
        }
    }
}
