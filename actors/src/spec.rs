//! What a user wants: one worker, checked whole before anything of it is started.

mod engine;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use engine::{EngineAddress, EngineAddressError};
pub use iii_image::PullPolicy;
pub use iii_image::oci::Reference;
pub use iii_proto::guest::{AtRest, HealthCheck, Probe};
use iii_proto::ids::WorkerName;
pub use iii_vmm::guest::GuestArch;

pub use iii_proto::restart::{RestartLimit, RestartMode, RestartPolicy};
use serde::Serialize;

/// Stands for a secret's value wherever a user or a log could see it.
pub const SECRET_MASK: &str = "*****";

/// One worker. Its `Debug` hides the values of secret variables.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerSpec {
    /// Unique within a supervisor.
    pub name: WorkerName,
    /// The guest's root filesystem.
    pub root: RootSpec,
    /// Size of the disk that keeps changes to the root between boots and runs; `None`: the root is
    /// fresh at every boot.
    pub persist: Option<u64>,
    /// Further disks, kept between boots and runs.
    pub disks: Vec<DiskSpec>,
    /// Program and arguments. With an image: what its entry point is given; empty: the image's own.
    pub command: Vec<String>,
    /// Working directory in the guest; `None`: the image's, else the home.
    pub cwd: Option<String>,
    /// The workload's environment beside what iii-super sets (`III_*`, `HOME`, `USER`, `PATH`).
    pub env: Vec<(String, String)>,
    /// Names of variables whose values never appear in events or logs of ours.
    pub secret_env: BTreeSet<String>,
    /// As whom the workload runs; `None`: the image's user, else uid 1000 `worker`.
    pub user: Option<UserSpec>,
    /// What it may use.
    pub resources: Resources,
    /// Host directories shown to it.
    pub mounts: Vec<MountSpec>,
    /// Whether what the host changes below `mounts` is seen at once, for which the guest asks each
    /// time, or within a second.
    pub live_mounts: bool,
    /// Ports of the guest that the host publishes.
    pub ports: Vec<PublishSpec>,
    /// What it may reach.
    pub network: NetworkSpec,
    /// The iii engine that it is a worker of: its guest finds the address in `III_URL` and
    /// `III_ENGINE_URL`, unless `env` sets them, and may reach it, unless its network is
    /// [`NetworkMode::None`].
    pub engine: Option<EngineAddress>,
    /// When its workload is started again inside its VM.
    pub restart: RestartPolicy,
    /// What its guest does once the workload is not started again.
    pub at_rest: AtRest,
    /// When its VM is started again.
    pub vm_restart: RestartPolicy,
    /// When one of its actors other than the VM's, which fail only by a fault of ours or of the
    /// host, is started again.
    pub actor_restart: RestartPolicy,
    /// When its WorkerSupervisor, which fails only by a fault of ours, is replaced.
    pub supervisor_restart: RestartPolicy,
    /// Probe of the workload.
    pub health: Option<HealthCheck>,
    /// Workers that must have come so far before this one is started.
    pub depends_on: Vec<Dependency>,
    /// How much of its output is kept, where output is kept.
    pub logs: LogSpec,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// Time from the VMM's start in which the guest must say `Hello`.
    pub boot_deadline: Duration,
    /// Time without an answer to a heartbeat after which the guest counts as hung.
    pub heartbeat_timeout: Duration,
    /// Let tests and chaos runs hurt this guest.
    pub allow_faults: bool,
}

/// The variables, with a mask for what is secret.
struct Shown<'a> {
    env: &'a [(String, String)],
    secret: &'a BTreeSet<String>,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.env.iter().map(|(name, value)| {
            let secret = self.secret.contains(name);
            (name, if secret { SECRET_MASK } else { value })
        });
        f.debug_list().entries(shown).finish()
    }
}

impl fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every field is named, so that no new one is forgotten: a digest of this text stands for
        // the worker's settings.
        let Self {
            name,
            root,
            persist,
            command,
            cwd,
            env,
            secret_env,
            user,
            resources,
            mounts,
            live_mounts,
            disks,
            ports,
            network,
            engine,
            restart,
            vm_restart,
            actor_restart,
            supervisor_restart,
            health,
            depends_on,
            logs,
            stop_grace,
            boot_deadline,
            heartbeat_timeout,
            allow_faults,
            at_rest,
        } = self;
        let env = Shown {
            env,
            secret: secret_env,
        };
        f.debug_struct("WorkerSpec")
            .field("name", name)
            .field("root", root)
            .field("persist", persist)
            .field("command", command)
            .field("cwd", cwd)
            .field("env", &env)
            .field("secret_env", secret_env)
            .field("user", user)
            .field("resources", resources)
            .field("mounts", mounts)
            .field("live_mounts", live_mounts)
            .field("disks", disks)
            .field("ports", ports)
            .field("network", network)
            .field("engine", engine)
            .field("restart", restart)
            .field("vm_restart", vm_restart)
            .field("actor_restart", actor_restart)
            .field("supervisor_restart", supervisor_restart)
            .field("health", health)
            .field("depends_on", depends_on)
            .field("logs", logs)
            .field("stop_grace", stop_grace)
            .field("boot_deadline", boot_deadline)
            .field("heartbeat_timeout", heartbeat_timeout)
            .field("allow_faults", allow_faults)
            .field("at_rest", at_rest)
            .finish()
    }
}

impl WorkerSpec {
    /// A worker on the host's own toolchain, with every default.
    pub fn new(name: WorkerName, command: Vec<String>) -> Self {
        Self {
            name,
            root: RootSpec::Host,
            persist: None,
            disks: Vec::new(),
            command,
            cwd: None,
            env: Vec::new(),
            secret_env: BTreeSet::new(),
            user: None,
            resources: Resources::default(),
            mounts: Vec::new(),
            live_mounts: false,
            ports: Vec::new(),
            network: NetworkSpec::default(),
            engine: None,
            restart: RestartPolicy::default(),
            at_rest: AtRest::default(),
            vm_restart: default_vm_restart(),
            actor_restart: default_actor_restart(),
            supervisor_restart: default_supervisor_restart(),
            health: None,
            depends_on: Vec::new(),
            logs: LogSpec::default(),
            stop_grace: Duration::from_secs(10),
            boot_deadline: Duration::from_secs(60),
            heartbeat_timeout: Duration::from_secs(30),
            allow_faults: false,
        }
    }
}

/// How VMs are restarted unless told otherwise: any crash, 200 ms doubling to 30 s, 5 restarts in
/// 5 minutes.
pub fn default_vm_restart() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::OnFailure,
        initial: Duration::from_millis(200),
        limit: Some(RestartLimit {
            restarts: 5,
            window: Duration::from_secs(300),
        }),
        ..RestartPolicy::default()
    }
}

/// How actors other than the VM's are restarted unless told otherwise: at once, then slower, and
/// not for ever.
pub fn default_actor_restart() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_millis(10),
        factor: 2.0,
        max: Duration::from_secs(5),
        jitter: 0.1,
        limit: Some(RestartLimit {
            restarts: 10,
            window: Duration::from_secs(60),
        }),
        reset_after: Duration::from_secs(30),
        stop_codes: Vec::new(),
    }
}

/// How a WorkerSupervisor that panicked is replaced unless told otherwise: a fault of ours, so
/// seldom and slowly.
pub fn default_supervisor_restart() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_millis(100),
        limit: Some(RestartLimit {
            restarts: 3,
            window: Duration::from_secs(60),
        }),
        stop_codes: Vec::new(),
        ..RestartPolicy::default()
    }
}

/// What one worker demands of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Of whom.
    pub worker: WorkerName,
    /// How far it must have come.
    pub condition: Condition,
    /// Whether the dependent is stopped when the other leaves that state, and started again when
    /// it is back. Otherwise it goes on, and is expected to connect anew.
    pub restart: bool,
}

impl Dependency {
    /// On a worker that is ready; the dependent goes on when that one is restarted.
    pub fn ready(worker: WorkerName) -> Self {
        Self {
            worker,
            condition: Condition::Ready,
            restart: false,
        }
    }
}

/// How far a dependency must have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Its workload's process runs, or has run to its end.
    Started,
    /// Its probe has passed; without a probe the same as started.
    #[default]
    Ready,
    /// Its workload has ended with exit code 0.
    Done,
}

/// Where the guest's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootSpec {
    /// The host's own `/usr` and a generated `/etc`.
    Host,
    /// An OCI image.
    Image(ImageSpec),
}

/// An image as a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Its name.
    pub reference: Reference,
    /// When its registry is asked.
    pub pull: PullPolicy,
    /// Instead of the image's entry point; with one of its own, a worker does not have the image's
    /// command either. `Some` of nothing: the command alone is run.
    pub entrypoint: Option<Vec<String>>,
    /// For guests of which architecture, `None`: of the host's. Others are run in software, by QEMU.
    pub platform: Option<GuestArch>,
}

impl ImageSpec {
    /// Pulled if it is missing, run as it wants to be run.
    pub fn new(reference: Reference) -> Self {
        Self {
            reference,
            pull: PullPolicy::default(),
            entrypoint: None,
            platform: None,
        }
    }
}

/// As whom a workload runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSpec {
    /// A name, or `name:group`, of the guest's own `/etc/passwd`.
    Named(String),
    /// Numbers.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// How much of a worker's output is kept: at most `max_size` × `max_files` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// A file of this many bytes is followed by a new one.
    pub max_size: u64,
    /// The oldest is removed when there would be more.
    pub max_files: u32,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            max_size: 10 << 20,
            max_files: 5,
        }
    }
}

/// What a worker may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Virtual CPUs, at least 1.
    pub cpus: u8,
    /// The VM's memory in bytes.
    pub memory: u64,
    /// Processes in the guest's workload; `None`: the guest kernel's own limit.
    pub pids: Option<u64>,
    /// RLIMIT_NOFILE of the workload.
    pub open_files: Option<u64>,
    /// Size of the writable layer in bytes; `None`: half of `memory`, so that a full disk comes
    /// before out-of-memory.
    pub disk: Option<u64>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 256 << 20,
            pids: None,
            open_files: None,
            disk: None,
        }
    }
}

/// A host directory shown to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Absolute, existing directory of the host.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
    /// Whether the guest may change it.
    pub read_only: bool,
}

/// A disk of a worker, whose directories are shown in its guest and are the workload's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Unlike the worker's other disks': at most 15 lower-case letters, digits and '-'.
    pub name: String,
    /// Bytes. A disk that exists may grow, but not shrink.
    pub size: u64,
    /// What is shown of it.
    pub mounts: Vec<DiskMountSpec>,
}

/// A directory of a disk, shown in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMountSpec {
    /// Path on the disk, without a leading slash; empty for all of it. Made if it is missing.
    pub directory: String,
    /// Absolute path in the guest.
    pub guest: String,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    /// Host address to listen on.
    pub address: IpAddr,
    /// Host port; 0 takes a free one, which the `published` event names.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl PublishSpec {
    /// On the host's loopback, which is the default of the workers file.
    pub fn loopback(host_port: u16, guest_port: u16) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            host_port,
            guest_port,
        }
    }
}

/// What a worker may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The base that `allow` adds to.
    pub mode: NetworkMode,
    /// Destinations that are allowed beside the mode's: `CIDR[:port[-port]]`, `*.domain` or
    /// `domain`.
    pub allow: Vec<String>,
    /// Ports of the host's loopback that the guest reaches as `host.iii.internal:port`.
    pub host_ports: BTreeSet<u16>,
    /// Upstream DNS servers instead of the host's; port 53 unless given.
    pub dns: Vec<SocketAddr>,
}

/// What a worker may reach without being named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// The internet; nothing private, link-local or of the host.
    #[default]
    Public,
    /// Only the engine and what `allow` and `host_ports` name.
    Engine,
    /// No network at all.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_in_what_is_printed_of_its_worker() {
        let name = WorkerName::new("w").unwrap();
        let mut spec = WorkerSpec::new(name, vec!["x".into()]);
        spec.env = vec![
            ("TOKEN".into(), "hunter2".into()),
            ("PORT".into(), "80".into()),
        ];
        spec.secret_env.insert("TOKEN".into());
        for text in [format!("{spec:?}"), format!("{spec:#?}")] {
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains("TOKEN") && text.contains("80"), "{text}");
        }
    }
}
