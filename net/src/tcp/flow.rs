//! One connection's life.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::FlowKey;
use super::host::HostStream;
use super::relay::HostRelay;
use super::stack::{Stack, StackSocket, finish_sending};
use super::timers::TimerSlot;
use crate::dns::{Client, Disposition, DnsFrontend, DnsStream};
use crate::gateway::Env;
use crate::wire::{IPV4_HEADER, IPV6_HEADER, IpPacket, Segment};

/// A connection of which one direction has ended is given up after so long without a byte in the
/// other. Stops half-closed connections that both ends forgot from piling up.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A DNS connection without questions is closed after so long (RFC 7766 §6.2.3).
const DNS_IDLE_LIMIT: Duration = Duration::from_secs(30);

/// One connection.
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) timer: TimerSlot,
    /// It is in the table's list of flows to be driven.
    pub(crate) dirty: bool,
    pub(crate) stage: Stage,
}

pub(crate) enum Stage {
    Held(Held),
    Open(Box<Open>),
}

/// The guest has sent its SYN; the host is connecting.
pub(crate) struct Held {
    pub(crate) syn: HeldSyn,
    pub(crate) stream: HostStream,
    /// Addresses to try if this one refuses.
    pub(crate) alternates: Vec<SocketAddr>,
}

/// A SYN without the data that it may have carried.
pub(crate) struct HeldSyn {
    packet: Vec<u8>,
    key: FlowKey,
    protocol: u8,
    ip_header: usize,
    pub(crate) sequence: u32,
}

impl HeldSyn {
    pub(crate) fn new(key: FlowKey, packet: &IpPacket<'_>, segment: &Segment<'_>) -> Self {
        let ip_header = packet.bytes.len() - packet.payload.len();
        let kept = ip_header + segment.header_length;
        let mut bytes = packet.bytes[..kept].to_vec();
        // The packet's length field, of which only smoltcp takes note: it checks no checksums.
        match packet.source.is_ipv4() {
            true if ip_header >= IPV4_HEADER => {
                bytes[2..4].copy_from_slice(&(kept as u16).to_be_bytes());
            }
            false if ip_header >= IPV6_HEADER => {
                bytes[4..6].copy_from_slice(&((kept - IPV6_HEADER) as u16).to_be_bytes());
            }
            // No packet has a shorter header.
            true | false => {}
        }
        Self {
            packet: bytes,
            key,
            protocol: packet.protocol,
            ip_header,
            sequence: segment.sequence,
        }
    }

    pub(crate) fn packet(&self) -> IpPacket<'_> {
        IpPacket {
            bytes: &self.packet,
            source: self.key.guest.ip(),
            destination: self.key.remote.ip(),
            protocol: self.protocol,
            payload: &self.packet[self.ip_header..],
        }
    }
}

pub(crate) enum Peer {
    Host(HostRelay),
    Dns(DnsStream),
}

/// smoltcp has a socket for it.
pub(crate) struct Open {
    pub(crate) socket: StackSocket,
    pub(crate) peer: Peer,
    /// The handshake must be done by then.
    handshake_deadline: Option<Duration>,
    /// The guest's FIN has arrived.
    guest_finished: bool,
    /// The last acknowledgement of a connection that is over was sent.
    last_word: bool,
    /// When a byte last moved.
    touched: Duration,
    unacknowledged: usize,
}

/// What a drive leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    Alive {
        /// The link had no room for all it has to say.
        blocked: bool,
        /// When it must be driven at the latest.
        deadline: Option<Duration>,
        /// The guest holds it to be over and may use its ports again.
        detached: bool,
    },
    /// It is over.
    Over,
}

impl Open {
    pub(crate) fn new(socket: StackSocket, peer: Peer, now: Duration, handshake: Duration) -> Self {
        Self {
            socket,
            peer,
            handshake_deadline: Some(now + handshake),
            guest_finished: false,
            last_word: false,
            touched: now,
            unacknowledged: 0,
        }
    }

    /// Moves what can be moved, sends what can be sent, and says what is next.
    pub(crate) fn drive(
        &mut self,
        id: u64,
        env: &mut Env,
        stack: &mut Stack,
        dns: &mut DnsFrontend,
        now: Duration,
    ) -> Outcome {
        self.observe();
        if self.stale_at().is_some_and(|at| at <= now) {
            self.socket.tcp().abort();
        } else {
            self.pump(id, env, dns, now);
        }
        let blocked = !self.last_word
            && !stack.egress(&mut self.socket, &mut env.transmitter, &env.writer, now);
        let queued = self.socket.tcp().send_queue();
        if queued != self.unacknowledged {
            self.unacknowledged = queued;
            self.touched = now;
        }
        let alive = |deadline, detached| Outcome::Alive {
            blocked,
            deadline,
            detached,
        };
        match self.socket.state() {
            // A reset waits for room.
            State::Closed if blocked => alive(None, false),
            State::Closed | State::TimeWait => {
                // smoltcp's own TIME-WAIT would hold the flow for seconds, and its end would
                // discard what the host has not taken yet.
                self.last_word = !blocked;
                if blocked || self.owes_host() {
                    alive(self.stale_at(), true)
                } else {
                    Outcome::Over
                }
            }
            // smoltcp would wait for another SYN after a reset; the host's side is not reusable.
            State::Listen => Outcome::Over,
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                let deadline = [stack.deadline(&self.socket, now), self.stale_at()]
                    .into_iter()
                    .flatten()
                    .min();
                alive(deadline, false)
            }
        }
    }

    /// Takes note of what the last segment has changed.
    fn observe(&mut self) {
        match self.socket.state() {
            State::Listen | State::SynSent | State::SynReceived => {}
            State::Established | State::FinWait1 | State::FinWait2 => {
                self.handshake_deadline = None;
            }
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait => {
                self.handshake_deadline = None;
                self.guest_finished = true;
            }
            // Reached from LAST-ACK in order, from any other state by a reset.
            State::Closed => {}
        }
    }

    fn pump(&mut self, id: u64, env: &Env, dns: &mut DnsFrontend, now: Duration) {
        let guest_finished = self.guest_finished;
        let socket = self.socket.tcp();
        let moved = match &mut self.peer {
            Peer::Host(relay) => {
                let reset = socket.state() == State::Closed && !guest_finished;
                !reset && relay.pump(socket, guest_finished)
            }
            Peer::Dns(stream) => pump_dns(socket, stream, guest_finished, |message| {
                dns.query(&env.policy, env.stats(), Client::Tcp(id), message, now)
            }),
        };
        if moved {
            self.touched = now;
        }
    }

    fn owes_host(&self) -> bool {
        match &self.peer {
            Peer::Host(relay) => self.guest_finished && relay.owes_host(),
            Peer::Dns(_) => false,
        }
    }

    /// When it is given up unless a byte moves.
    fn stale_at(&self) -> Option<Duration> {
        if self.handshake_deadline.is_some() {
            return self.handshake_deadline;
        }
        match &self.peer {
            Peer::Host(relay) => (self.guest_finished || relay.is_half_closed())
                .then(|| self.touched + HALF_CLOSED_LIMIT),
            Peer::Dns(_) => Some(self.touched + DNS_IDLE_LIMIT),
        }
    }

    pub(crate) fn close(self) {
        match self.peer {
            Peer::Host(relay) => relay.close(),
            Peer::Dns(_) => {}
        }
    }
}

fn pump_dns(
    socket: &mut smoltcp::socket::tcp::Socket<'_>,
    stream: &mut DnsStream,
    guest_finished: bool,
    mut ask: impl FnMut(&[u8]) -> Disposition,
) -> bool {
    let mut moved = false;
    while stream.is_ready() && socket.can_recv() {
        let Ok(message) = socket.recv(|bytes| stream.take(bytes)) else {
            break;
        };
        moved = true;
        match message.as_deref().map(&mut ask) {
            Some(Disposition::Answer(answer)) => stream.queue(&answer),
            Some(Disposition::Pending) => stream.asked(),
            Some(Disposition::Ignored) | None => {}
        }
    }
    while !stream.output().is_empty() && socket.can_send() {
        match socket.send_slice(stream.output()) {
            Ok(count) => stream.sent(count),
            Err(_) => break,
        }
        moved = true;
    }
    if guest_finished && stream.is_idle() && !socket.can_recv() {
        finish_sending(socket);
    }
    moved
}
