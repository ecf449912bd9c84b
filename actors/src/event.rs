//! Everything that happens, as data: to logs, to `--json`, to the embedding API's stream.

mod bus;

use std::time::Duration;

pub use bus::{EventBus, Followed, unix_ns};

use crate::root::WorkerState;
use iii_proto::control::{BootStage, PowerOffReason};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::Stream;
use iii_proto::restart::{Decision, Exit};
use serde::{Deserialize, Serialize};

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

impl ActorKind {
    /// What it is to a user, who knows no actors.
    pub fn role(self) -> &'static str {
        match self {
            Self::Dns => "resolver",
            Self::NetPoll => "network",
            Self::Fs => "file server",
            Self::Vm => "VM",
        }
    }
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
        /// The guest had said that it ends, and why: nothing has crashed.
        #[serde(default)]
        announced: bool,
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
