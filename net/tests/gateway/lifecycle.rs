//! A loop's beginning, end, faults, and what its successor finds.

use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use iii_net::{Fault, LoopExit, NetError, NetLoop, NetworkConfig};
use nix::sys::socket::MsgFlags;

use crate::guest::{PATIENCE, World, config_with_host_ports, gateway, no_dns, wait_for};
use crate::servers::{echo, serve};

const STALL_LIMIT: Duration = Duration::from_millis(300);

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
    world.net.stop();
    assert_eq!(world.net.join(PATIENCE), Some(LoopExit::Stopped));
    let (sender, stalls) = mpsc::channel();
    let start = |name: &'static str| {
        let config = config_with_host_ports(&[server.port()]);
        let sender = sender.clone();
        NetLoop::builder(config, world.link.try_clone().unwrap(), no_dns(), name)
            .on_stall(STALL_LIMIT, move || sender.send(name).unwrap())
            .start()
            .unwrap()
    };
    world.net = start("first");
    world.net.inject(Fault::Stall);
    assert_eq!(stalls.recv_timeout(PATIENCE).unwrap(), "first");
    world.net.stop();
    assert_eq!(world.net.join(Duration::from_millis(50)), None);
    world.net.abandon();
    let next = start("next");
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    // Given up, the old thread ends by itself, and is told once.
    assert_eq!(world.net.join(PATIENCE), Some(LoopExit::Stopped));
    next.inject(Fault::Stall);
    assert_eq!(stalls.recv_timeout(PATIENCE).unwrap(), "next");
    next.abandon();
}

/// The neighbour's stall is the clock: its watch looks at both.
#[test]
fn neither_an_idle_loop_nor_one_that_has_ended_is_stalled() {
    let (sender, stalls) = mpsc::channel();
    let links: Vec<_> = (0..5).map(|_| iii_net::link_pair().unwrap()).collect();
    let start = |name: &'static str, link: usize| {
        let host = links[link].0.try_clone().unwrap();
        let sender = sender.clone();
        NetLoop::builder(NetworkConfig::default(), host, no_dns(), name)
            .on_stall(STALL_LIMIT, move || sender.send(name).unwrap())
            .start()
            .unwrap()
    };
    let (_idle, ended) = (start("idle", 0), start("ended", 1));
    ended.inject(Fault::Panic);
    assert!(matches!(ended.join(PATIENCE), Some(LoopExit::Panicked(_))));
    // Nobody will ever read it, and the handle is still there.
    nix::sys::socket::send(links[1].1.as_raw_fd(), &[0; 60], MsgFlags::empty()).unwrap();
    for (link, name) in [(2, "one"), (3, "two"), (4, "three")] {
        let net = start(name, link);
        net.inject(Fault::Stall);
        assert_eq!(stalls.recv_timeout(PATIENCE).unwrap(), name);
        net.abandon();
    }
}

#[test]
fn a_stall_callback_that_panics_harms_no_other_loop() {
    let (sender, stalls) = mpsc::channel();
    let mut links = Vec::new();
    let mut start = |callback: Box<dyn FnOnce() + Send>| {
        let (host, guest) = iii_net::link_pair().unwrap();
        links.push(guest);
        NetLoop::builder(NetworkConfig::default(), host, no_dns(), "loop")
            .on_stall(STALL_LIMIT, callback)
            .start()
            .unwrap()
    };
    let begun = sender.clone();
    let bad = start(Box::new(move || {
        begun.send("bad").unwrap();
        panic!("the owner's fault");
    }));
    bad.inject(Fault::Stall);
    assert_eq!(stalls.recv_timeout(PATIENCE).unwrap(), "bad");
    let good = start(Box::new(move || sender.send("good").unwrap()));
    good.inject(Fault::Stall);
    assert_eq!(stalls.recv_timeout(PATIENCE).unwrap(), "good");
    bad.abandon();
    good.abandon();
}

#[test]
fn a_loop_at_rest_gives_its_buffers_back_and_takes_them_again() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    assert_eq!(world.net.stats().traffic.frame_bytes, 0);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    for round in 0..3 {
        let data = vec![round; 100_000];
        world.guest.send(connection, &data);
        assert_eq!(world.guest.receive(connection, data.len()), data);
        wait_for("rest", || world.net.stats().traffic.frame_bytes == 0);
    }
}

#[test]
fn a_link_without_a_vmm_does_not_spin() {
    let mut world = World::new(NetworkConfig::default());
    world.guest.poll();
    let (host, guest) = iii_net::link_pair().unwrap();
    let net = NetLoop::start(NetworkConfig::default(), host, no_dns(), "alone").unwrap();
    drop(guest);
    net.vm_started();
    wait_for("a round", || net.progress().ticks > 0);
    net.stop();
    assert_eq!(net.join(PATIENCE), Some(LoopExit::Stopped));
    assert!(net.progress().ticks < 100);
}
