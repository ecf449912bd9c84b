//! A worker whose every precondition has been checked and whose resources have been found: what
//! the actors start from, again and again.

use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use iii_net::config::{
    GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, HOST_NAME, IPV4_PREFIX, IPV6_PREFIX,
};
use iii_net::{NetworkConfig, Policy, PublishedPort};
use iii_proto::PROTOCOL_VERSION;
use iii_proto::guest::{GuestNetwork, GuestSpec, GuestUser, Mount, Root, Workload};
use iii_proto::ids::BootId;
use iii_proto::vfs::VfsExport;
use iii_vmm::cgroup::{Delegation, Leaf, VmSize};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::host::Acceleration;
use iii_vmm::process::Spawner;
use iii_vmm::vmm::VmDisk;
use iii_vmm::vmms::{Candidate, Vmms};

use crate::event::EventBus;
use crate::logs::LogBus;
use crate::memory::Keeper;
use crate::spec::{NetworkMode, WorkerSpec};

/// What all workers of a supervisor share.
#[derive(Clone, Debug)]
pub struct Environment {
    /// What runs the VMs.
    pub vmms: Arc<Vmms>,
    /// Starts every process.
    pub spawner: Spawner,
    /// Where helper binaries are looked for.
    pub places: HelperPlaces,
    /// Where events go.
    pub bus: EventBus,
    /// Where output goes.
    pub logs: LogBus,
    /// In which each VM has limits of the host's; `None`: it has none.
    pub cgroups: Option<Arc<Delegation>>,
    /// What outlives this supervisor; `None`: nothing does.
    pub keeper: Option<Arc<dyn Keeper>>,
}

impl Environment {
    /// The cgroup of one boot.
    pub(crate) fn leaf(
        &self,
        plan: &WorkerPlan,
        boot: BootId,
        acceleration: Acceleration,
    ) -> Option<Arc<Leaf>> {
        let size = VmSize {
            memory: plan.spec.resources.memory,
            cpus: plan.spec.resources.cpus.into(),
            acceleration,
        };
        self.cgroups.as_ref()?.leaf(&plan.spec.name, boot, &size)
    }
}

/// One worker, ready to be started.
#[derive(Debug)]
pub struct WorkerPlan {
    /// What the user asked for.
    pub spec: WorkerSpec,
    /// What runs its VMs, where that is not what runs the others': for guests of another
    /// architecture than the host's.
    pub vmm: Option<Candidate>,
    /// The kernel in the VMM's form.
    pub kernel: PathBuf,
    /// The part of the initramfs that is the same at every boot: vm-init and the skeleton.
    pub initramfs: Arc<Vec<u8>>,
    /// How the guest assembles its root.
    pub root: Root,
    /// What it mounts below.
    pub mounts: Vec<Mount>,
    /// The host directories that these need; `listener_fd` is assigned at launch.
    pub exports: Vec<VfsExport>,
    /// The VM's disks, which the root or the mounts name by their serial numbers.
    pub disks: Vec<PlanDisk>,
    /// As whom the workload runs.
    pub user: GuestUser,
    /// Its working directory.
    pub cwd: String,
    /// What asks it to end.
    pub stop_signal: i32,
    /// What it may reach.
    pub policy: Policy,
    /// Bound before anything is started, kept as long as the worker.
    pub listeners: Vec<(TcpListener, u16)>,
}

/// A disk of a worker's VM.
#[derive(Debug)]
pub struct PlanDisk {
    /// By which the guest finds it; at most 20 bytes.
    pub serial: String,
    /// What is on it.
    pub image: DiskImage,
}

/// A raw image.
#[derive(Debug)]
pub enum DiskImage {
    /// Opened by whoever made the plan; the VMM refuses writes. Each VM inherits a duplicate, so
    /// that locks on it hold as long as the worker or a VM of it lives.
    ReadOnly(File),
    /// Opened and locked anew for each VM. The lock is the open file's, which the VMM inherits: no
    /// other VM has the disk before the last process of this one is gone, also if the supervisor
    /// was killed.
    Writable(PathBuf),
}

impl DiskImage {
    fn open(&self) -> Result<File, DiskImageError> {
        match self {
            Self::ReadOnly(file) => file.try_clone().map_err(DiskImageError::Duplicate),
            Self::Writable(path) => {
                let failed = |source| DiskImageError::Open {
                    path: path.clone(),
                    source,
                };
                let file = File::options().read(true).write(true).open(path);
                let file = file.map_err(failed)?;
                match file.try_lock() {
                    Ok(()) => Ok(file),
                    Err(TryLockError::WouldBlock) => Err(DiskImageError::Busy(path.clone())),
                    Err(TryLockError::Error(source)) => Err(failed(source)),
                }
            }
        }
    }
}

/// Why a VM cannot have its disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// No descriptor is left.
    #[error("failed to hand on a disk: {0}")]
    Duplicate(std::io::Error),
    /// It is not there, or not ours.
    #[error("failed to open disk {path}: {source}; start iii-super anew, which makes what is missing", path = path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else has it.
    #[error("failed to lock disk {}: another VM or program uses it", .0.display())]
    Busy(PathBuf),
}

impl WorkerPlan {
    /// The VMM's descriptors of the disks.
    pub(crate) fn vm_disks(&self) -> Result<Vec<VmDisk>, DiskImageError> {
        let disk = |disk: &PlanDisk| {
            Ok(VmDisk {
                fd: disk.image.open()?.into(),
                serial: disk.serial.clone(),
                read_only: matches!(disk.image, DiskImage::ReadOnly(_)),
            })
        };
        self.disks.iter().map(disk).collect()
    }

    /// The guest's orders for one boot.
    pub(crate) fn guest_spec(
        &self,
        boot_id: BootId,
        host_time_unix_ns: u64,
        entropy: [u8; 32],
    ) -> GuestSpec {
        let spec = &self.spec;
        let mut env = spec.env.clone();
        env.push(("III_WORKER_NAME".into(), spec.name.to_string()));
        env.push(("III_BOOT_ID".into(), boot_id.to_string()));
        env.push(("III_ISOLATION".into(), "microvm".into()));
        env.extend(self.engine_variables());
        GuestSpec {
            proto: PROTOCOL_VERSION,
            boot_id,
            worker: spec.name.clone(),
            root: self.root.clone(),
            mounts: self.mounts.clone(),
            network: self.has_network().then(guest_network),
            workload: Workload {
                command: spec.command.clone(),
                env,
                cwd: self.cwd.clone(),
                user: self.user.clone(),
                limits: iii_proto::guest::GuestLimits {
                    memory_bytes: None,
                    pids: spec.resources.pids,
                    open_files: spec.resources.open_files,
                },
                stop_grace_ms: u64::try_from(spec.stop_grace.as_millis()).unwrap_or(u64::MAX),
                stop_signal: self.stop_signal,
            },
            restart: spec.restart.clone(),
            at_rest: spec.at_rest,
            health: spec.health.clone(),
            host_time_unix_ns,
            entropy,
            allow_faults: spec.allow_faults,
        }
    }

    /// Where the guest finds the engine, if it may reach it. What the user's `env` sets stays.
    fn engine_variables(&self) -> Vec<(String, String)> {
        let spec = &self.spec;
        let Some(engine) = &spec.engine else {
            return Vec::new();
        };
        if spec.network.mode == NetworkMode::None {
            return Vec::new();
        }
        let own = |name: &str| spec.env.iter().any(|(theirs, _)| theirs == name);
        ["III_URL", "III_ENGINE_URL"]
            .into_iter()
            .filter(|name| !own(name))
            .map(|name| (name.to_owned(), engine.in_guest()))
            .collect()
    }

    /// Whether the guest has an `eth0` at all. A worker that publishes a port needs one even when
    /// it may reach nothing itself.
    pub(crate) fn has_network(&self) -> bool {
        self.spec.network.mode != NetworkMode::None || !self.listeners.is_empty()
    }

    /// The network loop's configuration, with duplicates of the listeners.
    pub(crate) fn network_config(&self) -> std::io::Result<NetworkConfig> {
        let mut published = Vec::with_capacity(self.listeners.len());
        for (listener, guest_port) in &self.listeners {
            published.push(PublishedPort {
                listener: listener.try_clone()?,
                guest_port: *guest_port,
            });
        }
        Ok(NetworkConfig {
            policy: self.policy.clone(),
            published,
            ..NetworkConfig::default()
        })
    }
}

fn guest_network() -> GuestNetwork {
    GuestNetwork {
        mtu: u32::from(iii_net::config::DEFAULT_MTU),
        ipv4: GUEST_IPV4,
        ipv4_prefix: IPV4_PREFIX,
        ipv4_gateway: GATEWAY_IPV4,
        ipv6: GUEST_IPV6,
        ipv6_prefix: IPV6_PREFIX,
        ipv6_gateway: GATEWAY_IPV6,
        hosts: vec![(HOST_NAME.into(), GATEWAY_IPV4.into())],
    }
}
