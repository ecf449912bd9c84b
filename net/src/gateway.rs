//! The gateway's logic: frames and host events in, frames and system calls out, time as an
//! argument.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use crate::config::NetworkConfig;
use crate::datagram::DatagramTable;
use crate::destination::{Destination, resolve};
use crate::dns::{Client, Disposition, DnsFrontend, DnsReply, DnsService, DnsSink, DnsToken};
use crate::error::NetError;
use crate::handle::Shared;
use crate::link::{Flush, Transmitter};
use crate::policy::{Pins, Policy, Transport};
use crate::refusal::Refused;
use crate::stats::LiveStats;
use crate::tcp::{TcpLimits, TcpTable};
use crate::wire::{
    FrameWriter, Inbound, IpPacket, LinkAddresses, Reject, Segment, Unreachable, parse_echo,
    parse_frame, parse_udp, protocol,
};

/// Whose an epoll event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Wake,
    Link,
    Listener(u64),
    Tcp(u64),
    Datagram(u64),
}

impl Token {
    const KIND_SHIFT: u32 = 60;

    pub(crate) fn encode(self) -> u64 {
        let (kind, id) = match self {
            Self::Wake => (0, 0),
            Self::Link => (1, 0),
            Self::Listener(index) => (2, index),
            Self::Tcp(id) => (3, id),
            Self::Datagram(id) => (4, id),
        };
        (kind << Self::KIND_SHIFT) | id
    }

    pub(crate) fn decode(data: u64) -> Self {
        let id = data & ((1 << Self::KIND_SHIFT) - 1);
        match data >> Self::KIND_SHIFT {
            1 => Self::Link,
            2 => Self::Listener(id),
            3 => Self::Tcp(id),
            4 => Self::Datagram(id),
            _ => Self::Wake,
        }
    }
}

/// What every part of the gateway may use.
pub(crate) struct Env {
    pub(crate) shared: Arc<Shared>,
    pub(crate) transmitter: Transmitter,
    pub(crate) writer: FrameWriter,
    pub(crate) link: LinkAddresses,
    pub(crate) mtu: u16,
    pub(crate) policy: Policy,
    pub(crate) pins: Pins,
}

impl Env {
    pub(crate) fn stats(&self) -> &LiveStats {
        &self.shared.stats
    }

    fn reject(&self, reason: Reject, frame: &[u8]) {
        let refused = &self.stats().refused;
        let counter = match reason {
            Reject::Malformed => &refused.malformed,
            Reject::Spoofed => &refused.spoofed,
            Reject::Unsupported => &refused.unsupported,
            Reject::Fragment => &refused.fragments,
            Reject::Noise => return,
        };
        if counter.count() {
            tracing::warn!(
                ?reason,
                bytes = frame.len(),
                "frames of the guest are dropped"
            );
        }
    }
}

/// One guest's gateway.
pub(crate) struct Gateway {
    env: Env,
    tcp: TcpTable,
    datagrams: DatagramTable,
    dns: DnsFrontend,
}

impl Gateway {
    pub(crate) fn new(
        config: NetworkConfig,
        service: Arc<dyn DnsService>,
        shared: Arc<Shared>,
    ) -> Result<Self, NetError> {
        let link = LinkAddresses {
            guest_mac: config.guest_mac,
            gateway_mac: config.gateway_mac,
            guest_v4: config.guest_v4,
            gateway_v4: config.gateway_v4,
            guest_v6: config.guest_v6,
            gateway_v6: config.gateway_v6,
        };
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| NetError::io("draw a random seed")(io::Error::from(error)))?;
        let sink: Arc<dyn DnsSink> = Arc::clone(&shared) as Arc<dyn DnsSink>;
        let env = Env {
            shared,
            transmitter: Transmitter::default(),
            writer: FrameWriter::new(link),
            link,
            mtu: config.mtu,
            policy: config.policy,
            pins: Pins::default(),
        };
        let limits = TcpLimits {
            buffer_budget: config.buffer_budget,
            max_connections: config.max_connections,
            max_held_syns: config.max_held_syns,
            connect_deadline: config.connect_deadline,
        };
        let seed = u64::from_ne_bytes(seed);
        let tcp = TcpTable::new(config.mtu, seed, config.published, &env, limits)?;
        Ok(Self {
            tcp,
            datagrams: DatagramTable::new(config.max_datagram_flows),
            dns: DnsFrontend::new(
                service,
                sink,
                link,
                config.max_dns_in_flight,
                config.dns_deadline,
            ),
            env,
        })
    }

    pub(crate) fn transmitter(&self) -> &Transmitter {
        &self.env.transmitter
    }

    pub(crate) fn flush(&mut self, link: &OwnedFd) -> io::Result<Flush> {
        let Env {
            transmitter,
            shared,
            ..
        } = &mut self.env;
        transmitter.flush(link, &shared.stats)
    }

    /// A frame from the guest.
    pub(crate) fn frame(&mut self, frame: &[u8], now: Duration) {
        let traffic = &self.env.stats().traffic;
        traffic.frames_in.add(1);
        traffic.bytes_in.add(frame.len() as u64);
        match parse_frame(frame, &self.env.link, self.env.mtu) {
            Ok(Inbound::ArpRequest) => self.env.writer.arp_reply(&mut self.env.transmitter),
            Ok(Inbound::NeighborSolicitation { source }) => {
                let Env {
                    writer,
                    transmitter,
                    ..
                } = &mut self.env;
                writer.neighbor_advertisement(transmitter, source);
            }
            Ok(Inbound::Ip(packet)) => {
                if let Err(reason) = self.packet(&packet, now) {
                    self.env.reject(reason, frame);
                }
            }
            Err(reason) => self.env.reject(reason, frame),
        }
        self.tcp.set_guest_present(&self.env, true, now);
    }

    fn packet(&mut self, packet: &IpPacket<'_>, now: Duration) -> Result<(), Reject> {
        match packet.protocol {
            protocol::TCP => {
                let segment = Segment::parse(packet.payload)?;
                self.tcp.segment(&mut self.env, packet, &segment, now);
                Ok(())
            }
            protocol::UDP => self.udp(packet, now),
            protocol::ICMP if packet.source.is_ipv4() => self.echo(packet, now),
            protocol::ICMPV6 if packet.source.is_ipv6() => self.echo(packet, now),
            _ => Err(Reject::Unsupported),
        }
    }

    fn udp(&mut self, packet: &IpPacket<'_>, now: Duration) -> Result<(), Reject> {
        let (source_port, destination_port, data) = parse_udp(packet.payload)?;
        let guest: SocketAddr = (packet.source, source_port).into();
        let remote: SocketAddr = (packet.destination, destination_port).into();
        let env = &mut self.env;
        // A known mapping was judged when it was made.
        if self.datagrams.send_udp(env, guest, remote, data, now) {
            return Ok(());
        }
        match resolve(env, Transport::Datagram, remote, now) {
            Destination::Dns => {
                let client = Client::Udp {
                    guest,
                    gateway: remote,
                };
                let disposition = self
                    .dns
                    .query(&env.policy, &env.shared.stats, client, data, now);
                match disposition {
                    Disposition::Answer(answer) => {
                        env.writer.udp(&mut env.transmitter, remote, guest, &answer);
                    }
                    Disposition::Pending | Disposition::Ignored => {}
                }
            }
            Destination::Host(destinations) => {
                if let Some(destination) = destinations.first() {
                    self.datagrams
                        .open_udp(env, guest, remote, *destination, data, now);
                }
            }
            Destination::Closed => {
                env.shared.stats.refused.policy.add(1);
                let reason = Unreachable::Port;
                env.writer
                    .unreachable(&mut env.transmitter, reason, packet.bytes);
            }
            Destination::Prohibited => {
                env.stats().refused.policy.add(1);
                env.stats().notices.add(Refused::Datagram(remote));
                let reason = Unreachable::Prohibited;
                env.writer
                    .unreachable(&mut env.transmitter, reason, packet.bytes);
            }
        }
        Ok(())
    }

    fn echo(&mut self, packet: &IpPacket<'_>, now: Duration) -> Result<(), Reject> {
        let echo = parse_echo(packet)?;
        let env = &mut self.env;
        if env.link.is_gateway(packet.destination) {
            env.writer.echo_reply(
                &mut env.transmitter,
                packet.destination,
                packet.source,
                echo.identifier,
                echo.rest,
            );
            return Ok(());
        }
        if self.datagrams.send_echo(env, packet, &echo, now) {
            return Ok(());
        }
        // ICMP has no ports; a rule for all ports allows it.
        match resolve(
            env,
            Transport::Datagram,
            (packet.destination, 0).into(),
            now,
        ) {
            Destination::Host(_) => self.datagrams.open_echo(env, packet, &echo, now),
            Destination::Dns | Destination::Closed | Destination::Prohibited => {
                env.stats().refused.policy.add(1);
                env.stats().notices.add(Refused::Echo(packet.destination));
                let reason = Unreachable::Prohibited;
                env.writer
                    .unreachable(&mut env.transmitter, reason, packet.bytes);
            }
        }
        Ok(())
    }

    /// Gives back the memory that traffic has taken, as far as no traffic waits in it.
    pub(crate) fn release(&mut self) {
        self.env.transmitter.release();
        self.tcp.release();
        self.datagrams.release();
        self.dns.release();
    }

    /// Something has changed at a host socket.
    pub(crate) fn host_event(&mut self, token: Token, events: EpollFlags, now: Duration) {
        match token {
            Token::Tcp(id) => self.tcp.host_event(&mut self.env, id, events, now),
            Token::Listener(index) => self.tcp.listener_event(&mut self.env, index, now),
            Token::Datagram(id) => self.datagrams.host_event(id),
            Token::Wake | Token::Link => {}
        }
    }

    /// An answer of the DNS service's.
    pub(crate) fn dns_reply(&mut self, token: DnsToken, reply: &DnsReply, now: Duration) {
        let env = &mut self.env;
        let answer = self
            .dns
            .reply(&mut env.pins, &env.shared.stats, token, reply, now);
        if let Some((client, answer)) = answer {
            self.dns_answer(client, &answer);
        }
    }

    fn dns_answer(&mut self, client: Client, answer: &[u8]) {
        match client {
            Client::Udp { guest, gateway } => {
                let Env {
                    writer,
                    transmitter,
                    ..
                } = &mut self.env;
                writer.udp(transmitter, gateway, guest, answer);
            }
            Client::Tcp(id) => self.tcp.dns_answer(id, answer),
        }
    }

    /// Does what the time asks for.
    pub(crate) fn expire(&mut self, now: Duration) {
        while let Some((client, answer)) = self.dns.expire(&self.env.shared.stats, now) {
            self.dns_answer(client, &answer);
        }
        self.tcp.expire(&mut self.env, now);
        self.datagrams.expire(&self.env, now);
    }

    /// Moves and sends whatever can be moved and sent.
    pub(crate) fn settle(&mut self, now: Duration) {
        self.tcp.settle(&mut self.env, &mut self.dns, now);
        self.datagrams.settle(&mut self.env, now);
    }

    /// Some of that is left for want of room on the link.
    pub(crate) fn has_unsettled(&self) -> bool {
        self.tcp.has_unsettled() || self.datagrams.has_unsettled()
    }

    /// When to do something although nothing happens.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if self.has_unsettled() && self.env.transmitter.has_room() {
            return Some(Duration::ZERO);
        }
        [
            self.tcp.next_deadline(),
            self.datagrams.next_deadline(),
            self.dns.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The VM has ended: nothing of it stays.
    pub(crate) fn vm_gone(&mut self, now: Duration) {
        self.tcp.clear(&self.env);
        self.tcp.set_guest_present(&self.env, false, now);
        self.datagrams.clear(&self.env);
        self.dns.clear(&self.env.shared.stats);
        self.env.transmitter.clear();
        self.env.pins = Pins::default();
    }

    /// A VM runs (again).
    pub(crate) fn vm_started(&mut self, now: Duration) {
        self.tcp.set_guest_present(&self.env, true, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_epoll() {
        for token in [
            Token::Wake,
            Token::Link,
            Token::Listener(3),
            Token::Tcp(1 << 40),
            Token::Datagram(7),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
