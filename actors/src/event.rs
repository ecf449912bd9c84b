//! Everything that happens, as data: to logs, to `--json`, to the embedding API's stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use iii_proto::control::{BootStage, PowerOffReason};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::Stream;
use iii_proto::restart::{Decision, Exit};
use serde::Serialize;
use tokio::sync::broadcast;

/// One fact.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// Counts up from 1 within a supervisor.
    pub seq: u64,
    /// Time since the supervisor's start.
    #[serde(serialize_with = "seconds")]
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

fn seconds<S: serde::Serializer>(at: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64((at.as_secs_f64() * 1e6).round() / 1e6)
}

/// The four kinds of actor that serve one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The worker was accepted; its children are being started.
    WorkerStarting,
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
        #[serde(serialize_with = "seconds")]
        after: Duration,
    },
    /// The guest completed a stage of its boot.
    GuestStage {
        /// Which.
        stage: BootStage,
        /// Since the guest's kernel started, by the guest's own clock.
        #[serde(serialize_with = "seconds")]
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
        #[serde(serialize_with = "seconds")]
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
        #[serde(serialize_with = "seconds")]
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
    /// Something a user should know that stops nothing.
    Warning {
        /// For the user.
        message: String,
    },
    /// All workers have ended and the supervisor with them.
    SupervisorStopped,
}

/// A line, or a piece of an overlong line, that a workload wrote.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Who wrote it.
    pub worker: WorkerName,
    /// In which life of its VM.
    pub boot: BootId,
    /// The workload's main process then.
    pub pid: GuestPid,
    /// On which output.
    pub stream: Stream,
    /// Guest wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// The line without its newline; any bytes.
    pub text: Vec<u8>,
    /// A newline ended it; `false` for a piece of an overlong line and for the last words of a
    /// process that died in the middle of one.
    pub complete: bool,
}

/// Events that a slow subscriber may be behind before it is told that it missed some.
const BACKLOG: usize = 4096;

/// Where events are put and from where they are read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sender: broadcast::Sender<Event>,
    seq: AtomicU64,
    origin: Instant,
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
                seq: AtomicU64::new(0),
                origin: Instant::now(),
            }),
        }
    }

    /// Time since the bus was made: the `now` of every core of this supervisor.
    pub fn now(&self) -> Duration {
        self.inner.origin.elapsed()
    }

    /// Tells every subscriber. Returns at once; nobody listening is no error.
    pub fn emit(&self, worker: Option<&WorkerName>, boot: Option<BootId>, kind: EventKind) {
        let event = Event {
            seq: self.inner.seq.fetch_add(1, Ordering::Relaxed) + 1,
            at: self.now(),
            time_unix_ms: unix_ms(),
            worker: worker.cloned(),
            boot,
            kind,
        };
        trace(&event);
        // An error means that nobody subscribes now.
        let _nobody = self.inner.sender.send(event);
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.sender.subscribe()
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        // A host clock before 1970 is shown as 1970.
        .map_or(0, |d| d.as_millis() as u64)
}

fn trace(event: &Event) {
    let worker = event.worker.as_ref().map(WorkerName::as_str);
    let boot = event.boot.map(|b| b.to_string());
    tracing::debug!(target: "iii::event", worker, boot, seq = event.seq, "{:?}", event.kind);
}
