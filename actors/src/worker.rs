//! WorkerSupervisor: one worker's tree of four actors.
//!
//! [`crate::tree`] decides what is started and stopped; this actor does it, and keeps what must
//! outlive a child: the network link's descriptors, the mailbox of DnsActor, the processes.

mod fault;
mod refusal;
mod requests;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use actix::prelude::*;
use iii_net::{DnsService, link_pair};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::{Exit, RestartMemory};
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};

use crate::death_watch::DeathGuard;
use crate::dns::{DnsActor, DnsMailbox};
use crate::event::{ActorKind, EventKind};
use crate::fs::FsActor;
use crate::messages::{ChildDown, ChildUp, Halt, OnUp};
use crate::net_poll::{self, Link, NetPollActor};
use crate::plan::{Environment, WorkerPlan};
use crate::processes::Processes;
use crate::runtime::Arbiters;
use crate::tree::{Action, ChildDef, Input, Tree, TreeEnd};
use crate::usage::NetworkMeter;
use crate::vm::{OnProgress, Tell, VmActor, VmActorParts};

pub use fault::Fault;
pub(crate) use fault::Inject;
use refusal::PolicyRefusal;
pub use requests::Scope;
pub(crate) use requests::{FilesChanged, RestartPart, StopWorker};

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// Its workload is complete and its policy does not restart it.
    Done(Exit),
    /// By request.
    Stopped,
    /// It will not be restarted any more.
    Failed(String),
}

/// To RootSupervisor: how far a worker has come.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    /// The VM's process runs.
    VmStarted { boot: BootId, boots: u64, pid: u32 },
    /// The workload's process runs.
    WorkloadStarted(GuestPid),
    /// The workload is ready.
    WorkloadReady(GuestPid),
    /// The workload has ended and is, maybe, restarted.
    WorkloadExited(Exit),
    /// The VM has ended.
    VmDown,
    /// A restart was granted.
    Restarting(BTreeMap<ActorKind, RestartMemory>),
    /// The tree is at rest.
    Ended(Outcome),
}

/// To RootSupervisor: [`Progress`] of one incarnation of a WorkerSupervisor.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct WorkerReport {
    pub(crate) name: WorkerName,
    pub(crate) incarnation: u64,
    pub(crate) progress: Progress,
}

/// What a WorkerSupervisor is made of.
pub(crate) struct WorkerParts {
    pub(crate) env: Environment,
    pub(crate) plan: Arc<WorkerPlan>,
    pub(crate) arbiters: Arc<Arbiters>,
    pub(crate) processes: Processes,
    pub(crate) meter: NetworkMeter,
    pub(crate) incarnation: u64,
    /// VMs that the worker has had, and restarts that count.
    pub(crate) boots: u64,
    pub(crate) restarts: BTreeMap<ActorKind, RestartMemory>,
    pub(crate) root: Recipient<WorkerReport>,
    pub(crate) guard: DeathGuard,
}

/// A child that runs. Dropped with the supervisor that owned it, it ends the child.
struct Child<A: Actor + Handler<Halt>>
where
    A::Context: actix::dev::ToEnvelope<A, Halt>,
{
    address: Addr<A>,
}

impl<A: Actor + Handler<Halt>> Drop for Child<A>
where
    A::Context: actix::dev::ToEnvelope<A, Halt>,
{
    fn drop(&mut self) {
        // Nothing to say to a child that has ended already.
        self.address.do_send(Halt { urgent: true });
    }
}

#[derive(Default)]
struct Children {
    dns: Option<Child<DnsActor>>,
    net: Option<Child<NetPollActor>>,
    fs: Option<Child<FsActor>>,
    vm: Option<Child<VmActor>>,
}

/// The network link: two ends of one datagram pair, kept for as long as the worker.
struct LinkEnds {
    host: OwnedFd,
    guest: OwnedFd,
}

impl LinkEnds {
    /// Throws away what the last VM was still to receive.
    fn drain_guest_end(&self) {
        let mut frame = [0; 1];
        // Every datagram is consumed whole, however short the buffer.
        while recv(self.guest.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

pub(crate) struct WorkerSupervisor {
    env: Environment,
    plan: Arc<WorkerPlan>,
    arbiters: Arc<Arbiters>,
    processes: Processes,
    meter: NetworkMeter,
    tree: Tree<ActorKind>,
    children: Children,
    mailbox: Arc<DnsMailbox>,
    link: Option<LinkEnds>,
    boots: u64,
    boot: Option<BootId>,
    urgent: bool,
    timer: Option<SpawnHandle>,
    incarnation: u64,
    root: Recipient<WorkerReport>,
    // Last: the parent is told when all else is released.
    #[expect(dead_code, reason = "it acts by its drop")]
    guard: DeathGuard,
}

impl WorkerSupervisor {
    pub(crate) fn new(parts: WorkerParts) -> Self {
        use ActorKind::{Dns, Fs, NetPoll, Vm};
        let plan = parts.plan;
        let child = |id, requires: &[ActorKind], restart| ChildDef {
            id,
            requires: requires.to_vec(),
            restart,
        };
        let mut defs = Vec::new();
        if plan.has_network() {
            defs.push(child(Dns, &[], plan.spec.actor_restart.clone()));
            defs.push(child(NetPoll, &[], plan.spec.actor_restart.clone()));
        }
        defs.push(child(Fs, &[], plan.spec.actor_restart.clone()));
        defs.push(child(Vm, &[Fs], plan.spec.vm_restart.clone()));
        let mut tree = Tree::new(defs);
        for (child, memory) in parts.restarts {
            tree.resume(child, memory);
        }
        Self {
            tree,
            env: parts.env,
            plan,
            arbiters: parts.arbiters,
            processes: parts.processes,
            meter: parts.meter,
            children: Children::default(),
            mailbox: Arc::default(),
            link: None,
            boots: parts.boots,
            boot: None,
            urgent: false,
            timer: None,
            incarnation: parts.incarnation,
            root: parts.root,
            guard: parts.guard,
        }
    }

    fn report(&self, progress: Progress) {
        self.root.do_send(WorkerReport {
            name: self.plan.spec.name.clone(),
            incarnation: self.incarnation,
            progress,
        });
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        self.env
            .bus
            .emit(Some(&self.plan.spec.name), self.boot, kind);
    }

    fn on(&mut self, input: Input<ActorKind>, ctx: &mut Context<Self>) {
        let now = self.env.bus.now();
        let mut inputs = vec![input];
        // A child that cannot even be made is an input of its own.
        while let Some(input) = inputs.pop() {
            for action in self.tree.on(input, now, entropy()) {
                inputs.extend(self.perform(action, ctx));
            }
        }
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.tree.wake_at() {
            self.timer = Some(ctx.run_later(at.saturating_sub(now), |actor, ctx| {
                actor.timer = None;
                actor.on(Input::Tick, ctx);
            }));
        }
    }

    fn perform(
        &mut self,
        action: Action<ActorKind>,
        ctx: &mut Context<Self>,
    ) -> Option<Input<ActorKind>> {
        match action {
            Action::Start { child, life } => {
                if let Err(error) = self.start(child, life, ctx) {
                    let cause = format!("failed to start {child}: {error}");
                    let end = crate::tree::ChildEnd::Failed(Exit::Fault { cause });
                    return Some(Input::Down { child, life, end });
                }
            }
            Action::Stop { child, urgent, .. } => self.halt(child, urgent || self.urgent),
            Action::Restarting {
                child,
                exit,
                delay,
                stops,
            } => {
                let cause = exit.to_string();
                self.emit(match child {
                    ActorKind::Vm => EventKind::VmRestarting { delay, cause },
                    ActorKind::Dns | ActorKind::NetPoll | ActorKind::Fs => EventKind::ActorFailed {
                        actor: child,
                        cause,
                        stops,
                    },
                });
                self.report(Progress::Restarting(self.tree.memory().collect()));
            }
            Action::Ended(end) => self.ended(end),
        }
        None
    }

    fn start(
        &mut self,
        child: ActorKind,
        life: u64,
        ctx: &mut Context<Self>,
    ) -> Result<(), std::io::Error> {
        let me = ctx.address();
        let on_up: OnUp = {
            let me = me.clone();
            Box::new(move || me.do_send(ChildUp { child, life }))
        };
        let guard = DeathGuard::new(move |death| me.do_send(ChildDown { child, life, death }));
        let arbiter = self.arbiters.pick();
        let name = self.plan.spec.name.clone();
        match child {
            ActorKind::Dns => {
                let servers = self.plan.spec.network.dns.clone();
                let address = DnsActor::start_in_arbiter(arbiter, move |_| {
                    DnsActor::new(servers, on_up, guard)
                });
                self.mailbox.connect(address.clone().recipient());
                self.children.dns = Some(Child { address });
            }
            ActorKind::NetPoll => {
                let config = self.plan.network_config()?;
                let link = match &self.link {
                    Some(ends) => ends.host.try_clone()?,
                    None => {
                        let (host, guest) = link_pair()?;
                        let duplicate = host.try_clone()?;
                        self.link = Some(LinkEnds { host, guest });
                        duplicate
                    }
                };
                let me = ctx.address();
                let start = net_poll::Start {
                    worker: name,
                    config,
                    link,
                    dns: Arc::clone(&self.mailbox) as Arc<dyn DnsService>,
                    on_refusal: Box::new(move |refused| me.do_send(PolicyRefusal(refused))),
                };
                let meter = self.meter.clone();
                let address = NetPollActor::start_in_arbiter(arbiter, move |_| {
                    NetPollActor::new(start, meter, on_up, guard)
                });
                if self.children.vm.is_some() {
                    // It takes over under a running VM.
                    address.do_send(Link::Up);
                }
                self.children.net = Some(Child { address });
            }
            ActorKind::Fs => {
                let (env, plan) = (self.env.clone(), Arc::clone(&self.plan));
                let processes = self.processes.clone();
                let me = ctx.address();
                let on_pressure = Arc::new(move || me.do_send(InodePressure));
                let address = FsActor::start_in_arbiter(arbiter, move |_| {
                    FsActor::new(env, plan, processes, on_pressure, on_up, guard)
                });
                self.children.fs = Some(Child { address });
            }
            ActorKind::Vm => {
                let Some(fs) = self.children.fs.as_ref().map(|c| c.address.clone()) else {
                    return Err(std::io::Error::other("FsActor is not there"));
                };
                let link = match &self.link {
                    Some(ends) => Some(ends.guest.try_clone()?),
                    None => None,
                };
                let boot = BootId::from_random(entropy());
                self.boots += 1;
                self.boot = Some(boot);
                let parts = VmActorParts {
                    env: self.env.clone(),
                    plan: Arc::clone(&self.plan),
                    processes: self.processes.clone(),
                    boot,
                    boots: self.boots,
                    link,
                    fs,
                    on_progress: self.on_progress(),
                    on_up,
                    guard,
                };
                if let Some(net) = &self.children.net {
                    net.address.do_send(Link::Up);
                }
                let address = VmActor::start_in_arbiter(arbiter, move |_| VmActor::new(parts));
                self.children.vm = Some(Child { address });
            }
        }
        Ok(())
    }

    /// What VmActor tells RootSupervisor, past this actor: its own reports of the end follow only
    /// when VmActor is gone.
    fn on_progress(&self) -> OnProgress {
        let (root, name) = (self.root.clone(), self.plan.spec.name.clone());
        let incarnation = self.incarnation;
        Box::new(move |progress| {
            root.do_send(WorkerReport {
                name: name.clone(),
                incarnation,
                progress,
            });
        })
    }

    fn halt(&self, child: ActorKind, urgent: bool) {
        let halt = Halt { urgent };
        let children = &self.children;
        match child {
            ActorKind::Dns => children.dns.as_ref().map(|c| c.address.do_send(halt)),
            ActorKind::NetPoll => children.net.as_ref().map(|c| c.address.do_send(halt)),
            ActorKind::Fs => children.fs.as_ref().map(|c| c.address.do_send(halt)),
            ActorKind::Vm => children.vm.as_ref().map(|c| c.address.do_send(halt)),
        };
    }

    /// What a child leaves behind when it has ended, before a successor may start.
    fn release(&mut self, child: ActorKind) {
        match child {
            ActorKind::Dns => {
                self.mailbox.disconnect();
                self.children.dns = None;
            }
            ActorKind::NetPoll => self.children.net = None,
            ActorKind::Fs => self.children.fs = None,
            ActorKind::Vm => {
                self.children.vm = None;
                self.report(Progress::VmDown);
                if let Some(net) = &self.children.net {
                    net.address.do_send(Link::Down);
                }
                if let Some(link) = &self.link {
                    link.drain_guest_end();
                }
            }
        }
    }

    fn ended(&mut self, end: TreeEnd<ActorKind>) {
        self.urgent = false;
        let outcome = match end {
            TreeEnd::Stopped => Outcome::Stopped,
            TreeEnd::Done { exit, .. } => Outcome::Done(exit),
            TreeEnd::Failed {
                child,
                exit,
                restarts,
            } => {
                let what = format!("its {}", child.role());
                Outcome::Failed(match restarts {
                    0 => format!("{what} failed: {exit}"),
                    1 => format!("{what} failed again after 1 restart: {exit}"),
                    _ => format!("{what} failed again after {restarts} restarts: {exit}"),
                })
            }
        };
        self.boot = None;
        self.report(Progress::Ended(outcome));
    }
}

/// Any 64 random bits. A kernel that has none yet is no reason to fail a restart: jitter is all
/// that is lost, and a boot id need only differ from the last.
fn entropy() -> u64 {
    getrandom::u64().unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to draw entropy");
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64)
    })
}

impl WorkerSupervisor {
    fn begin(&mut self, ctx: &mut Context<Self>) {
        self.emit(EventKind::WorkerStarting);
        for (listener, guest_port) in &self.plan.listeners {
            match listener.local_addr() {
                Ok(host) => self.emit(EventKind::Published {
                    host,
                    guest_port: *guest_port,
                }),
                Err(error) => tracing::warn!(%error, "failed to read a published port"),
            }
        }
        self.on(Input::Start, ctx);
    }
}

impl Actor for WorkerSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.begin(ctx);
    }
}

/// To a WorkerSupervisor whose tree is at rest: start it again, with fresh counters.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StartWorker;

impl Handler<StartWorker> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, _: StartWorker, ctx: &mut Self::Context) {
        self.begin(ctx);
    }
}

/// To a WorkerSupervisor whose tree is at rest: end.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Dismiss;

impl Handler<Dismiss> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<ChildUp> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, ChildUp { child, life }: ChildUp, ctx: &mut Self::Context) {
        if life > 1 && child != ActorKind::Vm {
            let restarts = self.tree.restarts(child);
            self.emit(EventKind::ActorRestarted {
                actor: child,
                restarts,
            });
        }
        self.on(Input::Up { child, life }, ctx);
    }
}

impl Handler<ChildDown> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, msg: ChildDown, ctx: &mut Self::Context) {
        let ChildDown { child, life, death } = msg;
        if death.panicked && child == ActorKind::Vm {
            // Its restart is told as the VM's; that it was a panic of ours is told too.
            let cause = match &death.end {
                crate::tree::ChildEnd::Failed(exit) => exit.to_string(),
                crate::tree::ChildEnd::Stopped
                | crate::tree::ChildEnd::Done(_)
                | crate::tree::ChildEnd::Again => String::new(),
            };
            self.emit(EventKind::ActorFailed {
                actor: child,
                cause,
                stops: Vec::new(),
            });
        }
        // No successor before the predecessor's processes are reaped.
        let reaped = self.processes.reap(Some(child));
        ctx.spawn(reaped.into_actor(self).map(move |(), actor, ctx| {
            actor.release(child);
            actor.on(
                Input::Down {
                    child,
                    life,
                    end: death.end,
                },
                ctx,
            );
        }));
    }
}

/// From FsActor: the guest should give inodes back.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct InodePressure;

impl Handler<InodePressure> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, _: InodePressure, _: &mut Self::Context) {
        if let Some(vm) = &self.children.vm {
            vm.address.do_send(Tell::DropCaches);
        }
    }
}
