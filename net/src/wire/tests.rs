//! Frames against golden bytes, against another implementation, and against noise.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, Ipv4Packet, Ipv4Repr, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};

use super::*;
use crate::config;
use crate::link::{Transmitter, link_pair};
use crate::stats::LiveStats;

const LINK: LinkAddresses = LinkAddresses {
    guest_mac: config::GUEST_MAC,
    gateway_mac: config::GATEWAY_MAC,
    guest_v4: config::GUEST_IPV4,
    gateway_v4: config::GATEWAY_IPV4,
    guest_v6: config::GUEST_IPV6,
    gateway_v6: config::GATEWAY_IPV6,
};

/// The one frame that `write` makes.
fn frame(write: impl FnOnce(&FrameWriter, &mut Transmitter)) -> Vec<u8> {
    let mut transmitter = Transmitter::default();
    write(&FrameWriter::new(LINK), &mut transmitter);
    let (host, guest) = link_pair().unwrap();
    transmitter.flush(&host, &LiveStats::default()).unwrap();
    let mut bytes = vec![0; 65536];
    let length = recv(guest.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).unwrap();
    bytes.truncate(length);
    bytes
}

/// The same, as if the guest had sent it.
fn reversed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&LINK.gateway_mac);
    frame[6..12].copy_from_slice(&LINK.guest_mac);
    frame
}

fn gateway(port: u16) -> SocketAddr {
    (IpAddr::V4(LINK.gateway_v4), port).into()
}

fn guest(port: u16) -> SocketAddr {
    (IpAddr::V4(LINK.guest_v4), port).into()
}

#[test]
fn golden_arp() {
    let request = [
        &[0xff; 6][..],
        &LINK.guest_mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &LINK.guest_mac,
        &[100, 96, 0, 2],
        &[0; 6],
        &[100, 96, 0, 1],
    ]
    .concat();
    assert_eq!(parse_frame(&request, &LINK, 1500), Ok(Inbound::ArpRequest));
    let reply = [
        &LINK.guest_mac[..],
        &LINK.gateway_mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
        &LINK.gateway_mac,
        &[100, 96, 0, 1],
        &LINK.guest_mac,
        &[100, 96, 0, 2],
    ]
    .concat();
    assert_eq!(frame(|writer, to| writer.arp_reply(to)), reply);
    // The gateway does not answer for others, whatever smoltcp would do.
    let mut other = request.clone();
    other[41] = 3;
    assert_eq!(parse_frame(&other, &LINK, 1500), Err(Reject::Noise));
    let mut forged = request;
    forged[31] = 9;
    assert_eq!(parse_frame(&forged, &LINK, 1500), Err(Reject::Spoofed));
}

#[test]
fn golden_udp() {
    let bytes = frame(|writer, to| writer.udp(to, gateway(53), guest(4660), b"hi!"));
    let expected = [
        &LINK.guest_mac[..],
        &LINK.gateway_mac,
        &[8, 0],
        &[0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x72, 0x0b],
        &[100, 96, 0, 1, 100, 96, 0, 2],
        &[0, 53, 0x12, 0x34, 0, 11, 0x9b, 0x42],
        b"hi!",
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn neighbour_advertisements_are_sound() {
    let to = "fe80::2".parse().unwrap();
    let bytes = frame(|writer, transmitter| writer.neighbor_advertisement(transmitter, to));
    let packet = Ipv6Packet::new_checked(&bytes[14..]).unwrap();
    assert_eq!((packet.hop_limit(), packet.dst_addr()), (255, to));
    let body = packet.payload();
    assert_eq!(body[0], icmp::V6_NEIGHBOR_ADVERTISEMENT);
    assert_eq!(body[8..24], LINK.gateway_v6.octets());
    assert_eq!(body[26..32], LINK.gateway_mac);
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    let sum = checksum::Checksum::pseudo_header(source, destination, protocol::ICMPV6, 32);
    assert_eq!(sum.add(body).finish(), 0);
}

#[test]
fn resets_answer_what_they_reset() {
    let segment = |flags: u8| {
        let mut bytes = vec![0; 20];
        bytes[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        bytes[4..8].copy_from_slice(&1000u32.to_be_bytes());
        bytes[8..12].copy_from_slice(&2000u32.to_be_bytes());
        bytes[12] = 0x50;
        bytes[13] = flags;
        bytes.extend(b"data");
        bytes
    };
    let reset = |bytes: &[u8]| {
        let packet = IpPacket {
            bytes,
            source: guest(1).ip(),
            destination: gateway(1).ip(),
            protocol: protocol::TCP,
            payload: bytes,
        };
        let segment = Segment::parse(bytes).unwrap();
        let frame = frame(|writer, to| writer.tcp_reset(to, &packet, &segment));
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        let repr = TcpRepr::parse(
            &TcpPacket::new_checked(packet.payload()).unwrap(),
            &IpAddress::Ipv4(packet.src_addr()),
            &IpAddress::Ipv4(packet.dst_addr()),
            &ChecksumCapabilities::default(),
        )
        .unwrap();
        assert_eq!((repr.src_port, repr.dst_port), (80, 0x1234));
        assert_eq!(repr.control, TcpControl::Rst);
        (repr.seq_number.0, repr.ack_number.map(|number| number.0))
    };
    assert_eq!(reset(&segment(flags::SYN)), (0, Some(1005)));
    assert_eq!(reset(&segment(flags::ACK)), (2000, None));
    assert_eq!(reset(&segment(flags::ACK | flags::FIN)), (2000, None));
}

#[test]
fn unreachables_quote_the_packet() {
    let bytes = frame(|writer, to| writer.udp(to, guest(1), gateway(2), &[7; 2000]));
    let packet = &bytes[14..];
    let error = frame(|writer, to| writer.unreachable(to, Unreachable::Prohibited, packet));
    let error = Ipv4Packet::new_checked(&error[14..]).unwrap();
    assert!(error.verify_checksum());
    assert_eq!(error.payload()[..2], [3, 13]);
    assert_eq!(
        checksum::Checksum::default().add(error.payload()).finish(),
        0
    );
    assert_eq!(error.payload()[8..], packet[..512]);
}

#[test]
fn hostile_lengths_and_sources() {
    let good = reversed(frame(|writer, to| {
        writer.udp(to, guest(1), gateway(2), b"x")
    }));
    let parsed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        parse_frame(&bytes, &LINK, 1500).map(|_| ())
    };
    assert_eq!(parsed(&|_| ()), Ok(()));
    // The frame's padding is not a part of the packet.
    assert_eq!(parsed(&|bytes| bytes.resize(60, 0)), Ok(()));
    assert_eq!(parsed(&|bytes| bytes.truncate(13)), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes.truncate(40)), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes[14] = 0x44), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes[14] = 0x65), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes[17] = 19), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes[16] = 0xff), Err(Reject::Malformed));
    assert_eq!(parsed(&|bytes| bytes[29] = 3), Err(Reject::Spoofed));
    assert_eq!(parsed(&|bytes| bytes[11] = 3), Err(Reject::Spoofed));
    assert_eq!(parsed(&|bytes| bytes[0] = 2 | 4), Err(Reject::Unsupported));
    assert_eq!(parsed(&|bytes| bytes[20] = 0x20), Err(Reject::Fragment));
    assert_eq!(parsed(&|bytes| bytes[21] = 1), Err(Reject::Fragment));
    assert_eq!(parsed(&|bytes| bytes[12] = 9), Err(Reject::Unsupported));
    let large = reversed(frame(|writer, to| {
        writer.udp(to, guest(1), gateway(2), &[0; 1473]);
    }));
    assert_eq!(parse_frame(&large, &LINK, 1500), Err(Reject::Fragment));
}

proptest! {
    #[test]
    fn udp_is_what_another_stack_reads(
        data in proptest::collection::vec(any::<u8>(), 0..2000),
        source in 1u16..,
        destination in 1u16..,
    ) {
        let bytes = frame(|writer, to| writer.udp(to, gateway(source), guest(destination), &data));
        let packet = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
        let checksums = ChecksumCapabilities::default();
        prop_assert!(Ipv4Repr::parse(&packet, &checksums).is_ok());
        let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        let repr = UdpRepr::parse(&datagram, &from, &to, &checksums).unwrap();
        prop_assert_eq!((repr.src_port, repr.dst_port), (source, destination));
        prop_assert_eq!(datagram.payload(), &data[..]);
    }

    #[test]
    fn arbitrary_frames_never_panic(
        ethertype in prop_oneof![Just([8u8, 0]), Just([8, 6]), Just([0x86, 0xdd]), any::<[u8; 2]>()],
        rest in proptest::collection::vec(any::<u8>(), 0..200),
        addressed: bool,
    ) {
        let mut bytes = [&LINK.gateway_mac[..], &LINK.guest_mac, &ethertype, &rest].concat();
        if addressed {
            // Past the source checks.
            if let Some(source) = bytes.get_mut(26..30) {
                source.copy_from_slice(&LINK.guest_v4.octets());
            }
            if let Some(first) = bytes.get_mut(14) {
                *first = if ethertype == [8, 0] { 0x45 } else { 0x60 };
            }
        }
        if let Ok(Inbound::Ip(packet)) = parse_frame(&bytes, &LINK, 1500) {
            prop_assert!(packet.payload.len() < packet.bytes.len());
            if let Ok(segment) = Segment::parse(packet.payload) {
                prop_assert_eq!(segment.header_length + segment.payload.len(), packet.payload.len());
            }
            if let Ok((_, _, data)) = parse_udp(packet.payload) {
                prop_assert!(data.len() + 8 <= packet.payload.len());
            }
            if let Ok(echo) = parse_echo(&packet) {
                prop_assert_eq!(echo.rest.len() + 6, packet.payload.len());
            }
        }
    }
}
