//! All workers of one supervisor and what each demands of the others. Pure: time and entropy are
//! arguments, what is to be done comes back as [`FleetAction`]s.
//!
//! # Rules
//!
//! * A worker that is wanted waits until each of its dependencies is as it demands, then its tree
//!   is started. Workers that depend on nothing start at once, all together.
//! * A dependency that will never be as demanded (it has failed, or is complete where it should
//!   run) fails the one who waits, with its reason. One that was stopped by request is waited for.
//! * A worker is stopped once no worker that depends on it and is to stop as well still runs: the
//!   reverse of the start.
//! * With `restart: true` a worker does not outlive the state that it demanded: when its dependency
//!   leaves it, for whatever reason, the worker is stopped in order, waits, and is started again.
//!   Without, it goes on; its connections break, and it is expected to make new ones.
//! * A stop without grace keeps no order: everything ends at once.

use std::collections::BTreeMap;
use std::time::Duration;

use iii_proto::ids::WorkerName;
use iii_proto::restart::{Decision, Exit, RestartTracker};

use super::lifecycle::{WorkerEffect, WorkerInput, WorkerLifecycle, WorkerState};
use crate::spec::{Condition, Dependency};
use crate::worker::Outcome;

/// What the fleet is told about a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetInput {
    /// A user wants it to run.
    Start,
    /// A user wants it to end.
    Stop {
        /// Without grace.
        urgent: bool,
    },
    /// A user wants it to end and to run again.
    Restart,
    /// The workload's process runs.
    WorkloadStarted,
    /// The workload is ready.
    WorkloadReady,
    /// The workload, or what it stands on, has ended and is being repaired.
    WorkloadDown,
    /// Its tree is at rest.
    TreeEnded(Outcome),
    /// Its supervisor has died and its processes are reaped.
    SupervisorDied(Exit),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetAction {
    /// Start the worker's tree.
    StartTree(WorkerName),
    /// Stop it; it answers with `TreeEnded`.
    StopTree {
        /// Whose.
        name: WorkerName,
        /// Without grace.
        urgent: bool,
    },
    /// Tell that it waits.
    Waiting {
        /// Who.
        name: WorkerName,
        /// For whom.
        on: Vec<WorkerName>,
    },
    /// Tell that it is stopped and started again, and for whose sake.
    Restarting {
        /// Who.
        name: WorkerName,
        /// The dependency that was lost; `None`: a user asked.
        lost: Option<WorkerName>,
    },
    /// Tell how it ended.
    Ended {
        /// Who.
        name: WorkerName,
        /// How.
        outcome: Outcome,
    },
}

/// A worker's wish that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    Restart,
}

#[derive(Debug)]
struct Member {
    lifecycle: WorkerLifecycle,
    depends_on: Vec<Dependency>,
    /// Of its supervisor, which fails only by a fault of ours.
    tracker: RestartTracker,
    /// Is to be stopped as soon as those that depend on it and are to stop are down.
    wish: Option<Wish>,
    replace_at: Option<Duration>,
    /// For whom it said that it waits, so that it says so once.
    told: Vec<WorkerName>,
}

/// Why a worker is not taken or not let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetError {
    /// There is one of that name.
    Duplicate,
    /// It depends on one that is not there.
    UnknownDependency(WorkerName),
    /// Another depends on it.
    RequiredBy(WorkerName),
    /// It would depend on itself, by way of this one.
    Circle(WorkerName),
    /// There is none of that name.
    Unknown,
}

/// The core.
#[derive(Debug, Default)]
pub struct Fleet {
    members: BTreeMap<WorkerName, Member>,
}

impl Fleet {
    /// Takes a worker that nobody has started, or that had ended under an earlier supervisor.
    pub fn add(
        &mut self,
        name: WorkerName,
        depends_on: Vec<Dependency>,
        tracker: RestartTracker,
        ended: Option<Outcome>,
    ) -> Result<(), FleetError> {
        if self.members.contains_key(&name) {
            return Err(FleetError::Duplicate);
        }
        // Since each dependency is there before its dependent, there can be no cycle.
        for dependency in &depends_on {
            if !self.members.contains_key(&dependency.worker) {
                return Err(FleetError::UnknownDependency(dependency.worker.clone()));
            }
        }
        let member = Member {
            lifecycle: WorkerLifecycle::new(ended),
            depends_on,
            tracker,
            wish: None,
            replace_at: None,
            told: Vec::new(),
        };
        self.members.insert(name, member);
        Ok(())
    }

    /// Gives a worker other dependencies and begins its counters anew.
    pub fn redefine(
        &mut self,
        name: &WorkerName,
        depends_on: Vec<Dependency>,
        tracker: RestartTracker,
    ) -> Result<(), FleetError> {
        if !self.members.contains_key(name) {
            return Err(FleetError::Unknown);
        }
        for dependency in &depends_on {
            let other = &dependency.worker;
            if !self.members.contains_key(other) {
                return Err(FleetError::UnknownDependency(other.clone()));
            }
            if self.stands_on(other, name) {
                return Err(FleetError::Circle(other.clone()));
            }
        }
        if let Some(member) = self.members.get_mut(name) {
            member.depends_on = depends_on;
            member.tracker = tracker;
            member.told.clear();
        }
        Ok(())
    }

    /// Whether `name` is `other`, or depends on it, by way of however many.
    fn stands_on(&self, name: &WorkerName, other: &WorkerName) -> bool {
        name == other
            || self.members.get(name).is_some_and(|member| {
                let mut on = member.depends_on.iter();
                // There is no circle among those that are there, so this ends.
                on.any(|d| self.stands_on(&d.worker, other))
            })
    }

    /// Whether the worker may be let go: nobody depends on it.
    pub fn may_remove(&self, name: &WorkerName) -> Result<(), FleetError> {
        if !self.members.contains_key(name) {
            return Err(FleetError::Unknown);
        }
        let dependent = self.members.iter().find(|(_, m)| m.depends_on(name));
        match dependent {
            Some((dependent, _)) => Err(FleetError::RequiredBy(dependent.clone())),
            None => Ok(()),
        }
    }

    /// Forgets a worker that is at rest.
    pub fn remove(&mut self, name: &WorkerName) {
        self.members.remove(name);
    }

    /// Where a worker stands.
    pub fn state(&self, name: &WorkerName) -> Option<WorkerState> {
        self.members.get(name).map(|m| m.lifecycle.state())
    }

    /// How it ended last.
    pub fn outcome(&self, name: &WorkerName) -> Option<&Outcome> {
        self.members.get(name)?.lifecycle.outcome()
    }

    /// For whom it waits.
    pub fn waits_for(&self, name: &WorkerName) -> Vec<WorkerName> {
        match self.members.get(name) {
            Some(member) if member.lifecycle.state() == WorkerState::Waiting => {
                self.unmet(member).map(|d| d.worker.clone()).collect()
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// Nothing runs and nothing will without a request. A worker that waits for one that is at
    /// rest waits for a request.
    pub fn is_idle(&self) -> bool {
        self.members.iter().all(|(name, member)| {
            let state = member.lifecycle.state();
            state.is_at_rest()
                || (state == WorkerState::Waiting
                    && self.waits_for(name).iter().all(|d| self.rests(d)))
        })
    }

    fn rests(&self, name: &WorkerName) -> bool {
        let waits = || self.waits_for(name).iter().all(|d| self.rests(d));
        self.state(name)
            .is_none_or(|state| state.is_at_rest() || (state == WorkerState::Waiting && waits()))
    }

    /// When [`Self::tick`] is due.
    pub fn wake_at(&self) -> Option<Duration> {
        self.members.values().filter_map(|m| m.replace_at).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) -> Vec<FleetAction> {
        let mut actions = Vec::new();
        let due: Vec<WorkerName> = self
            .members
            .iter()
            .filter(|(_, m)| m.replace_at.is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.feed(&name, WorkerInput::ReplacementDue, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Stops everything, in order or at once.
    pub fn stop_all(&mut self, urgent: bool, now: Duration) -> Vec<FleetAction> {
        let mut actions = Vec::new();
        let names: Vec<WorkerName> = self.members.keys().cloned().collect();
        for name in &names {
            let Some(member) = self.members.get_mut(name) else {
                continue;
            };
            member.wish = (!urgent).then_some(Wish::Stop);
            if urgent {
                self.feed(name, WorkerInput::Stop { urgent }, &mut actions);
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Stops some within their grace, each behind those of them that depend on it: one request for
    /// all, since of two that follow each other the first may be carried out before the second is
    /// known.
    pub fn stop(&mut self, names: &[WorkerName], now: Duration) -> Vec<FleetAction> {
        let mut actions = Vec::new();
        for name in names {
            self.wish(name, Wish::Stop, &mut actions);
        }
        self.settle(now, &mut actions);
        actions
    }

    /// Takes one input about `name` at `now`; `entropy` is any 64 random bits.
    pub fn on(
        &mut self,
        name: &WorkerName,
        input: FleetInput,
        now: Duration,
        entropy: u64,
    ) -> Vec<FleetAction> {
        let mut actions = Vec::new();
        match input {
            FleetInput::Start => {
                if let Some(member) = self.members.get_mut(name) {
                    member.wish = None;
                    if member.lifecycle.state().is_at_rest() {
                        member.tracker.reset();
                    }
                }
                self.feed(name, WorkerInput::Start, &mut actions);
            }
            FleetInput::Stop { urgent: true } => {
                if let Some(member) = self.members.get_mut(name) {
                    member.wish = None;
                }
                self.feed(name, WorkerInput::Stop { urgent: true }, &mut actions);
            }
            FleetInput::Stop { urgent: false } => self.wish(name, Wish::Stop, &mut actions),
            FleetInput::Restart => {
                if self.state(name).is_some_and(WorkerState::holds_resources) {
                    actions.push(FleetAction::Restarting {
                        name: name.clone(),
                        lost: None,
                    });
                }
                self.wish(name, Wish::Restart, &mut actions);
            }
            FleetInput::WorkloadStarted => {
                self.feed(name, WorkerInput::WorkloadStarted, &mut actions);
            }
            FleetInput::WorkloadReady => self.feed(name, WorkerInput::WorkloadReady, &mut actions),
            FleetInput::WorkloadDown => self.feed(name, WorkerInput::WorkloadDown, &mut actions),
            FleetInput::TreeEnded(outcome) => {
                self.feed(name, WorkerInput::TreeEnded(outcome), &mut actions);
            }
            FleetInput::SupervisorDied(exit) => {
                self.supervisor_died(name, &exit, now, entropy, &mut actions);
            }
        }
        self.settle(now, &mut actions);
        actions
    }

    fn supervisor_died(
        &mut self,
        name: &WorkerName,
        exit: &Exit,
        now: Duration,
        entropy: u64,
        actions: &mut Vec<FleetAction>,
    ) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        match member.tracker.on_exit(exit, now, entropy) {
            Decision::RestartAfter { delay } => {
                member.replace_at = Some(now + delay);
                self.feed(name, WorkerInput::SupervisorDied, actions);
            }
            Decision::Done | Decision::GiveUp | Decision::Wait => {
                let reason = format!("its supervisor failed too often: {exit}");
                self.feed(name, WorkerInput::SupervisorGaveUp(reason), actions);
            }
        }
    }

    /// Remembers the wish, and that those who may not outlive the worker's state restart before.
    fn wish(&mut self, name: &WorkerName, wish: Wish, actions: &mut Vec<FleetAction>) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        member.wish = Some(wish);
        let mut todo = vec![name.clone()];
        while let Some(lost) = todo.pop() {
            for dependent in self.bound_to(&lost) {
                let Some(member) = self.members.get_mut(&dependent) else {
                    continue;
                };
                // What has a wish already has its own dependents told.
                if member.lifecycle.state().holds_resources() && member.wish.is_none() {
                    member.wish = Some(Wish::Restart);
                    actions.push(FleetAction::Restarting {
                        name: dependent.clone(),
                        lost: Some(lost.clone()),
                    });
                    todo.push(dependent);
                }
            }
        }
    }

    /// Those with `restart: true` on `name`.
    fn bound_to(&self, name: &WorkerName) -> Vec<WorkerName> {
        self.members
            .iter()
            .filter(|(_, m)| m.depends_on.iter().any(|d| d.worker == *name && d.restart))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn feed(&mut self, name: &WorkerName, input: WorkerInput, actions: &mut Vec<FleetAction>) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        let effect = member.lifecycle.on(input);
        if member.lifecycle.state() != WorkerState::Replacing {
            member.replace_at = None;
        }
        if member.lifecycle.state() != WorkerState::Waiting {
            member.told.clear();
        }
        let name = name.clone();
        actions.extend(effect.map(|effect| match effect {
            WorkerEffect::StartTree => FleetAction::StartTree(name),
            WorkerEffect::StopTree { urgent } => FleetAction::StopTree { name, urgent },
            WorkerEffect::Ended(outcome) => FleetAction::Ended { name, outcome },
        }));
    }

    /// Does what the rules allow until they allow nothing more.
    fn settle(&mut self, now: Duration, actions: &mut Vec<FleetAction>) {
        // Each round moves a worker forward or ends the loop; a worker that is stopped and started
        // again needs a report from outside in between.
        while self.lose(actions) | self.grant(actions) | self.begin(now, actions) {}
        self.tell(actions);
    }

    /// Marks those whose dependency has left the state that they may not outlive.
    fn lose(&mut self, actions: &mut Vec<FleetAction>) -> bool {
        let lost: Vec<(WorkerName, WorkerName)> = self
            .members
            .iter()
            .filter(|(_, m)| m.wish.is_none())
            .filter(|(_, m)| match m.lifecycle.state() {
                WorkerState::Starting
                | WorkerState::Started
                | WorkerState::Ready
                | WorkerState::Repairing
                | WorkerState::Replacing => true,
                WorkerState::Stopped
                | WorkerState::Waiting
                | WorkerState::Stopping
                | WorkerState::Done
                | WorkerState::Failed => false,
            })
            .filter_map(|(name, m)| {
                let lost = self.unmet(m).find(|d| d.restart)?;
                Some((name.clone(), lost.worker.clone()))
            })
            .collect();
        for (name, dependency) in &lost {
            actions.push(FleetAction::Restarting {
                name: name.clone(),
                lost: Some(dependency.clone()),
            });
            self.wish(name, Wish::Restart, actions);
        }
        !lost.is_empty()
    }

    /// Grants the wishes whose turn has come.
    fn grant(&mut self, actions: &mut Vec<FleetAction>) -> bool {
        let granted: Vec<(WorkerName, Wish)> = self
            .members
            .iter()
            .filter_map(|(name, m)| Some((name.clone(), m.wish?)))
            .filter(|(name, _)| {
                !self.members.iter().any(|(_, m)| {
                    let ends = m.wish.is_some() || m.lifecycle.state() == WorkerState::Stopping;
                    m.depends_on(name) && ends && m.lifecycle.state().holds_resources()
                })
            })
            .collect();
        for (name, wish) in &granted {
            if let Some(member) = self.members.get_mut(name) {
                member.wish = None;
            }
            let input = match wish {
                Wish::Stop => WorkerInput::Stop { urgent: false },
                Wish::Restart => WorkerInput::Restart,
            };
            self.feed(name, input, actions);
        }
        !granted.is_empty()
    }

    /// Starts those who wait for nothing more, and fails those who wait for nothing that can be.
    fn begin(&mut self, now: Duration, actions: &mut Vec<FleetAction>) -> bool {
        let mut inputs = Vec::new();
        for (name, member) in &self.members {
            if member.lifecycle.state() != WorkerState::Waiting || member.wish.is_some() {
                continue;
            }
            if let Some(reason) = member.depends_on.iter().find_map(|d| self.hopeless(d)) {
                inputs.push((name.clone(), WorkerInput::DependencyFailed(reason)));
            } else if self.unmet(member).next().is_none() {
                inputs.push((name.clone(), WorkerInput::DependenciesMet));
            }
        }
        let any = !inputs.is_empty();
        for (name, input) in inputs {
            if let Some(member) = self.members.get_mut(&name) {
                member.tracker.on_start(now);
            }
            self.feed(&name, input, actions);
        }
        any
    }

    fn tell(&mut self, actions: &mut Vec<FleetAction>) {
        let names: Vec<WorkerName> = self.members.keys().cloned().collect();
        for name in names {
            let on = self.waits_for(&name);
            let Some(member) = self.members.get_mut(&name) else {
                continue;
            };
            if member.lifecycle.state() == WorkerState::Waiting && member.told != on {
                member.told.clone_from(&on);
                actions.push(FleetAction::Waiting { name, on });
            }
        }
    }

    fn unmet<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = &'a Dependency> {
        member.depends_on.iter().filter(|d| !self.is_met(d))
    }

    fn is_met(&self, dependency: &Dependency) -> bool {
        let Some(member) = self.members.get(&dependency.worker) else {
            return false;
        };
        match (dependency.condition, member.lifecycle.state()) {
            (Condition::Started, WorkerState::Started | WorkerState::Ready | WorkerState::Done) => {
                true
            }
            (Condition::Ready, WorkerState::Ready) => true,
            (Condition::Done, WorkerState::Done) => member.succeeded(),
            (
                Condition::Started,
                WorkerState::Stopped
                | WorkerState::Waiting
                | WorkerState::Starting
                | WorkerState::Repairing
                | WorkerState::Stopping
                | WorkerState::Replacing
                | WorkerState::Failed,
            ) => false,
            (
                Condition::Ready | Condition::Done,
                WorkerState::Stopped
                | WorkerState::Waiting
                | WorkerState::Starting
                | WorkerState::Started
                | WorkerState::Repairing
                | WorkerState::Stopping
                | WorkerState::Replacing
                | WorkerState::Failed,
            ) => false,
            (Condition::Ready, WorkerState::Done) | (Condition::Done, WorkerState::Ready) => false,
        }
    }

    /// Why the dependency will not be met without a request.
    fn hopeless(&self, dependency: &Dependency) -> Option<String> {
        let name = &dependency.worker;
        let member = self.members.get(name)?;
        match (member.lifecycle.outcome(), dependency.condition) {
            (Some(Outcome::Failed(reason)), _) => {
                Some(format!("{name}, which it depends on, failed: {reason}"))
            }
            (Some(Outcome::Done(exit)), Condition::Ready) => Some(format!(
                "{name}, which it depends on, ended ({exit}) where it should be ready; did you \
                 mean `{name}: done`?"
            )),
            (Some(Outcome::Done(exit)), Condition::Done) if !exit.is_success() => Some(format!(
                "{name}, which it depends on, did not succeed: {exit}"
            )),
            (Some(Outcome::Done(_)), Condition::Done | Condition::Started)
            | (Some(Outcome::Stopped) | None, _) => None,
        }
    }
}

impl Member {
    fn depends_on(&self, name: &WorkerName) -> bool {
        self.depends_on.iter().any(|d| d.worker == *name)
    }

    fn succeeded(&self) -> bool {
        match self.lifecycle.outcome() {
            Some(Outcome::Done(exit)) => exit.is_success(),
            Some(Outcome::Stopped | Outcome::Failed(_)) | None => false,
        }
    }
}

#[cfg(test)]
mod tests;
