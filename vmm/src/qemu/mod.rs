//! QEMU, under TCG or KVM: its machine `microvm` for x86-64 guests, `virt` for aarch64 ones.
//!
//! The VM has no socket file, no monitor and no device that was not asked for; all its ends are
//! inherited descriptors. The flags and kernel words are chosen for a short boot; what was measured
//! stands in the module `arguments`.

mod arguments;
mod board;
mod version;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use iii_proto::ids::WorkerName;

use crate::confinement::{self, Needs};
use crate::guest::GuestArch;
use crate::host::{Acceleration, KVM};
use crate::machine;
use crate::process::{ChildSpec, Namespace};
use crate::tsc;
use crate::vmm::{ExportSource, VmExport, VmLaunch, Vmm, VmmError, VmmInfo};

use arguments::{Accelerator, Console, Disk, Export, Machine, Network, Port};
use board::Board;
use version::Program;

/// Short name of this VMM.
pub(crate) const NAME: &str = "qemu";

/// How it says that KVM has stopped the guest. It writes down the CPU's registers and waits for
/// somebody to look, which nobody can: it has no monitor.
const GAVE_UP: [&str; 2] = ["KVM internal error", "error: kvm run failed"];

/// How QEMU is found and used.
#[derive(Clone, Debug)]
pub struct QemuOptions {
    /// The program; looked up in `PATH` if absent.
    pub program: Option<PathBuf>,
    /// A directory in which the program's version is remembered between runs; asking for it costs
    /// some 20 ms.
    pub cache_directory: Option<PathBuf>,
    /// How guest code is run; see [`crate::host::virtualisation`]. Guests of another architecture
    /// than the host's are run in software, whatever this says.
    pub acceleration: Acceleration,
    /// For guests of this architecture; of the host's if absent.
    pub guest: Option<GuestArch>,
}

/// QEMU.
#[derive(Debug)]
pub struct Qemu {
    /// `None` on a host on which no guest is at home.
    guest: Option<GuestArch>,
    program: Program,
    acceleration: Acceleration,
}

impl Qemu {
    /// QEMU, not looked at yet.
    pub fn new(options: QemuOptions) -> Self {
        let host = GuestArch::of_host();
        let guest = options.guest.or(host);
        let board = guest.map_or_else(Board::any, Board::of);
        Self {
            guest,
            program: Program::new(board, options.program, options.cache_directory),
            acceleration: match guest == host {
                true => options.acceleration,
                false => Acceleration::Tcg,
            },
        }
    }

    fn guest(&self) -> Result<GuestArch, VmmError> {
        self.guest.ok_or(VmmError::Architecture {
            vmm: NAME,
            arch: std::env::consts::ARCH,
            supported: "x86_64 and aarch64",
        })
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<VmmInfo, VmmError> {
        self.guest()?;
        let (path, version) = self.program.check()?;
        Ok(VmmInfo {
            name: NAME,
            path,
            version,
            acceleration: self.acceleration,
        })
    }

    fn gave_up<'a>(&self, stderr: &'a str) -> Option<&'a str> {
        stderr
            .lines()
            .find(|line| GAVE_UP.iter().any(|start| line.starts_with(start)))
    }

    fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError> {
        let accelerator = match self.acceleration {
            Acceleration::Kvm => Accelerator::Kvm,
            Acceleration::Tcg => Accelerator::Tcg {
                tsc_khz: tsc::frequency_khz(),
            },
        };
        command(self.program.find()?, self.guest()?, accelerator, launch)
    }
}

fn command(
    program: PathBuf,
    guest: GuestArch,
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
        let needs = Needs {
            files: vec![kernel.clone()],
            devices: match accelerator {
                Accelerator::Kvm => vec![KVM],
                Accelerator::Tcg { .. } => Vec::new(),
            },
            cpus: launch.cpus,
            ..Needs::default()
        };
        confinement::confine(&mut spec, needs);
    }
    let console = if is_socket(&launch.console) {
        Console::Socket(spec.inherit(launch.console))
    } else {
        Console::File(spec.inherit(launch.console))
    };
    let machine = Machine {
        guest,
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
        exports: exports(&launch.worker, launch.exports, &mut spec)?,
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

fn exports(
    worker: &WorkerName,
    exports: Vec<VmExport>,
    spec: &mut ChildSpec,
) -> Result<Vec<Export>, VmmError> {
    exports
        .into_iter()
        .map(|VmExport { tag, source }| match source {
            ExportSource::VhostUser(fd) => Ok(Export {
                tag,
                fd: spec.inherit(fd),
            }),
            ExportSource::Directory { .. } => Err(machine::invalid(
                worker,
                format!("QEMU serves no files itself, and nobody else serves export {tag}"),
            )),
        })
        .collect()
}

fn is_socket(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd.as_fd()).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_has_stopped_is_seen_in_what_qemu_says() {
        let qemu = Qemu::new(QemuOptions {
            program: None,
            cache_directory: None,
            acceleration: Acceleration::Kvm,
            guest: None,
        });
        let text =
            "KVM internal error. Suberror: 1\nextra data[0]: 0x1\nemulation failure\nRAX=0\n";
        assert_eq!(qemu.gave_up(text), Some("KVM internal error. Suberror: 1"));
        let text = "warning: x\nerror: kvm run failed Bad address\n";
        assert_eq!(
            qemu.gave_up(text),
            Some("error: kvm run failed Bad address")
        );
        assert_eq!(qemu.gave_up("qemu: warning: no KVM internal error\n"), None);
    }
}
