//! Hostile frames: the loop survives them and serves the next honest connection.

use iii_net::config::{GATEWAY_MAC, GUEST_MAC};
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
        cases: 2000,
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
