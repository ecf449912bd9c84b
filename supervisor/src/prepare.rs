//! From what a user wants to what the actors start from. Everything that can be wrong is found out
//! here, for all workers together, before anything of any of them is started.

mod disks;
mod image_root;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use iii_actors::plan::{PlanDisk, WorkerPlan};
use iii_actors::spec::{Condition, MountSpec, NetworkMode, RootSpec, WorkerSpec};
use iii_firmware::Firmware;
use iii_firmware::initramfs::{Initramfs, InitramfsError};
use iii_image::erofs::ErofsError;
use iii_image::image_root::{AccountError, ImageCommandError};
use iii_image::store::StoreError;
use iii_image::{
    CommandError, CommandLookup, HostRoot, HostRootError, MountView, Owner, PullError, RootExport,
    SkeletonEntry, skeleton,
};
use iii_net::policy::RuleError;
use iii_net::{Policy, PolicyMode};
use iii_proto::SKELETON_PATH;
use iii_proto::guest::{GuestUser, Lower, Mount, MountSource, Root, Upper};
use iii_proto::ids::WorkerName;
use iii_proto::vfs::VfsExport;
use iii_vmm::guest::GuestArch;

use self::disks::PlannedDisks;
use crate::accounts::{Account, Accounts};
use crate::disks::{DiskError, DiskStore};
use crate::guests::{ForeignGuests, GuestError, Guests};
use crate::images::Images;
use crate::order::launch_order;

/// What asks a workload to end, unless its image says otherwise.
const SIGTERM: i32 = 15;
/// virtio-mmio slots that are left for exports and disks beside the serial and the network device.
const DEVICE_SLOTS: usize = 6;

/// A worker that can be started: its command is found, its ports are bound.
#[derive(Debug)]
pub struct PreparedWorker {
    pub(crate) plan: WorkerPlan,
}

impl PreparedWorker {
    /// What it was made from.
    pub fn spec(&self) -> &WorkerSpec {
        &self.plan.spec
    }
}

/// Why a worker cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("worker \"{worker}\": {fault}")]
pub struct PrepareError {
    /// Which worker.
    pub worker: WorkerName,
    /// What is wrong with it.
    #[source]
    pub fault: PrepareFault,
}

/// What can be wrong with a worker that is well-formed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareFault {
    /// The host's toolchain cannot be its root.
    #[error(transparent)]
    HostRoot(#[from] HostRootError),
    /// Images cannot be kept on this host.
    #[error(transparent)]
    Images(#[from] Box<StoreError>),
    /// Guests of its architecture cannot be run.
    #[error(transparent)]
    Guest(#[from] Box<GuestError>),
    /// Its image cannot be had.
    #[error(transparent)]
    Pull(#[from] Box<PullError>),
    /// Its user is not in its image.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Its command is not in its image.
    #[error(transparent)]
    ImageCommand(#[from] Box<ImageCommandError>),
    /// A kind of root that this supervisor does not know.
    #[error("failed to prepare its root: this build does not know {0}")]
    UnknownRoot(String),
    /// Its command is not in its guest.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It has no command at all.
    #[error(
        "failed to find its command: none is given; name one, as `command: [\"node\", \"server.js\"]`"
    )]
    NoCommand,
    /// It depends on a worker that is not there.
    #[error("failed to find worker {0}, on which it depends: there is none of that name")]
    UnknownDependency(WorkerName),
    /// It depends on itself by way of others.
    #[error("failed to order the start: {0} is a circle; take one `depends_on` out of it")]
    Circle(String),
    /// It is to be restarted with a worker that is to have ended.
    #[error(
        "failed to combine `restart: true` with `{0}: done`: a worker that is done is not restarted"
    )]
    RestartWithDone(WorkerName),
    /// A network rule is malformed.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A mount's directory is not there.
    #[error("failed to mount {path}: {source}; make the directory or correct `mounts`")]
    Mount {
        /// The host's path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A mount is no directory.
    #[error("failed to mount {0}: it is not a directory; mount the directory that holds it")]
    MountNotDirectory(String),
    /// More mounts than a VM has slots.
    #[error(
        "failed to fit its mounts: {wanted} were asked for and a VM has slots for {slots}{beside}; \
         mount fewer directories, or one that holds several of them"
    )]
    TooManyMounts {
        /// Asked for.
        wanted: usize,
        /// There are.
        slots: usize,
        /// What takes the others.
        beside: String,
    },
    /// A host port cannot be listened on.
    #[error("failed to publish {address}: {source}; {remedy}")]
    Publish {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A user that the guest does not know.
    #[error(
        "failed to find user \"{0}\" in the guest; use a number, as `user: \"1000:1000\"`, or one of: {1}"
    )]
    UnknownUser(String, String),
    /// A disk that is to outlive the worker has nowhere to be.
    #[error(
        "failed to keep its disks: this supervisor keeps nothing; give it a directory, as \
         `Supervisor::builder().state_dir(…)`"
    )]
    NowhereToKeep,
    /// A disk cannot be made.
    #[error(transparent)]
    Disk(Box<DiskError>),
    /// A disk's settings are wrong.
    #[error("failed to take disk {name:?}: {reason}")]
    BadDisk {
        /// Its name.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The boot medium cannot be made.
    #[error("failed to make the boot medium: {0}")]
    BootMedium(#[from] InitramfsError),
    /// The root's generated part cannot be made.
    #[error(transparent)]
    Skeleton(#[from] ErofsError),
}

/// What several workers share: found once, when the first of them needs it.
pub(crate) struct Preparation<'a> {
    firmware: &'a Firmware,
    disks: Option<DiskStore>,
    images: &'a Images,
    guests: &'a Guests,
    present: Vec<WorkerName>,
    /// Listeners of workers that are to go, for those that publish the same ports after them.
    inherited: Vec<TcpListener>,
    host_root: Option<(Arc<HostRoot>, Arc<Vec<u8>>)>,
    /// vm-init alone: an image is a root without a skeleton. For guests of the host's architecture,
    /// and of others.
    bare_media: BTreeMap<Option<GuestArch>, Arc<Vec<u8>>>,
}

/// What a worker comes to with its root.
struct Base {
    initramfs: Arc<Vec<u8>>,
    lowers: Vec<Lower>,
    skeleton: bool,
    exports: Vec<RootExport>,
    user: GuestUser,
    /// To whom the files of mounts belong in the guest.
    owner: Owner,
    cwd: String,
    stop_signal: i32,
    command: Vec<String>,
    env: Vec<(String, String)>,
    disks: Vec<PlanDisk>,
    /// For a guest of another architecture.
    foreign: Option<Arc<ForeignGuests>>,
}

impl<'a> Preparation<'a> {
    /// `disks`: where those are that outlive a worker; `present`: workers that the supervisor has
    /// already.
    pub(crate) fn new(
        firmware: &'a Firmware,
        images: &'a Images,
        guests: &'a Guests,
        disks: Option<DiskStore>,
        present: Vec<WorkerName>,
    ) -> Self {
        Self {
            firmware,
            disks,
            images,
            guests,
            present,
            inherited: Vec::new(),
            host_root: None,
            bare_media: BTreeMap::new(),
        }
    }

    /// Listeners of workers that are to go, for those that publish the same ports after them.
    pub(crate) fn inheriting(self, inherited: Vec<TcpListener>) -> Self {
        Self { inherited, ..self }
    }

    /// Checks all workers. Either all can be started, or every fault is told.
    pub(crate) fn prepare(
        &mut self,
        specs: Vec<WorkerSpec>,
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        let mut prepared = Vec::new();
        let mut errors = self.dependency_faults(&specs);
        let specs = match in_order(specs) {
            Ok(specs) => specs,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        for spec in specs {
            let worker = spec.name.clone();
            match self.worker(spec) {
                Ok(plan) => prepared.push(PreparedWorker { plan }),
                Err(faults) => errors.extend(faults.into_iter().map(|fault| PrepareError {
                    worker: worker.clone(),
                    fault,
                })),
            }
        }
        if errors.is_empty() {
            Ok(prepared)
        } else {
            Err(errors)
        }
    }

    fn dependency_faults(&self, specs: &[WorkerSpec]) -> Vec<PrepareError> {
        let mut errors = Vec::new();
        for spec in specs {
            for dependency in &spec.depends_on {
                let name = &dependency.worker;
                let there = specs.iter().any(|s| s.name == *name) || self.present.contains(name);
                let fault = if !there {
                    PrepareFault::UnknownDependency(name.clone())
                } else if dependency.restart && dependency.condition == Condition::Done {
                    PrepareFault::RestartWithDone(name.clone())
                } else {
                    continue;
                };
                errors.push(PrepareError {
                    worker: spec.name.clone(),
                    fault,
                });
            }
        }
        errors
    }

    fn host_root(&mut self) -> Result<(Arc<HostRoot>, Arc<Vec<u8>>), PrepareFault> {
        if let Some(found) = &self.host_root {
            return Ok(found.clone());
        }
        let root = HostRoot::discover()?;
        let medium = boot_medium(self.firmware, Some(&root.skeleton))?;
        let found = (Arc::new(root), Arc::new(medium));
        self.host_root = Some(found.clone());
        Ok(found)
    }

    fn bare_medium(
        &mut self,
        foreign: Option<&ForeignGuests>,
    ) -> Result<Arc<Vec<u8>>, PrepareFault> {
        let guest = foreign.map(|guests| guests.arch);
        if let Some(medium) = self.bare_media.get(&guest) {
            return Ok(medium.clone());
        }
        let firmware = foreign.map_or(self.firmware, |guests| &guests.firmware);
        let medium: Arc<Vec<u8>> = Arc::new(boot_medium(firmware, None)?);
        self.bare_media.insert(guest, medium.clone());
        Ok(medium)
    }

    fn on_host_root(
        &mut self,
        spec: &WorkerSpec,
        faults: &mut Vec<PrepareFault>,
    ) -> Result<Base, PrepareFault> {
        let (root, initramfs) = self.host_root()?;
        let accounts = Accounts::of(&root.skeleton);
        let account = accounts.find(spec.user.as_ref()).unwrap_or_else(|fault| {
            faults.push(fault);
            Account::of_workers()
        });
        let owner = Owner {
            uid: account.uid,
            gid: account.gid,
        };
        let cwd = spec.cwd.clone().unwrap_or_else(|| account.home.clone());
        let mut command = spec.command.clone();
        match host_command(spec, &root, &cwd) {
            Ok(program) => command[0] = program,
            Err(fault) => faults.push(fault),
        }
        Ok(Base {
            initramfs,
            lowers: Vec::new(),
            skeleton: true,
            exports: root.exports.clone(),
            user: accounts.for_guest(account, &spec.mounts),
            owner,
            cwd,
            stop_signal: SIGTERM,
            command,
            env: spec.env.clone(),
            disks: Vec::new(),
            foreign: None,
        })
    }

    fn worker(&mut self, mut spec: WorkerSpec) -> Result<WorkerPlan, Vec<PrepareFault>> {
        let mut faults = Vec::new();
        let base = match spec.root.clone() {
            RootSpec::Host => self.on_host_root(&spec, &mut faults),
            RootSpec::Image(image) => self.on_image(&spec, &image, &mut faults),
            other => Err(PrepareFault::UnknownRoot(format!("{other:?}"))),
        };
        let base = base.map_err(|fault| vec![fault])?;
        let policy = policy(&spec).unwrap_or_else(|fault| {
            faults.push(fault);
            Policy::default()
        });
        let (mut mounts, exports) = mounts(&spec, &base, &mut faults);
        let listeners = listeners(&spec, &mut self.inherited, &mut faults);
        let owner = (base.owner.uid, base.owner.gid);
        // Made only for a worker that could be started otherwise.
        let disks = match faults.is_empty() {
            true => disks::plan(&spec, self.disks.as_ref(), owner, &mut faults),
            false => PlannedDisks::default(),
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        mounts.extend(disks.mounts);
        let size_bytes = spec.resources.disk.unwrap_or(spec.resources.memory / 2);
        (spec.command, spec.env) = (base.command, base.env);
        let firmware = (base.foreign.as_deref()).map_or(self.firmware, |guests| &guests.firmware);
        Ok(WorkerPlan {
            vmm: base.foreign.as_ref().map(|guests| guests.vmm.clone()),
            kernel: firmware.kernel().to_owned(),
            initramfs: base.initramfs,
            root: Root {
                lowers: base.lowers,
                skeleton: base.skeleton,
                upper: disks.upper.unwrap_or(Upper::Tmpfs { size_bytes }),
            },
            mounts,
            exports,
            disks: base.disks.into_iter().chain(disks.disks).collect(),
            user: base.user,
            cwd: base.cwd,
            stop_signal: base.stop_signal,
            policy,
            listeners,
            spec,
        })
    }
}

/// Each behind those that it depends on.
fn in_order(specs: Vec<WorkerSpec>) -> Result<Vec<WorkerSpec>, PrepareError> {
    let names: Vec<(WorkerName, Vec<WorkerName>)> = specs
        .iter()
        .map(|spec| {
            let on = spec.depends_on.iter().map(|d| d.worker.clone());
            (spec.name.clone(), on.collect())
        })
        .collect();
    let order = launch_order(&names).map_err(|cycle| PrepareError {
        worker: cycle.0[0].clone(),
        fault: PrepareFault::Circle(cycle.to_string()),
    })?;
    let mut specs: Vec<Option<WorkerSpec>> = specs.into_iter().map(Some).collect();
    // Each position is in the order once.
    Ok(order
        .into_iter()
        .filter_map(|at| specs[at].take())
        .collect())
}

/// More bytes than the names and headers of a boot medium's few files have.
const MEDIUM_HEADERS: usize = 4096;

/// vm-init and the skeleton, which are the same at every boot.
fn boot_medium(
    firmware: &Firmware,
    skeleton: Option<&[SkeletonEntry]>,
) -> Result<Vec<u8>, PrepareFault> {
    let image = skeleton.map(skeleton::image).transpose()?;
    let init = firmware.init().bytes();
    // A start waits for this, and memory that the kernel must clear is most of what it costs.
    let size = init.len() + image.as_ref().map_or(0, Vec::len) + MEDIUM_HEADERS;
    let mut medium = Initramfs::with_capacity(size);
    medium.init(init)?;
    if let Some(image) = image {
        medium.file(SKELETON_PATH, 0o400, &image)?;
    }
    Ok(medium.finish())
}

fn views(spec: &WorkerSpec) -> Vec<MountView> {
    let view = |mount: &MountSpec| MountView {
        host: mount.host.clone(),
        guest: mount.guest.clone(),
    };
    spec.mounts.iter().map(view).collect()
}

fn host_command(spec: &WorkerSpec, root: &HostRoot, cwd: &str) -> Result<String, PrepareFault> {
    let program = spec.command.first().ok_or(PrepareFault::NoCommand)?;
    let views = views(spec);
    let path = std::env::var_os("PATH");
    let lookup = CommandLookup {
        path: path.as_deref(),
        cwd,
        mounts: &views,
    };
    Ok(root.resolve_command(program, &lookup)?.guest)
}

fn policy(spec: &WorkerSpec) -> Result<Policy, PrepareFault> {
    let allow = spec
        .network
        .allow
        .iter()
        .map(|rule| rule.parse())
        .collect::<Result<Vec<_>, RuleError>>()?;
    let mode = match spec.network.mode {
        NetworkMode::Public => PolicyMode::Public,
        NetworkMode::Engine => PolicyMode::Engine,
        NetworkMode::None => PolicyMode::None,
    };
    let mut policy = Policy {
        mode,
        allow,
        host_ports: spec.network.host_ports.clone(),
        ..Policy::default()
    };
    if let Some(engine) = &spec.engine {
        engine.open(&mut policy);
    }
    Ok(policy)
}

fn mounts(
    spec: &WorkerSpec,
    base: &Base,
    faults: &mut Vec<PrepareFault>,
) -> (Vec<Mount>, Vec<VfsExport>) {
    let mut mounts = Vec::new();
    let mut exports = Vec::new();
    for export in &base.exports {
        mounts.push(Mount {
            target: export.guest_path.clone(),
            source: MountSource::Overlay {
                tag: export.tag.clone(),
            },
        });
        exports.push(VfsExport {
            tag: export.tag.clone(),
            path: export.host_path.clone(),
            read_only: true,
            guest_uid: 0,
            guest_gid: 0,
            listener_fd: -1,
            immutable: true,
            live: false,
        });
    }
    let own = usize::from(spec.persist.is_some()) + spec.disks.len();
    let disks = base.disks.len() + own;
    if let Some(fault) = too_many_mounts(spec.mounts.len(), exports.len(), disks) {
        faults.push(fault);
    }
    for (n, mount) in spec.mounts.iter().enumerate() {
        // The file server follows no symlink, the user's own path may hold some.
        let path = match mount.host.canonicalize() {
            Ok(path) if path.is_dir() => path,
            Ok(path) => {
                faults.push(PrepareFault::MountNotDirectory(path.display().to_string()));
                continue;
            }
            Err(source) => {
                let path = mount.host.display().to_string();
                faults.push(PrepareFault::Mount { path, source });
                continue;
            }
        };
        let tag = format!("mount{n}");
        mounts.push(Mount {
            target: mount.guest.clone(),
            source: MountSource::Export {
                tag: tag.clone(),
                read_only: mount.read_only,
            },
        });
        exports.push(VfsExport {
            tag,
            path,
            read_only: mount.read_only,
            guest_uid: base.owner.uid,
            guest_gid: base.owner.gid,
            listener_fd: -1,
            immutable: false,
            live: spec.live_mounts,
        });
    }
    (mounts, exports)
}

/// What is left of a VM's slots once the root's exports and the disks have theirs.
fn too_many_mounts(wanted: usize, root: usize, disks: usize) -> Option<PrepareFault> {
    let slots = DEVICE_SLOTS.saturating_sub(root + disks);
    (wanted > slots).then(|| PrepareFault::TooManyMounts {
        wanted,
        slots,
        beside: match disks {
            0 => String::new(),
            1 => " beside its disk".to_owned(),
            n => format!(" beside its {n} disks"),
        },
    })
}

fn listeners(
    spec: &WorkerSpec,
    inherited: &mut Vec<TcpListener>,
    faults: &mut Vec<PrepareFault>,
) -> Vec<(TcpListener, u16)> {
    let mut listeners = Vec::new();
    for port in &spec.ports {
        let address = SocketAddr::new(port.address, port.host_port);
        let at = |listener: &TcpListener| listener.local_addr().ok();
        if let Some(n) = inherited.iter().position(|l| at(l) == Some(address)) {
            listeners.push((inherited.swap_remove(n), port.guest_port));
            continue;
        }
        match bind(address) {
            Ok(listener) => listeners.push((listener, port.guest_port)),
            Err(source) => {
                let same_port = |l: &TcpListener| at(l).map(|a| a.port()) == Some(port.host_port);
                let remedy = match source.kind() {
                    std::io::ErrorKind::AddrInUse if inherited.iter().any(same_port) => {
                        "a worker that is to be replaced or removed still listens there on another \
                         address: stop it first"
                    }
                    std::io::ErrorKind::AddrInUse => {
                        "another program listens there: stop it or publish another port"
                    }
                    std::io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need privileges: publish a higher one"
                    }
                    _ => "check the address in `ports`",
                };
                faults.push(PrepareFault::Publish {
                    address,
                    source,
                    remedy,
                });
            }
        }
    }
    listeners
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_take_slots_that_mounts_cannot_have() {
        assert!(too_many_mounts(5, 1, 0).is_none());
        let text = |wanted, root, disks| too_many_mounts(wanted, root, disks).unwrap().to_string();
        assert!(text(6, 1, 0).contains("6 were asked for and a VM has slots for 5;"));
        assert!(text(4, 1, 2).contains("slots for 3 beside its 2 disks;"));
        assert!(text(6, 0, 1).contains("slots for 5 beside its disk;"));
    }
}
