//! UDP and ICMP echo: mappings between the guest's datagrams and host sockets.
//!
//! Each mapping has a connected socket of its own, so that only the peer that the guest spoke to
//! can answer. A mapping goes when it has been idle for long enough, or when a newer one needs its
//! place.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::gateway::{Env, Token};
use crate::wire::{Echo, IpPacket, UDP_HEADER, Unreachable, header_length, icmp, quoted_udp};

/// RFC 4787 REQ-5 wants no less than two minutes for a mapping that was answered.
const ANSWERED_LIMIT: Duration = Duration::from_secs(180);
/// A question that nobody has answered.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(30);
/// How often idle mappings are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Datagrams taken from one socket before the others have their turn.
const RECEIVES: usize = 32;
/// The largest datagram.
const DATAGRAM: usize = 65535;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Udp {
        guest: SocketAddr,
        remote: SocketAddr,
    },
    Echo {
        guest: IpAddr,
        remote: IpAddr,
        identifier: u16,
    },
}

struct Mapping {
    key: Key,
    socket: Socket,
    used: Duration,
    answered: bool,
    dirty: bool,
}

/// All mappings of a guest.
pub(crate) struct DatagramTable {
    limit: usize,
    by_key: HashMap<Key, u64>,
    mappings: HashMap<u64, Mapping>,
    next_id: u64,
    dirty: Vec<u64>,
    sweep_at: Option<Duration>,
    /// Empty while nothing is received.
    buffer: Vec<u8>,
}

impl DatagramTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            by_key: HashMap::new(),
            mappings: HashMap::new(),
            next_id: 0,
            dirty: Vec::new(),
            sweep_at: None,
            buffer: Vec::new(),
        }
    }

    /// Sends by a mapping that exists; `false` if there is none.
    pub(crate) fn send_udp(
        &mut self,
        env: &mut Env,
        guest: SocketAddr,
        remote: SocketAddr,
        data: &[u8],
        now: Duration,
    ) -> bool {
        let key = Key::Udp { guest, remote };
        self.send(env, key, data, now)
    }

    /// Makes a mapping and sends by it.
    pub(crate) fn open_udp(
        &mut self,
        env: &mut Env,
        guest: SocketAddr,
        remote: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        now: Duration,
    ) {
        let key = Key::Udp { guest, remote };
        let made = self.open(env, key, destination, Protocol::UDP, now);
        match made {
            Ok(()) => {
                self.send(env, key, data, now);
            }
            Err(error) => {
                if env.stats().refused.host_resources.count() {
                    tracing::warn!(%error, destination = %remote, "failed to map a UDP datagram");
                }
                let packet = quoted_udp(guest, remote);
                let reason = Unreachable::Network;
                env.writer
                    .unreachable(&mut env.transmitter, reason, &packet);
            }
        }
    }

    /// Sends by a mapping that exists; `false` if there is none.
    pub(crate) fn send_echo(
        &mut self,
        env: &mut Env,
        packet: &IpPacket<'_>,
        echo: &Echo<'_>,
        now: Duration,
    ) -> bool {
        // The kernel puts its own identifier and checksum in their places.
        self.send(env, echo_key(packet, echo), packet.payload, now)
    }

    /// Makes a mapping, where the host lets ordinary users send echo requests, and sends by it.
    pub(crate) fn open_echo(
        &mut self,
        env: &mut Env,
        packet: &IpPacket<'_>,
        echo: &Echo<'_>,
        now: Duration,
    ) {
        let key = echo_key(packet, echo);
        let protocol = match packet.destination {
            IpAddr::V4(_) => Protocol::ICMPV4,
            IpAddr::V6(_) => Protocol::ICMPV6,
        };
        match self.open(env, key, (packet.destination, 0).into(), protocol, now) {
            Ok(()) => {
                self.send(env, key, packet.payload, now);
            }
            Err(error) => {
                if env.stats().refused.icmp.count() {
                    tracing::info!(%error, "this host does not let the guest ping others");
                }
                let reason = Unreachable::Prohibited;
                env.writer
                    .unreachable(&mut env.transmitter, reason, packet.bytes);
            }
        }
    }

    fn open(
        &mut self,
        env: &Env,
        key: Key,
        destination: SocketAddr,
        protocol: Protocol,
        now: Duration,
    ) -> io::Result<()> {
        if self.mappings.len() >= self.limit {
            self.evict(env);
        }
        let socket = Socket::new(
            Domain::for_address(destination),
            Type::DGRAM.nonblocking().cloexec(),
            Some(protocol),
        )?;
        socket.connect(&SockAddr::from(destination))?;
        self.next_id += 1;
        let id = self.next_id;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let event = EpollEvent::new(interest, Token::Datagram(id).encode());
        env.shared.epoll.add(&socket, event)?;
        let mapping = Mapping {
            key,
            socket,
            used: now,
            answered: false,
            dirty: false,
        };
        self.by_key.insert(key, id);
        self.mappings.insert(id, mapping);
        self.sweep_at.get_or_insert(now + SWEEP);
        self.gauge(env);
        Ok(())
    }

    fn send(&mut self, env: &mut Env, key: Key, data: &[u8], now: Duration) -> bool {
        let Some(id) = self.by_key.get(&key).copied() else {
            return false;
        };
        let Some(mapping) = self.mappings.get_mut(&id) else {
            return false;
        };
        mapping.used = now;
        // The error of an earlier datagram is told by the next call, which then has sent nothing.
        for _ in 0..2 {
            match mapping.socket.send_with_flags(data, libc::MSG_NOSIGNAL) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    port_unreachable(env, key);
                }
                // As on any wire, a datagram for which there is no room is lost.
                Err(_) => break,
            }
        }
        true
    }

    pub(crate) fn host_event(&mut self, id: u64) {
        if let Some(mapping) = self.mappings.get_mut(&id)
            && !mapping.dirty
        {
            mapping.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Passes on what has arrived, as far as the link has room.
    pub(crate) fn settle(&mut self, env: &mut Env, now: Duration) {
        if !self.dirty.is_empty() {
            self.buffer.resize(DATAGRAM, 0);
        }
        for id in std::mem::take(&mut self.dirty) {
            let Some(mapping) = self.mappings.get_mut(&id) else {
                continue;
            };
            mapping.dirty = receive(env, mapping, &mut self.buffer, now);
            if mapping.dirty {
                self.dirty.push(id);
            }
        }
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn expire(&mut self, env: &Env, now: Duration) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let by_key = &mut self.by_key;
        self.mappings.retain(|_, mapping| {
            let limit = if mapping.answered {
                ANSWERED_LIMIT
            } else {
                UNANSWERED_LIMIT
            };
            let keep = now < mapping.used + limit;
            if !keep {
                by_key.remove(&mapping.key);
            }
            keep
        });
        self.sweep_at = (!self.mappings.is_empty()).then_some(now + SWEEP);
        self.gauge(env);
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.sweep_at
    }

    fn evict(&mut self, env: &Env) {
        let idlest = self
            .mappings
            .iter()
            .min_by_key(|(_, mapping)| mapping.used)
            .map(|(id, _)| *id);
        if let Some(mapping) = idlest.and_then(|id| self.mappings.remove(&id)) {
            self.by_key.remove(&mapping.key);
            env.stats().refused.capacity.add(1);
        }
    }

    /// Gives back what is not in use.
    pub(crate) fn release(&mut self) {
        self.buffer = Vec::new();
        self.dirty.shrink_to_fit();
        self.by_key.shrink_to_fit();
        self.mappings.shrink_to_fit();
    }

    pub(crate) fn clear(&mut self, env: &Env) {
        self.by_key.clear();
        self.mappings.clear();
        self.dirty.clear();
        self.sweep_at = None;
        self.gauge(env);
    }

    fn gauge(&self, env: &Env) {
        let gauge = &env.stats().traffic.datagram_flows;
        gauge.set(self.mappings.len() as u64);
    }
}

fn echo_key(packet: &IpPacket<'_>, echo: &Echo<'_>) -> Key {
    Key::Echo {
        guest: packet.source,
        remote: packet.destination,
        identifier: echo.identifier,
    }
}

/// Passes on a socket's datagrams; `true` if there may be more.
fn receive(env: &mut Env, mapping: &mut Mapping, buffer: &mut [u8], now: Duration) -> bool {
    for _ in 0..RECEIVES {
        if !env.transmitter.has_room() {
            return true;
        }
        match (&mapping.socket).read(buffer) {
            Ok(length) => {
                mapping.used = now;
                mapping.answered = true;
                deliver(env, mapping.key, &buffer[..length]);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return false,
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::ConnectionRefused => port_unreachable(env, mapping.key),
                _ => return false,
            },
        }
    }
    true
}

fn deliver(env: &mut Env, key: Key, data: &[u8]) {
    match key {
        Key::Udp { guest, remote } => {
            let length = header_length(guest.ip()) + UDP_HEADER + data.len();
            if length > usize::from(env.mtu) {
                env.stats().refused.fragments.add(1);
                return;
            }
            env.writer.udp(&mut env.transmitter, remote, guest, data);
        }
        Key::Echo {
            guest,
            remote,
            identifier,
        } => {
            let reply = match remote {
                IpAddr::V4(_) => icmp::ECHO_REPLY,
                IpAddr::V6(_) => icmp::V6_ECHO_REPLY,
            };
            let fits = header_length(guest) + data.len() <= usize::from(env.mtu);
            if let (Some(&kind), Some(rest)) = (data.first(), data.get(6..))
                && kind == reply
                && fits
            {
                env.writer
                    .echo_reply(&mut env.transmitter, remote, guest, identifier, rest);
            }
        }
    }
}

/// Tells the guest that nobody listens there.
fn port_unreachable(env: &mut Env, key: Key) {
    if let Key::Udp { guest, remote } = key
        && env.transmitter.has_room()
    {
        let packet = quoted_udp(guest, remote);
        let reason = Unreachable::Port;
        env.writer
            .unreachable(&mut env.transmitter, reason, &packet);
    }
}
