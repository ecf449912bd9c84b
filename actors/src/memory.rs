//! What outlives a supervisor: restart counters, and how a worker ended. Nothing else does.

use std::collections::BTreeMap;

use iii_proto::ids::{BootId, WorkerName};
use iii_proto::restart::RestartMemory;
use serde::{Deserialize, Serialize};

use crate::event::ActorKind;
use crate::root::WorkerState;
use crate::worker::Outcome;

/// What is remembered of one worker. Times are since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerMemory {
    /// Where it stood.
    pub state: WorkerState,
    /// Its last VM.
    pub boot: Option<BootId>,
    /// VMs that it has had.
    pub boots: u64,
    /// How it ended, if it had.
    pub outcome: Option<Outcome>,
    /// Restarts of its VM and of its actors.
    pub restarts: BTreeMap<ActorKind, RestartMemory>,
    /// Restarts of its supervisor.
    pub supervisor: RestartMemory,
}

/// Keeps what is to be remembered.
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// The worker's memory has changed; `None`: the worker was removed. Called often, on an
    /// actor's thread: must not block.
    fn keep(&self, worker: &WorkerName, memory: Option<WorkerMemory>);
}
