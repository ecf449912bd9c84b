//! NetPollActor: owns the thread of a worker's network loop.
//!
//! The WorkerSupervisor keeps the link's descriptors, so the loop can be replaced under a running
//! VM: the successor answers the flows that it does not know with RST.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use iii_net::{DnsService, Fault, LoopExit, NetHandle, NetLoop, NetworkConfig, RefusalCallback};
use iii_proto::ids::WorkerName;
use iii_proto::restart::Exit;

use crate::death_watch::DeathGuard;
use crate::messages::{Halt, InjectPanic, OnUp};
use crate::tree::ChildEnd;
use crate::usage::NetworkMeter;

/// A loop with work that makes no round for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(3);
/// What a loop needs to end when it is told to; longer, and it is abandoned.
const STOP_LIMIT: Duration = Duration::from_millis(500);

pub(crate) struct NetPollActor {
    start: Option<Start>,
    handle: Option<NetHandle>,
    meter: NetworkMeter,
    on_up: Option<OnUp>,
    // Last: the parent is told when all else is released.
    guard: DeathGuard,
}

/// What a network loop is started with.
pub(crate) struct Start {
    pub(crate) worker: WorkerName,
    pub(crate) config: NetworkConfig,
    pub(crate) link: OwnedFd,
    pub(crate) dns: Arc<dyn DnsService>,
    pub(crate) on_refusal: RefusalCallback,
}

impl NetPollActor {
    pub(crate) fn new(start: Start, meter: NetworkMeter, on_up: OnUp, guard: DeathGuard) -> Self {
        Self {
            start: Some(start),
            handle: None,
            meter,
            on_up: Some(on_up),
            guard,
        }
    }

    fn fail(&mut self, cause: String, ctx: &mut Context<Self>) {
        self.guard.set(ChildEnd::Failed(Exit::Fault { cause }));
        ctx.stop();
    }
}

impl Actor for NetPollActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(start) = self.start.take() else {
            return;
        };
        let (ended, stalled) = (ctx.address(), ctx.address());
        let started = NetLoop::builder(start.config, start.link, start.dns, start.worker.as_str())
            .on_exit(move |exit| ended.do_send(LoopEnded(exit)))
            .on_stall(STALL_LIMIT, move || stalled.do_send(LoopStalled))
            .on_refusal(start.on_refusal)
            .start();
        match started {
            Ok(handle) => {
                self.meter.attach(handle.stats_reader());
                self.handle = Some(handle);
                if let Some(up) = self.on_up.take() {
                    up();
                }
            }
            Err(error) => self.fail(error.to_string(), ctx),
        }
    }
}

impl Drop for NetPollActor {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        handle.stop();
        if handle.join(STOP_LIMIT).is_none() {
            tracing::warn!("a network loop does not end; its thread is abandoned");
            handle.abandon();
        }
        self.meter.detach();
    }
}

/// The loop's thread has ended.
#[derive(Message)]
#[rtype(result = "()")]
struct LoopEnded(LoopExit);

impl Handler<LoopEnded> for NetPollActor {
    type Result = ();

    fn handle(&mut self, LoopEnded(exit): LoopEnded, ctx: &mut Self::Context) {
        let cause = match exit {
            // Only `Drop` tells it to stop, and a dropped actor hears nothing.
            LoopExit::Stopped => "the network loop stopped by itself".to_owned(),
            LoopExit::Failed(cause) => cause,
            LoopExit::Panicked(text) => format!("the network loop panicked: {text}"),
        };
        self.fail(cause, ctx);
    }
}

/// The loop has work and makes no progress.
#[derive(Message)]
#[rtype(result = "()")]
struct LoopStalled;

impl Handler<LoopStalled> for NetPollActor {
    type Result = ();

    fn handle(&mut self, _: LoopStalled, ctx: &mut Self::Context) {
        let limit = STALL_LIMIT.as_secs();
        let cause = format!("the network loop made no progress for {limit} s");
        self.fail(cause, ctx);
    }
}

/// Whether there is a VM behind the link.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum Link {
    /// A VM was started on it.
    Up,
    /// The VM has ended: its host sockets are to be closed at once.
    Down,
}

impl Handler<Link> for NetPollActor {
    type Result = ();

    fn handle(&mut self, link: Link, _: &mut Self::Context) {
        let Some(handle) = &self.handle else { return };
        match link {
            Link::Up => handle.vm_started(),
            Link::Down => handle.vm_gone(),
        }
    }
}

/// Hurts the loop.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InjectLoop(pub(crate) Fault);

impl Handler<InjectLoop> for NetPollActor {
    type Result = ();

    fn handle(&mut self, InjectLoop(fault): InjectLoop, _: &mut Self::Context) {
        if let Some(handle) = &self.handle {
            handle.inject(fault);
        }
    }
}

impl Handler<Halt> for NetPollActor {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        self.guard.set(ChildEnd::Stopped);
        ctx.stop();
    }
}

impl Handler<InjectPanic> for NetPollActor {
    type Result = ();

    fn handle(&mut self, _: InjectPanic, _: &mut Self::Context) {
        panic!("injected fault");
    }
}
