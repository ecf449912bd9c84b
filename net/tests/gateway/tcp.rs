//! Connections from the guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::sync::mpsc;

use smoltcp::socket::tcp::State;

use crate::guest::{World, config_with_host_ports, gateway, gateway_v6, wait_for};
use crate::servers::{digest, echo, pattern, serve, serve_on, serve_once};

#[test]
fn bytes_are_echoed() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    for round in 0..20u8 {
        let message = [round; 100];
        world.guest.send(connection, &message);
        assert_eq!(world.guest.receive(connection, 100), message);
    }
    world.guest.tcp(connection).close();
    let (rest, orderly) = world.guest.receive_all(connection);
    assert!(rest.is_empty());
    assert!(orderly);
    wait_for("the flow's end", || {
        world.net.stats().traffic.tcp_flows == 0
    });
    assert_eq!(world.net.stats().traffic.buffer_bytes, 0);
}

#[test]
fn the_gateways_ipv6_address_serves_too() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway_v6(server.port()));
    assert!(world.guest.connected(connection));
    world.guest.send(connection, b"six");
    assert_eq!(world.guest.receive(connection, 3), b"six");
}

#[test]
fn a_service_on_ipv6_loopback_is_found_after_a_refusal() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        // A host without IPv6 has no such service.
        return;
    };
    let server = serve_on(listener, echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    world.guest.send(connection, b"hello");
    assert_eq!(world.guest.receive(connection, 5), b"hello");
}

#[test]
fn a_reply_after_the_guests_half_close_arrives_whole() {
    let reply = pattern(3 << 20, 7);
    let expected = reply.clone();
    let (server, thread) = serve_once(move |mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(&reply).unwrap();
        request
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    world.guest.send(connection, b"all I have to say");
    world.guest.tcp(connection).close();
    let (received, orderly) = world.guest.receive_all(connection);
    assert!(orderly);
    assert_eq!(digest(&received), digest(&expected));
    assert_eq!(thread.join().unwrap(), b"all I have to say");
    wait_for("the flow's end", || {
        world.net.stats().traffic.tcp_flows == 0
    });
}

#[test]
fn an_upload_after_the_hosts_half_close_arrives_whole() {
    let (server, thread) = serve_once(|mut stream| {
        stream.write_all(b"go").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut upload = Vec::new();
        stream.read_to_end(&mut upload).unwrap();
        upload
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    let (received, orderly) = world.guest.receive_all(connection);
    assert_eq!((received.as_slice(), orderly), (&b"go"[..], true));
    let upload = pattern(2 << 20, 3);
    world.guest.send(connection, &upload);
    world.guest.tcp(connection).close();
    world.guest.run("the guest's side to end", |guest| {
        matches!(
            guest.tcp(connection).state(),
            State::TimeWait | State::Closed
        )
        .then_some(())
    });
    assert_eq!(digest(&thread.join().unwrap()), digest(&upload));
}

/// The host reads nothing until the guest is stuck, and the other way round.
#[test]
fn stalled_readers_lose_nothing() {
    const SIZE: usize = 12 << 20;
    let upload = pattern(SIZE, 1);
    let download = pattern(SIZE, 2);
    let (resume, resumed) = mpsc::channel::<()>();
    let to_send = download.clone();
    let (server, thread) = serve_once(move |mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(&to_send).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        resumed.recv().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        digest(&received)
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    // The guest fills every buffer on the way and reads nothing.
    let mut sent = 0;
    let mut quiet_rounds = 0;
    world.guest.run("the upload to be stuck", |guest| {
        let socket = guest.tcp(connection);
        let before = sent;
        if socket.can_send() && sent < SIZE {
            sent += socket.send_slice(&upload[sent..]).unwrap();
        }
        let moved = sent != before || socket.send_queue() < socket.send_capacity();
        quiet_rounds = if moved { 0 } else { quiet_rounds + 1 };
        (quiet_rounds > 100).then_some(())
    });
    assert!(
        sent < SIZE,
        "the buffers on the way hold less than the upload"
    );
    resume.send(()).unwrap();
    world.guest.send(connection, &upload[sent..]);
    world.guest.tcp(connection).close();
    let (received, orderly) = world.guest.receive_all(connection);
    assert!(orderly);
    assert_eq!(digest(&received), digest(&download));
    assert_eq!(thread.join().unwrap(), digest(&upload));
}

/// The guest closes both ways while the host still has to take what it sent.
#[test]
fn bytes_on_their_way_outlive_the_guests_socket() {
    let upload = pattern(3 << 20, 9);
    let (resume, resumed) = mpsc::channel::<()>();
    let (server, thread) = serve_once(move |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        resumed.recv().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        digest(&received)
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    let (_, orderly) = world.guest.receive_all(connection);
    assert!(orderly);
    let mut sent = 0;
    world.guest.run("the upload to be in flight", |guest| {
        let socket = guest.tcp(connection);
        if socket.can_send() && sent < upload.len() {
            sent += socket.send_slice(&upload[sent..]).unwrap();
        }
        // The rest fits into the gateway's buffer.
        (sent == upload.len() || socket.send_queue() == socket.send_capacity()).then_some(())
    });
    resume.send(()).unwrap();
    world.guest.send(connection, &upload[sent..]);
    world.guest.tcp(connection).close();
    world.guest.run("the guest's side to end", |guest| {
        matches!(
            guest.tcp(connection).state(),
            State::TimeWait | State::Closed
        )
        .then_some(())
    });
    assert_eq!(thread.join().unwrap(), digest(&upload));
    wait_for("the flow's end", || {
        world.net.stats().traffic.tcp_flows == 0
    });
}

#[test]
fn a_refused_connection_is_reset() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut world = World::with_host_ports(&[port]);
    let connection = world.guest.connect(gateway(port));
    assert!(!world.guest.connected(connection));
    assert_eq!(world.net.stats().refused.connect, 1);
    assert_eq!(world.net.stats().traffic.tcp_flows, 0);
}

#[test]
fn a_reset_passes_both_ways() {
    let (sender, results) = mpsc::channel();
    let server = serve(move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == [b'r'] {
            let socket = socket2::Socket::from(stream);
            socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        } else {
            sender
                .send(stream.read(&mut byte).map_err(|error| error.kind()))
                .unwrap();
        }
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let reset_by_host = world.guest.connect(gateway(server.port()));
    world.guest.send(reset_by_host, b"r");
    let (_, orderly) = world.guest.receive_all(reset_by_host);
    assert!(!orderly);

    let reset_by_guest = world.guest.connect(gateway(server.port()));
    world.guest.send(reset_by_guest, b"g");
    world.guest.run("the byte's acknowledgement", |guest| {
        (guest.tcp(reset_by_guest).send_queue() == 0).then_some(())
    });
    world.guest.tcp(reset_by_guest).abort();
    let result = world
        .guest
        .run("the host's error", |_| results.try_recv().ok());
    assert_eq!(result, Err(std::io::ErrorKind::ConnectionReset));
}

/// What a server sent before it reset the connection is not cut off.
#[test]
fn an_answer_before_a_reset_arrives() {
    // Small enough for the kernel to have sent all of it by then.
    let answer = pattern(20_000, 5);
    let expected = answer.clone();
    let (server, thread) = serve_once(move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&answer).unwrap();
        // Closing with unread bytes resets the connection.
        drop(stream);
    });
    let mut world = World::with_host_ports(&[server.port()]);
    let connection = world.guest.connect(gateway(server.port()));
    world.guest.send(connection, &pattern(100_000, 1));
    let (received, _) = world.guest.receive_all(connection);
    thread.join().unwrap();
    assert_eq!(digest(&received), digest(&expected));
}

#[test]
fn thousands_of_connections_leave_no_descriptor() {
    let server = serve(echo);
    let mut world = World::with_host_ports(&[server.port()]);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut first = None;
    for round in 0..60 {
        let connections: Vec<_> = (0..50)
            .map(|_| world.guest.connect(gateway(server.port())))
            .collect();
        for connection in &connections {
            assert!(world.guest.connected(*connection));
            world.guest.tcp(*connection).send_slice(b"x").unwrap();
        }
        for (index, connection) in connections.into_iter().enumerate() {
            assert_eq!(world.guest.receive(connection, 1), b"x");
            if index % 2 == 0 {
                world.guest.tcp(connection).close();
                assert!(world.guest.receive_all(connection).1);
            } else {
                world.guest.tcp(connection).abort();
                world.guest.poll();
            }
            world.guest.remove(connection);
        }
        wait_for("all flows to end", || {
            world.net.stats().traffic.tcp_flows == 0
        });
        if round == 0 {
            first = Some(descriptors());
        }
    }
    assert_eq!(world.net.stats().traffic.tcp_opened, 3000);
    // Other tests of this process open some as well.
    wait_for("descriptors to be closed", || {
        descriptors() < first.unwrap() + 200
    });
}

#[test]
fn a_small_mtu_works() {
    let server = serve(echo);
    let mut config = config_with_host_ports(&[server.port()]);
    config.mtu = 1280;
    let mut world = World::new(config);
    let connection = world.guest.connect(gateway(server.port()));
    let bytes = pattern(300_000, 4);
    let mut sent = 0;
    let mut received = Vec::new();
    world.guest.run("the echo", |guest| {
        let socket = guest.tcp(connection);
        if socket.can_send() && sent < bytes.len() {
            sent += socket.send_slice(&bytes[sent..]).unwrap();
        }
        while socket.can_recv() {
            received.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
        }
        (received.len() == bytes.len()).then_some(())
    });
    assert_eq!(digest(&received), digest(&bytes));
}

#[test]
fn caps_hold_against_a_guest_that_opens_too_much() {
    let server = serve(echo);
    let mut config = config_with_host_ports(&[server.port()]);
    config.max_connections = 5;
    let mut world = World::new(config);
    let connections: Vec<_> = (0..8)
        .map(|_| world.guest.connect(gateway(server.port())))
        .collect();
    let outcomes: Vec<bool> = connections
        .iter()
        .map(|connection| world.guest.connected(*connection))
        .collect();
    assert_eq!(outcomes.iter().filter(|connected| **connected).count(), 5);
    assert_eq!(world.net.stats().refused.capacity, 3);

    let mut config = config_with_host_ports(&[server.port()]);
    config.buffer_budget = 128 << 10;
    let mut world = World::new(config);
    let connections: Vec<_> = (0..8)
        .map(|_| world.guest.connect(gateway(server.port())))
        .collect();
    let connected = connections
        .iter()
        .filter(|connection| world.guest.connected(**connection))
        .count();
    assert_eq!(connected, 4);
    assert!(world.net.stats().traffic.buffer_bytes <= 128 << 10);
}

/// A server that does not accept: the kernel's backlog is full, so the guest's SYN stays held.
#[test]
fn a_connect_without_an_answer_ends_at_its_deadline() {
    let mut config = config_with_host_ports(&[]);
    config.policy.allow = vec!["192.0.2.0/24".parse().unwrap()];
    config.connect_deadline = std::time::Duration::from_millis(300);
    let mut world = World::new(config);
    let connection = world.guest.connect((Ipv4Addr::new(192, 0, 2, 1), 9).into());
    // Where the host has no route there, the refusal comes at once; both are an end.
    world.guest.run("the refusal", |guest| {
        let _ = guest.tcp(connection).state();
        None.or((world.net.stats().refused.connect > 0).then_some(()))
    });
    assert_eq!(world.net.stats().traffic.tcp_flows, 0);
}
