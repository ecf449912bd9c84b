//! Datagrams and pings.

use std::net::{IpAddr, UdpSocket};
use std::thread;

use iii_net::config::{GATEWAY_IPV4, GATEWAY_IPV6};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr};

use crate::guest::{World, gateway, gateway_v6};
use crate::servers::pattern;

fn udp_echo() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    port
}

#[test]
fn datagrams_are_echoed() {
    let port = udp_echo();
    let mut world = World::with_host_ports(&[port]);
    let socket = world.guest.udp_socket();
    for remote in [gateway(port), gateway_v6(port)] {
        for length in [0, 1, 1471, 9001, 60_000] {
            let data = pattern(length, 3);
            assert_eq!(world.guest.ask(socket, remote, &data), data);
        }
    }
    assert_eq!(world.net.stats().traffic.datagram_flows, 2);
}

#[test]
fn the_idlest_mapping_gives_way() {
    let port = udp_echo();
    let mut config = crate::guest::config_with_host_ports(&[port]);
    config.max_datagram_flows = 4;
    let mut world = World::new(config);
    for _ in 0..20 {
        let socket = world.guest.udp_socket();
        assert_eq!(world.guest.ask(socket, gateway(port), b"x"), b"x");
    }
    assert_eq!(world.net.stats().traffic.datagram_flows, 4);
    assert_eq!(world.net.stats().refused.capacity, 16);
}

#[test]
fn the_gateway_answers_pings() {
    let mut world = World::with_host_ports(&[]);
    let ping = world.guest.icmp_socket(0x77);
    let checksums = ChecksumCapabilities::default();
    let data = pattern(56, 1);
    let request = Icmpv4Repr::EchoRequest {
        ident: 0x77,
        seq_no: 1,
        data: &data,
    };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
    world
        .guest
        .icmp(ping)
        .send_slice(&bytes, GATEWAY_IPV4.into())
        .unwrap();
    let (reply, from) = world.guest.run("the reply", |guest| {
        guest
            .icmp(ping)
            .recv()
            .ok()
            .map(|(bytes, from)| (bytes.to_vec(), from))
    });
    assert_eq!(IpAddr::from(from), IpAddr::V4(GATEWAY_IPV4));
    let reply = Icmpv4Packet::new_checked(&reply[..]).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&reply, &checksums).unwrap(),
        Icmpv4Repr::EchoReply {
            ident: 0x77,
            seq_no: 1,
            data: &data
        }
    );

    let request = Icmpv6Repr::EchoRequest {
        ident: 0x77,
        seq_no: 2,
        data: &data,
    };
    let mut bytes = vec![0; request.buffer_len()];
    let (own, other) = (iii_net::config::GUEST_IPV6, GATEWAY_IPV6);
    let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
    request.emit(&own, &other, &mut packet, &checksums);
    world
        .guest
        .icmp(ping)
        .send_slice(&bytes, other.into())
        .unwrap();
    let reply = world.guest.run("the reply", |guest| {
        guest
            .icmp(ping)
            .recv()
            .ok()
            .map(|(bytes, _)| bytes.to_vec())
    });
    let reply = Icmpv6Packet::new_checked(&reply[..]).unwrap();
    assert_eq!(
        Icmpv6Repr::parse(&other, &own, &reply, &checksums).unwrap(),
        Icmpv6Repr::EchoReply {
            ident: 0x77,
            seq_no: 2,
            data: &data
        }
    );
}
