//! One worker's life as RootSupervisor sees it: a table of state and input. Pure.
//!
//! `docs/supervision.md` shows the table to users; a test renders it from this code and compares.

use serde::{Deserialize, Serialize};

use crate::worker::Outcome;

/// Where a worker stands.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WorkerState {
    /// Nothing runs, by request or because nobody has asked for a start.
    #[default]
    Stopped,
    /// Wanted; nothing runs until what it depends on is as it demands.
    Waiting,
    /// Its tree is being started; the workload's process does not run yet.
    Starting,
    /// The workload's process runs and has not passed its probe.
    Started,
    /// The workload's probe has passed, or it has none and was started.
    Ready,
    /// The workload or something below it has failed and is being restarted.
    Repairing,
    /// Told to stop.
    Stopping,
    /// Its supervisor has failed; a new one is started after a delay.
    Replacing,
    /// The workload is complete and its policy does not restart it.
    Done,
    /// It will not be restarted any more; the reason is kept.
    Failed,
}

impl WorkerState {
    /// Every state, in the order in which a life passes them.
    pub const ALL: [Self; 10] = [
        Self::Stopped,
        Self::Waiting,
        Self::Starting,
        Self::Started,
        Self::Ready,
        Self::Repairing,
        Self::Stopping,
        Self::Replacing,
        Self::Done,
        Self::Failed,
    ];

    /// Nothing runs and nothing will without a request.
    pub fn is_at_rest(self) -> bool {
        match self {
            Self::Stopped | Self::Done | Self::Failed => true,
            Self::Waiting
            | Self::Starting
            | Self::Started
            | Self::Ready
            | Self::Repairing
            | Self::Stopping
            | Self::Replacing => false,
        }
    }

    /// Something of it runs or will by itself.
    pub fn holds_resources(self) -> bool {
        match self {
            Self::Starting
            | Self::Started
            | Self::Ready
            | Self::Repairing
            | Self::Stopping
            | Self::Replacing => true,
            Self::Stopped | Self::Waiting | Self::Done | Self::Failed => false,
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Repairing => "repairing",
            Self::Stopping => "stopping",
            Self::Replacing => "replacing",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// What happens to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerInput {
    /// It is wanted.
    Start,
    /// It is not wanted any more.
    Stop {
        /// Without grace.
        urgent: bool,
    },
    /// It is wanted anew: stop, then start.
    Restart,
    /// All that it depends on is as it demands.
    DependenciesMet,
    /// Something that it depends on will not be as it demands.
    DependencyFailed(String),
    /// The workload's process runs.
    WorkloadStarted,
    /// The workload is ready.
    WorkloadReady,
    /// The workload, or what it stands on, has ended and is being repaired.
    WorkloadDown,
    /// Its tree is at rest.
    TreeEnded(Outcome),
    /// Its supervisor has died, its processes are reaped, and a successor is granted.
    SupervisorDied,
    /// As before, and none is granted.
    SupervisorGaveUp(String),
    /// The successor is due.
    ReplacementDue,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEffect {
    /// Start its tree.
    StartTree,
    /// Stop its tree; it answers with `TreeEnded`.
    StopTree {
        /// Without grace.
        urgent: bool,
    },
    /// Tell the world that it ended. The state has changed by then.
    Ended(Outcome),
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Rest,
    Start,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct WorkerLifecycle {
    state: WorkerState,
    next: Next,
    outcome: Option<Outcome>,
}

impl WorkerLifecycle {
    /// A worker that nobody has started, or that had ended under an earlier supervisor.
    pub fn new(ended: Option<Outcome>) -> Self {
        Self {
            state: ended.as_ref().map_or(WorkerState::Stopped, at_rest),
            next: Next::Rest,
            outcome: ended,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// How it ended last; kept until it is started again.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Takes one input.
    pub fn on(&mut self, input: WorkerInput) -> Option<WorkerEffect> {
        use WorkerInput as I;
        use WorkerState as S;
        match (self.state, input) {
            (S::Stopped | S::Done | S::Failed, I::Start | I::Restart) => self.want(),
            (S::Stopped | S::Done | S::Failed, I::Stop { .. }) => None,
            // Nothing runs: these speak of a life that is over.
            (
                S::Stopped | S::Done | S::Failed,
                I::DependenciesMet
                | I::DependencyFailed(_)
                | I::WorkloadStarted
                | I::WorkloadReady
                | I::WorkloadDown
                | I::TreeEnded(_)
                | I::SupervisorDied
                | I::SupervisorGaveUp(_)
                | I::ReplacementDue,
            ) => None,

            (S::Waiting, I::Start | I::Restart) => None,
            (S::Waiting, I::Stop { .. }) => self.end(Outcome::Stopped),
            (S::Waiting, I::DependenciesMet) => {
                self.state = S::Starting;
                Some(WorkerEffect::StartTree)
            }
            (S::Waiting, I::DependencyFailed(reason)) => self.end(Outcome::Failed(reason)),
            (
                S::Waiting,
                I::WorkloadStarted
                | I::WorkloadReady
                | I::WorkloadDown
                | I::TreeEnded(_)
                | I::SupervisorDied
                | I::SupervisorGaveUp(_)
                | I::ReplacementDue,
            ) => None,

            (S::Starting | S::Started | S::Ready | S::Repairing, I::Start) => None,
            (S::Starting | S::Started | S::Ready | S::Repairing, I::Stop { urgent }) => {
                self.stop(Next::Rest, urgent)
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::Restart) => {
                self.stop(Next::Start, false)
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::WorkloadStarted) => {
                self.state = S::Started;
                None
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::WorkloadReady) => {
                self.state = S::Ready;
                None
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::WorkloadDown) => {
                self.state = S::Repairing;
                None
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::TreeEnded(outcome)) => {
                self.end(outcome)
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::SupervisorDied) => {
                self.state = S::Replacing;
                None
            }
            (S::Starting | S::Started | S::Ready | S::Repairing, I::SupervisorGaveUp(reason)) => {
                self.end(Outcome::Failed(reason))
            }
            // What it depends on mattered when it was started; a dependency that is lost later is
            // a `Restart`, where the spec asks for one.
            (
                S::Starting | S::Started | S::Ready | S::Repairing,
                I::DependenciesMet | I::DependencyFailed(_) | I::ReplacementDue,
            ) => None,

            (S::Stopping, I::Start | I::Restart) => {
                self.next = Next::Start;
                None
            }
            (S::Stopping, I::Stop { urgent }) => {
                self.next = Next::Rest;
                urgent.then_some(WorkerEffect::StopTree { urgent })
            }
            (S::Stopping, I::TreeEnded(_)) => self.stopped(),
            // With its supervisor all that was to be stopped is gone.
            (S::Stopping, I::SupervisorDied | I::SupervisorGaveUp(_)) => self.stopped(),
            (
                S::Stopping,
                I::DependenciesMet
                | I::DependencyFailed(_)
                | I::WorkloadStarted
                | I::WorkloadReady
                | I::WorkloadDown
                | I::ReplacementDue,
            ) => None,

            (S::Replacing, I::Start) => None,
            (S::Replacing, I::Stop { .. }) => self.end(Outcome::Stopped),
            (S::Replacing, I::Restart | I::ReplacementDue) => self.want(),
            (
                S::Replacing,
                I::DependenciesMet
                | I::DependencyFailed(_)
                | I::WorkloadStarted
                | I::WorkloadReady
                | I::WorkloadDown
                | I::TreeEnded(_)
                | I::SupervisorDied
                | I::SupervisorGaveUp(_),
            ) => None,
        }
    }

    fn want(&mut self) -> Option<WorkerEffect> {
        self.state = WorkerState::Waiting;
        self.outcome = None;
        None
    }

    fn stop(&mut self, next: Next, urgent: bool) -> Option<WorkerEffect> {
        self.state = WorkerState::Stopping;
        self.next = next;
        Some(WorkerEffect::StopTree { urgent })
    }

    fn stopped(&mut self) -> Option<WorkerEffect> {
        match self.next {
            Next::Rest => self.end(Outcome::Stopped),
            Next::Start => self.want(),
        }
    }

    fn end(&mut self, outcome: Outcome) -> Option<WorkerEffect> {
        self.state = at_rest(&outcome);
        self.outcome = Some(outcome.clone());
        Some(WorkerEffect::Ended(outcome))
    }
}

fn at_rest(outcome: &Outcome) -> WorkerState {
    match outcome {
        Outcome::Done(_) => WorkerState::Done,
        Outcome::Stopped => WorkerState::Stopped,
        Outcome::Failed(_) => WorkerState::Failed,
    }
}

#[cfg(test)]
mod tests;
