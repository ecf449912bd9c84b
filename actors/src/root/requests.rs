//! What RootSupervisor is asked from outside, and what it answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use iii_proto::control::GuestMemory;
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::{Exit, RestartTracker};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    Facts, FleetError, FleetInput, Outcomes, Removal, Renewal, RootSupervisor, Waiter, Worker,
    WorkerState,
};
use crate::event::{ActorKind, EventKind};
use crate::exec::{self, ExecError};
use crate::memory::WorkerMemory;
use crate::plan::WorkerPlan;
use crate::tree::ChildState;
use crate::usage::{GUEST_PATIENCE, Measure, NetworkMeter, NetworkUsage, PartUsage, WorkerUsage};
use crate::worker::{Fault, FilesChanged, Inject, Outcome, RestartPart, Scope};

/// A worker at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Who.
    pub name: WorkerName,
    /// Where it stands.
    pub state: WorkerState,
    /// Since when, from the Unix epoch.
    pub since: Duration,
    /// For whom it waits.
    pub waits_for: Vec<WorkerName>,
    /// Whether it has a probe, so that being ready is more than being started.
    pub probed: bool,
    /// The VM that runs.
    pub boot: Option<BootId>,
    /// VMs that it has had, those under earlier supervisors that were killed included.
    pub boots: u64,
    /// The host's process id of the shim above the VMM.
    pub vmm_pid: Option<u32>,
    /// Since when that VM runs, from the Unix epoch.
    pub vm_since: Option<Duration>,
    /// The workload's main process, in the guest.
    pub workload: Option<GuestPid>,
    /// Since when that process runs, from the Unix epoch.
    pub workload_since: Option<Duration>,
    /// Starts of the workload under this supervisor.
    pub workload_starts: u64,
    /// Restarts of the VM after failures.
    pub vm_restarts: u64,
    /// How the workload ended last.
    pub last_exit: Option<Exit>,
    /// How the worker ended, until it is started again.
    pub outcome: Option<Outcome>,
    /// What the host publishes: its address, the guest's port.
    pub published: Vec<(SocketAddr, u16)>,
}

/// Why a worker is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Its name is in use.
    #[error("failed to add worker {0}: there is one of that name; remove it first")]
    Duplicate(WorkerName),
    /// It depends on one that is not there.
    #[error(
        "failed to add worker {worker}: it depends on {dependency}, which is not there; add that one first"
    )]
    UnknownDependency {
        /// Who.
        worker: WorkerName,
        /// On whom.
        dependency: WorkerName,
    },
    /// The supervisor has ended.
    #[error("failed to add a worker: the supervisor has ended")]
    Ended,
}

/// Why a request about a worker is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No such worker.
    #[error("failed to find worker {0}: there is none of that name")]
    Unknown(WorkerName),
    /// Others depend on it.
    #[error("failed to remove worker {worker}: {by} depends on it; remove {by} first")]
    Required {
        /// Who.
        worker: WorkerName,
        /// Who depends on it.
        by: WorkerName,
    },
    /// It does not run, so that no part of it can be restarted.
    #[error("failed to restart a part of worker {worker}: it is {state}; start it instead")]
    NotRunning {
        /// Who.
        worker: WorkerName,
        /// Where it stands.
        state: WorkerState,
    },
    /// The supervisor has ended.
    #[error("failed to ask about a worker: the supervisor has ended")]
    Ended,
}

impl RootSupervisor {
    fn known(&self, name: &WorkerName) -> Result<WorkerState, RequestError> {
        self.fleet
            .state(name)
            .ok_or_else(|| RequestError::Unknown(name.clone()))
    }

    fn status(&self, name: &WorkerName) -> Option<WorkerStatus> {
        let worker = self.workers.get(name)?;
        let vm = worker.memory.restarts.get(&ActorKind::Vm);
        Some(WorkerStatus {
            name: name.clone(),
            state: self.fleet.state(name)?,
            since: worker.facts.since,
            waits_for: self.fleet.waits_for(name),
            probed: worker.plan.spec.health.is_some(),
            boot: worker.facts.boot,
            boots: worker.memory.boots,
            vmm_pid: worker.facts.vmm_pid,
            vm_since: worker.facts.vm_since,
            workload: worker.facts.workload,
            workload_since: worker.facts.workload_since,
            workload_starts: worker.facts.workload_starts,
            vm_restarts: vm.map_or(0, |memory| memory.total),
            last_exit: worker.facts.last_exit.clone(),
            outcome: self.fleet.outcome(name).cloned(),
            published: worker
                .plan
                .listeners
                .iter()
                .filter_map(|(listener, guest)| Some((listener.local_addr().ok()?, *guest)))
                .collect(),
        })
    }

    fn outcomes(&self) -> Outcomes {
        self.workers
            .keys()
            .map(|name| {
                // One that waits for what nobody starts ends as if stopped.
                let outcome = self.fleet.outcome(name).cloned();
                (name.clone(), outcome.unwrap_or(Outcome::Stopped))
            })
            .collect()
    }

    /// Tells those whose wait is over.
    pub(super) fn answer(&mut self) {
        for waiter in std::mem::take(&mut self.waiting) {
            match self.status(&waiter.worker) {
                // Whoever has stopped waiting does not want to know.
                Some(status) if waiter.until.is_met(&status) => {
                    drop(waiter.answer.send(status));
                }
                Some(_) => self.waiting.push(waiter),
                // It was removed; the dropped sender says so.
                None => {}
            }
        }
        if !self.idle.is_empty() && self.fleet.is_idle() {
            let outcomes = self.outcomes();
            for waiting in self.idle.drain(..) {
                drop(waiting.send(outcomes.clone()));
            }
        }
    }
}

/// Take a worker and, unless it had ended under an earlier supervisor, start it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), AddError>")]
pub(crate) struct Add {
    pub(crate) plan: Arc<WorkerPlan>,
    /// What an earlier supervisor that did not end in order has left.
    pub(crate) memory: Option<WorkerMemory>,
    /// Start it.
    pub(crate) start: bool,
}

impl Handler<Add> for RootSupervisor {
    type Result = Result<(), AddError>;

    fn handle(&mut self, msg: Add, ctx: &mut Self::Context) -> Self::Result {
        let Add {
            plan,
            memory,
            start,
        } = msg;
        let name = plan.spec.name.clone();
        let recovered = memory.is_some();
        let memory = memory.unwrap_or_default();
        let tracker = RestartTracker::resume(
            plan.spec.supervisor_restart.clone(),
            memory.supervisor.clone(),
        );
        let ended = memory.outcome.clone();
        self.fleet
            .add(
                name.clone(),
                plan.spec.depends_on.clone(),
                tracker,
                ended.clone(),
            )
            .map_err(|error| match error {
                FleetError::UnknownDependency(dependency) => AddError::UnknownDependency {
                    worker: name.clone(),
                    dependency,
                },
                FleetError::Duplicate
                | FleetError::RequiredBy(_)
                | FleetError::Circle(_)
                | FleetError::Unknown => AddError::Duplicate(name.clone()),
            })?;
        if recovered {
            self.emit(
                &name,
                EventKind::WorkerRecovered {
                    state: memory.state,
                    lost_boot: memory.boot.filter(|_| !memory.state.is_at_rest()),
                    restarts: memory
                        .restarts
                        .get(&ActorKind::Vm)
                        .map_or(0, |m| m.granted.len()),
                },
            );
        }
        let worker = Worker {
            plan,
            address: None,
            incarnation: 0,
            processes: self.roster.enlist(),
            meter: NetworkMeter::default(),
            memory: WorkerMemory {
                state: WorkerState::Stopped,
                ..memory
            },
            facts: Facts {
                since: self.env.bus.now(),
                ..Facts::default()
            },
            removal: Removal::No,
            renewal: Renewal::No,
        };
        self.workers.insert(name.clone(), worker);
        match ended {
            Some(Outcome::Failed(reason)) => self.emit(&name, EventKind::WorkerFailed { reason }),
            Some(Outcome::Done(exit)) => self.emit(&name, EventKind::WorkerDone { exit }),
            Some(Outcome::Stopped) => self.emit(&name, EventKind::WorkerStopped),
            None if start => self.on(&name, FleetInput::Start, ctx),
            None => {}
        }
        let now = self.env.bus.now();
        self.perform(Vec::new(), now, ctx);
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

    fn handle(&mut self, StopAll { urgent }: StopAll, ctx: &mut Self::Context) {
        let now = self.env.bus.now();
        let actions = self.fleet.stop_all(urgent, now);
        self.perform(actions, now, ctx);
    }
}

/// Resolves once no worker runs or will be started again.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct AwaitIdle(pub(crate) oneshot::Sender<Outcomes>);

impl Handler<AwaitIdle> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, AwaitIdle(sender): AwaitIdle, _: &mut Self::Context) {
        self.idle.push(sender);
        self.answer();
    }
}

/// A worker is wanted.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct RequestStart(pub(crate) WorkerName);

impl Handler<RequestStart> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(
        &mut self,
        RequestStart(name): RequestStart,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        self.known(&name)?;
        self.on(&name, FleetInput::Start, ctx);
        Ok(())
    }
}

/// A worker is not wanted any more.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct RequestStop {
    pub(crate) worker: WorkerName,
    pub(crate) urgent: bool,
}

impl Handler<RequestStop> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(&mut self, msg: RequestStop, ctx: &mut Self::Context) -> Self::Result {
        let RequestStop { worker, urgent } = msg;
        self.known(&worker)?;
        self.on(&worker, FleetInput::Stop { urgent }, ctx);
        Ok(())
    }
}

/// Several workers are not wanted any more; those that are not there are not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopSeveral(pub(crate) Vec<WorkerName>);

impl Handler<StopSeveral> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, StopSeveral(workers): StopSeveral, ctx: &mut Self::Context) {
        let now = self.env.bus.now();
        let actions = self.fleet.stop(&workers, now);
        self.perform(actions, now, ctx);
    }
}

/// A worker, or a part of it, is wanted anew.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct RequestRestart {
    pub(crate) worker: WorkerName,
    pub(crate) scope: Scope,
}

impl Handler<RequestRestart> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(&mut self, msg: RequestRestart, ctx: &mut Self::Context) -> Self::Result {
        let RequestRestart { worker, scope } = msg;
        let state = self.known(&worker)?;
        let part = match scope {
            Scope::All => {
                self.on(&worker, FleetInput::Restart, ctx);
                return Ok(());
            }
            Scope::Workload => RestartPart::Workload,
            Scope::Vm => RestartPart::Vm,
        };
        let runs = match state {
            WorkerState::Starting
            | WorkerState::Started
            | WorkerState::Ready
            | WorkerState::Repairing => true,
            WorkerState::Stopped
            | WorkerState::Waiting
            | WorkerState::Stopping
            | WorkerState::Replacing
            | WorkerState::Done
            | WorkerState::Failed => false,
        };
        match self.workers.get(&worker).and_then(|w| w.address.as_ref()) {
            Some(address) if runs => {
                address.do_send(part);
                Ok(())
            }
            Some(_) | None => Err(RequestError::NotRunning { worker, state }),
        }
    }
}

/// The host has changed files that a worker's guest sees.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct Announce {
    pub(crate) worker: WorkerName,
    /// Absolute in the guest.
    pub(crate) paths: Vec<String>,
}

impl Handler<Announce> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(
        &mut self,
        Announce { worker, paths }: Announce,
        _: &mut Self::Context,
    ) -> Self::Result {
        self.known(&worker)?;
        if let Some(address) = self.workers.get(&worker).and_then(|w| w.address.as_ref()) {
            address.do_send(FilesChanged(paths));
        }
        Ok(())
    }
}

/// Stop a worker and forget it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct Remove(pub(crate) WorkerName);

impl Handler<Remove> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(&mut self, Remove(name): Remove, ctx: &mut Self::Context) -> Self::Result {
        self.fleet.may_remove(&name).map_err(|error| match error {
            FleetError::RequiredBy(by) => RequestError::Required {
                worker: name.clone(),
                by,
            },
            FleetError::Unknown
            | FleetError::Duplicate
            | FleetError::Circle(_)
            | FleetError::UnknownDependency(_) => RequestError::Unknown(name.clone()),
        })?;
        if let Some(worker) = self.workers.get_mut(&name) {
            worker.removal = Removal::Wanted;
        }
        self.on(&name, FleetInput::Stop { urgent: false }, ctx);
        Ok(())
    }
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Nothing of it runs or will without a request.
    AtRest,
    /// It is ready, or at rest and will not be.
    ReadyOrAtRest,
    /// It is ready after more starts of its workload than these, or at rest and will not be.
    ReadyAfter { starts: u64 },
    /// It is not there any more.
    Removed,
}

impl Until {
    fn is_met(self, status: &WorkerStatus) -> bool {
        let ready = status.state == WorkerState::Ready;
        match self {
            Self::AtRest => status.state.is_at_rest(),
            Self::ReadyOrAtRest => status.state.is_at_rest() || ready,
            Self::ReadyAfter { starts } => {
                status.state.is_at_rest() || (ready && status.workload_starts > starts)
            }
            Self::Removed => false,
        }
    }
}

/// Resolves once it is so. The sender is dropped if the worker is removed meanwhile.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RequestError>")]
pub(crate) struct WaitFor {
    pub(crate) worker: WorkerName,
    pub(crate) until: Until,
    pub(crate) answer: oneshot::Sender<WorkerStatus>,
}

impl Handler<WaitFor> for RootSupervisor {
    type Result = Result<(), RequestError>;

    fn handle(&mut self, msg: WaitFor, _: &mut Self::Context) -> Self::Result {
        self.known(&msg.worker)?;
        self.waiting.push(Waiter {
            worker: msg.worker,
            until: msg.until,
            answer: msg.answer,
        });
        self.answer();
        Ok(())
    }
}

/// How is this worker?
#[derive(Debug, Message)]
#[rtype(result = "Result<WorkerStatus, RequestError>")]
pub(crate) struct QueryStatus(pub(crate) WorkerName);

impl Handler<QueryStatus> for RootSupervisor {
    type Result = Result<WorkerStatus, RequestError>;

    fn handle(&mut self, QueryStatus(name): QueryStatus, _: &mut Self::Context) -> Self::Result {
        self.status(&name).ok_or(RequestError::Unknown(name))
    }
}

/// How are all?
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<WorkerStatus>")]
pub(crate) struct QueryStatuses;

impl Handler<QueryStatuses> for RootSupervisor {
    type Result = MessageResult<QueryStatuses>;

    fn handle(&mut self, _: QueryStatuses, _: &mut Self::Context) -> Self::Result {
        MessageResult(
            self.workers
                .keys()
                .filter_map(|name| self.status(name))
                .collect(),
        )
    }
}

/// What does this worker use?
#[derive(Debug, Message)]
#[rtype(result = "Result<Inquiry, RequestError>")]
pub(crate) struct Inquire(pub(crate) WorkerName);

/// What RootSupervisor knows of a worker's usage, and where the rest comes from.
#[derive(Debug)]
pub(crate) struct Inquiry {
    programs: Vec<(ActorKind, u32)>,
    restarts: BTreeMap<ActorKind, u64>,
    network: Option<NetworkUsage>,
    cpus: u8,
    memory: u64,
    parts: oneshot::Receiver<Vec<(ActorKind, ChildState)>>,
    guest: oneshot::Receiver<GuestMemory>,
}

impl Inquiry {
    /// Waits for those who know the rest, for the guest not for long.
    pub(crate) async fn answered(self) -> WorkerUsage {
        // Without a tree nobody answers, and the senders are dropped at once.
        let states = self.parts.await.unwrap_or_default();
        let guest = tokio::time::timeout(GUEST_PATIENCE, self.guest).await;
        let part = |(actor, state)| PartUsage {
            actor,
            state,
            restarts: self.restarts.get(&actor).copied().unwrap_or(0),
            pid: (self.programs.iter())
                .find(|(owner, _)| *owner == actor)
                .map(|(_, pid)| *pid),
        };
        WorkerUsage {
            parts: states.into_iter().map(part).collect(),
            network: self.network,
            // What a guest says is no more than it can have.
            guest_memory: guest.ok().and_then(Result::ok).map(|said| {
                let total = said.total.min(self.memory);
                GuestMemory {
                    total,
                    available: said.available.min(total),
                }
            }),
            cpus: self.cpus,
            memory: self.memory,
        }
    }
}

impl Handler<Inquire> for RootSupervisor {
    type Result = Result<Inquiry, RequestError>;

    fn handle(&mut self, Inquire(name): Inquire, _: &mut Self::Context) -> Self::Result {
        let Some(worker) = self.workers.get(&name) else {
            return Err(RequestError::Unknown(name));
        };
        let (tell_parts, parts) = oneshot::channel();
        let (tell_memory, guest) = oneshot::channel();
        if let Some(address) = &worker.address {
            address.do_send(Measure {
                parts: tell_parts,
                memory: tell_memory,
            });
        }
        let spec = &worker.plan.spec;
        let restarts = worker.memory.restarts.iter();
        Ok(Inquiry {
            programs: worker.processes.programs(),
            restarts: restarts.map(|(actor, m)| (*actor, m.total)).collect(),
            network: worker.plan.has_network().then(|| worker.meter.read()),
            cpus: spec.resources.cpus,
            memory: spec.resources.memory,
            parts,
            guest,
        })
    }
}

impl Handler<exec::Find> for RootSupervisor {
    type Result = ();

    fn handle(&mut self, find: exec::Find, _: &mut Self::Context) {
        let (worker, state) = match (self.workers.get(&find.worker), self.known(&find.worker)) {
            (Some(worker), Ok(state)) => (worker, state),
            _ => {
                let unknown = ExecError::UnknownWorker(find.worker.clone());
                return find.answer(Err(unknown));
            }
        };
        match (state, &worker.address) {
            (WorkerState::Done, _) => find.not_running("complete"),
            (WorkerState::Stopped, _) => find.not_running("stopped"),
            (WorkerState::Failed, _) => find.not_running("failed"),
            (WorkerState::Waiting, _) => find.not_running("waiting for others"),
            (
                WorkerState::Starting
                | WorkerState::Started
                | WorkerState::Ready
                | WorkerState::Repairing
                | WorkerState::Stopping
                | WorkerState::Replacing,
                Some(address),
            ) => address.do_send(find),
            (
                WorkerState::Starting
                | WorkerState::Started
                | WorkerState::Ready
                | WorkerState::Repairing
                | WorkerState::Stopping
                | WorkerState::Replacing,
                None,
            ) => find.not_running("between two supervisors"),
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
