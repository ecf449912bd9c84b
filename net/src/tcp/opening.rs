//! How connections begin: the guest's by a held SYN, a published port's by a client.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::FlowKey;
use super::budget::Grant;
use super::flow::{Held, HeldSyn, Open, Peer, Stage};
use super::host::HostStream;
use super::relay::HostRelay;
use super::stack::StackSocket;
use super::table::TcpTable;
use super::timers::TimerSlot;
use crate::destination::{Destination, resolve};
use crate::dns::DnsStream;
use crate::gateway::{Env, Token};
use crate::policy::Transport;
use crate::refusal::Refused;
use crate::wire::{IpPacket, Segment, Unreachable};

/// Clients taken from a listener at once, so that a connect storm leaves time for the connections
/// that exist.
const ACCEPTS: usize = 64;
/// Local ports of published connections. They are used in turn, so that one is not used again
/// while the guest may still have its last connection in TIME-WAIT.
pub(super) const FIRST_PORT: u16 = 1024;

impl TcpTable {
    /// The guest opens a connection.
    pub(super) fn open(
        &mut self,
        env: &mut Env,
        key: FlowKey,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
        now: Duration,
    ) {
        let destinations = match resolve(env, Transport::Stream, key.remote, now) {
            Destination::Host(destinations) => Some(destinations),
            Destination::Dns => None,
            Destination::Closed => {
                env.stats().refused.policy.add(1);
                let wanted = Refused::HostPort(key.remote.port());
                env.stats().notices.add(wanted);
                env.writer.tcp_reset(&mut env.transmitter, packet, segment);
                return;
            }
            Destination::Prohibited => {
                env.stats().refused.policy.add(1);
                env.stats().notices.add(Refused::Connection(key.remote));
                let reason = Unreachable::Prohibited;
                env.writer
                    .unreachable(&mut env.transmitter, reason, packet.bytes);
                return;
            }
        };
        let over_cap = self.flows.len() >= self.limits.max_connections
            || self.held >= self.limits.max_held_syns
            || self.budget.is_exhausted();
        if over_cap {
            if env.stats().refused.capacity.count() {
                tracing::warn!("the guest has reached a cap on its connections");
            }
            env.writer.tcp_reset(&mut env.transmitter, packet, segment);
            return;
        }
        let syn = HeldSyn::new(key, packet, segment);
        let id = self.next_id();
        match destinations {
            None => {
                if let Some(grant) = self.budget.grant() {
                    self.answer_syn(env, id, &syn, Peer::Dns(DnsStream::default()), grant, now);
                }
            }
            Some(destinations) => match connect(env, id, destinations) {
                Ok((stream, alternates)) => {
                    let deadline = now + self.limits.connect_deadline;
                    let mut timer = TimerSlot::default();
                    self.timers.set(&mut timer, id, Some(deadline));
                    self.held += 1;
                    let held = Held {
                        syn,
                        stream,
                        alternates,
                    };
                    self.insert(env, id, key, timer, Stage::Held(held));
                }
                Err(error) => refuse(env, &syn, &error),
            },
        }
    }

    /// Gives a held SYN to a socket made for it.
    fn answer_syn(
        &mut self,
        env: &mut Env,
        id: u64,
        syn: &HeldSyn,
        peer: Peer,
        grant: Grant,
        now: Duration,
    ) {
        let packet = syn.packet();
        let Ok(segment) = Segment::parse(packet.payload) else {
            return;
        };
        let key = FlowKey {
            guest: (packet.source, segment.source_port).into(),
            remote: (packet.destination, segment.destination_port).into(),
        };
        let mut socket = match StackSocket::listen(grant, key.remote) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "failed to listen for a held connection");
                env.writer
                    .tcp_reset(&mut env.transmitter, &packet, &segment);
                return;
            }
        };
        self.stack.ingress(
            &mut socket,
            packet.bytes,
            &mut env.transmitter,
            &env.writer,
            now,
        );
        let open = Open::new(socket, peer, now, self.limits.connect_deadline);
        let stage = Stage::Open(Box::new(open));
        self.insert(env, id, key, TimerSlot::default(), stage);
        self.mark(id);
    }

    pub(super) fn connected(&mut self, env: &mut Env, id: u64, now: Duration) {
        let Some(Stage::Held(held)) = self.take(id).map(|flow| flow.stage) else {
            return;
        };
        match self.budget.grant() {
            Some(grant) => {
                let peer = Peer::Host(HostRelay::new(held.stream));
                self.answer_syn(env, id, &held.syn, peer, grant, now);
            }
            None => {
                env.stats().refused.capacity.add(1);
                reset(env, &held.syn);
            }
        }
        self.gauge(env);
    }

    pub(super) fn try_alternate(&mut self, env: &mut Env, id: u64, error: io::Error) {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        let error = match self.flows.get_mut(&id).map(|flow| &mut flow.stage) {
            Some(Stage::Held(held)) if refused && !held.alternates.is_empty() => {
                match connect(env, id, std::mem::take(&mut held.alternates)) {
                    Ok((stream, alternates)) => {
                        held.stream = stream;
                        held.alternates = alternates;
                        return;
                    }
                    // A host without IPv6 has still refused on IPv4.
                    Err(_) => error,
                }
            }
            Some(Stage::Held(_) | Stage::Open(_)) | None => error,
        };
        if let Some(Stage::Held(held)) = self.take(id).map(|flow| flow.stage) {
            refuse(env, &held.syn, &error);
        }
        self.gauge(env);
    }

    /// Clients wait at a published port.
    pub(crate) fn listener_event(&mut self, env: &mut Env, index: u64, now: Duration) {
        let Some(guest_port) = self.listeners.guest_port(index) else {
            return;
        };
        for _ in 0..ACCEPTS {
            if !self.may_accept() {
                break;
            }
            let Some(client) = self.listeners.accept(index, env, now) else {
                break;
            };
            self.publish(env, client, guest_port, now);
        }
        self.listeners.watch(env, self.may_accept(), now);
    }

    /// Connects a client to the guest. Where that fails, dropping the stream resets it.
    fn publish(&mut self, env: &mut Env, client: TcpStream, guest_port: u16, now: Duration) {
        let id = self.next_id();
        let stream = HostStream::accepted(client).and_then(|stream| {
            stream.watch(env, Token::Tcp(id))?;
            Ok(stream)
        });
        let (Ok(stream), Some(grant), Some(key)) =
            (stream, self.budget.grant(), self.free_key(env, guest_port))
        else {
            env.stats().refused.host_resources.add(1);
            return;
        };
        match self.stack.connect(grant, key.remote, key.guest) {
            Ok(socket) => {
                let peer = Peer::Host(HostRelay::new(stream));
                let open = Open::new(socket, peer, now, self.limits.connect_deadline);
                let stage = Stage::Open(Box::new(open));
                self.insert(env, id, key, TimerSlot::default(), stage);
                self.mark(id);
            }
            Err(error) => tracing::error!(%error, "failed to connect to the guest"),
        }
    }

    fn free_key(&mut self, env: &Env, guest_port: u16) -> Option<FlowKey> {
        let gateway = IpAddr::V4(env.link.gateway_v4);
        let guest = SocketAddr::new(IpAddr::V4(env.link.guest_v4), guest_port);
        for _ in 0..=self.flows.len() {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let remote = SocketAddr::new(gateway, port);
            let key = FlowKey { guest, remote };
            if !self.by_key.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }
}

/// Connects to the first destination that does not fail at once.
fn connect(
    env: &Env,
    id: u64,
    destinations: Vec<SocketAddr>,
) -> io::Result<(HostStream, Vec<SocketAddr>)> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut rest = destinations.into_iter();
    while let Some(destination) = rest.next() {
        let attempt = HostStream::connect(destination).and_then(|stream| {
            stream.watch(env, Token::Tcp(id))?;
            Ok(stream)
        });
        match attempt {
            Ok(stream) => return Ok((stream, rest.collect())),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn reset(env: &mut Env, syn: &HeldSyn) {
    let packet = syn.packet();
    if let Ok(segment) = Segment::parse(packet.payload) {
        env.writer
            .tcp_reset(&mut env.transmitter, &packet, &segment);
    }
}

/// Tells the guest why its connection cannot be.
pub(super) fn refuse(env: &mut Env, syn: &HeldSyn, error: &io::Error) {
    let refused = &env.shared.stats.refused;
    let reason = match (error.raw_os_error(), error.kind()) {
        (Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM), _) => {
            if refused.host_resources.count() {
                tracing::warn!(%error, "the host has no resources left for a guest's connection");
            }
            None
        }
        (_, io::ErrorKind::NetworkUnreachable) => Some(Unreachable::Network),
        (_, io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut) => Some(Unreachable::Host),
        _ => None,
    };
    refused.connect.add(1);
    match reason {
        Some(reason) => env
            .writer
            .unreachable(&mut env.transmitter, reason, syn.packet().bytes),
        None => reset(env, syn),
    }
}
