//! From what a user wants to what the actors start from. Everything that can be wrong is found out
//! here, for all workers together, before anything of any of them is started.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use iii_actors::plan::WorkerPlan;
use iii_actors::spec::{NetworkMode, RootSpec, WorkerSpec};
use iii_firmware::Firmware;
use iii_firmware::initramfs::{Initramfs, InitramfsError};
use iii_image::erofs::ErofsError;
use iii_image::{
    CommandError, CommandLookup, HostRoot, HostRootError, MountView, SkeletonEntry, skeleton,
};
use iii_net::policy::RuleError;
use iii_net::{Policy, PolicyMode};
use iii_proto::SKELETON_PATH;
use iii_proto::guest::{Mount, MountSource, Root, Upper};
use iii_proto::ids::WorkerName;
use iii_proto::vfs::VfsExport;

use crate::accounts::{Account, Accounts};

/// virtio-mmio slots that are left for exports beside the serial and the network device.
const EXPORT_SLOTS: usize = 6;

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
        "failed to fit its mounts: {wanted} were asked for and a VM has slots for {slots}; mount \
         fewer directories, or one that holds several of them"
    )]
    TooManyMounts {
        /// Asked for.
        wanted: usize,
        /// There are.
        slots: usize,
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
    host_root: Option<(Arc<HostRoot>, Arc<[u8]>)>,
}

impl<'a> Preparation<'a> {
    pub(crate) fn new(firmware: &'a Firmware) -> Self {
        Self {
            firmware,
            host_root: None,
        }
    }

    /// Checks all workers. Either all can be started, or every fault is told.
    pub(crate) fn prepare(
        &mut self,
        specs: Vec<WorkerSpec>,
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        let mut prepared = Vec::new();
        let mut errors = Vec::new();
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

    fn host_root(&mut self) -> Result<(Arc<HostRoot>, Arc<[u8]>), PrepareFault> {
        if let Some(found) = &self.host_root {
            return Ok(found.clone());
        }
        let root = HostRoot::discover()?;
        let medium = boot_medium(self.firmware, &root.skeleton)?;
        let found = (Arc::new(root), Arc::from(medium));
        self.host_root = Some(found.clone());
        Ok(found)
    }

    fn worker(&mut self, mut spec: WorkerSpec) -> Result<WorkerPlan, Vec<PrepareFault>> {
        let (root, initramfs) = match &spec.root {
            RootSpec::Host => self.host_root().map_err(|fault| vec![fault])?,
            other => return Err(vec![PrepareFault::UnknownRoot(format!("{other:?}"))]),
        };
        let mut faults = Vec::new();
        let accounts = Accounts::of(&root.skeleton);
        let account = accounts.find(spec.user.as_ref()).unwrap_or_else(|fault| {
            faults.push(fault);
            Account::of_workers()
        });
        let cwd = spec.cwd.clone().unwrap_or_else(|| account.home.clone());
        match command(&spec, &root, &cwd) {
            Ok(program) => spec.command[0] = program,
            Err(fault) => faults.push(fault),
        }
        let policy = policy(&spec).unwrap_or_else(|fault| {
            faults.push(fault);
            Policy::default()
        });
        let (mounts, exports) = mounts(&spec, &root, &account, &mut faults);
        let listeners = listeners(&spec, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        let size_bytes = spec.resources.disk.unwrap_or(spec.resources.memory / 2);
        Ok(WorkerPlan {
            kernel: self.firmware.kernel().to_owned(),
            initramfs,
            root: Root {
                lowers: Vec::new(),
                skeleton: true,
                upper: Upper::Tmpfs { size_bytes },
            },
            mounts,
            exports,
            user: accounts.for_guest(account, &spec.mounts),
            cwd,
            policy,
            listeners,
            spec,
        })
    }
}

/// vm-init and the skeleton, which are the same at every boot.
fn boot_medium(firmware: &Firmware, skeleton: &[SkeletonEntry]) -> Result<Vec<u8>, PrepareFault> {
    let mut medium = Initramfs::new();
    medium.init(firmware.init().bytes())?;
    medium.file(SKELETON_PATH, 0o400, &skeleton::image(skeleton)?)?;
    Ok(medium.finish())
}

fn command(spec: &WorkerSpec, root: &HostRoot, cwd: &str) -> Result<String, PrepareFault> {
    let program = spec.command.first().ok_or(PrepareFault::NoCommand)?;
    let views: Vec<MountView> = spec
        .mounts
        .iter()
        .map(|mount| MountView {
            host: mount.host.clone(),
            guest: mount.guest.clone(),
        })
        .collect();
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
    Ok(Policy {
        mode,
        allow,
        host_ports: spec.network.host_ports.clone(),
    })
}

fn mounts(
    spec: &WorkerSpec,
    root: &HostRoot,
    account: &Account,
    faults: &mut Vec<PrepareFault>,
) -> (Vec<Mount>, Vec<VfsExport>) {
    let mut mounts = Vec::new();
    let mut exports = Vec::new();
    for export in &root.exports {
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
        });
    }
    let wanted = exports.len() + spec.mounts.len();
    if wanted > EXPORT_SLOTS {
        faults.push(PrepareFault::TooManyMounts {
            wanted: spec.mounts.len(),
            slots: EXPORT_SLOTS - exports.len(),
        });
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
            guest_uid: account.uid,
            guest_gid: account.gid,
            listener_fd: -1,
            immutable: false,
        });
    }
    (mounts, exports)
}

fn listeners(spec: &WorkerSpec, faults: &mut Vec<PrepareFault>) -> Vec<(TcpListener, u16)> {
    let mut listeners = Vec::new();
    for port in &spec.ports {
        let address = SocketAddr::new(port.address, port.host_port);
        match bind(address) {
            Ok(listener) => listeners.push((listener, port.guest_port)),
            Err(source) => {
                let remedy = match source.kind() {
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
