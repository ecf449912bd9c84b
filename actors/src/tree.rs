//! The supervision tree's core: which child is started, stopped and started again, and when.
//!
//! Pure: time and entropy are arguments, what is to be done comes back as [`Action`]s. The actor
//! around it (`worker`) does the work and reports back with [`Input`]s.
//!
//! # Rules
//!
//! * Children are started in the order in which they were declared, each once everything that it
//!   *requires* is up and no earlier child is still starting.
//! * When a child fails, it and all that transitively requires it are stopped in reverse order, one
//!   at a time, and started again in order: OTP's `rest_for_one`, by declared dependency instead of
//!   by position. Only the child that failed is counted on its [`RestartTracker`].
//! * A child whose tracker gives up ends the tree as [`TreeEnd::Failed`]; a child that reports
//!   [`ChildEnd::Done`] ends it as [`TreeEnd::Done`]. Either way the others are stopped in reverse
//!   order first, and the end is reported once nothing runs any more.
//! * Every start of a child has a number, its *life*. Reports about another life are stale and
//!   change nothing.

use std::time::Duration;

use iii_proto::restart::{Decision, Exit, RestartMemory, RestartPolicy, RestartTracker};
use serde::{Deserialize, Serialize};

/// A child as it is declared.
#[derive(Clone, Debug)]
pub struct ChildDef<C> {
    /// Who.
    pub id: C,
    /// Children that must be up for this one to run; declared earlier.
    pub requires: Vec<C>,
    /// When it is started again after a failure.
    pub restart: RestartPolicy,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildEnd {
    /// It was told to stop and did.
    Stopped,
    /// Its work is complete.
    Done(Exit),
    /// It should not have ended.
    Failed(Exit),
    /// It is to be started again at once, otherwise than before: no failure of its own, and nothing
    /// is counted.
    Again,
}

/// What the tree is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<C> {
    /// Start everything.
    Start,
    /// Stop everything, within each child's grace.
    Stop,
    /// Stop a child and all that requires it, in order, and start them again. A request, no
    /// failure: nothing is counted.
    Restart {
        /// Who.
        child: C,
    },
    /// A child runs.
    Up {
        /// Who.
        child: C,
        /// Which life.
        life: u64,
    },
    /// A child has ended and everything that it held is released.
    Down {
        /// Who.
        child: C,
        /// Which life.
        life: u64,
        /// How.
        end: ChildEnd,
    },
    /// Time has passed: [`Tree::wake_at`] is due.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// Start a child; answer with `Up` or `Down`.
    Start {
        /// Who.
        child: C,
        /// The number to report it under.
        life: u64,
    },
    /// Stop a child; answer with `Down`.
    Stop {
        /// Who.
        child: C,
        /// Which life.
        life: u64,
        /// What it requires has failed: there is nothing to be graceful with.
        urgent: bool,
    },
    /// Tell the world that a child failed and is going to be started again.
    Restarting {
        /// Who.
        child: C,
        /// How it ended.
        exit: Exit,
        /// When it is started again, from now.
        delay: Duration,
        /// Who is stopped with it, in the order of stopping.
        stops: Vec<C>,
    },
    /// Nothing runs any more.
    Ended(TreeEnd<C>),
}

/// Why the tree ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEnd<C> {
    /// It was told to stop.
    Stopped,
    /// A child completed its work.
    Done {
        /// Who.
        child: C,
        /// How it ended.
        exit: Exit,
    },
    /// A child may not be started again.
    Failed {
        /// Who.
        child: C,
        /// How it ended last.
        exit: Exit,
        /// Restarts that were granted before.
        restarts: u64,
    },
}

/// Where a child stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildState {
    /// It does not run.
    Down,
    /// It has failed and is started again in a moment.
    Waiting,
    /// It was told to start.
    Starting,
    /// It runs.
    Up,
    /// It was told to stop.
    Stopping,
}

impl From<&State> for ChildState {
    fn from(state: &State) -> Self {
        match state {
            State::Down => Self::Down,
            State::Waiting(_) => Self::Waiting,
            State::Starting => Self::Starting,
            State::Up => Self::Up,
            State::Stopping => Self::Stopping,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Not running; is started when the rules allow it.
    Down,
    /// Failed; not before this time.
    Waiting(Duration),
    /// Told to start.
    Starting,
    /// Runs.
    Up,
    /// Told to stop.
    Stopping,
}

#[derive(Clone, Debug)]
struct Child<C> {
    def: ChildDef<C>,
    tracker: RestartTracker,
    state: State,
    life: u64,
    /// Is to be stopped as soon as those behind it are down.
    stop: Option<Urgency>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urgency {
    Graceful,
    Urgent,
}

impl<C> Child<C> {
    fn runs(&self) -> bool {
        match self.state {
            State::Starting | State::Up | State::Stopping => true,
            State::Down | State::Waiting(_) => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Phase<C> {
    Idle,
    Running,
    Ending(TreeEnd<C>),
}

/// The core. `C` names children.
#[derive(Clone, Debug)]
pub struct Tree<C> {
    children: Vec<Child<C>>,
    phase: Phase<C>,
}

impl<C: Copy + Eq + std::fmt::Debug> Tree<C> {
    /// A tree at rest.
    ///
    /// # Panics
    /// If a child requires one that is not declared before it: a fault of the program, not of its
    /// input.
    pub fn new(defs: Vec<ChildDef<C>>) -> Self {
        for (at, def) in defs.iter().enumerate() {
            for required in &def.requires {
                assert!(
                    defs[..at].iter().any(|d| d.id == *required),
                    "{:?} requires {required:?}, which is not declared before it",
                    def.id
                );
            }
        }
        let children = defs
            .into_iter()
            .map(|def| Child {
                tracker: RestartTracker::new(def.restart.clone()),
                def,
                state: State::Down,
                life: 0,
                stop: None,
            })
            .collect();
        Self {
            children,
            phase: Phase::Idle,
        }
    }

    /// When `Input::Tick` is due.
    pub fn wake_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Running => self
                .children
                .iter()
                .filter_map(|c| match c.state {
                    State::Waiting(until) => Some(until),
                    State::Down | State::Starting | State::Up | State::Stopping => None,
                })
                .min(),
            Phase::Idle | Phase::Ending(_) => None,
        }
    }

    /// Goes on counting where an earlier tree ended. To be called before the first start.
    pub fn resume(&mut self, child: C, memory: RestartMemory) {
        for c in self.children.iter_mut().filter(|c| c.def.id == child) {
            c.tracker = RestartTracker::resume(c.def.restart.clone(), memory.clone());
        }
    }

    /// What each child's tracker remembers.
    pub fn memory(&self) -> impl Iterator<Item = (C, RestartMemory)> {
        self.children.iter().map(|c| (c.def.id, c.tracker.memory()))
    }

    /// Restarts of a child so far.
    pub fn restarts(&self, child: C) -> u64 {
        self.find(child).map_or(0, |c| c.tracker.total())
    }

    /// Where each child stands, in the order of their declaration.
    pub fn states(&self) -> impl Iterator<Item = (C, ChildState)> {
        self.children.iter().map(|c| (c.def.id, (&c.state).into()))
    }

    /// Whether a child runs, whatever its life.
    pub fn is_up(&self, child: C) -> bool {
        self.find(child).is_some_and(|c| c.state == State::Up)
    }

    /// Nothing runs and nothing will.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    fn find(&self, child: C) -> Option<&Child<C>> {
        self.children.iter().find(|c| c.def.id == child)
    }

    fn position(&self, child: C, life: u64) -> Option<usize> {
        self.children
            .iter()
            .position(|c| c.def.id == child && c.life == life)
    }

    /// Positions of all that transitively requires the child at `at`, in order of declaration.
    fn dependents(&self, at: usize) -> Vec<usize> {
        let mut hit = vec![at];
        // One pass is enough: what is required is declared earlier.
        for (i, child) in self.children.iter().enumerate().skip(at + 1) {
            if child
                .def
                .requires
                .iter()
                .any(|r| hit.iter().any(|&h| self.children[h].def.id == *r))
            {
                hit.push(i);
            }
        }
        hit.remove(0);
        hit
    }

    /// Takes one input at `now`; `entropy` is any 64 random bits.
    pub fn on(&mut self, input: Input<C>, now: Duration, entropy: u64) -> Vec<Action<C>> {
        let mut actions = Vec::new();
        match input {
            Input::Start => match self.phase {
                Phase::Idle => {
                    for child in &mut self.children {
                        // What was resumed counts for the first start.
                        if child.life > 0 {
                            child.tracker.reset();
                        }
                        child.state = State::Down;
                    }
                    self.phase = Phase::Running;
                }
                Phase::Running | Phase::Ending(_) => {}
            },
            Input::Stop => match self.phase {
                Phase::Running => self.end(TreeEnd::Stopped),
                Phase::Idle | Phase::Ending(_) => {}
            },
            Input::Restart { child } => match self.phase {
                Phase::Running => self.restart(child),
                Phase::Idle | Phase::Ending(_) => {}
            },
            Input::Up { child, life } => self.up(child, life, now),
            Input::Down { child, life, end } => {
                if let Some(at) = self.position(child, life) {
                    self.down(at, end, now, entropy, &mut actions);
                }
            }
            Input::Tick => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    fn up(&mut self, child: C, life: u64, now: Duration) {
        let Some(at) = self.position(child, life) else {
            return;
        };
        let child = &mut self.children[at];
        match child.state {
            State::Starting => {
                child.state = State::Up;
                child.tracker.on_start(now);
            }
            // A stop was sent before the report arrived; its `Down` follows.
            State::Stopping | State::Up | State::Down | State::Waiting(_) => {}
        }
    }

    fn restart(&mut self, child: C) {
        let Some(at) = self.children.iter().position(|c| c.def.id == child) else {
            return;
        };
        for i in std::iter::once(at).chain(self.dependents(at)) {
            let child = &mut self.children[i];
            match child.state {
                State::Starting | State::Up => {
                    child.stop.get_or_insert(Urgency::Graceful);
                }
                // It would be started again anyhow; now it need not wait.
                State::Waiting(_) => child.state = State::Down,
                State::Down | State::Stopping => {}
            }
        }
    }

    fn end(&mut self, end: TreeEnd<C>) {
        let urgency = Urgency::Graceful;
        for child in &mut self.children {
            if child.runs() && child.stop.is_none() {
                child.stop = Some(urgency);
            }
        }
        self.phase = Phase::Ending(end);
    }

    fn down(
        &mut self,
        at: usize,
        end: ChildEnd,
        now: Duration,
        entropy: u64,
        actions: &mut Vec<Action<C>>,
    ) {
        let expected = match self.children[at].state {
            State::Starting | State::Up => false,
            State::Stopping => true,
            // A second report about the same life.
            State::Down | State::Waiting(_) => return,
        };
        let wanted_down = self.children[at].stop.take().is_some();
        self.children[at].state = State::Down;
        if expected || wanted_down || self.phase != Phase::Running {
            return;
        }
        let id = self.children[at].def.id;
        let exit = match end {
            ChildEnd::Done(exit) => return self.end(TreeEnd::Done { child: id, exit }),
            ChildEnd::Failed(exit) => exit,
            // It is down; `advance` starts it. Those behind it are stopped first, as at a request.
            ChildEnd::Again => return self.restart(id),
            ChildEnd::Stopped => Exit::Fault {
                cause: "it stopped by itself".into(),
            },
        };
        match self.children[at].tracker.on_exit(&exit, now, entropy) {
            Decision::RestartAfter { delay } => {
                self.children[at].state = State::Waiting(now + delay);
                let mut stops = Vec::new();
                for i in self.dependents(at).into_iter().rev() {
                    let child = &mut self.children[i];
                    if child.runs() {
                        child.stop = Some(Urgency::Urgent);
                        stops.push(child.def.id);
                    }
                }
                actions.push(Action::Restarting {
                    child: id,
                    exit,
                    delay,
                    stops,
                });
            }
            Decision::GiveUp | Decision::Done | Decision::Wait => {
                let restarts = self.children[at].tracker.total();
                self.end(TreeEnd::Failed {
                    child: id,
                    exit,
                    restarts,
                });
            }
        }
    }

    fn advance(&mut self, now: Duration, actions: &mut Vec<Action<C>>) {
        self.advance_stops(actions);
        match &self.phase {
            Phase::Running => self.advance_starts(now, actions),
            Phase::Ending(end) => {
                if !self.children.iter().any(Child::runs) {
                    actions.push(Action::Ended(end.clone()));
                    self.phase = Phase::Idle;
                }
            }
            Phase::Idle => {}
        }
    }

    /// Stops what is to be stopped, the last declared first, one at a time.
    fn advance_stops(&mut self, actions: &mut Vec<Action<C>>) {
        for child in self.children.iter_mut().rev() {
            let Some(urgency) = child.stop else { continue };
            match child.state {
                State::Starting | State::Up => {
                    child.state = State::Stopping;
                    actions.push(Action::Stop {
                        child: child.def.id,
                        life: child.life,
                        urgent: urgency == Urgency::Urgent,
                    });
                    return;
                }
                State::Stopping => return,
                State::Down | State::Waiting(_) => child.stop = None,
            }
        }
    }

    fn advance_starts(&mut self, now: Duration, actions: &mut Vec<Action<C>>) {
        for at in 0..self.children.len() {
            let due = match self.children[at].state {
                State::Starting => return,
                State::Down => true,
                State::Waiting(until) => until <= now,
                State::Up | State::Stopping => false,
            };
            if !due || !self.may_start(at) {
                continue;
            }
            let child = &mut self.children[at];
            child.life += 1;
            child.state = State::Starting;
            actions.push(Action::Start {
                child: child.def.id,
                life: child.life,
            });
            return;
        }
    }

    fn may_start(&self, at: usize) -> bool {
        let up = |id: &C| {
            self.find(*id)
                .is_some_and(|c| c.state == State::Up && c.stop.is_none())
        };
        self.children[at].def.requires.iter().all(up)
            && !self.dependents(at).iter().any(|&d| self.children[d].runs())
    }
}

#[cfg(test)]
mod tests;
