//! All TCP connections of a guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::FlowKey;
use super::budget::{Budget, Grant};
use super::flow::{Flow, Held, HeldSyn, Open, Outcome, Peer, Stage};
use super::host::HostStream;
use super::listener::Listeners;
use super::relay::HostRelay;
use super::stack::{Stack, StackSocket};
use super::timers::{TimerSlot, Timers};
use crate::config::PublishedPort;
use crate::destination::{Destination, resolve};
use crate::dns::{DnsFrontend, DnsStream};
use crate::error::NetError;
use crate::gateway::{Env, Token};
use crate::wire::{IpPacket, Segment, Unreachable};

/// Clients taken from a listener at once, so that a connect storm leaves time for the connections
/// that exist.
const ACCEPTS: usize = 64;
/// Local ports of published connections. They are used in turn, so that one is not used again
/// while the guest may still have its last connection in TIME-WAIT.
const FIRST_PORT: u16 = 1024;

/// See [`crate::NetworkConfig`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpLimits {
    pub(crate) buffer_budget: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_held_syns: usize,
    pub(crate) connect_deadline: Duration,
}

/// All TCP connections of a guest.
pub(crate) struct TcpTable {
    stack: Stack,
    budget: Budget,
    limits: TcpLimits,
    flows: HashMap<u64, Flow>,
    by_key: HashMap<FlowKey, u64>,
    /// Ids are never used twice, so an event of a closed socket finds nobody.
    next_id: u64,
    held: usize,
    dirty: Vec<u64>,
    timers: Timers,
    listeners: Listeners,
    next_port: u16,
    guest_present: bool,
}

impl TcpTable {
    pub(crate) fn new(
        mtu: u16,
        seed: u64,
        published: Vec<PublishedPort>,
        env: &Env,
        limits: TcpLimits,
    ) -> Result<Self, NetError> {
        Ok(Self {
            stack: Stack::new(mtu, seed, &env.writer),
            budget: Budget::new(limits.buffer_budget),
            limits,
            flows: HashMap::new(),
            by_key: HashMap::new(),
            next_id: 0,
            held: 0,
            dirty: Vec::new(),
            timers: Timers::default(),
            listeners: Listeners::new(published, env)?,
            next_port: FIRST_PORT,
            guest_present: true,
        })
    }

    /// A segment from the guest.
    pub(crate) fn segment(
        &mut self,
        env: &mut Env,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
        now: Duration,
    ) {
        let key = FlowKey {
            guest: (packet.source, segment.source_port).into(),
            remote: (packet.destination, segment.destination_port).into(),
        };
        let Some(id) = self.by_key.get(&key).copied() else {
            if segment.is_initial_syn() {
                self.open(env, key, packet, segment, now);
            } else if !segment.is_reset() {
                env.stats().refused.unknown_flow.add(1);
                env.writer.tcp_reset(&mut env.transmitter, packet, segment);
            }
            return;
        };
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        match &mut flow.stage {
            Stage::Open(open) => {
                self.stack.ingress(
                    &mut open.socket,
                    packet.bytes,
                    &mut env.transmitter,
                    &env.writer,
                    now,
                );
                self.mark(id);
            }
            Stage::Held(_) if segment.is_reset() => self.remove(env, id),
            Stage::Held(held) if segment.is_initial_syn() => {
                // A repetition is dropped. Another sequence number is another attempt: the guest
                // has given up the first one.
                if segment.sequence != held.syn.sequence {
                    held.syn = HeldSyn::new(key, packet, segment);
                }
            }
            // Nothing else can follow a SYN that was not answered.
            Stage::Held(_) => env.writer.tcp_reset(&mut env.transmitter, packet, segment),
        }
    }

    /// The guest opens a connection.
    fn open(
        &mut self,
        env: &mut Env,
        key: FlowKey,
        packet: &IpPacket<'_>,
        segment: &Segment<'_>,
        now: Duration,
    ) {
        let destinations = match resolve(env, key.remote, now) {
            Destination::Host(destinations) => Some(destinations),
            Destination::Dns => None,
            Destination::Closed => {
                env.stats().refused.policy.add(1);
                env.writer.tcp_reset(&mut env.transmitter, packet, segment);
                return;
            }
            Destination::Prohibited => {
                if env.stats().refused.policy.count() {
                    tracing::info!(destination = %key.remote, "the policy refuses a connection");
                }
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
                        deadline,
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

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn insert(&mut self, env: &Env, id: u64, key: FlowKey, timer: TimerSlot, stage: Stage) {
        if let Stage::Open(_) = stage {
            env.stats().traffic.tcp_opened.add(1);
        }
        self.by_key.insert(key, id);
        let flow = Flow {
            key,
            timer,
            dirty: false,
            stage,
        };
        self.flows.insert(id, flow);
    }

    /// Ends a flow and returns it.
    fn take(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        if self.by_key.get(&flow.key) == Some(&id) {
            self.by_key.remove(&flow.key);
        }
        if let Stage::Held(_) = flow.stage {
            self.held -= 1;
        }
        Some(flow)
    }

    fn remove(&mut self, env: &Env, id: u64) {
        match self.take(id).map(|flow| flow.stage) {
            Some(Stage::Open(open)) => open.close(),
            Some(Stage::Held(held)) => drop(held),
            None => {}
        }
        self.gauge(env);
    }

    fn gauge(&self, env: &Env) {
        let traffic = &env.stats().traffic;
        traffic.tcp_flows.set(self.flows.len() as u64);
        traffic.buffer_bytes.set(self.budget.used() as u64);
    }

    fn mark(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Something has changed at a host socket.
    pub(crate) fn host_event(&mut self, env: &mut Env, id: u64, events: EpollFlags, now: Duration) {
        match self.flows.get_mut(&id).map(|flow| &mut flow.stage) {
            Some(Stage::Open(open)) => {
                if let Peer::Host(relay) = &mut open.peer {
                    relay.event(events);
                }
                self.mark(id);
            }
            Some(Stage::Held(held)) => match held.stream.outcome() {
                None => {}
                Some(Ok(())) => self.connected(env, id, now),
                Some(Err(error)) => self.try_alternate(env, id, error),
            },
            None => {}
        }
    }

    fn connected(&mut self, env: &mut Env, id: u64, now: Duration) {
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

    fn try_alternate(&mut self, env: &mut Env, id: u64, error: io::Error) {
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

    fn may_accept(&self) -> bool {
        self.guest_present
            && self.flows.len() < self.limits.max_connections
            && !self.budget.is_exhausted()
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

    /// An answer for a DNS connection.
    pub(crate) fn dns_answer(&mut self, id: u64, answer: &[u8]) {
        if let Some(Stage::Open(open)) = self.flows.get_mut(&id).map(|flow| &mut flow.stage)
            && let Peer::Dns(stream) = &mut open.peer
        {
            stream.answered(answer);
            self.mark(id);
        }
    }

    /// Wakes the flows whose deadline has passed.
    pub(crate) fn expire(&mut self, env: &mut Env, now: Duration) {
        while let Some((at, id)) = self.timers.pop(now) {
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            if !self.timers.is_due(&mut flow.timer, id, at, now) {
                continue;
            }
            match &flow.stage {
                Stage::Open(_) => self.mark(id),
                Stage::Held(held) => {
                    debug_assert!(held.deadline <= now);
                    let error = io::Error::from(io::ErrorKind::TimedOut);
                    if let Some(Stage::Held(held)) = self.take(id).map(|flow| flow.stage) {
                        refuse(env, &held.syn, &error);
                    }
                }
            }
        }
    }

    /// Drives every flow for which something has changed.
    pub(crate) fn settle(&mut self, env: &mut Env, dns: &mut DnsFrontend, now: Duration) {
        let mut over = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            flow.dirty = false;
            let Stage::Open(open) = &mut flow.stage else {
                continue;
            };
            match open.drive(id, env, &mut self.stack, dns, now) {
                Outcome::Alive {
                    blocked,
                    deadline,
                    detached,
                } => {
                    self.timers.set(&mut flow.timer, id, deadline);
                    if blocked {
                        flow.dirty = true;
                        self.dirty.push(id);
                    }
                    if detached && self.by_key.get(&flow.key) == Some(&id) {
                        self.by_key.remove(&flow.key);
                    }
                }
                Outcome::Over => over.push(id),
            }
        }
        for id in over {
            self.remove(env, id);
        }
        self.gauge(env);
        self.listeners.watch(env, self.may_accept(), now);
    }

    /// Some flow has not said all it has to say.
    pub(crate) fn has_unsettled(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        [self.timers.next(), self.listeners.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether clients of published ports are served.
    pub(crate) fn set_guest_present(&mut self, env: &Env, present: bool, now: Duration) {
        if self.guest_present != present {
            self.guest_present = present;
            self.listeners.watch(env, self.may_accept(), now);
        }
    }

    /// Closes everything.
    pub(crate) fn clear(&mut self, env: &Env) {
        self.by_key.clear();
        self.dirty.clear();
        self.timers.clear();
        self.held = 0;
        self.flows.clear();
        self.gauge(env);
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
fn refuse(env: &mut Env, syn: &HeldSyn, error: &io::Error) {
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
