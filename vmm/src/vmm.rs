//! What a VM is launched from, and the trait of those who can launch it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use iii_proto::ids::{BootId, WorkerName};

use crate::helpers::HelperError;
use crate::host::Acceleration;
use crate::process::ChildSpec;

/// One VM to be launched. All descriptors are handed on to the VMM's process.
#[derive(Debug)]
pub struct VmLaunch {
    /// Whose VM it is; for the process's name and for logs.
    pub worker: WorkerName,
    /// Which of its lives.
    pub boot_id: BootId,
    /// Virtual CPUs, at least 1.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The kernel: for x86-64 guests the ELF file that both VMMs boot, for aarch64 ones the `Image`.
    /// Absolute.
    pub kernel: PathBuf,
    /// The initramfs: a sealed memfd.
    pub initrd: OwnedFd,
    /// Where the console's output goes: the writing end of a pipe, or a file. QEMU takes a socket
    /// too.
    pub console: OwnedFd,
    /// virtio-serial ports.
    pub ports: Vec<VmPort>,
    /// The network interface.
    pub network: Option<VmNetwork>,
    /// virtio-fs devices.
    pub exports: Vec<VmExport>,
    /// virtio-blk devices.
    pub disks: Vec<VmDisk>,
    /// Words for the kernel's command line beside the VMM's own.
    pub kernel_words: Vec<String>,
}

/// A virtio-serial port.
#[derive(Debug)]
pub struct VmPort {
    /// Its name in the guest, such as [`iii_proto::CONTROL_PORT`].
    pub name: String,
    /// The VMM's end of a connected stream socket pair.
    pub fd: OwnedFd,
}

/// The network interface.
#[derive(Debug)]
pub struct VmNetwork {
    /// The VMM's end of a datagram socket pair, one Ethernet frame per datagram.
    pub fd: OwnedFd,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// Bytes of the largest IP packet.
    pub mtu: u32,
}

/// A virtio-fs device.
#[derive(Debug)]
pub struct VmExport {
    /// The tag that the guest mounts.
    pub tag: String,
    /// Who serves it.
    pub source: ExportSource,
}

/// Where a virtio-fs device's files come from.
#[derive(Debug)]
pub enum ExportSource {
    /// From a vhost-user server, over this connected stream.
    VhostUser(OwnedFd),
    /// From the VMM itself.
    Directory {
        /// The host directory, absolute.
        path: PathBuf,
        /// Every change answers EROFS.
        read_only: bool,
    },
}

/// How a VMM wants its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportService {
    /// [`ExportSource::VhostUser`].
    VhostUser,
    /// [`ExportSource::Directory`].
    Vmm,
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct VmDisk {
    /// The raw image: a regular file, opened for writing unless `read_only`.
    pub fd: OwnedFd,
    /// Its serial number, by which the guest finds it; at most 20 bytes.
    pub serial: String,
    /// Writes are refused by the VMM.
    pub read_only: bool,
}

/// What [`Vmm::check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmInfo {
    /// [`Vmm::name`].
    pub name: &'static str,
    /// The program or library.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// How it runs guest code on this host.
    pub acceleration: Acceleration,
}

/// A version of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Why a VM cannot be launched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// Its launcher is missing, or of another build.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The VMM's program is not there.
    #[error("failed to find {program}: {looked_in}; {remedy}")]
    Missing {
        /// The program's name or path.
        program: String,
        /// Where it was looked for.
        looked_in: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It is too old.
    #[error(
        "failed to use {program} {found}: iii-super needs {needed} or newer; {remedy}",
        program = program.display()
    )]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest version that works.
        needed: Version,
        /// What to do.
        remedy: &'static str,
    },
    /// Its version could not be found out.
    #[error(
        "failed to ask {program} for its version: {reason}; {remedy}",
        program = program.display()
    )]
    Unknown {
        /// The program.
        program: PathBuf,
        /// What happened.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// This VMM does not run on this architecture.
    #[error("failed to use {vmm} on {arch}: it is supported on {supported} only")]
    Architecture {
        /// [`Vmm::name`].
        vmm: &'static str,
        /// The host's architecture.
        arch: &'static str,
        /// Those that it runs on.
        supported: &'static str,
    },
    /// This VMM runs guests by hardware virtualisation, and this host has none.
    #[error("failed to use {vmm}: {reason}; use --vmm qemu, or leave the choice to --vmm auto")]
    Acceleration {
        /// [`Vmm::name`].
        vmm: &'static str,
        /// Why guests cannot be run by hardware.
        reason: String,
    },
    /// The machine has too few device slots.
    #[error(
        "failed to fit the devices of worker {worker}: the machine has {slots} slots, and {used} \
         were asked for; mount fewer directories, or one that holds several of them"
    )]
    TooManyDevices {
        /// The worker.
        worker: WorkerName,
        /// Slots of the machine.
        slots: usize,
        /// What would use them.
        used: String,
    },
    /// The launch holds a value that the VMM cannot take.
    #[error("failed to launch worker {worker}: {reason}")]
    Invalid {
        /// The worker.
        worker: WorkerName,
        /// Which value, and why not.
        reason: String,
    },
}

/// A virtual machine monitor.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Its short name: `qemu`, `krun`.
    fn name(&self) -> &'static str;

    /// Whether it is there and can be used. Cheap when it has been asked before: the answer is kept
    /// as long as the program's file does not change.
    fn check(&self) -> Result<VmmInfo, VmmError>;

    /// Who serves its exports.
    fn exports(&self) -> ExportService {
        ExportService::VhostUser
    }

    /// What it says of a guest that will never run again, where it lives on all the same: the line of
    /// its standard error that says so.
    fn gave_up<'a>(&self, _stderr: &'a str) -> Option<&'a str> {
        None
    }

    /// The process that runs this VM. Takes over the launch's descriptors, starts nothing.
    fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError>;
}
