//! Where events are put, and from where they are read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use iii_proto::control::PowerOffReason;
use iii_proto::ids::{BootId, WorkerName};
use tokio::sync::broadcast;

use super::{Event, EventKind};

/// Events that a slow subscriber may be behind before it is told that it missed some.
const BACKLOG: usize = 4096;
/// Events that one who comes late is shown.
const RECENT_EVENTS: usize = 2048;
/// Bytes of text in them. A guest writes its console's tail: without this bound, one that crashes
/// again and again would make the supervisor hold a tail for each crash.
const RECENT_BYTES: usize = 1 << 20;
/// What an event takes beside its text, about.
const EVENT_COST: usize = 256;

/// The recent events, and those to come, without a gap.
pub type Followed = (Vec<Event>, broadcast::Receiver<Event>);

/// Where events are put and from where they are read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sender: broadcast::Sender<Event>,
    history: Mutex<History>,
    origin: Instant,
    epoch: Duration,
}

/// What has happened lately.
#[derive(Debug, Default)]
struct History {
    seq: u64,
    recent: VecDeque<(usize, Event)>,
    bytes: usize,
}

impl History {
    fn keep(&mut self, event: Event) {
        let cost = EVENT_COST + text_of(&event.kind);
        self.bytes += cost;
        self.recent.push_back((cost, event));
        while self.recent.len() > RECENT_EVENTS || self.bytes > RECENT_BYTES {
            match self.recent.pop_front() {
                Some((cost, _)) => self.bytes -= cost,
                None => break,
            }
        }
    }
}

/// Bytes of the texts that a guest or a user has a hand in; the other kinds are small.
fn text_of(kind: &EventKind) -> usize {
    match kind {
        EventKind::VmCrashed {
            cause,
            console_tail,
            ..
        } => cause.len() + console_tail.len(),
        EventKind::WorkloadUnhealthy { detail: text, .. }
        | EventKind::VmRestarting { cause: text, .. }
        | EventKind::ActorFailed { cause: text, .. }
        | EventKind::WorkerSupervisorFailed { cause: text }
        | EventKind::WorkerFailed { reason: text }
        | EventKind::NetworkRefused {
            destination: text, ..
        }
        | EventKind::Warning { message: text } => text.len(),
        EventKind::GuestPoweringOff {
            reason: PowerOffReason::SetupFailed { message, .. },
        } => message.len(),
        EventKind::ProjectFound {
            found,
            install,
            start,
            ..
        } => found.len() + install.as_ref().map_or(0, String::len) + start.len(),
        EventKind::SourceChanged { paths, .. } => paths.iter().map(String::len).sum(),
        EventKind::WorkerStarting
        | EventKind::WorkerWaiting { .. }
        | EventKind::WorkerRestarting { .. }
        | EventKind::WorkerRecovered { .. }
        | EventKind::Published { .. }
        | EventKind::VmStarted { .. }
        | EventKind::GuestUp { .. }
        | EventKind::GuestStage { .. }
        | EventKind::WorkloadStarted { .. }
        | EventKind::WorkloadReady { .. }
        | EventKind::WorkloadExited { .. }
        | EventKind::GuestPoweringOff { .. }
        | EventKind::VmStopped
        | EventKind::ActorRestarted { .. }
        | EventKind::WorkerDone { .. }
        | EventKind::WorkerStopped
        | EventKind::Reloaded { .. }
        | EventKind::SupervisorStopped => 0,
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

impl EventBus {
    /// A bus whose time starts now.
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        Self {
            inner: Arc::new(Inner {
                sender,
                history: Mutex::default(),
                origin: Instant::now(),
                // A host clock before 1970 counts from there.
                epoch: SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default(),
            }),
        }
    }

    /// The `now` of every core of this supervisor: the wall clock when the bus was made, and from
    /// then on the monotonic clock. So it never goes back, and what one supervisor remembers means
    /// something to the next.
    pub fn now(&self) -> Duration {
        self.inner.epoch + self.inner.origin.elapsed()
    }

    /// Tells every subscriber. Returns at once; nobody listening is no error.
    pub fn emit(&self, worker: Option<&WorkerName>, boot: Option<BootId>, kind: EventKind) {
        let mut history = self.history();
        history.seq += 1;
        let event = Event {
            seq: history.seq,
            at: self.inner.origin.elapsed(),
            time_unix_ms: unix_ms(),
            worker: worker.cloned(),
            boot,
            kind,
        };
        trace(&event);
        history.keep(event.clone());
        // Under the lock, so that everybody sees the order of the numbers. An error means that
        // nobody subscribes now.
        let _nobody = self.inner.sender.send(event);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.inner
            .history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The recent events, oldest first, and those to come.
    pub fn follow(&self) -> Followed {
        let history = self.history();
        let recent = history.recent.iter().map(|(_, event)| event.clone());
        (recent.collect(), self.inner.sender.subscribe())
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.sender.subscribe()
    }
}

fn unix_ms() -> u64 {
    unix_ns() / 1_000_000
}

/// The host's wall clock, nanoseconds since the Unix epoch.
pub fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        // A host clock before 1970 counts as 1970; past 2554 it stands still.
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn trace(event: &Event) {
    let worker = event.worker.as_ref().map(WorkerName::as_str);
    let boot = event.boot.map(|b| b.to_string());
    tracing::debug!(target: "iii::event", worker, boot, seq = event.seq, "{:?}", event.kind);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ActorKind;
    use crate::root::WorkerState;
    use iii_proto::control::BootStage;
    use iii_proto::ids::GuestPid;
    use iii_proto::restart::{Decision, Exit};
    use std::time::Duration;

    fn warn(bus: &EventBus, message: String) {
        bus.emit(None, None, EventKind::Warning { message });
    }

    #[test]
    fn who_comes_late_sees_what_was_and_what_comes_without_a_gap() {
        let bus = EventBus::new();
        warn(&bus, "1".into());
        let (recent, mut live) = bus.follow();
        warn(&bus, "2".into());
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].seq, 1);
        assert_eq!(live.try_recv().unwrap().seq, 2);
        assert!(live.try_recv().is_err());
    }

    #[test]
    fn what_is_kept_is_bounded_by_number_and_by_bytes() {
        let bus = EventBus::new();
        for n in 0..2 * RECENT_EVENTS {
            warn(&bus, n.to_string());
        }
        let (recent, _) = bus.follow();
        assert_eq!(recent.len(), RECENT_EVENTS);
        assert_eq!(recent.last().map(|e| e.seq), Some(2 * RECENT_EVENTS as u64));
        for _ in 0..100 {
            warn(&bus, "x".repeat(RECENT_BYTES / 10));
        }
        let (recent, _) = bus.follow();
        assert_eq!(recent.len(), 9);
        warn(&bus, "x".repeat(2 * RECENT_BYTES));
        assert_eq!(
            bus.follow().0.len(),
            0,
            "what alone is too much is not kept"
        );
    }

    #[test]
    fn events_come_back_from_their_json() {
        let bus = EventBus::new();
        let name = WorkerName::new("web").unwrap();
        let other = WorkerName::new("db").unwrap();
        let boot = BootId::from_random(7);
        let exit = Exit::Code { code: 3 };
        let text = || String::from("so it is");
        let second = Duration::from_millis(1_500);
        let kinds = [
            EventKind::WorkerStarting,
            EventKind::WorkerWaiting {
                on: vec![other.clone()],
            },
            EventKind::WorkerRestarting { lost: None },
            EventKind::WorkerRestarting { lost: Some(other) },
            EventKind::WorkerRecovered {
                state: WorkerState::Failed,
                lost_boot: Some(boot),
                restarts: 2,
            },
            EventKind::Published {
                host: ([127, 0, 0, 1], 80).into(),
                guest_port: 3000,
            },
            EventKind::VmStarted {
                vmm: text(),
                accel: text(),
                pid: 5,
                boots: 1,
            },
            EventKind::GuestUp {
                kernel: text(),
                after: second,
            },
            EventKind::GuestStage {
                stage: BootStage::Mounted,
                uptime: second,
            },
            EventKind::WorkloadStarted {
                pid: GuestPid(7),
                restarts: 0,
            },
            EventKind::WorkloadReady { pid: GuestPid(7) },
            EventKind::WorkloadUnhealthy {
                pid: GuestPid(7),
                detail: text(),
            },
            EventKind::WorkloadExited {
                pid: GuestPid(7),
                exit: exit.clone(),
                ran: second,
                decision: Decision::RestartAfter { delay: second },
                restarts: 1,
            },
            EventKind::WorkloadExited {
                pid: GuestPid(7),
                exit: Exit::Signal { signal: 9 },
                ran: second,
                decision: Decision::GiveUp,
                restarts: 1,
            },
            EventKind::GuestPoweringOff {
                reason: PowerOffReason::Stopped,
            },
            EventKind::GuestPoweringOff {
                reason: PowerOffReason::GaveUp {
                    exit: exit.clone(),
                    restarts: 3,
                },
            },
            EventKind::GuestPoweringOff {
                reason: PowerOffReason::SetupFailed {
                    stage: BootStage::Init,
                    message: text(),
                },
            },
            EventKind::VmStopped,
            EventKind::VmCrashed {
                cause: text(),
                exit: Some(text()),
                last_stage: None,
                console_tail: text(),
                announced: false,
            },
            EventKind::VmRestarting {
                delay: second,
                cause: text(),
            },
            EventKind::ActorFailed {
                actor: ActorKind::NetPoll,
                cause: text(),
                stops: vec![ActorKind::Vm],
            },
            EventKind::ActorRestarted {
                actor: ActorKind::Fs,
                restarts: 1,
            },
            EventKind::WorkerSupervisorFailed { cause: text() },
            EventKind::WorkerDone { exit },
            EventKind::WorkerStopped,
            EventKind::WorkerFailed { reason: text() },
            EventKind::NetworkRefused {
                protocol: "tcp".into(),
                destination: text(),
            },
            EventKind::Warning { message: text() },
            EventKind::Reloaded {
                started: vec![name.clone()],
                restarted: Vec::new(),
                removed: vec![name.clone()],
            },
            EventKind::SupervisorStopped,
        ];
        for kind in kinds {
            bus.emit(Some(&name), Some(boot), kind);
        }
        for mut event in bus.follow().0 {
            // Its JSON has microseconds.
            event.at = Duration::from_micros(event.at.as_micros() as u64);
            let json = serde_json::to_string(&event).unwrap();
            let back: Event = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
            assert_eq!(back, event, "{json}");
        }
    }
}
