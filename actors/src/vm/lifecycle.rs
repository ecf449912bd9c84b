//! One life of a VM, as a table of state and event. Pure: `now` is an argument, what is to be done
//! comes back as [`Effect`]s; `VmActor` does it.
//!
//! "Spawned" is not "up", and "up" is not "ready": the VMM's process makes `Booting`, the guest's
//! `Hello` makes `Running`, and readiness is the workload's own fact, passed on as an event.
//!
//! An end of the VMM that the guest did not announce by `PoweringOff` is a crash, whatever its exit
//! status: QEMU exits with 0 when the guest's kernel panics.

use std::time::Duration;

use iii_proto::PROTOCOL_VERSION;
use iii_proto::control::{BootStage, GuestMemory, GuestMessage, HostMessage, PowerOffReason};
use iii_proto::ids::BootId;
use iii_proto::restart::Exit;

use crate::event::EventKind;

/// How long the guest may take from `PoweringOff` to the VMM's end.
const POWER_OFF_TIME: Duration = Duration::from_secs(5);
/// How long a stop may take beyond its grace: sync, unmount, the last log frames.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long what a dead VMM left in its ports is read for. It is all in host buffers by then.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Deadlines of one VM.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the VMM's start to `Hello`.
    pub boot_deadline: Duration,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Without an answer, before the guest counts as hung.
    pub heartbeat_timeout: Duration,
}

impl Times {
    /// Four heartbeats fit into the time-out, and at least one is sent every 7.5 seconds: they also
    /// keep the guest's clock right.
    pub fn new(boot_deadline: Duration, heartbeat_timeout: Duration) -> Self {
        let heartbeat_interval = (heartbeat_timeout / 4).min(Duration::from_millis(7500));
        Self {
            boot_deadline,
            heartbeat_interval,
            heartbeat_timeout,
        }
    }
}

/// The time that the supervisor itself has been at work. A suspended host, a stopped supervisor or
/// one that got no CPU has heard nobody, so the time that passes meanwhile is nobody's delay: of it
/// no more counts than the longest that the table waits between two inputs.
#[derive(Debug, Default)]
struct OwnTime {
    looked: Duration,
    passed: Duration,
}

impl OwnTime {
    /// Takes note of an input. `true`: a `Tick` was due at least one `step` ago and did not come.
    fn look(&mut self, now: Duration, step: Duration) -> bool {
        let since = now.saturating_sub(self.looked);
        self.looked = now;
        self.passed = self.passed.saturating_add(since.min(step));
        since > step * 2
    }

    /// When it will have come to `deadline`, or the next look is due.
    fn reach(&self, deadline: Duration, step: Duration) -> Duration {
        self.looked + deadline.saturating_sub(self.passed).min(step)
    }
}

/// Where the VM stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs yet.
    Launching,
    /// The VMM runs, the guest has not spoken.
    Booting,
    /// The guest has spoken.
    Running,
    /// The guest was asked to stop.
    Stopping,
    /// The guest announced its end.
    PoweringOff,
    /// The VMM was sent SIGKILL.
    Killed,
    /// The VMM is reaped; what it left in its ports is being read.
    Draining,
    /// Over.
    Ended,
}

/// What happens to the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmInput {
    /// The VMM's process runs.
    Spawned,
    /// It could not be started.
    SpawnFailed {
        /// The cause, for the user.
        cause: String,
    },
    /// The guest says something.
    Guest(GuestMessage),
    /// The control port is of no more use.
    PortBroken {
        /// What the guest sent that is no message; `None` where the port was closed, which the
        /// end of the VMM also does.
        cause: Option<String>,
    },
    /// The VMM lives, but has given the guest up.
    Stuck {
        /// What it said of it.
        cause: String,
    },
    /// The VMM's process was reaped.
    Exited {
        /// How it ended, for the user.
        exit: String,
    },
    /// The ports are read to their end.
    Drained,
    /// End it in order.
    Stop {
        /// Between SIGTERM and SIGKILL of the workload.
        grace: Duration,
    },
    /// End it at once.
    Kill,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Tell the world.
    Emit(EventKind),
    /// Tell the guest.
    Send(HostMessage),
    /// The guest has answered a question about its memory.
    Measured {
        /// Which question.
        seq: u64,
        /// Its answer.
        memory: Option<GuestMemory>,
    },
    /// SIGKILL to the VMM.
    Kill,
    /// The VMM is gone: read the ports to their end, then say `Drained`.
    Drain,
    /// The VM is over.
    Finish(VmEnd),
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// By request.
    Stopped,
    /// Its workload is complete.
    Done(Exit),
    /// It must be repaired.
    Failed(Failure),
}

/// What is known about a failed VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In one sentence.
    pub cause: String,
    /// How the VMM ended, if it ran.
    pub exit: Option<String>,
    /// How far the guest had come.
    pub last_stage: Option<BootStage>,
    /// The guest was run, and nothing of it was ever heard.
    pub silent: bool,
    /// The VMM did not end by itself.
    pub killed: bool,
    /// The guest had said that it ends, and why.
    pub announced: bool,
}

/// The table and what it remembers.
#[derive(Debug)]
pub struct VmLifecycle {
    state: State,
    boot_id: BootId,
    times: Times,
    clock: OwnTime,
    spawned_at: Duration,
    /// In own time, as all that follow.
    deadline: Option<Duration>,
    spoke: bool,
    heard: bool,
    last_stage: Option<BootStage>,
    killed: bool,
    stop_asked: bool,
    announced: Option<PowerOffReason>,
    cause: Option<String>,
    exit: Option<String>,
    heartbeat_seq: u64,
    last_beat: Duration,
    last_alive: Duration,
}

impl VmLifecycle {
    /// A VM that is about to be launched.
    pub fn new(boot_id: BootId, times: Times) -> Self {
        Self {
            state: State::Launching,
            boot_id,
            times,
            clock: OwnTime::default(),
            spawned_at: Duration::ZERO,
            deadline: None,
            spoke: false,
            heard: false,
            last_stage: None,
            killed: false,
            stop_asked: false,
            announced: None,
            cause: None,
            exit: None,
            heartbeat_seq: 0,
            last_beat: Duration::ZERO,
            last_alive: Duration::ZERO,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// When `Tick` is due at the latest.
    pub fn wake_at(&self) -> Option<Duration> {
        let deadline = match self.state {
            State::Launching | State::Killed | State::Ended => None,
            State::Booting | State::Stopping | State::PoweringOff | State::Draining => {
                self.deadline
            }
            State::Running => Some(self.last_beat + self.times.heartbeat_interval),
        };
        deadline.map(|deadline| self.clock.reach(deadline, self.times.heartbeat_interval))
    }

    /// Takes one input.
    pub fn on(&mut self, input: VmInput, now: Duration, host_unix_ns: u64) -> Vec<Effect> {
        use State as S;
        use VmInput as I;
        let mut out = Vec::new();
        if self.clock.look(now, self.times.heartbeat_interval) {
            self.last_alive = self.clock.passed;
        }
        self.heard |= matches!(input, I::Guest(_) | I::PortBroken { cause: Some(_) });
        match (self.state, input) {
            (S::Launching, I::Spawned) => {
                self.spawned_at = now;
                self.set_deadline(self.times.boot_deadline);
                self.state = S::Booting;
            }
            (S::Launching, I::SpawnFailed { cause }) => {
                self.cause = Some(cause);
                self.finish(&mut out);
            }
            (S::Launching, I::Stop { .. } | I::Kill) => {
                self.stop_asked = true;
                self.finish(&mut out);
            }
            // Nothing runs, so nothing can speak or end.
            (
                S::Launching,
                I::Guest(_) | I::PortBroken { .. } | I::Stuck { .. } | I::Exited { .. },
            ) => {}
            (S::Launching, I::Drained | I::Tick) => {}

            (
                S::Booting,
                I::Guest(GuestMessage::Hello {
                    proto,
                    boot_id,
                    kernel,
                }),
            ) => {
                self.hello(proto, boot_id, kernel, now, &mut out);
            }
            (
                S::Booting,
                I::Guest(GuestMessage::PoweringOff {
                    reason,
                    last_log_seq,
                }),
            ) => {
                // Set-up may fail before the guest can read who it is.
                self.powering_off(reason, last_log_seq, &mut out);
            }
            (S::Booting, I::Guest(other)) => {
                self.kill(
                    format!("the guest said {} before Hello", name(&other)),
                    &mut out,
                );
            }
            (S::Booting, I::Tick) if self.is_due() => {
                let after = self.times.boot_deadline.as_secs_f64();
                self.kill(format!("no word from the guest within {after} s"), &mut out);
            }
            (S::Booting, I::Tick) => {}
            (S::Booting, I::Stop { .. }) => {
                // Nobody in there to be graceful with.
                self.stop_asked = true;
                out.push(Effect::Kill);
                self.state = S::Killed;
            }

            (S::Running, I::Guest(message)) => {
                let has_begun = matches!(message, GuestMessage::Started { .. });
                self.guest(message, &mut out);
                // The guest took its time from before its VMM was started, and that is as long ago
                // as the VMM took. Not sooner: on the way to the workload it would cost time.
                if has_begun && self.heartbeat_seq == 0 {
                    self.beat(host_unix_ns, &mut out);
                }
            }
            (S::Running, I::Tick) => self.heartbeat(host_unix_ns, &mut out),
            (S::Running, I::Stop { grace }) => self.stop(grace, &mut out),

            (S::Stopping, I::Guest(message)) => self.guest(message, &mut out),
            (S::Stopping, I::Tick) if self.is_due() => {
                out.push(Effect::Emit(EventKind::Warning {
                    message: "the guest did not power off in time and was killed".into(),
                }));
                out.push(Effect::Kill);
                self.state = S::Killed;
            }
            (S::Stopping, I::Tick) => {}
            (S::Stopping, I::Stop { .. }) => {}

            (S::PoweringOff, I::Tick) if self.is_due() => {
                out.push(Effect::Kill);
                self.state = S::Killed;
            }
            (S::PoweringOff, I::Tick) => {}
            (S::PoweringOff, I::Stop { .. }) => self.stop_asked = true,
            // Its last message was the last.
            (S::PoweringOff, I::Guest(_)) => {}

            (S::Killed, I::Guest(message)) => self.leftover(message, now, &mut out),
            (S::Killed, I::Stop { .. }) => self.stop_asked = true,
            (S::Killed, I::Tick) => {}

            (S::Booting | S::Running | S::Stopping, I::PortBroken { cause }) => {
                // The port breaks too when the VMM ends; then its exit and what is left in the
                // port tell more, so the end is not judged here.
                self.cause = cause;
                out.push(Effect::Kill);
                self.state = S::Killed;
            }
            (S::PoweringOff | S::Killed, I::PortBroken { .. }) => {}
            (S::Booting | S::Running | S::Stopping | S::PoweringOff, I::Stuck { cause }) => {
                self.kill(cause, &mut out);
            }
            // Its end is on its way.
            (S::Killed | S::Draining, I::Stuck { .. }) => {}
            (S::Booting | S::Running | S::Stopping | S::PoweringOff | S::Killed, I::Kill) => {
                self.stop_asked = true;
                out.push(Effect::Kill);
                self.state = S::Killed;
            }
            (
                S::Booting | S::Running | S::Stopping | S::PoweringOff | S::Killed,
                I::Exited { exit },
            ) => {
                self.exit = Some(exit);
                self.set_deadline(DRAIN_TIME);
                self.state = S::Draining;
                out.push(Effect::Drain);
            }

            (S::Draining, I::Guest(message)) => self.leftover(message, now, &mut out),
            (S::Draining, I::Drained) => self.finish(&mut out),
            (S::Draining, I::Tick) if self.is_due() => self.finish(&mut out),
            (S::Draining, I::Tick | I::PortBroken { .. } | I::Exited { .. }) => {}
            (S::Draining, I::Stop { .. } | I::Kill) => self.stop_asked = true,

            // Said once, by the one who launched; a repetition has no meaning.
            (
                S::Booting | S::Running | S::Stopping | S::PoweringOff | S::Killed | S::Draining,
                I::Spawned | I::SpawnFailed { .. },
            ) => {}
            // The ports are drained only after the exit.
            (S::Booting | S::Running | S::Stopping | S::PoweringOff | S::Killed, I::Drained) => {}
            (
                S::Ended,
                I::Spawned
                | I::SpawnFailed { .. }
                | I::Guest(_)
                | I::PortBroken { .. }
                | I::Stuck { .. }
                | I::Exited { .. }
                | I::Drained
                | I::Stop { .. }
                | I::Kill
                | I::Tick,
            ) => {}
        }
        out
    }

    fn is_due(&self) -> bool {
        self.deadline.is_some_and(|at| at <= self.clock.passed)
    }

    fn set_deadline(&mut self, time: Duration) {
        self.deadline = Some(self.clock.passed.saturating_add(time));
    }

    fn kill(&mut self, cause: String, out: &mut Vec<Effect>) {
        self.cause = Some(cause);
        self.killed = true;
        out.push(Effect::Kill);
        self.state = State::Killed;
    }

    fn hello(
        &mut self,
        proto: u32,
        boot_id: BootId,
        kernel: String,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        if proto != PROTOCOL_VERSION {
            let ours = PROTOCOL_VERSION;
            self.kill(
                format!("vm-init speaks protocol {proto}, this supervisor {ours}"),
                out,
            );
        } else if boot_id != self.boot_id {
            self.kill(format!("the guest calls itself boot {boot_id}"), out);
        } else {
            self.spoke = true;
            self.state = State::Running;
            self.deadline = None;
            self.last_beat = self.clock.passed;
            self.last_alive = self.clock.passed;
            let after = now.saturating_sub(self.spawned_at);
            out.push(Effect::Emit(EventKind::GuestUp { kernel, after }));
        }
    }

    fn guest(&mut self, message: GuestMessage, out: &mut Vec<Effect>) {
        match message {
            GuestMessage::Hello { .. } => self.kill("the guest said Hello twice".into(), out),
            GuestMessage::PoweringOff {
                reason,
                last_log_seq,
            } => {
                self.powering_off(reason, last_log_seq, out);
            }
            GuestMessage::Alive { seq, .. } => {
                // An answer to a question that was not asked is no sign of life.
                if seq <= self.heartbeat_seq {
                    self.last_alive = self.clock.passed;
                }
            }
            GuestMessage::Stage { .. }
            | GuestMessage::Started { .. }
            | GuestMessage::Ready { .. }
            | GuestMessage::Unhealthy { .. }
            | GuestMessage::Exited { .. }
            | GuestMessage::Warning { .. }
            | GuestMessage::Measured { .. } => self.report(message, out),
        }
    }

    fn report(&mut self, message: GuestMessage, out: &mut Vec<Effect>) {
        let kind = match message {
            GuestMessage::Stage { stage, uptime_us } => {
                self.last_stage = Some(stage);
                let uptime = Duration::from_micros(uptime_us);
                EventKind::GuestStage { stage, uptime }
            }
            GuestMessage::Started { pid, restarts } => EventKind::WorkloadStarted { pid, restarts },
            GuestMessage::Ready { pid } => EventKind::WorkloadReady { pid },
            GuestMessage::Unhealthy { pid, detail } => EventKind::WorkloadUnhealthy { pid, detail },
            GuestMessage::Exited {
                pid,
                exit,
                ran_ms,
                decision,
                restarts,
            } => EventKind::WorkloadExited {
                pid,
                exit,
                ran: Duration::from_millis(ran_ms),
                decision,
                restarts,
            },
            GuestMessage::Warning { message } => EventKind::Warning { message },
            GuestMessage::Measured { seq, memory } => {
                out.push(Effect::Measured { seq, memory });
                return;
            }
            GuestMessage::Hello { .. }
            | GuestMessage::Alive { .. }
            | GuestMessage::PoweringOff { .. } => return,
        };
        out.push(Effect::Emit(kind));
    }

    /// What was still in the port of a VMM that is dead or dying.
    fn leftover(&mut self, message: GuestMessage, now: Duration, out: &mut Vec<Effect>) {
        match message {
            GuestMessage::PoweringOff { reason, .. } => self.announced = Some(reason),
            GuestMessage::Hello { .. } | GuestMessage::Alive { .. } => {}
            GuestMessage::Stage { .. }
            | GuestMessage::Started { .. }
            | GuestMessage::Ready { .. }
            | GuestMessage::Unhealthy { .. }
            | GuestMessage::Exited { .. }
            | GuestMessage::Warning { .. }
            | GuestMessage::Measured { .. } => {
                debug_assert!(now >= self.spawned_at);
                self.report(message, out);
            }
        }
    }

    fn powering_off(&mut self, reason: PowerOffReason, last_log_seq: u64, out: &mut Vec<Effect>) {
        tracing::debug!(boot = %self.boot_id, last_log_seq, "the guest powers off");
        out.push(Effect::Emit(EventKind::GuestPoweringOff {
            reason: reason.clone(),
        }));
        self.announced = Some(reason);
        self.set_deadline(POWER_OFF_TIME);
        self.state = State::PoweringOff;
    }

    fn stop(&mut self, grace: Duration, out: &mut Vec<Effect>) {
        self.stop_asked = true;
        let grace_ms = milliseconds(grace);
        out.push(Effect::Send(HostMessage::Stop { grace_ms }));
        self.set_deadline(grace.saturating_add(STOP_MARGIN));
        self.state = State::Stopping;
    }

    fn heartbeat(&mut self, host_time_unix_ns: u64, out: &mut Vec<Effect>) {
        let now = self.clock.passed;
        if now.saturating_sub(self.last_beat) < self.times.heartbeat_interval {
            return;
        }
        let silent = now.saturating_sub(self.last_alive);
        if silent > self.times.heartbeat_timeout {
            let silent = silent.as_secs_f64();
            self.kill(
                format!("the guest has not answered a heartbeat for {silent:.1} s"),
                out,
            );
            return;
        }
        self.beat(host_time_unix_ns, out);
    }

    fn beat(&mut self, host_time_unix_ns: u64, out: &mut Vec<Effect>) {
        self.last_beat = self.clock.passed;
        self.heartbeat_seq += 1;
        out.push(Effect::Send(HostMessage::Heartbeat {
            seq: self.heartbeat_seq,
            host_time_unix_ns,
        }));
    }

    fn finish(&mut self, out: &mut Vec<Effect>) {
        self.state = State::Ended;
        let end = match (self.announced.take(), self.stop_asked) {
            (_, true) | (Some(PowerOffReason::Stopped), false) => VmEnd::Stopped,
            (Some(PowerOffReason::Done { exit }), false) => VmEnd::Done(exit),
            (Some(PowerOffReason::GaveUp { exit, restarts }), false) => {
                let times = if restarts == 1 { "restart" } else { "restarts" };
                self.announced_failure(format!(
                    "the workload used up its restart limit ({restarts} {times}, last: {exit})"
                ))
            }
            (Some(PowerOffReason::SetupFailed { stage, message }), false) => self
                .announced_failure(format!(
                    "the guest could not be set up ({stage:?}): {message}"
                )),
            (Some(PowerOffReason::HostGone), false) => {
                self.announced_failure("the guest lost its control port".into())
            }
            (None, false) => {
                let cause = self.cause.take().unwrap_or_else(|| {
                    if self.spoke {
                        "the VMM ended and the guest had not announced it".into()
                    } else {
                        "the VMM ended before the guest spoke".into()
                    }
                });
                self.failed(cause)
            }
        };
        out.push(Effect::Finish(end));
    }

    fn failed(&self, cause: String) -> VmEnd {
        VmEnd::Failed(self.failure(cause, false))
    }

    fn announced_failure(&self, cause: String) -> VmEnd {
        VmEnd::Failed(self.failure(cause, true))
    }

    fn failure(&self, cause: String, announced: bool) -> Failure {
        Failure {
            cause,
            announced,
            exit: self.exit.clone(),
            last_stage: self.last_stage,
            silent: self.exit.is_some() && !self.heard,
            killed: self.killed,
        }
    }
}

/// As messages carry it.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello { .. } => "Hello",
        GuestMessage::Stage { .. } => "Stage",
        GuestMessage::Started { .. } => "Started",
        GuestMessage::Ready { .. } => "Ready",
        GuestMessage::Unhealthy { .. } => "Unhealthy",
        GuestMessage::Exited { .. } => "Exited",
        GuestMessage::Alive { .. } => "Alive",
        GuestMessage::Warning { .. } => "Warning",
        GuestMessage::PoweringOff { .. } => "PoweringOff",
        GuestMessage::Measured { .. } => "Measured",
    }
}

#[cfg(test)]
mod tests;
