//! QEMU's `microvm` machine on x86-64, under TCG or KVM.
//!
//! The VM has no socket file, no monitor and no device that was not asked for; all its ends are
//! inherited descriptors. The flags and kernel words are chosen for a short boot; what was measured
//! stands in the module `arguments`.

mod arguments;
mod version;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::confinement;
use crate::host::Acceleration;
use crate::process::{ChildSpec, Namespace};
use crate::tsc;
use crate::vmm::{VmLaunch, Vmm, VmmError, VmmInfo};

use arguments::{Accelerator, Console, Disk, Export, Machine, Network, Port};
use version::Program;

/// The device by which KVM is used.
const KVM: &str = "/dev/kvm";

/// Short name of this VMM.
const NAME: &str = "qemu";

/// How QEMU is found and used.
#[derive(Clone, Debug)]
pub struct QemuOptions {
    /// The program; looked up in `PATH` if absent.
    pub program: Option<PathBuf>,
    /// A directory in which the program's version is remembered between runs; asking for it costs
    /// some 20 ms.
    pub cache_directory: Option<PathBuf>,
    /// How guest code is run; see [`crate::host::virtualisation`].
    pub acceleration: Acceleration,
}

/// QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: Program,
    acceleration: Acceleration,
}

impl Qemu {
    /// QEMU, not looked at yet.
    pub fn new(options: QemuOptions) -> Self {
        Self {
            program: Program::new(options.program, options.cache_directory),
            acceleration: options.acceleration,
        }
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<VmmInfo, VmmError> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(VmmError::Architecture {
                vmm: NAME,
                arch: std::env::consts::ARCH,
            });
        }
        let (path, version) = self.program.check()?;
        Ok(VmmInfo {
            name: NAME,
            path,
            version,
            acceleration: self.acceleration,
        })
    }

    fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError> {
        let accelerator = match self.acceleration {
            Acceleration::Kvm => Accelerator::Kvm,
            Acceleration::Tcg => Accelerator::Tcg {
                tsc_khz: tsc::frequency_khz(),
            },
        };
        command(self.program.find()?, accelerator, launch)
    }
}

fn command(
    program: PathBuf,
    accelerator: Accelerator,
    launch: VmLaunch,
) -> Result<ChildSpec, VmmError> {
    // QEMU looks for its data beside itself, wherever a link to it stands.
    let program = program.canonicalize().unwrap_or(program);
    // In its private root a link to the kernel would lead nowhere.
    let kernel = launch.kernel.canonicalize().unwrap_or(launch.kernel);
    let mut spec = ChildSpec::new(&program, format!("{}/{NAME}", launch.worker));
    // Its network is a descriptor; neither does it need System V shared memory.
    spec.namespaces = vec![Namespace::Pid, Namespace::Ipc];
    spec.allow_user_namespace = true;
    if confinement::is_wanted() {
        let devices: &[&str] = match accelerator {
            Accelerator::Kvm => &[KVM],
            Accelerator::Tcg { .. } => &[],
        };
        let files = [kernel.clone()];
        confinement::confine(&mut spec, &files, devices);
    }
    let console = if is_socket(&launch.console) {
        Console::Socket(spec.inherit(launch.console))
    } else {
        Console::File(spec.inherit(launch.console))
    };
    let machine = Machine {
        accelerator,
        cpus: launch.cpus,
        memory_mib: launch.memory_mib,
        kernel,
        initrd: spec.inherit(launch.initrd),
        console,
        ports: launch
            .ports
            .into_iter()
            .map(|port| Port {
                name: port.name,
                fd: spec.inherit(port.fd),
            })
            .collect(),
        network: launch.network.map(|network| Network {
            fd: spec.inherit(network.fd),
            mac: network.mac,
            mtu: network.mtu,
        }),
        exports: launch
            .exports
            .into_iter()
            .map(|export| Export {
                tag: export.tag,
                fd: spec.inherit(export.fd),
            })
            .collect(),
        disks: launch
            .disks
            .into_iter()
            .map(|disk| Disk {
                fd: spec.inherit(disk.fd),
                serial: disk.serial,
                read_only: disk.read_only,
            })
            .collect(),
        kernel_words: launch.kernel_words,
        worker: launch.worker,
    };
    spec.args = machine.arguments()?;
    Ok(spec)
}

fn is_socket(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd.as_fd()).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
    })
}
