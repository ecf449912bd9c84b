//! libkrun, by the launcher `iii-krun`.
//!
//! The guest is the one that QEMU boots: the same kernel and initramfs, the same ports, disks and
//! frames, each by descriptor. What differs is what libkrun cannot take from us: exports are served
//! by libkrun's own virtio-fs, since no release of it has vhost-user devices (and what its main
//! branch has takes a path, has no device for files, and no number by which `krun_has_feature` could
//! be asked). Files that a guest makes there belong to whoever libkrun's own rules say.
//!
//! Its process is confined as QEMU's is, and reaches more in two ways. It serves the exports itself:
//! they are in its root, under their own paths, with the access that the guest has. It opens disks
//! anew by the paths of their descriptors, which leads past that root, and which Landlock is told to
//! let pass. Without capabilities it serves as an ordinary user's does, also where root has started
//! it; and in an ordinary user's namespace files of others appear as `nobody`'s.
//!
//! No machine of ours has virtualisation that is real, so no VM has been seen under it: what is
//! tested is that the launcher is told, and makes of it, what libkrun's API asks for.

mod description;
mod launcher;

use std::os::fd::AsFd;

use iii_proto::codec::encode_spec;
use iii_proto::krun::{KrunLaunch, MAX_KRUN_LAUNCH};
use iii_proto::shim::Reopen;

use crate::confinement::{self, Needs};
use crate::helpers::HelperPlaces;
use crate::host::{Acceleration, KVM};
use crate::machine;
use crate::process::{ChildSpec, Namespace};
use crate::vmm::{ExportService, VmLaunch, Vmm, VmmError, VmmInfo};

use launcher::Launcher;

/// Short name of this VMM.
pub(crate) const NAME: &str = "krun";

/// What it is written for, as in [`std::env::consts::ARCH`].
pub(crate) const ARCHITECTURES: &[&str] = &["x86_64", "aarch64"];
/// The helper binary.
pub const HELPER: &str = "iii-krun";

/// libkrun.
#[derive(Debug)]
pub struct Krun {
    launcher: Launcher,
}

impl Krun {
    /// libkrun, its launcher not looked for yet.
    pub fn new(places: HelperPlaces) -> Self {
        Self {
            launcher: Launcher::new(places),
        }
    }
}

impl Vmm for Krun {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<VmmInfo, VmmError> {
        if !ARCHITECTURES.contains(&std::env::consts::ARCH) {
            return Err(VmmError::Architecture {
                vmm: NAME,
                arch: std::env::consts::ARCH,
                supported: "x86_64 and aarch64",
            });
        }
        let (path, version) = self.launcher.check()?;
        Ok(VmmInfo {
            name: NAME,
            path,
            version,
            acceleration: Acceleration::Kvm,
        })
    }

    fn exports(&self) -> ExportService {
        ExportService::Vmm
    }

    fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError> {
        let worker = launch.worker.clone();
        let program = self.launcher.find()?;
        // In its private root a link to it would lead nowhere.
        let program = program.canonicalize().unwrap_or(program);
        let mut spec = ChildSpec::new(program, format!("{worker}/{NAME}"));
        let console = rustix::fs::fstat(launch.console.as_fd())
            .map_err(|error| machine::invalid(&worker, format!("its console: {error}")))?;
        if rustix::fs::FileType::from_raw_mode(console.st_mode) == rustix::fs::FileType::Socket {
            let reason = "its console is a socket, which libkrun cannot open by path";
            return Err(machine::invalid(&worker, reason));
        }
        let description = description::of(launch, &mut spec)?;
        let failed = |reason: String| {
            let reason = format!("its launch description cannot be handed on: {reason}");
            machine::invalid(&worker, reason)
        };
        if confinement::is_wanted() {
            confinement::confine(&mut spec, needs_of(&description));
        } else {
            spec.namespaces = vec![Namespace::Pid, Namespace::Ipc];
            // In a user namespace every file of others would be `nobody`'s, and libkrun reports
            // owners.
            spec.allow_user_namespace = description.exports.is_empty();
        }
        let bytes = encode_spec(&description).map_err(|error| failed(error.to_string()))?;
        if bytes.len() > MAX_KRUN_LAUNCH {
            return Err(failed(format!("it has {} bytes", bytes.len())));
        }
        let sealed = description::sealed(&bytes).map_err(|error| failed(error.to_string()))?;
        let number = spec.inherit(sealed);
        spec.args(["--launch-fd", &number.to_string()]);
        Ok(spec)
    }
}

fn needs_of(launch: &KrunLaunch) -> Needs {
    Needs {
        files: vec![launch.kernel.clone()],
        devices: vec![KVM],
        exports: launch
            .exports
            .iter()
            .map(|export| (export.path.clone(), !export.read_only))
            .collect(),
        reopened: launch
            .disks
            .iter()
            .map(|disk| Reopen {
                fd: disk.fd,
                writable: !disk.read_only,
            })
            .collect(),
        cpus: launch.cpus.into(),
    }
}
