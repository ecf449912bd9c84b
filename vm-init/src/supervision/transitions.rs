//! The transitions: one function per state, each an exhaustive match over the events.

use std::time::Duration;

use iii_proto::control::{GuestMessage, PowerOffReason};
use iii_proto::guest::AtRest;
use iii_proto::ids::GuestPid;
use iii_proto::restart::{Decision, Exit};

use super::{
    Action, CLEAR_TIME, Ended, Event, FLUSH_TIME, Life, Next, Purpose, SIGKILL, State, Supervision,
};
use crate::health::{Health, Tick};

impl Supervision {
    pub(super) fn in_fresh(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) -> State {
        match event {
            Event::Boot => State::Starting,
            Event::Stop { .. } => flush(PowerOffReason::Stopped, now),
            Event::HostGone => off(PowerOffReason::HostGone, out),
            Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Executed
            | Event::MainExited { .. }
            | Event::LifeCleared
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::Restart { .. }
            | Event::Signal { .. }
            | Event::KillMain
            | Event::LogsSettled
            | Event::Timer => State::Fresh,
        }
    }

    pub(super) fn in_starting(
        &mut self,
        event: Event,
        now: Duration,
        entropy: u64,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::Spawned { pid } => {
                self.tracker.on_start(now);
                self.lives += 1;
                State::Running {
                    life: Life {
                        pid,
                        started: now,
                        health: None,
                    },
                }
            }
            Event::SpawnFailed { cause } => {
                self.tracker.on_start(now);
                self.lives += 1;
                let exit = Exit::Fault { cause };
                let (decision, next) = self.decide(&exit, Duration::ZERO, now, entropy);
                let ended = Ended {
                    pid: GuestPid(0),
                    exit,
                    ran: Duration::ZERO,
                    decision,
                };
                self.conclude(ended, next, now, out)
            }
            Event::Stop { .. } => flush(PowerOffReason::Stopped, now),
            Event::HostGone => off(PowerOffReason::HostGone, out),
            Event::Boot
            | Event::Executed
            | Event::MainExited { .. }
            | Event::LifeCleared
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::Restart { .. }
            | Event::Signal { .. }
            | Event::KillMain
            | Event::LogsSettled
            | Event::Timer => State::Starting,
        }
    }

    pub(super) fn in_running(
        &mut self,
        mut life: Life,
        event: Event,
        now: Duration,
        entropy: u64,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::Executed => {
                self.announce(&life, out);
                match &self.health {
                    Some(check) => life.health = Some(Health::new(check, now)),
                    None => out.push(Action::Send(GuestMessage::Ready { pid: life.pid })),
                }
                State::Running { life }
            }
            Event::MainExited { pid, exit } if pid == life.pid => {
                cancel_probe(&life, out);
                out.push(Action::KillLife { pid });
                let ran = now.saturating_sub(life.started);
                let (decision, next) = self.decide(&exit, ran, now, entropy);
                clearing(&life, exit, decision, None, next, now)
            }
            Event::Stop { grace } => self.stop(life, grace, Purpose::PowerOff, now, out),
            Event::Restart { grace } => self.stop(life, grace, Purpose::Restart, now, out),
            Event::HostGone => {
                cancel_probe(&life, out);
                out.push(Action::KillLife { pid: life.pid });
                State::Stopping {
                    life,
                    kill_at: None,
                    purpose: Purpose::HostGone,
                }
            }
            Event::Signal { signal } => {
                out.push(Action::SignalGroup {
                    pid: life.pid,
                    signal,
                });
                State::Running { life }
            }
            Event::KillMain => {
                out.push(Action::SignalMain {
                    pid: life.pid,
                    signal: SIGKILL,
                });
                State::Running { life }
            }
            Event::ProbePassed => {
                if let Some(health) = &mut life.health
                    && health.passed(now)
                {
                    out.push(Action::Send(GuestMessage::Ready { pid: life.pid }));
                }
                State::Running { life }
            }
            Event::ProbeFailed { detail } => self.probe_failed(life, detail, now, out),
            Event::Timer => match life.health.as_mut().map(|h| h.tick(now)) {
                None | Some(Tick::Nothing) => State::Running { life },
                Some(Tick::StartProbe) => {
                    out.push(Action::StartProbe);
                    State::Running { life }
                }
                Some(Tick::TimedOut) => {
                    out.push(Action::CancelProbe);
                    self.probe_failed(life, String::from("the probe timed out"), now, out)
                }
            },
            Event::MainExited { .. }
            | Event::Boot
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::LifeCleared
            | Event::LogsSettled => State::Running { life },
        }
    }

    // One parameter per part of the state: a struct for them would hide what the arms use.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn in_stopping(
        &mut self,
        life: Life,
        kill_at: Option<Duration>,
        purpose: Purpose,
        event: Event,
        now: Duration,
        entropy: u64,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::MainExited { pid, exit } if pid == life.pid => {
                out.push(match kill_at {
                    Some(_) => Action::TerminateStrays { pid },
                    None => Action::KillLife { pid },
                });
                let (exit, decision, next) = match purpose {
                    Purpose::PowerOff => (
                        exit,
                        Decision::Done,
                        Next::PowerOff(PowerOffReason::Stopped),
                    ),
                    Purpose::HostGone => (
                        exit,
                        Decision::Done,
                        Next::PowerOff(PowerOffReason::HostGone),
                    ),
                    Purpose::Restart => {
                        self.tracker.reset();
                        let delay = Duration::ZERO;
                        (
                            exit,
                            Decision::RestartAfter { delay },
                            Next::Start { at: now },
                        )
                    }
                    Purpose::Unhealthy => {
                        let ran = now.saturating_sub(life.started);
                        let (decision, next) = self.decide(&Exit::Unhealthy, ran, now, entropy);
                        (Exit::Unhealthy, decision, next)
                    }
                };
                clearing(&life, exit, decision, kill_at, next, now)
            }
            Event::Executed => {
                self.announce(&life, out);
                State::Stopping {
                    life,
                    kill_at,
                    purpose,
                }
            }
            Event::Timer => {
                let kill_at = match kill_at {
                    Some(at) if now >= at => {
                        out.push(Action::KillLife { pid: life.pid });
                        None
                    }
                    Some(_) | None => kill_at,
                };
                State::Stopping {
                    life,
                    kill_at,
                    purpose,
                }
            }
            Event::Stop { grace } => State::Stopping {
                life,
                kill_at: kill_at.map(|at| at.min(now.saturating_add(grace))),
                purpose: match purpose {
                    Purpose::HostGone => Purpose::HostGone,
                    Purpose::PowerOff | Purpose::Restart | Purpose::Unhealthy => Purpose::PowerOff,
                },
            },
            Event::Restart { grace } => State::Stopping {
                life,
                kill_at: kill_at.map(|at| at.min(now.saturating_add(grace))),
                purpose: match purpose {
                    Purpose::HostGone => Purpose::HostGone,
                    Purpose::PowerOff => Purpose::PowerOff,
                    Purpose::Restart | Purpose::Unhealthy => Purpose::Restart,
                },
            },
            Event::HostGone => {
                out.push(Action::KillLife { pid: life.pid });
                State::Stopping {
                    life,
                    kill_at: None,
                    purpose: Purpose::HostGone,
                }
            }
            Event::Signal { signal } => {
                out.push(Action::SignalGroup {
                    pid: life.pid,
                    signal,
                });
                State::Stopping {
                    life,
                    kill_at,
                    purpose,
                }
            }
            Event::KillMain => {
                out.push(Action::SignalMain {
                    pid: life.pid,
                    signal: SIGKILL,
                });
                State::Stopping {
                    life,
                    kill_at,
                    purpose,
                }
            }
            Event::MainExited { .. }
            | Event::Boot
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::LifeCleared
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::LogsSettled => State::Stopping {
                life,
                kill_at,
                purpose,
            },
        }
    }

    // See `in_stopping`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn in_clearing(
        &mut self,
        mut ended: Ended,
        kill_at: Option<Duration>,
        abandon_at: Duration,
        next: Next,
        event: Event,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::LifeCleared => self.conclude(ended, next, now, out),
            Event::Timer => match kill_at {
                Some(at) if now >= at => {
                    out.push(Action::KillLife { pid: ended.pid });
                    State::Clearing {
                        ended,
                        kill_at: None,
                        abandon_at: now + CLEAR_TIME,
                        next,
                    }
                }
                None if now >= abandon_at => {
                    out.push(Action::Send(GuestMessage::Warning {
                        message: format!(
                            "processes that the workload (pid {}) had started do not end, although \
                             they were killed; going on without them",
                            ended.pid
                        ),
                    }));
                    self.conclude(ended, next, now, out)
                }
                Some(_) | None => State::Clearing {
                    ended,
                    kill_at,
                    abandon_at,
                    next,
                },
            },
            Event::Stop { grace } => {
                let next = match next {
                    Next::Start { .. } | Next::Rest => {
                        ended.decision = Decision::Done;
                        Next::PowerOff(PowerOffReason::Stopped)
                    }
                    Next::PowerOff(reason) => Next::PowerOff(reason),
                };
                State::Clearing {
                    ended,
                    kill_at: kill_at.map(|at| at.min(now.saturating_add(grace))),
                    abandon_at,
                    next,
                }
            }
            Event::Restart { grace } => {
                let next = match next {
                    Next::Start { .. } | Next::Rest => {
                        self.tracker.reset();
                        ended.decision = Decision::RestartAfter {
                            delay: Duration::ZERO,
                        };
                        Next::Start { at: now }
                    }
                    Next::PowerOff(reason) => Next::PowerOff(reason),
                };
                State::Clearing {
                    ended,
                    kill_at: kill_at.map(|at| at.min(now.saturating_add(grace))),
                    abandon_at,
                    next,
                }
            }
            Event::HostGone => {
                out.push(Action::KillLife { pid: ended.pid });
                ended.decision = Decision::Done;
                State::Clearing {
                    ended,
                    kill_at: None,
                    abandon_at: now + CLEAR_TIME,
                    next: Next::PowerOff(PowerOffReason::HostGone),
                }
            }
            Event::Boot
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Executed
            | Event::MainExited { .. }
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::Signal { .. }
            | Event::KillMain
            | Event::LogsSettled => State::Clearing {
                ended,
                kill_at,
                abandon_at,
                next,
            },
        }
    }

    pub(super) fn in_backoff(
        &mut self,
        until: Duration,
        event: Event,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::Timer if now >= until => State::Starting,
            Event::Restart { .. } => {
                self.tracker.reset();
                State::Starting
            }
            Event::Stop { .. } => flush(PowerOffReason::Stopped, now),
            Event::HostGone => off(PowerOffReason::HostGone, out),
            Event::Timer
            | Event::Boot
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Executed
            | Event::MainExited { .. }
            | Event::LifeCleared
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::Signal { .. }
            | Event::KillMain
            | Event::LogsSettled => State::Backoff { until },
        }
    }

    pub(super) fn in_resting(
        &mut self,
        event: Event,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::Restart { .. } => {
                self.tracker.reset();
                State::Starting
            }
            Event::Stop { .. } => flush(PowerOffReason::Stopped, now),
            Event::HostGone => off(PowerOffReason::HostGone, out),
            Event::Timer
            | Event::Boot
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Executed
            | Event::MainExited { .. }
            | Event::LifeCleared
            | Event::ProbePassed
            | Event::ProbeFailed { .. }
            | Event::Signal { .. }
            | Event::KillMain
            | Event::LogsSettled => State::Resting,
        }
    }

    fn restarts(&self) -> u32 {
        self.lives.saturating_sub(1)
    }

    fn announce(&self, life: &Life, out: &mut Vec<Action>) {
        out.push(Action::Send(GuestMessage::Started {
            pid: life.pid,
            restarts: self.restarts(),
        }));
    }

    fn stop(
        &self,
        life: Life,
        grace: Duration,
        purpose: Purpose,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        cancel_probe(&life, out);
        out.push(Action::SignalGroup {
            pid: life.pid,
            signal: self.stop_signal,
        });
        State::Stopping {
            life,
            kill_at: Some(now.saturating_add(grace)),
            purpose,
        }
    }

    fn probe_failed(
        &self,
        mut life: Life,
        detail: String,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        let unhealthy = life.health.as_mut().is_some_and(|h| h.failed(now));
        if !unhealthy {
            return State::Running { life };
        }
        out.push(Action::Send(GuestMessage::Unhealthy {
            pid: life.pid,
            detail,
        }));
        self.stop(life, self.stop_grace, Purpose::Unhealthy, now, out)
    }

    fn decide(
        &mut self,
        exit: &Exit,
        ran: Duration,
        now: Duration,
        entropy: u64,
    ) -> (Decision, Next) {
        let mut decision = self.tracker.on_exit(exit, now, entropy);
        if let AtRest::Wait { quick_ms } = self.at_rest {
            let again = matches!(decision, Decision::RestartAfter { .. });
            if !again || ran < Duration::from_millis(quick_ms) {
                decision = Decision::Wait;
            }
        }
        let next = match &decision {
            Decision::Wait => Next::Rest,
            Decision::RestartAfter { delay } => Next::Start { at: now + *delay },
            Decision::Done => Next::PowerOff(PowerOffReason::Done { exit: exit.clone() }),
            Decision::GiveUp => Next::PowerOff(PowerOffReason::GaveUp {
                exit: exit.clone(),
                restarts: self.restarts(),
            }),
        };
        (decision, next)
    }

    fn conclude(&self, ended: Ended, next: Next, now: Duration, out: &mut Vec<Action>) -> State {
        out.push(Action::SealOutput);
        out.push(Action::Send(GuestMessage::Exited {
            pid: ended.pid,
            exit: ended.exit,
            ran_ms: u64::try_from(ended.ran.as_millis()).unwrap_or(u64::MAX),
            decision: ended.decision,
            restarts: self.restarts(),
        }));
        match next {
            Next::Start { at } if now >= at => State::Starting,
            Next::Start { at } => State::Backoff { until: at },
            Next::Rest => State::Resting,
            Next::PowerOff(PowerOffReason::HostGone) => off(PowerOffReason::HostGone, out),
            Next::PowerOff(reason) => flush(reason, now),
        }
    }
}

pub(super) fn in_flushing(
    reason: PowerOffReason,
    until: Duration,
    event: Event,
    now: Duration,
    out: &mut Vec<Action>,
) -> State {
    match event {
        Event::LogsSettled | Event::HostGone => off(reason, out),
        Event::Timer if now >= until => off(reason, out),
        Event::Timer
        | Event::Boot
        | Event::Spawned { .. }
        | Event::SpawnFailed { .. }
        | Event::Executed
        | Event::MainExited { .. }
        | Event::LifeCleared
        | Event::ProbePassed
        | Event::ProbeFailed { .. }
        | Event::Stop { .. }
        | Event::Restart { .. }
        | Event::Signal { .. }
        | Event::KillMain => State::Flushing { reason, until },
    }
}

fn clearing(
    life: &Life,
    exit: Exit,
    decision: Decision,
    kill_at: Option<Duration>,
    next: Next,
    now: Duration,
) -> State {
    State::Clearing {
        ended: Ended {
            pid: life.pid,
            exit,
            ran: now.saturating_sub(life.started),
            decision,
        },
        kill_at,
        abandon_at: now + CLEAR_TIME,
        next,
    }
}

fn cancel_probe(life: &Life, out: &mut Vec<Action>) {
    if life.health.as_ref().is_some_and(Health::probing) {
        out.push(Action::CancelProbe);
    }
}

fn flush(reason: PowerOffReason, now: Duration) -> State {
    State::Flushing {
        reason,
        until: now + FLUSH_TIME,
    }
}

fn off(reason: PowerOffReason, out: &mut Vec<Action>) -> State {
    out.push(Action::PowerOff(reason));
    State::Off
}
