//! Everything that happens, as data: to logs, to `--json`, to the embedding API's stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::root::WorkerState;
use iii_proto::control::{BootStage, PowerOffReason};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::Stream;
use iii_proto::restart::{Decision, Exit};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Counts up from 1 within a supervisor.
    pub seq: u64,
    /// Time since the supervisor's start.
    #[serde(with = "seconds")]
    pub at: Duration,
    /// Wall clock, milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// In which life of its VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Durations as seconds, to the microsecond.
mod seconds {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64((at.as_secs_f64() * 1e6).round() / 1e6)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// The four kinds of actor that serve one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// Resolves the guest's DNS queries.
    Dns,
    /// Owns the network loop's thread.
    NetPoll,
    /// Owns the process `iii-vfs`.
    Fs,
    /// Owns the VMM's process and talks to vm-init.
    Vm,
}

impl std::fmt::Display for ActorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "DnsActor",
            Self::NetPoll => "NetPollActor",
            Self::Fs => "FsActor",
            Self::Vm => "VmActor",
        })
    }
}

/// What follows when files of a project are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceAction {
    /// The workload is restarted in its VM.
    Restart,
    /// They decide how the project is installed and started: it gets a new VM.
    NewVm,
    /// Those who watch the files in the guest are told; nothing is restarted.
    Told,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The worker was accepted; its children are being started.
    WorkerStarting,
    /// The worker is wanted and waits for others.
    WorkerWaiting {
        /// For whom.
        on: Vec<WorkerName>,
    },
    /// The worker is stopped and started again: by request, or since something that it depends on
    /// has left the state that it demands.
    WorkerRestarting {
        /// What it lost; `None`: a user asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost: Option<WorkerName>,
    },
    /// The supervisor before this one did not end in order; this is what became of the worker.
    WorkerRecovered {
        /// Where the worker stood then.
        state: WorkerState,
        /// The VM that was lost, with all that it held in memory.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost_boot: Option<BootId>,
        /// Restarts of its VM that still count towards the limit.
        restarts: usize,
    },
    /// A host port is being listened on.
    Published {
        /// The host's address and port.
        host: std::net::SocketAddr,
        /// The guest's port.
        guest_port: u16,
    },
    /// A VMM process was spawned.
    VmStarted {
        /// Which VMM.
        vmm: String,
        /// How it runs guest code: `tcg` or `kvm`.
        accel: String,
        /// The host's process id of the shim above it.
        pid: u32,
        /// 1 for the worker's first VM.
        boots: u64,
    },
    /// vm-init spoke.
    GuestUp {
        /// `uname -r`.
        kernel: String,
        /// Since the VMM was spawned.
        #[serde(with = "seconds")]
        after: Duration,
    },
    /// The guest completed a stage of its boot.
    GuestStage {
        /// Which.
        stage: BootStage,
        /// Since the guest's kernel started, by the guest's own clock.
        #[serde(with = "seconds")]
        uptime: Duration,
    },
    /// The workload's process was started.
    WorkloadStarted {
        /// In the guest.
        pid: GuestPid,
        /// Restarts in this boot before it.
        restarts: u32,
    },
    /// The workload's probe passed, or it has none and was started.
    WorkloadReady {
        /// In the guest.
        pid: GuestPid,
    },
    /// The workload's probe failed too often; it is being ended.
    WorkloadUnhealthy {
        /// In the guest.
        pid: GuestPid,
        /// What the last probe saw.
        detail: String,
    },
    /// The workload's process ended.
    WorkloadExited {
        /// In the guest.
        pid: GuestPid,
        /// How.
        exit: Exit,
        /// How long it ran.
        #[serde(with = "seconds")]
        ran: Duration,
        /// What vm-init does about it.
        #[serde(flatten)]
        decision: Decision,
        /// Restarts in this boot before this one.
        restarts: u32,
    },
    /// The guest says why it powers itself off.
    GuestPoweringOff {
        /// Why.
        #[serde(flatten)]
        reason: PowerOffReason,
    },
    /// The VM ended as it should.
    VmStopped,
    /// The VM ended as it should not.
    VmCrashed {
        /// In one sentence.
        cause: String,
        /// How the VMM's process ended, if it has.
        exit: Option<String>,
        /// How far the guest had come.
        last_stage: Option<BootStage>,
        /// The end of the guest's console.
        console_tail: String,
    },
    /// A new VM will be started.
    VmRestarting {
        /// After this delay.
        #[serde(with = "seconds")]
        delay: Duration,
        /// Why.
        cause: String,
    },
    /// An actor ended that should not have.
    ActorFailed {
        /// Which.
        actor: ActorKind,
        /// Why.
        cause: String,
        /// The actors that are stopped because they require it.
        stops: Vec<ActorKind>,
    },
    /// An actor that had failed, or was stopped with one that had, runs again.
    ActorRestarted {
        /// Which.
        actor: ActorKind,
        /// Restarts of this actor so far.
        restarts: u64,
    },
    /// The worker's own supervisor panicked; it is replaced, and the VM with it.
    WorkerSupervisorFailed {
        /// Why.
        cause: String,
    },
    /// The worker's workload is complete and its policy does not restart it.
    WorkerDone {
        /// How it ended.
        exit: Exit,
    },
    /// The worker was stopped by request.
    WorkerStopped,
    /// The worker will not be restarted any more.
    WorkerFailed {
        /// Why.
        reason: String,
    },
    /// What a project's directory holds, and what is done with it.
    ProjectFound {
        /// What it is written in.
        kind: String,
        /// By what it was recognised.
        found: String,
        /// Where it is on the host.
        directory: std::path::PathBuf,
        /// How it is installed.
        #[serde(skip_serializing_if = "Option::is_none")]
        install: Option<String>,
        /// How it is started.
        start: String,
        /// Whether a save restarts it.
        restarts: bool,
        /// What it watches its files with, if it does.
        #[serde(skip_serializing_if = "Option::is_none")]
        watches_itself: Option<String>,
        /// Whether keys are read from the terminal.
        #[serde(skip)]
        keys: bool,
    },
    /// Files of a project were saved.
    SourceChanged {
        /// Some of them, as the project's directory has them.
        paths: Vec<String>,
        /// How many more there are.
        more: usize,
        /// What is done about it.
        action: SourceAction,
    },
    /// The guest wanted to reach something that its network policy does not let it reach. Each is
    /// told once in a life of the network loop.
    NetworkRefused {
        /// `tcp`, `udp`, `icmp` or `dns`.
        protocol: String,
        /// An address, with its port where the protocol has ports, or a name.
        destination: String,
    },
    /// Something a user should know that stops nothing.
    Warning {
        /// For the user.
        message: String,
    },
    /// The workers file was read again, and what it says now holds.
    Reloaded {
        /// Workers that are new.
        started: Vec<WorkerName>,
        /// Workers whose settings have changed.
        restarted: Vec<WorkerName>,
        /// Workers that are gone.
        removed: Vec<WorkerName>,
    },
    /// All workers have ended and the supervisor with them.
    SupervisorStopped,
}

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The workload's standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// The guest's console, of which the end is kept when a VM has crashed.
    Console,
}

impl From<Stream> for LogSource {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl std::fmt::Display for LogSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Console => "console",
        })
    }
}

/// A line, or a piece of an overlong line, that a workload wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Who wrote it.
    pub worker: WorkerName,
    /// In which life of its VM.
    pub boot: BootId,
    /// The workload's main process then; 0 for the console.
    pub pid: GuestPid,
    /// On which output.
    pub stream: LogSource,
    /// When it was begun, by the guest's wall clock, nanoseconds since the Unix epoch. A guest can
    /// claim any time.
    pub time_unix_ns: u64,
    /// When its end arrived, by the host's wall clock, nanoseconds since the Unix epoch.
    pub received_unix_ns: u64,
    /// The line without its newline; any bytes.
    pub text: Vec<u8>,
    /// A newline ended it; `false` for a piece of an overlong line and for the last words of a
    /// process that died in the middle of one.
    pub complete: bool,
}

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
