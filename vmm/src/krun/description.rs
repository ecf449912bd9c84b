//! The launch description, and the descriptors under the numbers that it names.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use iii_proto::krun::{KrunDisk, KrunExport, KrunLaunch, KrunNetwork, KrunPort};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::machine::{self, ROOT_AND_MODULES, SKIPPED_INITCALLS, Shape};
use crate::process::ChildSpec;
use crate::vmm::{ExportSource, VmLaunch, VmmError};

/// virtio-mmio transports of libkrun's machine on x86-64: interrupts 5 to 15.
const SLOTS: usize = 11;
/// Balloon, random numbers, console and ports.
const OWN_DEVICES: usize = 4;

/// Describes the VM; its descriptors go to `spec`.
pub(super) fn of(launch: VmLaunch, spec: &mut ChildSpec) -> Result<KrunLaunch, VmmError> {
    let shape = Shape {
        worker: &launch.worker,
        slots: SLOTS,
        names_devices: true,
        own_devices: OWN_DEVICES,
        cpus: launch.cpus,
        memory_mib: launch.memory_mib,
        kernel: &launch.kernel,
        mtu: launch.network.as_ref().map(|network| network.mtu),
        ports: launch.ports.iter().map(|port| port.name.as_str()).collect(),
        tags: launch.exports.iter().map(|e| e.tag.as_str()).collect(),
        serials: launch.disks.iter().map(|d| d.serial.as_str()).collect(),
        kernel_words: &launch.kernel_words,
    };
    shape.check()?;
    // As under QEMU, but the reset that libkrun's machine has, and no page faults that the host
    // announces, as libkrun's own command line has it. The devices of the ports are not named:
    // vm-init finds them by the ports' names.
    let command_line = shape.finish_command_line(format!(
        "console=hvc0 panic=-1 reboot=k quiet {ROOT_AND_MODULES} {SKIPPED_INITCALLS} no-kvmapf"
    ))?;
    let cpus = u8::try_from(launch.cpus)
        .map_err(|_| machine::invalid(&launch.worker, format!("{} CPUs", launch.cpus)))?;
    let mut exports = Vec::new();
    for export in launch.exports {
        match export.source {
            ExportSource::Directory { path, read_only } => exports.push(KrunExport {
                tag: export.tag,
                // In a private root there are no links, and libkrun follows none at a path's end.
                path: path.canonicalize().unwrap_or(path),
                read_only,
            }),
            ExportSource::VhostUser(_) => {
                let reason = format!("libkrun cannot be given a server for export {}", export.tag);
                return Err(machine::invalid(&launch.worker, reason));
            }
        }
    }
    Ok(KrunLaunch {
        worker: launch.worker.to_string(),
        cpus,
        memory_mib: launch.memory_mib,
        kernel: launch.kernel.canonicalize().unwrap_or(launch.kernel),
        command_line,
        initrd_fd: spec.inherit(launch.initrd),
        console_fd: spec.inherit(launch.console),
        ports: launch
            .ports
            .into_iter()
            .map(|port| KrunPort {
                name: port.name,
                fd: spec.inherit(port.fd),
            })
            .collect(),
        network: launch.network.map(|network| KrunNetwork {
            fd: spec.inherit(network.fd),
            mac: network.mac,
        }),
        exports,
        disks: launch
            .disks
            .into_iter()
            .map(|disk| KrunDisk {
                fd: spec.inherit(disk.fd),
                serial: disk.serial,
                read_only: disk.read_only,
            })
            .collect(),
    })
}

/// A memfd that holds `bytes` and that nobody can change any more.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(
        "iii-krun-launch",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    // Who inherits it reads from where its offset stands.
    io::Seek::rewind(&mut file)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::{VmDisk, VmExport, VmNetwork, VmPort};
    use iii_proto::ids::{BootId, WorkerName};

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn launch() -> VmLaunch {
        VmLaunch {
            worker: WorkerName::new("api").unwrap(),
            boot_id: BootId::from_random(1),
            cpus: 2,
            memory_mib: 256,
            kernel: "/k/vmlinux".into(),
            initrd: null(),
            console: null(),
            ports: vec![VmPort {
                name: "iii.control".into(),
                fd: null(),
            }],
            network: Some(VmNetwork {
                fd: null(),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 65_520,
            }),
            exports: vec![export("usr")],
            disks: vec![VmDisk {
                fd: null(),
                serial: "upper".into(),
                read_only: false,
            }],
            kernel_words: vec!["loglevel=7".into()],
        }
    }

    fn export(tag: &str) -> VmExport {
        VmExport {
            tag: tag.into(),
            source: ExportSource::Directory {
                path: "/usr".into(),
                read_only: true,
            },
        }
    }

    #[test]
    fn a_launch_is_described_with_the_numbers_of_its_descriptors() {
        let mut spec = ChildSpec::new("/iii-krun", "api/krun");
        let described = of(launch(), &mut spec).unwrap();
        let expected = KrunLaunch {
            worker: "api".into(),
            cpus: 2,
            memory_mib: 256,
            kernel: "/k/vmlinux".into(),
            command_line: "console=hvc0 panic=-1 reboot=k quiet rootfstype=ramfs lsm=capability \
                initcall_blacklist=jent_mod_init,cacheinfo_sysfs_init,cpuid_init,loop_init,\
                dummy_init_module,init_btrfs_fs,init_xfs_fs,init_encrypted,cmos_init,\
                param_sysfs_builtin_init no-kvmapf loglevel=7"
                .into(),
            initrd_fd: 3,
            console_fd: 4,
            ports: vec![KrunPort {
                name: "iii.control".into(),
                fd: 5,
            }],
            network: Some(KrunNetwork {
                fd: 6,
                mac: [2, 0, 0, 0, 0, 1],
            }),
            exports: vec![KrunExport {
                tag: "usr".into(),
                path: "/usr".into(),
                read_only: true,
            }],
            disks: vec![KrunDisk {
                fd: 7,
                serial: "upper".into(),
                read_only: false,
            }],
        };
        assert_eq!(described, expected);
        let numbers: Vec<i32> = spec.inherit.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn what_libkrun_cannot_have_is_refused() {
        let refused = |change: &dyn Fn(&mut VmLaunch)| {
            let mut launch = launch();
            change(&mut launch);
            let mut spec = ChildSpec::new("/iii-krun", "api/krun");
            of(launch, &mut spec).unwrap_err().to_string()
        };
        let served = refused(&|launch| {
            launch.exports[0].source = ExportSource::VhostUser(null());
        });
        assert!(served.contains("export usr"), "{served}");
        let many = refused(&|launch| {
            launch.exports = (0..6).map(|n| export(&format!("e{n}"))).collect();
        });
        assert!(many.contains("has 11 slots"), "{many}");
        let none = refused(&|launch| launch.cpus = 0);
        assert!(none.contains("0 CPUs"), "{none}");
        let words = refused(&|launch| launch.kernel_words = vec!["--".into()]);
        assert!(words.contains("no single word"), "{words}");
    }

    #[test]
    fn the_description_cannot_be_changed_and_is_read_from_its_start() {
        use std::io::Read;
        let mut file = File::from(sealed(b"described").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "described");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }
}
