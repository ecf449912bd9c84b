//! Hostile frames: the loop survives them and serves the next honest connection.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use iii_net::config::{GATEWAY_MAC, GUEST_IPV4, GUEST_MAC};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::guest::{World, gateway, wait_for};
use crate::servers::{echo, serve};

/// Frames as a guest's kernel makes them, to be spoiled.
fn honest_frames(world: &mut World, port: u16) -> Vec<Vec<u8>> {
    // Taken from a stack that talks to nobody.
    let (other, wire) = iii_net::link_pair().unwrap();
    let mut guest = crate::guest::Guest::new(wire, 65520);
    let tap = crate::guest::Guest::new(other, 65520);
    let connection = guest.connect(gateway(port));
    let socket = guest.udp_socket();
    guest
        .udp(socket)
        .send_slice(
            b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01",
            gateway(53),
        )
        .unwrap();
    guest.poll();
    // The ARP request came first; answer it by the real gateway's hand.
    let mut frames = Vec::new();
    while let Some(frame) = tap.wire.receive_frame() {
        frames.push(frame);
    }
    world.guest.wire.send_frame(&frames[0]);
    let mut reply = None;
    wait_for("the ARP reply", || {
        reply = world.guest.wire.receive_frame();
        reply.is_some()
    });
    tap.wire.send_frame(&reply.unwrap());
    guest.run("the SYN and the question", |_| {
        while let Some(frame) = tap.wire.receive_frame() {
            frames.push(frame);
        }
        (frames.len() >= 3).then_some(())
    });
    guest.remove(connection);
    frames
}

#[test]
fn arbitrary_and_spoiled_frames_do_no_harm() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let honest = honest_frames(&mut world, server.port());
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let header = [&GATEWAY_MAC[..], &GUEST_MAC[..]].concat();
    let arbitrary = (
        prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x0806), any::<u16>()],
        proptest::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(move |(ethertype, payload)| {
            let mut frame = header.clone();
            frame.extend(ethertype.to_be_bytes());
            frame.extend(payload);
            frame
        });
    let spoiled = (
        proptest::sample::select(honest),
        proptest::collection::vec((12usize..120, any::<u8>()), 0..4),
        0usize..200,
    )
        .prop_map(|(mut frame, changes, cut)| {
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut.max(60));
            frame
        });
    runner
        .run(&prop_oneof![arbitrary, spoiled], |frame| {
            world.guest.wire.send_frame(&frame);
            while world.guest.wire.receive_frame().is_some() {}
            Ok(())
        })
        .unwrap();
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    world.guest.send(connection, b"alive");
    assert_eq!(world.guest.receive(connection, 5), b"alive");
    let stats = world.net.stats();
    assert!(stats.refused.malformed > 0);
    assert!(stats.refused.spoofed > 0);
}

/// A guest's TCP by hand: what no kernel would send.
struct RawPeer {
    port: u16,
    remote: SocketAddr,
}

impl RawPeer {
    #[allow(clippy::too_many_arguments)]
    fn segment(
        &self,
        sequence: u32,
        acknowledgement: u32,
        flags: u8,
        window: u16,
        options: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let IpAddr::V4(remote) = self.remote.ip() else {
            panic!("IPv4 only");
        };
        let options_length = options.len().next_multiple_of(4);
        let total = 20 + 20 + options_length + payload.len();
        let mut frame = [&GATEWAY_MAC[..], &GUEST_MAC[..], &[8, 0]].concat();
        frame.extend([0x45, 0]);
        frame.extend((total as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(GUEST_IPV4.octets());
        frame.extend(remote.octets());
        frame.extend(self.port.to_be_bytes());
        frame.extend(self.remote.port().to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend(acknowledgement.to_be_bytes());
        frame.extend([((5 + options_length / 4) << 4) as u8, flags]);
        frame.extend(window.to_be_bytes());
        frame.extend([0, 0, 0, 0]);
        frame.extend(options);
        frame.resize(54 + options_length, 0);
        frame.extend(payload);
        frame
    }
}

/// Sequence and acknowledgement number of a TCP frame for this port.
fn numbers(frame: &[u8], port: u16) -> Option<(u32, u32, u8)> {
    let be = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let ours = frame.len() >= 54
        && frame[12..14] == [8, 0]
        && frame[23] == 6
        && frame[36..38] == port.to_be_bytes();
    ours.then(|| (be(38), be(42), frame[47]))
}

#[test]
fn segments_that_no_kernel_sends_do_no_harm() {
    let server = serve(echo);
    let world = World::with_host_ports(&[server.port()]);
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let near = || {
        prop_oneof![
            8 => -3i64..3,
            4 => -70_000i64..70_000,
            1 => any::<i32>().prop_map(i64::from),
        ]
    };
    let flags = prop_oneof![4 => Just(0x10u8), 2 => Just(0x18), 1 => Just(0x11), 1 => any::<u8>()];
    let segment = (
        near(),
        near(),
        flags,
        any::<u16>(),
        proptest::collection::vec(any::<u8>(), 0..24),
        0usize..3000,
    );
    let syn_options = prop_oneof![
        Just(vec![2, 4, 0xff, 0xff, 3, 3, 14, 1]),
        Just(vec![2, 4, 0, 0, 3, 3, 255, 1]),
        Just(vec![2, 4, 0, 1, 4, 2, 1, 1]),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let case = (
        any::<u32>(),
        syn_options,
        proptest::collection::vec(segment, 1..40),
    );
    let ports = Cell::new(1024);
    runner
        .run(&case, |(sequence, options, segments)| {
            let port = ports.replace(ports.get() + 1);
            let peer = RawPeer {
                port,
                remote: gateway(server.port()),
            };
            let wire = &world.guest.wire;
            let opened = world.net.stats().traffic.tcp_opened;
            wire.send_frame(&peer.segment(sequence, 0, 2, 1000, &options, &[]));
            let mut theirs = None;
            let mut settled = None;
            wait_for("an answer to the SYN", || {
                while let Some(frame) = wire.receive_frame() {
                    theirs = theirs.or(numbers(&frame, port));
                }
                assert!(
                    world.net.join(Duration::ZERO).is_none(),
                    "the loop has ended"
                );
                // Options that contradict themselves have no answer.
                let ticks = world.net.progress().ticks;
                if world.net.stats().traffic.tcp_opened > opened {
                    settled.get_or_insert(ticks);
                    // A round that changes nothing.
                    world.net.vm_started();
                }
                theirs.is_some() || settled.is_some_and(|settled| ticks > settled + 1)
            });
            let Some((theirs, mut ours, _)) = theirs else {
                return Ok(());
            };
            let mut acknowledged = theirs.wrapping_add(1);
            for (sequence, acknowledgement, flags, window, options, length) in segments {
                let segment = peer.segment(
                    ours.wrapping_add(sequence as u32),
                    acknowledged.wrapping_add(acknowledgement as u32),
                    flags,
                    window,
                    &options,
                    &vec![7; length],
                );
                wire.send_frame(&segment);
                while let Some(frame) = wire.receive_frame() {
                    if let Some((sequence, acknowledgement, flags)) = numbers(&frame, port)
                        && flags & 4 == 0
                    {
                        ours = acknowledgement;
                        acknowledged = sequence.wrapping_add(frame.len() as u32 - 54);
                    }
                }
            }
            // An in-window reset may have been spoiled too; what is left falls to the caps.
            wire.send_frame(&peer.segment(ours, acknowledged, 4, 0, &[], &[]));
            Ok(())
        })
        .unwrap();
    assert!(
        world.net.join(Duration::ZERO).is_none(),
        "the loop has ended"
    );
}
