//! What the guest must not reach.

use std::net::SocketAddr;

use iii_net::{NetworkConfig, Policy, PolicyMode};
use smoltcp::socket::tcp::State;

use crate::guest::{World, config_with_host_ports, gateway};
use crate::servers::{echo, serve};

/// Tries to connect and waits until the policy has spoken.
pub(crate) fn is_denied(world: &mut World, remote: SocketAddr) -> bool {
    let before = world.net.stats();
    let connection = world.guest.connect(remote);
    let denied = world.guest.run("a verdict", |guest| {
        let stats = world.net.stats();
        let connected = guest.tcp(connection).state() == State::Established;
        let tried = stats.refused.connect > before.refused.connect;
        let denied = stats.refused.policy > before.refused.policy;
        (connected || denied || tried).then_some(denied)
    });
    world.guest.remove(connection);
    denied
}

#[test]
fn nothing_private_is_reached_by_default() {
    let server = serve(echo);
    let mut world = World::new(NetworkConfig::default());
    for remote in [
        "10.0.0.1:80",
        "172.16.0.1:80",
        "192.168.1.1:80",
        "169.254.169.254:80",
        "168.63.129.16:80",
        "100.64.0.1:80",
        "100.96.0.3:80",
        "198.18.0.1:80",
        "[fd00::1]:80",
        "[fe80::1]:80",
        "[::ffff:10.0.0.1]:80",
        "[64:ff9b::10.0.0.1]:80",
    ] {
        assert!(is_denied(&mut world, remote.parse().unwrap()), "{remote}");
    }
    // A port of the host that is open but not named.
    assert!(is_denied(&mut world, gateway(server.port())));
}

#[test]
fn the_hosts_own_addresses_are_not_the_internet() {
    // Whatever address the host uses to reach the internet.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("1.1.1.1:9").is_err() {
        return;
    }
    let own = probe.local_addr().unwrap().ip();
    let mut world = World::new(NetworkConfig::default());
    assert!(is_denied(&mut world, (own, 80).into()));
}

#[test]
fn engine_is_the_named_ports_alone() {
    let server = serve(echo);
    let mut config = config_with_host_ports(&[server.port()]);
    config.policy.mode = PolicyMode::Engine;
    let mut world = World::new(config);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    assert!(is_denied(&mut world, "1.1.1.1:443".parse().unwrap()));
    assert!(is_denied(
        &mut world,
        "[2606:4700::1111]:443".parse().unwrap()
    ));
}

#[test]
fn none_is_nothing() {
    let server = serve(echo);
    let mut config = config_with_host_ports(&[server.port()]);
    config.policy.mode = PolicyMode::None;
    config.policy.allow = vec!["0.0.0.0/0".parse().unwrap()];
    let mut world = World::new(config);
    assert!(is_denied(&mut world, gateway(server.port())));
    assert!(is_denied(&mut world, "1.1.1.1:443".parse().unwrap()));
}

#[test]
fn a_rule_opens_one_address_and_port() {
    let mut world = World::new(NetworkConfig {
        policy: Policy {
            allow: vec!["10.255.255.1:81".parse().unwrap()],
            ..Policy::default()
        },
        connect_deadline: std::time::Duration::from_millis(200),
        ..NetworkConfig::default()
    });
    assert!(is_denied(&mut world, "10.255.255.1:80".parse().unwrap()));
    assert!(!is_denied(&mut world, "10.255.255.1:81".parse().unwrap()));
}

#[test]
fn a_denied_datagram_is_counted() {
    let mut world = World::new(NetworkConfig::default());
    let socket = world.guest.udp_socket();
    let remote: SocketAddr = "169.254.169.254:53".parse().unwrap();
    world.guest.udp(socket).send_slice(b"x", remote).unwrap();
    world.guest.run("the refusal", |_| {
        (world.net.stats().refused.policy == 1).then_some(())
    });
    assert_eq!(world.net.stats().traffic.datagram_flows, 0);
}
