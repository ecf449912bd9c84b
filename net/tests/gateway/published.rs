//! Connections to the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use iii_net::{NetworkConfig, PublishedPort};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use crate::guest::{Guest, PATIENCE, World, wait_for};
use crate::servers::{digest, pattern};

const GUEST_PORT: u16 = 8080;

fn published() -> (NetworkConfig, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = NetworkConfig {
        published: vec![PublishedPort {
            listener,
            guest_port: GUEST_PORT,
        }],
        ..NetworkConfig::default()
    };
    (config, address)
}

/// A small HTTP server in the guest.
struct HttpServer {
    sockets: Vec<(SocketHandle, Vec<u8>)>,
    body: Vec<u8>,
}

impl HttpServer {
    fn new(guest: &mut Guest, sockets: usize, body: Vec<u8>) -> Self {
        Self {
            sockets: (0..sockets)
                .map(|_| (guest.listen(GUEST_PORT), Vec::new()))
                .collect(),
            body,
        }
    }

    fn step(&mut self, guest: &mut Guest) {
        for (handle, input) in &mut self.sockets {
            let socket = guest.tcp(*handle);
            while socket.can_recv() {
                input.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
            }
            while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                if socket.send_capacity() - socket.send_queue() < self.body.len() + 200 {
                    break;
                }
                let request: Vec<u8> = input.drain(..end + 4).collect();
                let close = String::from_utf8_lossy(&request).contains("Connection: close");
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    self.body.len()
                );
                socket.send_slice(head.as_bytes()).unwrap();
                socket.send_slice(&self.body).unwrap();
                if close {
                    socket.close();
                }
            }
            if socket.state() == State::CloseWait {
                socket.close();
            }
            if matches!(socket.state(), State::Closed | State::TimeWait) {
                socket.abort();
                input.clear();
                guest.remove(*handle);
                *handle = guest.listen(GUEST_PORT);
            }
        }
    }
}

fn read_response(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap()
        .parse()
        .unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    body
}

fn storm(keep_alive: bool) {
    const CLIENTS: usize = 32;
    const REQUESTS: usize = 1024;
    let (config, address) = published();
    let mut world = World::new(config);
    let body = pattern(5000, 1);
    let mut server = HttpServer::new(&mut world.guest, 64, body.clone());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let body = body.clone();
            thread::spawn(move || {
                let connect = || {
                    let stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream
                };
                let mut stream = connect();
                for request in 0..REQUESTS / CLIENTS {
                    let last = if keep_alive {
                        ""
                    } else {
                        "Connection: close\r\n"
                    };
                    write!(stream, "GET /{request} HTTP/1.1\r\nHost: x\r\n{last}\r\n").unwrap();
                    assert_eq!(read_response(&mut stream), body);
                    if !keep_alive {
                        let mut rest = Vec::new();
                        assert_eq!(stream.read_to_end(&mut rest).unwrap(), 0);
                        stream = connect();
                    }
                }
            })
        })
        .collect();
    world.guest.run("all requests", |guest| {
        server.step(guest);
        clients
            .iter()
            .all(thread::JoinHandle::is_finished)
            .then_some(())
    });
    for client in clients {
        client.join().unwrap();
    }
    world.guest.run("all flows to end", |guest| {
        server.step(guest);
        (world.net.stats().traffic.tcp_flows == 0).then_some(())
    });
}

#[test]
fn a_thousand_requests_with_keep_alive() {
    storm(true);
}

#[test]
fn a_thousand_requests_with_close() {
    storm(false);
}

#[test]
fn a_large_transfer_both_ways() {
    let (config, address) = published();
    let mut world = World::new(config);
    let server = world.guest.listen(GUEST_PORT);
    let request = pattern(8 << 20, 11);
    let reply = pattern(8 << 20, 12);
    let to_send = request.clone();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&to_send).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        digest(&received)
    });
    world.guest.run("a client", |guest| {
        guest.tcp(server).is_active().then_some(())
    });
    let (received, orderly) = world.guest.receive_all(server);
    assert!(orderly);
    assert_eq!(digest(&received), digest(&request));
    world.guest.send(server, &reply);
    world.guest.tcp(server).close();
    world
        .guest
        .run("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), digest(&reply));
}

#[test]
fn a_port_that_nobody_listens_on_is_reset() {
    let (config, address) = published();
    let mut world = World::new(config);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.read(&mut [0]).map_err(|error| error.kind())
    });
    world
        .guest
        .run("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_client_waits_while_there_is_no_guest() {
    let (config, address) = published();
    let mut world = World::new(config);
    world.net.vm_gone();
    wait_for("the command", || world.net.progress().ticks > 0);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut reply = [0; 2];
        stream.read_exact(&mut reply).unwrap();
        reply
    });
    let server = world.guest.listen(GUEST_PORT);
    world.net.vm_started();
    assert_eq!(world.guest.receive(server, 5), b"hello");
    world.guest.send(server, b"ok");
    world
        .guest
        .run("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(&client.join().unwrap(), b"ok");
}

/// The cap on connections keeps clients in the backlog; none is lost.
#[test]
fn clients_over_the_cap_are_served_in_turn() {
    let (mut config, address) = published();
    config.max_connections = 4;
    let mut world = World::new(config);
    let mut server = HttpServer::new(&mut world.guest, 8, pattern(100, 1));
    let clients: Vec<_> = (0..40)
        .map(|_| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream
                    .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                    .unwrap();
                read_response(&mut stream).len()
            })
        })
        .collect();
    world.guest.run("all requests", |guest| {
        server.step(guest);
        clients
            .iter()
            .all(thread::JoinHandle::is_finished)
            .then_some(())
    });
    for client in clients {
        assert_eq!(client.join().unwrap(), 100);
    }
}
