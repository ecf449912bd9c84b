//! All TCP connections of a guest.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::FlowKey;
use super::budget::Budget;
use super::flow::{Flow, HeldSyn, Outcome, Peer, Stage};
use super::listener::Listeners;
use super::opening::{FIRST_PORT, refuse};
use super::stack::Stack;
use super::timers::{TimerSlot, Timers};
use crate::config::PublishedPort;
use crate::dns::DnsFrontend;
use crate::error::NetError;
use crate::gateway::Env;
use crate::wire::{IpPacket, Segment};

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
    pub(super) stack: Stack,
    pub(super) budget: Budget,
    pub(super) limits: TcpLimits,
    pub(super) flows: HashMap<u64, Flow>,
    pub(super) by_key: HashMap<FlowKey, u64>,
    /// Ids are never used twice, so an event of a closed socket finds nobody.
    pub(super) next_id: u64,
    pub(super) held: usize,
    pub(super) dirty: Vec<u64>,
    pub(super) timers: Timers,
    pub(super) listeners: Listeners,
    pub(super) next_port: u16,
    pub(super) guest_present: bool,
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

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn insert(
        &mut self,
        env: &Env,
        id: u64,
        key: FlowKey,
        timer: TimerSlot,
        stage: Stage,
    ) {
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
    pub(super) fn take(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        if self.by_key.get(&flow.key) == Some(&id) {
            self.by_key.remove(&flow.key);
        }
        if let Stage::Held(_) = flow.stage {
            self.held -= 1;
        }
        Some(flow)
    }

    pub(super) fn remove(&mut self, env: &Env, id: u64) {
        match self.take(id).map(|flow| flow.stage) {
            Some(Stage::Open(open)) => open.close(),
            Some(Stage::Held(held)) => drop(held),
            None => {}
        }
        self.gauge(env);
    }

    pub(super) fn gauge(&self, env: &Env) {
        let traffic = &env.stats().traffic;
        traffic.tcp_flows.set(self.flows.len() as u64);
        traffic.buffer_bytes.set(self.budget.used() as u64);
    }

    pub(super) fn mark(&mut self, id: u64) {
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

    pub(super) fn may_accept(&self) -> bool {
        self.guest_present
            && self.flows.len() < self.limits.max_connections
            && !self.budget.is_exhausted()
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
                Stage::Held(_) => {
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

    /// Gives back what is not in use.
    pub(crate) fn release(&mut self) {
        self.flows.shrink_to_fit();
        self.by_key.shrink_to_fit();
        self.dirty.shrink_to_fit();
        self.timers.release();
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
