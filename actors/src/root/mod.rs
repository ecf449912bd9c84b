//! RootSupervisor: all workers of one supervisor. A worker that fails is left `failed`; its
//! neighbours do not notice.
//!
//! * [`lifecycle`] is one worker's table of state and input, [`fleet`] the order between workers;
//!   both are pure. This file does what they say.
//! * `requests` answers what is asked from outside, `replace` gives a worker other settings.

pub mod fleet;
pub mod lifecycle;
mod replace;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::Exit;
use tokio::sync::oneshot;

use self::fleet::{Fleet, FleetAction, FleetError, FleetInput};
pub use self::lifecycle::WorkerState;
use self::replace::Renewal;
pub use self::replace::ReplaceError;
pub(crate) use self::replace::{Listeners, Replace};
pub(crate) use self::requests::{
    Add, Announce, AwaitIdle, InjectInto, Inquire, QueryStatus, QueryStatuses, Remove,
    RequestRestart, RequestStart, RequestStop, StopAll, StopSeveral, Until, WaitFor,
};
pub use self::requests::{AddError, InjectError, RequestError, WorkerStatus};
use crate::death_watch::{Death, DeathGuard};
use crate::event::EventKind;
use crate::memory::WorkerMemory;
use crate::plan::{Environment, WorkerPlan};
use crate::processes::{Processes, Roster};
use crate::runtime::Arbiters;
use crate::tree::ChildEnd;
use crate::usage::NetworkMeter;
use crate::worker::{
    Dismiss, Outcome, Progress, StartWorker, StopWorker, WorkerParts, WorkerReport,
    WorkerSupervisor,
};

/// What RootSupervisor knows of a worker beside its place in the fleet.
struct Worker {
    plan: Arc<WorkerPlan>,
    address: Option<Addr<WorkerSupervisor>>,
    incarnation: u64,
    processes: Processes,
    meter: NetworkMeter,
    memory: WorkerMemory,
    facts: Facts,
    removal: Removal,
    renewal: Renewal,
}

/// Whether a worker is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It stays.
    No,
    /// Once it is at rest.
    Wanted,
    /// Its supervisor was told to end, and with it what the plan holds: listeners, images.
    Dismissed,
}

/// What its actors reported last.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Since when it is in its state.
    since: Duration,
    boot: Option<BootId>,
    vmm_pid: Option<u32>,
    vm_since: Option<Duration>,
    workload: Option<GuestPid>,
    workload_since: Option<Duration>,
    workload_starts: u64,
    last_exit: Option<Exit>,
}

impl Facts {
    fn no_vm(&mut self) {
        self.boot = None;
        self.vmm_pid = None;
        self.vm_since = None;
        self.workload = None;
        self.workload_since = None;
    }
}

/// The outcome of every worker.
pub type Outcomes = Vec<(WorkerName, Outcome)>;

pub(crate) struct RootSupervisor {
    env: Environment,
    arbiters: Arc<Arbiters>,
    roster: Roster,
    fleet: Fleet,
    workers: BTreeMap<WorkerName, Worker>,
    waiting: Vec<Waiter>,
    idle: Vec<oneshot::Sender<Outcomes>>,
    timer: Option<SpawnHandle>,
}

/// Somebody who is to be told when something is so.
struct Waiter {
    worker: WorkerName,
    until: Until,
    answer: oneshot::Sender<WorkerStatus>,
}

impl RootSupervisor {
    pub(crate) fn new(env: Environment, arbiters: Arc<Arbiters>, roster: Roster) -> Self {
        Self {
            env,
            arbiters,
            roster,
            fleet: Fleet::default(),
            workers: BTreeMap::new(),
            waiting: Vec::new(),
            idle: Vec::new(),
            timer: None,
        }
    }

    fn on(&mut self, name: &WorkerName, input: FleetInput, ctx: &mut Context<Self>) {
        let now = self.env.bus.now();
        // No jitter is needed: workers do not fail together by a fault of their supervisors.
        let actions = self.fleet.on(name, input, now, 1 << 63);
        self.perform(actions, now, ctx);
    }

    fn perform(&mut self, actions: Vec<FleetAction>, now: Duration, ctx: &mut Context<Self>) {
        for action in actions {
            match action {
                FleetAction::StartTree(name) => self.start_tree(&name, ctx),
                FleetAction::StopTree { name, urgent } => self.stop_tree(&name, urgent),
                FleetAction::Waiting { name, on } => {
                    self.emit(&name, EventKind::WorkerWaiting { on });
                }
                FleetAction::Restarting { name, lost } => {
                    self.emit(&name, EventKind::WorkerRestarting { lost });
                }
                FleetAction::Ended { name, outcome } => self.emit(
                    &name,
                    match outcome {
                        Outcome::Stopped => EventKind::WorkerStopped,
                        Outcome::Done(exit) => EventKind::WorkerDone { exit },
                        Outcome::Failed(reason) => EventKind::WorkerFailed { reason },
                    },
                ),
            }
        }
        self.remember(now);
        self.answer();
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.fleet.wake_at() {
            self.timer = Some(ctx.run_later(at.saturating_sub(now), |root, ctx| {
                root.timer = None;
                let now = root.env.bus.now();
                let actions = root.fleet.tick(now);
                root.perform(actions, now, ctx);
            }));
        }
    }

    fn emit(&self, name: &WorkerName, kind: EventKind) {
        self.env.bus.emit(Some(name), None, kind);
    }

    fn start_tree(&mut self, name: &WorkerName, ctx: &mut Context<Self>) {
        let Some(worker) = self.workers.get_mut(name) else {
            return;
        };
        if let Some(address) = &worker.address {
            match worker.renewal {
                Renewal::No => address.do_send(StartWorker),
                Renewal::Wanted => {
                    address.do_send(Dismiss);
                    worker.renewal = Renewal::Dismissed;
                }
                Renewal::Dismissed => {}
            }
            return;
        }
        worker.renewal = Renewal::No;
        worker.incarnation += 1;
        let incarnation = worker.incarnation;
        let me = ctx.address();
        let root = me.clone().recipient();
        let guard = {
            let name = name.clone();
            DeathGuard::new(move |death| {
                me.do_send(WorkerDown {
                    name,
                    incarnation,
                    death,
                });
            })
        };
        let parts = WorkerParts {
            env: self.env.clone(),
            plan: Arc::clone(&worker.plan),
            arbiters: Arc::clone(&self.arbiters),
            processes: worker.processes.clone(),
            meter: worker.meter.clone(),
            incarnation,
            boots: worker.memory.boots,
            restarts: worker.memory.restarts.clone(),
            root,
            guard,
        };
        let arbiter = self.arbiters.pick();
        let address =
            WorkerSupervisor::start_in_arbiter(arbiter, move |_| WorkerSupervisor::new(parts));
        worker.address = Some(address);
    }

    fn stop_tree(&mut self, name: &WorkerName, urgent: bool) {
        if let Some(address) = self.workers.get(name).and_then(|w| w.address.as_ref()) {
            address.do_send(StopWorker { urgent });
        }
    }

    /// Notes every change of state, and forgets workers that are at rest and to be removed.
    fn remember(&mut self, now: Duration) {
        let (fleet, env) = (&mut self.fleet, &self.env);
        self.workers.retain(|name, worker| {
            let Some(state) = fleet.state(name) else {
                return false;
            };
            if worker.memory.state != state {
                worker.memory.state = state;
                worker.memory.outcome = fleet.outcome(name).cloned();
                worker.facts.since = now;
                worker.keep(name, env.keeper.as_deref());
            }
            if worker.removal == Removal::No || !state.is_at_rest() {
                return true;
            }
            if let Some(address) = &worker.address {
                if worker.removal == Removal::Wanted {
                    address.do_send(Dismiss);
                    worker.removal = Removal::Dismissed;
                }
                return true;
            }
            fleet.remove(name);
            env.logs.forget(name);
            if let Some(keeper) = &env.keeper {
                keeper.keep(name, None);
            }
            false
        });
    }
}

impl Worker {
    fn keep(&self, name: &WorkerName, keeper: Option<&dyn crate::memory::Keeper>) {
        if let Some(keeper) = keeper {
            keeper.keep(name, Some(self.memory.clone()));
        }
    }
}

impl Actor for RootSupervisor {
    type Context = Context<Self>;
}

impl Handler<WorkerReport> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, report: WorkerReport, ctx: &mut Self::Context) {
        let WorkerReport {
            name,
            incarnation,
            progress,
        } = report;
        let Some(worker) = self.workers.get_mut(&name) else {
            return;
        };
        if worker.incarnation != incarnation {
            return;
        }
        let now = self.env.bus.now();
        let facts = &mut worker.facts;
        let input = match progress {
            Progress::VmStarted { boot, boots, pid } => {
                facts.boot = Some(boot);
                facts.vmm_pid = Some(pid);
                facts.vm_since = Some(now);
                worker.memory.boot = Some(boot);
                worker.memory.boots = boots;
                worker.keep(&name, self.env.keeper.as_deref());
                return;
            }
            Progress::WorkloadStarted(pid) => {
                facts.workload = Some(pid);
                facts.workload_since = Some(now);
                facts.workload_starts += 1;
                FleetInput::WorkloadStarted
            }
            Progress::WorkloadReady(pid) => {
                facts.workload = Some(pid);
                FleetInput::WorkloadReady
            }
            Progress::WorkloadExited(exit) => {
                facts.workload = None;
                facts.workload_since = None;
                facts.last_exit = Some(exit);
                FleetInput::WorkloadDown
            }
            Progress::VmDown => {
                facts.no_vm();
                FleetInput::WorkloadDown
            }
            Progress::Restarting(restarts) => {
                worker.memory.restarts = restarts;
                worker.keep(&name, self.env.keeper.as_deref());
                return;
            }
            Progress::Ended(outcome) => FleetInput::TreeEnded(outcome),
        };
        self.on(&name, input, ctx);
    }
}

/// A WorkerSupervisor is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WorkerDown {
    name: WorkerName,
    incarnation: u64,
    death: Death,
}

impl Handler<WorkerDown> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, msg: WorkerDown, ctx: &mut Self::Context) {
        let WorkerDown {
            name,
            incarnation,
            death,
        } = msg;
        let Some(worker) = self.workers.get_mut(&name) else {
            return;
        };
        if worker.incarnation != incarnation {
            return;
        }
        worker.address = None;
        worker.facts.no_vm();
        if worker.removal == Removal::Dismissed {
            let now = self.env.bus.now();
            return self.perform(Vec::new(), now, ctx);
        }
        if worker.renewal == Renewal::Dismissed {
            return self.renewed(&name, ctx);
        }
        let exit = match death.end {
            ChildEnd::Failed(exit) | ChildEnd::Done(exit) => exit,
            ChildEnd::Stopped | ChildEnd::Again => Exit::Fault {
                cause: "it stopped".into(),
            },
        };
        let cause = exit.to_string();
        self.emit(&name, EventKind::WorkerSupervisorFailed { cause });
        // Its actors were told to end by the drop of their slots; their processes end here.
        let Some(worker) = self.workers.get(&name) else {
            return;
        };
        let reaped = worker.processes.reap(None);
        ctx.spawn(reaped.into_actor(self).map(move |(), root, ctx| {
            root.on(&name, FleetInput::SupervisorDied(exit), ctx);
        }));
    }
}
