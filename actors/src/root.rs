//! RootSupervisor: all workers of one supervisor. A worker that fails is left `failed`; its
//! neighbours do not notice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use iii_proto::ids::WorkerName;
use iii_proto::restart::{
    Decision, Exit, RestartLimit, RestartMode, RestartPolicy, RestartTracker,
};
use tokio::sync::oneshot;

use crate::death_watch::{Death, DeathGuard};
use crate::event::EventKind;
use crate::exec::{self, ExecError};
use crate::plan::{Environment, WorkerPlan};
use crate::processes::Processes;
use crate::runtime::Arbiters;
use crate::tree::ChildEnd;
use crate::worker::{Fault, Inject, Outcome, StopWorker, WorkerEnded, WorkerSupervisor};

/// Restarts of a WorkerSupervisor that panicked: a fault of ours, so few and slow.
fn supervisor_restart() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_millis(100),
        limit: Some(RestartLimit {
            restarts: 3,
            window: Duration::from_secs(60),
        }),
        stop_codes: Vec::new(),
        ..RestartPolicy::default()
    }
}

struct Worker {
    plan: Arc<WorkerPlan>,
    address: Option<Addr<WorkerSupervisor>>,
    incarnation: u64,
    processes: Processes,
    tracker: RestartTracker,
    stopping: bool,
    outcome: Option<Outcome>,
}

/// The outcome of every worker.
pub type Outcomes = Vec<(WorkerName, Outcome)>;

pub(crate) struct RootSupervisor {
    env: Environment,
    arbiters: Arc<Arbiters>,
    workers: BTreeMap<WorkerName, Worker>,
    waiting: Vec<oneshot::Sender<Outcomes>>,
}

impl RootSupervisor {
    pub(crate) fn new(env: Environment, arbiters: Arc<Arbiters>) -> Self {
        Self {
            env,
            arbiters,
            workers: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    fn start_worker(&mut self, name: &WorkerName, ctx: &mut Context<Self>) {
        let Some(worker) = self.workers.get_mut(name) else {
            return;
        };
        worker.incarnation += 1;
        worker.outcome = None;
        let incarnation = worker.incarnation;
        worker.tracker.on_start(self.env.bus.now());
        let me = ctx.address();
        let on_end = me.clone().recipient();
        let guard = {
            let name = name.clone();
            DeathGuard::new(move |death| {
                me.do_send(WorkerDown {
                    name,
                    incarnation,
                    death,
                })
            })
        };
        let (env, plan) = (self.env.clone(), Arc::clone(&worker.plan));
        let (arbiters, processes) = (Arc::clone(&self.arbiters), worker.processes.clone());
        let address = WorkerSupervisor::start_in_arbiter(self.arbiters.pick(), move |_| {
            WorkerSupervisor::new(env, plan, arbiters, processes, on_end, guard)
        });
        worker.address = Some(address);
    }

    fn finish(&mut self, name: &WorkerName, outcome: Outcome) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.outcome = Some(outcome);
        }
        self.check_idle();
    }

    fn check_idle(&mut self) {
        if self.workers.values().any(|w| w.outcome.is_none()) {
            return;
        }
        let outcomes: Outcomes = self
            .workers
            .iter()
            .filter_map(|(name, w)| Some((name.clone(), w.outcome.clone()?)))
            .collect();
        for waiting in self.waiting.drain(..) {
            // Whoever has stopped waiting does not want to know.
            drop(waiting.send(outcomes.clone()));
        }
    }
}

impl Actor for RootSupervisor {
    type Context = Context<Self>;
}

/// Why a worker is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Its name is in use.
    #[error("failed to add worker {0}: there is one of that name; remove it first")]
    Duplicate(WorkerName),
    /// The supervisor has ended.
    #[error("failed to add a worker: the supervisor has ended")]
    Ended,
}

/// Start a worker.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), AddError>")]
pub(crate) struct Add(pub(crate) Arc<WorkerPlan>);

impl Handler<Add> for RootSupervisor {
    type Result = Result<(), AddError>;

    fn handle(&mut self, Add(plan): Add, ctx: &mut Self::Context) -> Self::Result {
        let name = plan.spec.name.clone();
        if self.workers.contains_key(&name) {
            return Err(AddError::Duplicate(name));
        }
        let worker = Worker {
            plan,
            address: None,
            incarnation: 0,
            processes: Processes::default(),
            tracker: RestartTracker::new(supervisor_restart()),
            stopping: false,
            outcome: None,
        };
        self.workers.insert(name.clone(), worker);
        self.start_worker(&name, ctx);
        Ok(())
    }
}

/// Stop every worker.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopAll {
    pub(crate) urgent: bool,
}

impl Handler<StopAll> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, StopAll { urgent }: StopAll, _: &mut Self::Context) {
        for worker in self.workers.values_mut().filter(|w| w.outcome.is_none()) {
            worker.stopping = true;
            if let Some(address) = &worker.address {
                address.do_send(StopWorker { urgent });
            }
        }
    }
}

/// Resolves once no worker runs or will be started again.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct AwaitIdle(pub(crate) oneshot::Sender<Outcomes>);

impl Handler<AwaitIdle> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, AwaitIdle(sender): AwaitIdle, _: &mut Self::Context) {
        self.waiting.push(sender);
        self.check_idle();
    }
}

impl Handler<WorkerEnded> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, WorkerEnded { plan, outcome }: WorkerEnded, _: &mut Self::Context) {
        self.finish(&plan.spec.name, outcome);
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
        let exit = match death.end {
            ChildEnd::Failed(exit) | ChildEnd::Done(exit) => exit,
            ChildEnd::Stopped => Exit::Fault {
                cause: "it stopped".into(),
            },
        };
        let cause = exit.to_string();
        self.env.bus.emit(
            Some(&name),
            None,
            EventKind::WorkerSupervisorFailed { cause },
        );
        // Its actors were told to end by the drop of their slots; their processes end here.
        let reaped = worker.processes.reap(None);
        ctx.spawn(reaped.into_actor(self).map(move |(), root, ctx| {
            root.replace(name, &exit, ctx);
        }));
    }
}

impl RootSupervisor {
    fn replace(&mut self, name: WorkerName, exit: &Exit, ctx: &mut Context<Self>) {
        let now = self.env.bus.now();
        let Some(worker) = self.workers.get_mut(&name) else {
            return;
        };
        if worker.outcome.is_some() {
            return;
        }
        if worker.stopping {
            return self.finish(&name, Outcome::Stopped);
        }
        // No jitter is needed: workers do not fail together by this.
        match worker.tracker.on_exit(exit, now, 1 << 63) {
            Decision::RestartAfter { delay } => {
                ctx.run_later(delay, move |root, ctx| {
                    let stopping = root.workers.get(&name).is_none_or(|w| w.stopping);
                    if stopping {
                        root.finish(&name, Outcome::Stopped);
                    } else {
                        root.start_worker(&name, ctx);
                    }
                });
            }
            Decision::Done | Decision::GiveUp => {
                let reason = format!("its supervisor failed too often: {exit}");
                let kind = EventKind::WorkerFailed {
                    reason: reason.clone(),
                };
                self.env.bus.emit(Some(&name), None, kind);
                self.finish(&name, Outcome::Failed(reason));
            }
        }
    }
}

impl Handler<exec::Find> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, find: exec::Find, _: &mut Self::Context) {
        let Some(worker) = self.workers.get(&find.worker) else {
            let unknown = ExecError::UnknownWorker(find.worker.clone());
            return find.answer(Err(unknown));
        };
        match (&worker.outcome, &worker.address) {
            (Some(Outcome::Done(_)), _) => find.not_running("complete"),
            (Some(Outcome::Stopped), _) => find.not_running("stopped"),
            (Some(Outcome::Failed(_)), _) => find.not_running("failed"),
            (None, Some(address)) => address.do_send(find),
            (None, None) => find.not_running("between two supervisors"),
        }
    }
}

/// Hurt a worker.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), InjectError>")]
pub(crate) struct InjectInto {
    pub(crate) worker: WorkerName,
    pub(crate) fault: Fault,
}

/// Why a fault was not injected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InjectError {
    /// No such worker runs.
    #[error("failed to inject a fault: no worker {0} runs")]
    Unknown(WorkerName),
    /// Its spec does not allow it.
    #[error("failed to inject a fault into {0}: its spec does not allow faults")]
    Refused(WorkerName),
    /// The supervisor has ended.
    #[error("failed to inject a fault: the supervisor has ended")]
    Ended,
}

impl Handler<InjectInto> for RootSupervisor {
    type Result = Result<(), InjectError>;

    fn handle(&mut self, msg: InjectInto, _: &mut Self::Context) -> Self::Result {
        let InjectInto { worker, fault } = msg;
        let address = self
            .workers
            .get(&worker)
            .and_then(|w| Some((w, w.address.as_ref()?)));
        let Some((entry, address)) = address else {
            return Err(InjectError::Unknown(worker));
        };
        if !entry.plan.spec.allow_faults {
            return Err(InjectError::Refused(worker));
        }
        address.do_send(Inject(fault));
        Ok(())
    }
}
