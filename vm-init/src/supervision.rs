//! The supervision of one workload: a state machine of (state, event), without I/O. Time and
//! entropy are arguments; what is to be done comes back as [`Action`]s.
//!
//! ```text
//! Fresh ─Boot→ Starting ─Spawned→ Running ─MainExited→ Clearing ─LifeCleared→ Backoff ─Timer→ Starting
//!                                    │                    ↑    ├──────────→ Flushing → Off
//!                                    │                    │    └→ Resting ─Restart→ Starting
//!                                    └─Stop, Restart,  → Stopping
//!                                      unhealthy, HostGone
//! ```
//!
//! A *life* is one run of the workload: its main process and everything that this started.
//! A successor starts only when the whole life is gone ([`Event::LifeCleared`]), so nothing of it
//! holds a port or a file lock any more, and its last output has been taken.

use std::time::Duration;

use iii_proto::control::{GuestMessage, PowerOffReason};
use iii_proto::guest::{AtRest, HealthCheck};
use iii_proto::ids::GuestPid;
use iii_proto::restart::{Decision, Exit, RestartPolicy, RestartTracker};

use crate::health::Health;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// How long killed processes may take to vanish before the successor starts all the same: one that
/// hangs in a host file system cannot be killed.
const CLEAR_TIME: Duration = Duration::from_secs(5);
/// How long the host may take to acknowledge the last log frames before power is cut.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest is prepared.
    Boot,
    /// The start that [`Supervision::wants_start`] asked for has made this process.
    Spawned {
        /// Its id.
        pid: GuestPid,
    },
    /// That start made no process.
    SpawnFailed {
        /// For the user.
        cause: String,
    },
    /// The process has become the workload's program (execve succeeded).
    Executed,
    /// A child ended. Ignored unless it is the main process of the current life.
    MainExited {
        /// Which.
        pid: GuestPid,
        /// How.
        exit: Exit,
    },
    /// Nothing of the ended life is left.
    LifeCleared,
    /// The running probe succeeded.
    ProbePassed,
    /// The running probe failed.
    ProbeFailed {
        /// What it saw.
        detail: String,
    },
    /// The host wants the guest to end.
    Stop {
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// The host wants a new life.
    Restart {
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// The host sends the workload a signal.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// The host injects the death of the main process.
    KillMain,
    /// The control port hung up.
    HostGone,
    /// All log frames are written and acknowledged.
    LogsSettled,
    /// [`Supervision::deadline`] has come.
    Timer,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the host.
    Send(GuestMessage),
    /// Signal the process group of the life.
    SignalGroup {
        /// Its main process.
        pid: GuestPid,
        /// The signal.
        signal: i32,
    },
    /// Signal the main process alone.
    SignalMain {
        /// It.
        pid: GuestPid,
        /// The signal.
        signal: i32,
    },
    /// SIGTERM to what is left of the life and left its process group (a daemon's `setsid`), so
    /// that it ends within the grace as well.
    TerminateStrays {
        /// The life's main process, which has ended.
        pid: GuestPid,
    },
    /// SIGKILL whatever is left of the life.
    KillLife {
        /// Its main process.
        pid: GuestPid,
    },
    /// Run the probe.
    StartProbe,
    /// Give the running probe up.
    CancelProbe,
    /// Take what the ended life left in its pipes and close them.
    SealOutput,
    /// Sync, say why, and end the guest.
    PowerOff(PowerOffReason),
}

#[derive(Debug)]
struct Life {
    pid: GuestPid,
    started: Duration,
    health: Option<Health>,
}

#[derive(Debug, PartialEq, Eq)]
enum Purpose {
    PowerOff,
    HostGone,
    Restart,
    Unhealthy,
}

#[derive(Debug)]
struct Ended {
    pid: GuestPid,
    exit: Exit,
    ran: Duration,
    decision: Decision,
}

#[derive(Debug)]
enum Next {
    Start { at: Duration },
    Rest,
    PowerOff(PowerOffReason),
}

#[derive(Debug)]
enum State {
    /// Before [`Event::Boot`].
    Fresh,
    /// A start is wanted; the caller performs it.
    Starting,
    /// A life is running.
    Running { life: Life },
    /// SIGTERM was sent; the main process has not ended yet.
    Stopping {
        life: Life,
        kill_at: Option<Duration>,
        purpose: Purpose,
    },
    /// The main process ended; the rest of its life is being waited for.
    Clearing {
        ended: Ended,
        /// While set, the rest has time to end by itself.
        kill_at: Option<Duration>,
        abandon_at: Duration,
        next: Next,
    },
    /// The next life waits for its time.
    Backoff { until: Duration },
    /// Nothing runs until it is asked for.
    Resting,
    /// The last log frames are on their way.
    Flushing {
        reason: PowerOffReason,
        until: Duration,
    },
    /// [`Action::PowerOff`] was given.
    Off,
}

/// Supervises one workload for the length of one boot.
#[derive(Debug)]
pub struct Supervision {
    state: State,
    tracker: RestartTracker,
    health: Option<HealthCheck>,
    stop_grace: Duration,
    at_rest: AtRest,
    stop_signal: i32,
    lives: u32,
}

impl Supervision {
    /// Nothing has been started yet.
    pub fn new(
        policy: RestartPolicy,
        health: Option<HealthCheck>,
        stop_grace: Duration,
        at_rest: AtRest,
    ) -> Self {
        Self {
            state: State::Fresh,
            tracker: RestartTracker::new(policy),
            health,
            stop_grace,
            at_rest,
            stop_signal: SIGTERM,
            lives: 0,
        }
    }

    /// What asks the workload to end, instead of SIGTERM.
    #[must_use]
    pub fn stopped_by(mut self, signal: i32) -> Self {
        self.stop_signal = signal;
        self
    }

    /// A process is to be made; answer with [`Event::Spawned`] or [`Event::SpawnFailed`]. May be
    /// put off: until then every other event is still understood.
    pub fn wants_start(&self) -> bool {
        matches!(self.state, State::Starting)
    }

    /// The life whose remains are being waited for, by its main process; answer with
    /// [`Event::LifeCleared`] once nothing is left of it.
    pub fn clearing(&self) -> Option<GuestPid> {
        match &self.state {
            State::Clearing { ended, .. } => Some(ended.pid),
            State::Fresh
            | State::Starting
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Backoff { .. }
            | State::Resting
            | State::Flushing { .. }
            | State::Off => None,
        }
    }

    /// The guest is on its way to its end.
    pub fn ending(&self) -> bool {
        match &self.state {
            State::Stopping { purpose, .. } => match purpose {
                Purpose::PowerOff | Purpose::HostGone => true,
                Purpose::Restart | Purpose::Unhealthy => false,
            },
            State::Clearing { next, .. } => match next {
                Next::PowerOff(_) => true,
                Next::Start { .. } | Next::Rest => false,
            },
            State::Flushing { .. } | State::Off => true,
            State::Fresh
            | State::Starting
            | State::Running { .. }
            | State::Backoff { .. }
            | State::Resting => false,
        }
    }

    /// [`Event::LogsSettled`] is awaited.
    pub fn flushing(&self) -> bool {
        matches!(self.state, State::Flushing { .. })
    }

    /// The main process, while there is one.
    pub fn main_pid(&self) -> Option<GuestPid> {
        match &self.state {
            State::Running { life } | State::Stopping { life, .. } => Some(life.pid),
            State::Fresh
            | State::Starting
            | State::Clearing { .. }
            | State::Backoff { .. }
            | State::Resting
            | State::Flushing { .. }
            | State::Off => None,
        }
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Running { life } => life.health.as_ref().map(Health::deadline),
            State::Stopping { kill_at, .. } => *kill_at,
            State::Clearing {
                kill_at,
                abandon_at,
                ..
            } => Some(kill_at.unwrap_or(*abandon_at)),
            State::Backoff { until } | State::Flushing { until, .. } => Some(*until),
            State::Fresh | State::Starting | State::Resting | State::Off => None,
        }
    }

    /// Takes one event. `entropy` is any 64 random bits: it spreads a restart's delay.
    pub fn handle(&mut self, event: Event, now: Duration, entropy: u64, out: &mut Vec<Action>) {
        let state = std::mem::replace(&mut self.state, State::Off);
        self.state = match state {
            State::Fresh => self.in_fresh(event, now, out),
            State::Starting => self.in_starting(event, now, entropy, out),
            State::Running { life } => self.in_running(life, event, now, entropy, out),
            State::Stopping {
                life,
                kill_at,
                purpose,
            } => self.in_stopping(life, kill_at, purpose, event, now, entropy, out),
            State::Clearing {
                ended,
                kill_at,
                abandon_at,
                next,
            } => self.in_clearing(ended, kill_at, abandon_at, next, event, now, out),
            State::Backoff { until } => self.in_backoff(until, event, now, out),
            State::Resting => self.in_resting(event, now, out),
            State::Flushing { reason, until } => {
                transitions::in_flushing(reason, until, event, now, out)
            }
            State::Off => State::Off,
        };
    }
}

mod transitions;

#[cfg(test)]
mod tests;
