//! What is said over the control socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use iii_actors::{Outcome, Scope, WorkerState, WorkerStatus};
use iii_proto::exec::{SessionId, TerminalSize};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::Exit;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::usage::Usage;

/// Of everything here. Raised when an old end would misunderstand a new one.
pub const PROTOCOL: u32 = 1;

/// The supervisor's first words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`PROTOCOL`] of the supervisor.
    pub protocol: u32,
    /// The supervisor's version, for people.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The workers file that it runs, absolute.
    pub file: PathBuf,
    /// When it started, in milliseconds of the Unix epoch.
    pub started_unix_ms: u64,
}

/// The part of a [`Call`] that is read first, whatever else a newer client says.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct CallHead {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
}

/// A client's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// What it wants.
    pub request: Request,
}

impl Call {
    /// A request of this version.
    pub fn new(request: Request) -> Self {
        Self {
            protocol: PROTOCOL,
            request,
        }
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How all workers are: a [`Reply::Worker`] for each, in the order of their names.
    Status,
    /// How workers are, and what they use: a [`Reply::Usage`] for each, in the order of their names.
    Usage(UsageRequest),
    /// What has happened lately, and what will.
    Events(EventsRequest),
    /// What workloads have written lately, and what they will.
    Logs(LogsRequest),
    /// All that a foreground run prints: events and output as they come, until the run's end
    /// ([`Reply::Ended`]), or, if so asked, until each worker has been ready or has ended: then a
    /// [`Reply::Worker`] for each.
    Attach(AttachRequest),
    /// Start workers, and those at rest that they wait for: a [`Reply::Worker`] for each.
    Start(StartRequest),
    /// Stop workers: a [`Reply::Worker`] for each once nothing of it runs.
    Stop(StopRequest),
    /// Restart workers, or parts of them: a [`Reply::Worker`] for each.
    Restart(RestartRequest),
    /// Stop all workers and end: a [`Reply::Worker`] for each once nothing of it runs, then
    /// [`Reply::Ended`]. The connection is closed when the state directory is free again.
    Shutdown(ShutdownRequest),
    /// Read the workers file again and make it so: a [`Reply::Reloaded`].
    Reload(ReloadRequest),
    /// Run a command in a worker's guest. After [`Reply::Opened`] both ends speak frames of
    /// [`iii_proto::exec`] instead of lines, the client as the host and the supervisor as the guest,
    /// in the session [`SESSION`], which is open already. The supervisor's last frame is `Exited`,
    /// or `Refused` if the end of the command is not known.
    Exec(ExecCall),
}

/// The only exec session of a connection.
pub const SESSION: SessionId = SessionId(0);

/// What is shown of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Output beside events.
    #[serde(default)]
    pub logs: bool,
    /// The events that the supervisor has kept before those to come.
    #[serde(default)]
    pub recent: bool,
    /// Until each worker has been ready or has ended.
    #[serde(default)]
    pub until_settled: bool,
}

/// Which workers to start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    /// None: all.
    #[serde(default)]
    pub workers: Vec<WorkerName>,
    /// Answer for each once it is ready, or at rest and will not be; else at once.
    #[serde(default)]
    pub wait: bool,
}

/// Which workers to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// At least one.
    pub workers: Vec<WorkerName>,
    /// What still runs after so long is killed; else each has its own grace.
    #[serde(default)]
    pub within_ms: Option<u64>,
}

/// What to restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRequest {
    /// None: all.
    #[serde(default)]
    pub workers: Vec<WorkerName>,
    /// How much of them.
    pub scope: RestartScope,
    /// Answer for each once it is ready again, or at rest and will not be; else at once.
    #[serde(default)]
    pub wait: bool,
}

/// What to read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadRequest {
    /// From now on these workers and those that they depend on; `null`: as before.
    #[serde(default)]
    pub names: Option<Vec<String>>,
}

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Workers that are new.
    pub started: Vec<WorkerName>,
    /// Workers whose settings have changed.
    pub restarted: Vec<WorkerName>,
    /// Workers that are gone; nothing of them runs.
    pub removed: Vec<WorkerName>,
    /// Workers that are as they were.
    pub unchanged: Vec<WorkerName>,
}

/// How to end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// What still runs after so long is killed; else each has its own grace.
    #[serde(default)]
    pub within_ms: Option<u64>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCall {
    /// In whose guest.
    pub worker: WorkerName,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables beside, or in place of, the workload's.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory, absolute in the guest.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `name`, `name:group`, `uid` or `uid:gid` of the guest.
    #[serde(default)]
    pub user: Option<String>,
    /// Run it on a terminal of this size.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// It reads what the client sends; else it reads the end of its input at once.
    #[serde(default)]
    pub stdin: bool,
}

/// A command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its process in the guest; `null`: there was no such program.
    pub pid: Option<GuestPid>,
}

/// The run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit code.
    pub code: u8,
}

/// Whose usage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRequest {
    /// None: that of all.
    #[serde(default)]
    pub workers: Vec<WorkerName>,
}

/// A worker and what it uses, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerUsage {
    /// How it is.
    #[serde(flatten)]
    pub worker: WorkerInfo,
    /// What it uses.
    pub usage: Usage,
}

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsRequest {
    /// Of these workers alone; none: of all, and of the supervisor itself.
    #[serde(default)]
    pub workers: Vec<WorkerName>,
    /// Not those before this time.
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
    /// The last of these alone.
    #[serde(default)]
    pub last: Option<usize>,
    /// Those to come as well, until the supervisor's end.
    #[serde(default)]
    pub follow: bool,
}

/// Which output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsRequest {
    /// Of these workers alone; none: of all.
    #[serde(default)]
    pub workers: Vec<WorkerName>,
    /// The lines that the supervisor still has in memory, each worker's last few.
    #[serde(default)]
    pub recent: bool,
    /// The lines to come, until the supervisor's end.
    #[serde(default)]
    pub follow: bool,
}

/// The supervisor's answer, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// A worker as it is now.
    Worker(Box<WorkerInfo>),
    /// A worker as it is now, and what it uses.
    Usage(Box<WorkerUsage>),
    /// An event, as `run --json` has it.
    Event(Box<RawValue>),
    /// A line of output, as `run --json` has it.
    Log(Box<RawValue>),
    /// So many items were not kept for a reader as slow as this.
    Missed(u64),
    /// What a reload has done.
    Reloaded(Reloaded),
    /// A command runs; frames follow.
    Opened(Opened),
    /// That was all.
    Done,
    /// That was all, and the run has ended.
    Ended(Ended),
    /// It was not, or not all, done.
    Refused(Refusal),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// With a message for people.
    pub fn new(kind: RefusalKind, message: impl ToString) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalKind {
    /// The two ends speak different versions.
    Protocol,
    /// The client is another user.
    NotAllowed,
    /// There are as many clients as may be.
    Busy,
    /// The request is none.
    BadRequest,
    /// It names a worker that is not there.
    UnknownWorker,
    /// The workers file has faults; nothing was changed.
    Faults,
    /// The supervisor is ending.
    Ended,
    /// It was tried and did not work.
    #[serde(other)]
    Failed,
}

/// A worker at one moment, for commands and their `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Who.
    pub name: WorkerName,
    /// Where it stands.
    pub state: WorkerState,
    /// Since when, in milliseconds of the Unix epoch.
    pub since_unix_ms: u64,
    /// For whom it waits.
    pub waits_for: Vec<WorkerName>,
    /// Whether it has a probe, so that being ready is more than being started.
    pub probed: bool,
    /// What its probe says; `null`: it has none, or nothing runs that could be probed.
    pub health: Option<Health>,
    /// The VM that runs.
    pub boot: Option<BootId>,
    /// VMs that it has had.
    pub boots: u64,
    /// The host's process above the VMM.
    pub vmm_pid: Option<u32>,
    /// Since when that VM runs, in milliseconds of the Unix epoch.
    #[serde(default)]
    pub vm_since_unix_ms: Option<u64>,
    /// The workload's main process, in the guest.
    pub workload_pid: Option<GuestPid>,
    /// Since when that process runs, in milliseconds of the Unix epoch.
    #[serde(default)]
    pub workload_since_unix_ms: Option<u64>,
    /// Starts of the workload, its first one included.
    pub starts: u64,
    /// Restarts of the VM after failures.
    pub vm_restarts: u64,
    /// How the workload ended last.
    pub last_exit: Option<Exit>,
    /// How the worker ended, until it is started again.
    pub outcome: Option<Outcome>,
    /// What the host publishes.
    pub ports: Vec<Port>,
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It has not passed since the workload's start.
    Pending,
    /// It passes.
    Passing,
    /// It has failed too often; the workload is being started again.
    Failed,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The host's address.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl From<WorkerStatus> for WorkerInfo {
    fn from(status: WorkerStatus) -> Self {
        let health = status.probed.then(|| health(&status)).flatten();
        let ports = status.published.into_iter();
        Self {
            health,
            probed: status.probed,
            name: status.name,
            state: status.state,
            since_unix_ms: milliseconds(status.since),
            waits_for: status.waits_for,
            boot: status.boot,
            boots: status.boots,
            vmm_pid: status.vmm_pid,
            vm_since_unix_ms: status.vm_since.map(milliseconds),
            workload_pid: status.workload,
            workload_since_unix_ms: status.workload_since.map(milliseconds),
            starts: status.workload_starts,
            vm_restarts: status.vm_restarts,
            last_exit: status.last_exit,
            outcome: status.outcome,
            ports: ports.map(|(host, guest)| Port { host, guest }).collect(),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn health(status: &WorkerStatus) -> Option<Health> {
    match status.state {
        WorkerState::Ready => Some(Health::Passing),
        WorkerState::Started => Some(Health::Pending),
        WorkerState::Repairing if status.last_exit == Some(Exit::Unhealthy) => Some(Health::Failed),
        // Nothing runs that could be probed; and of a state that is newer than this nothing is said.
        _ => None,
    }
}

/// [`Scope`] as it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartScope {
    /// The workload, inside its VM.
    Workload,
    /// The VM.
    Vm,
    /// The worker with all its parts.
    All,
}

impl From<RestartScope> for Scope {
    fn from(scope: RestartScope) -> Self {
        match scope {
            RestartScope::Workload => Self::Workload,
            RestartScope::Vm => Self::Vm,
            RestartScope::All => Self::All,
        }
    }
}
