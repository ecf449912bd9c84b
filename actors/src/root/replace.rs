//! A worker with other settings: its tree is stopped in order, its supervisor dismissed, and a new
//! one started by the new plan. Its neighbours keep what they depend on by name.

use std::net::TcpListener;
use std::sync::Arc;

use actix::prelude::*;
use iii_proto::ids::WorkerName;
use iii_proto::restart::{RestartMemory, RestartTracker};

use super::{FleetError, FleetInput, Removal, RootSupervisor};
use crate::WorkerState;
use crate::plan::WorkerPlan;
use crate::worker::Outcome;

/// Whether a worker's supervisor still goes by an earlier plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It does not.
    No,
    /// It does, until its tree is at rest.
    Wanted,
    /// It was told to end; its successor starts when it has.
    Dismissed,
}

/// Why a worker is not given other settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// There is none of that name.
    #[error("failed to change worker {0}: there is none of that name; add it")]
    Unknown(WorkerName),
    /// It would depend on one that is not there.
    #[error(
        "failed to change worker {worker}: it would depend on {dependency}, which is not there; \
         add that one first"
    )]
    UnknownDependency {
        /// Who.
        worker: WorkerName,
        /// On whom.
        dependency: WorkerName,
    },
    /// It would depend on itself by way of others.
    #[error(
        "failed to change worker {worker}: it would depend on itself, by way of {dependency}; \
         change that one first"
    )]
    Circle {
        /// Who.
        worker: WorkerName,
        /// By way of whom.
        dependency: WorkerName,
    },
    /// The supervisor has ended.
    #[error("failed to change a worker: the supervisor has ended")]
    Ended,
}

/// Go by another plan from now on: restart what runs, start what is at rest.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), ReplaceError>")]
pub(crate) struct Replace(pub(crate) Arc<WorkerPlan>);

impl Handler<Replace> for RootSupervisor {
    type Result = Result<(), ReplaceError>;

    fn handle(&mut self, Replace(plan): Replace, ctx: &mut Self::Context) -> Self::Result {
        let name = plan.spec.name.clone();
        let Some(worker) = self.workers.get_mut(&name) else {
            return Err(ReplaceError::Unknown(name));
        };
        if worker.removal != Removal::No {
            return Err(ReplaceError::Unknown(name));
        }
        // Counters of other settings mean nothing for these.
        let tracker = RestartTracker::new(plan.spec.supervisor_restart.clone());
        self.fleet
            .redefine(&name, plan.spec.depends_on.clone(), tracker)
            .map_err(|error| match error {
                FleetError::UnknownDependency(dependency) => ReplaceError::UnknownDependency {
                    worker: name.clone(),
                    dependency,
                },
                FleetError::Circle(dependency) => ReplaceError::Circle {
                    worker: name.clone(),
                    dependency,
                },
                FleetError::Unknown | FleetError::Duplicate | FleetError::RequiredBy(_) => {
                    ReplaceError::Unknown(name.clone())
                }
            })?;
        worker.plan = plan;
        worker.memory.restarts.clear();
        worker.memory.supervisor = RestartMemory::default();
        if worker.address.is_some() && worker.renewal == Renewal::No {
            worker.renewal = Renewal::Wanted;
        }
        self.on(&name, FleetInput::Restart, ctx);
        Ok(())
    }
}

impl RootSupervisor {
    /// A supervisor that was dismissed for the sake of its successor has ended. Whatever was asked
    /// for since was asked of one that did not hear it any more.
    pub(super) fn renewed(&mut self, name: &WorkerName, ctx: &mut Context<Self>) {
        match self.fleet.state(name) {
            Some(WorkerState::Starting) => self.start_tree(name, ctx),
            Some(WorkerState::Stopping) => {
                self.on(name, FleetInput::TreeEnded(Outcome::Stopped), ctx);
            }
            Some(
                WorkerState::Stopped
                | WorkerState::Waiting
                | WorkerState::Started
                | WorkerState::Ready
                | WorkerState::Repairing
                | WorkerState::Replacing
                | WorkerState::Done
                | WorkerState::Failed,
            )
            | None => {}
        }
    }
}

/// The listeners of a worker, to be handed on to one that publishes the same ports.
#[derive(Debug, Message)]
#[rtype(result = "std::io::Result<Vec<TcpListener>>")]
pub(crate) struct Listeners(pub(crate) WorkerName);

impl Handler<Listeners> for RootSupervisor {
    type Result = std::io::Result<Vec<TcpListener>>;

    fn handle(&mut self, Listeners(name): Listeners, _: &mut Self::Context) -> Self::Result {
        let listeners = self.workers.get(&name).map(|worker| &worker.plan.listeners);
        let listeners = listeners.into_iter().flatten();
        listeners
            .map(|(listener, _)| listener.try_clone())
            .collect()
    }
}
