//! A loop's beginning, end, faults, and what its successor finds.

use std::io::{ErrorKind, Read};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iii_net::{Fault, Health, LoopExit, NetError, NetLoop, NetworkConfig, Watchdog};

use crate::guest::{PATIENCE, World, config_with_host_ports, gateway, no_dns, wait_for};
use crate::servers::{echo, serve};

#[test]
fn two_loops_on_one_link_are_refused() {
    let world = World::new(NetworkConfig::default());
    let again = NetLoop::start(
        NetworkConfig::default(),
        world.link.try_clone().unwrap(),
        no_dns(),
        "second",
    );
    assert!(matches!(again, Err(NetError::AlreadyRunning)));
    world.net.stop();
    assert_eq!(world.net.join(PATIENCE), Some(LoopExit::Stopped));
    NetLoop::start(NetworkConfig::default(), world.link, no_dns(), "third").unwrap();
}

#[test]
fn a_bad_configuration_is_named() {
    let (link, _guest) = iii_net::link_pair().unwrap();
    let config = NetworkConfig {
        mtu: 576,
        ..NetworkConfig::default()
    };
    let error = NetLoop::start(config, link, no_dns(), "bad").err().unwrap();
    assert_eq!(
        error.to_string(),
        "failed to start the network loop: the mtu 576 is below 1280"
    );
}

#[test]
fn a_successor_resets_old_connections_and_serves_new_ones() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let old = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(old));
    world.net.inject(Fault::Panic);
    let exit = world.net.join(PATIENCE);
    assert_eq!(
        exit,
        Some(LoopExit::Panicked("a fault was injected".to_owned()))
    );

    let config = config_with_host_ports(&[server.port()]);
    world.net = NetLoop::start(config, world.link.try_clone().unwrap(), no_dns(), "next").unwrap();
    world.guest.tcp(old).send_slice(b"still there?").unwrap();
    let (received, orderly) = world.guest.receive_all(old);
    assert!(received.is_empty());
    assert!(!orderly);
    assert!(world.net.stats().refused.unknown_flow > 0);

    let new = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(new));
    world.guest.send(new, b"new");
    assert_eq!(world.guest.receive(new, 3), b"new");
}

#[test]
fn the_exit_is_told_and_a_successor_may_start_from_it() {
    let (host, _guest) = iii_net::link_pair().unwrap();
    let kept = host.try_clone().unwrap();
    let (sender, exits) = mpsc::channel();
    let net = NetLoop::builder(NetworkConfig::default(), host, no_dns(), "told")
        .on_exit(move |exit| {
            let next = NetLoop::start(NetworkConfig::default(), kept, no_dns(), "next");
            sender.send((exit, next.is_ok())).unwrap();
        })
        .start()
        .unwrap();
    net.inject(Fault::Panic);
    let (exit, started) = exits.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(exit, LoopExit::Panicked(_)));
    assert!(started);
}

#[test]
fn the_end_of_the_vm_closes_every_host_socket_at_once() {
    let (sender, results) = mpsc::channel();
    let server = serve(move |mut stream| {
        let mut byte = [0];
        let mut result = stream.read(&mut byte);
        while matches!(result, Ok(1)) {
            result = stream.read(&mut byte);
        }
        sender.send(result.map_err(|error| error.kind())).unwrap();
    });
    let mut world = World::with_host_ports(&[server.port()]);
    for _ in 0..10 {
        let connection = world.guest.connect(gateway(server.port()));
        assert!(world.guest.connected(connection));
    }
    // The last one has said goodbye in order before its VM went.
    let polite = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(polite));
    world.guest.tcp(polite).close();
    world.guest.poll();
    world.net.vm_gone();
    let mut ended: Vec<_> = (0..11)
        .map(|_| results.recv_timeout(PATIENCE).unwrap())
        .collect();
    ended.sort_by_key(|result| result.is_ok());
    assert!(
        ended[..10]
            .iter()
            .all(|result| *result == Err(ErrorKind::ConnectionReset))
    );
    assert_eq!(ended[10], Ok(0));
    wait_for("the flows' end", || {
        world.net.stats().traffic.tcp_flows == 0
    });

    // The next VM on the same link.
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
}

#[test]
fn a_stopped_loop_resets_its_connections() {
    let (sender, results) = mpsc::channel();
    let server = serve(move |mut stream| {
        sender
            .send(stream.read(&mut [0]).map_err(|error| error.kind()))
            .unwrap();
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    world.net.stop();
    assert_eq!(world.net.join(PATIENCE), Some(LoopExit::Stopped));
    let result = results.recv_timeout(PATIENCE).unwrap();
    assert_eq!(result, Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_stalled_loop_is_noticed_and_given_up() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let mut watchdog = Watchdog::new(Duration::from_millis(300));
    assert_eq!(
        watchdog.observe(Instant::now(), &world.net),
        Health::Healthy
    );
    world.net.inject(Fault::Stall);
    wait_for("the watchdog", || {
        watchdog.observe(Instant::now(), &world.net) == Health::Stalled
    });
    world.net.stop();
    assert_eq!(world.net.join(Duration::from_millis(50)), None);
    world.net.abandon();
    let config = config_with_host_ports(&[server.port()]);
    let next = NetLoop::start(config, world.link.try_clone().unwrap(), no_dns(), "next").unwrap();
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    // Given up, the old thread ends by itself.
    assert_eq!(world.net.join(PATIENCE), Some(LoopExit::Stopped));
    drop(next);
}

#[test]
fn an_idle_loop_is_healthy() {
    let world = World::new(NetworkConfig::default());
    let mut watchdog = Watchdog::new(Duration::ZERO);
    for _ in 0..50 {
        let before = world.net.progress().ticks;
        assert_eq!(
            watchdog.judge(Instant::now(), world.net.progress()),
            Health::Healthy
        );
        world.net.nudge();
        wait_for("a round", || world.net.progress().ticks > before);
        wait_for("rest", || !world.net.progress().busy);
    }
}

#[test]
fn a_link_without_a_vmm_does_not_spin() {
    let mut world = World::new(NetworkConfig::default());
    world.guest.poll();
    let (host, guest) = iii_net::link_pair().unwrap();
    let net = NetLoop::start(NetworkConfig::default(), host, no_dns(), "alone").unwrap();
    drop(guest);
    net.nudge();
    wait_for("a round", || net.progress().ticks > 0);
    net.stop();
    assert_eq!(net.join(PATIENCE), Some(LoopExit::Stopped));
    assert!(net.progress().ticks < 100);
}
