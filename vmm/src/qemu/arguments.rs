//! QEMU's command line.
//!
//! Facts behind it, from QEMU 7.2 with the Linux 6.12 of libkrunfw (what machines differ in is in
//! the module `board`):
//! * on `microvm`, with `acpi=on` this kernel finds no virtio-mmio device; with `acpi=off` the machine
//!   has eight transports for them, and QEMU appends a `virtio_mmio.device=` word for each to the kernel's
//!   command line, which is why nothing of ours may end it with ` -- `;
//! * `-sandbox on` denies itself nothing that these devices need;
//! * a chardev `file` takes a descriptor set only if that was opened write-only, so that a console
//!   that is a socket becomes a chardev `socket`; and it truncates the file, which fails on a pipe,
//!   unless it appends;
//! * a disk's descriptor shares its file offset with QEMU, which moves it;
//! * a guest's flush becomes an fdatasync of the image (`cache.no-flush=off`), and a guest flushes
//!   only if it is told that the disk has a cache (`write-cache=on`);
//! * the locks that QEMU takes belong to the open file that it shares with us: a second VMM is
//!   refused if it opens the image anew, and a successor with the same open file is not.
//!
//! Measured and left out, since they change the CPU time of a boot to init and off again (minimum
//! 775 ms over 20 boots of each, in random order, two loaded cores) by less than its spread of 3 %:
//! `isa-serial=off`, `mem-merge=off`, `tcg,thread=single`, `tcg,tb-size=32|64|256`, `-cpu` without
//! `la57`, `smap`, `pku` or `xsave`, `-cpu qemu64`, and the kernel's `mitigations=off` and
//! `rcupdate.rcu_expedited=1`. The slowest initialisations left are `tun_init` (24 ms; workers that
//! tunnel need it) and `inet6_init` (12 ms).

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::path::PathBuf;

use iii_proto::PORTS_VARIABLE;
use iii_proto::ids::WorkerName;

use super::board::Board;
use crate::guest::GuestArch;
use crate::machine::{self, ROOT_AND_MODULES, SKIPPED_INITCALLS, Shape};
use crate::vmm::VmmError;

/// The wire has one other end, which takes every frame and is always there: the guest has nothing
/// to say to the device and nothing to ask. Each of these would cost it code on the way up.
const UNUSED_OF_NETWORK: &str = ",status=off,ctrl_vq=off,ctrl_rx=off,ctrl_rx_extra=off,\
    ctrl_vlan=off,ctrl_mac_addr=off,ctrl_guest_offloads=off,guest_announce=off";

/// What runs the guest's code.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accelerator {
    Kvm,
    Tcg {
        /// The host counter's frequency, which an x86-64 guest reads too.
        tsc_khz: Option<u64>,
    },
}

#[derive(Debug)]
pub(super) enum Console {
    /// A pipe or file, opened write-only.
    File(RawFd),
    /// A connected stream socket.
    Socket(RawFd),
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) fd: RawFd,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) fd: RawFd,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
}

#[derive(Debug)]
pub(super) struct Export {
    pub(super) tag: String,
    pub(super) fd: RawFd,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) fd: RawFd,
    pub(super) serial: String,
    pub(super) read_only: bool,
}

/// A launch whose descriptors have their numbers in QEMU's process.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) worker: WorkerName,
    pub(super) guest: GuestArch,
    pub(super) accelerator: Accelerator,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) kernel: PathBuf,
    pub(super) initrd: RawFd,
    pub(super) console: Console,
    pub(super) ports: Vec<Port>,
    pub(super) network: Option<Network>,
    pub(super) exports: Vec<Export>,
    pub(super) disks: Vec<Disk>,
    pub(super) kernel_words: Vec<String>,
}

/// Arguments under construction.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.flag(option);
        self.0.push(value.into());
    }
}

impl Machine {
    /// The whole command line, without the program's name.
    pub(super) fn arguments(&self) -> Result<Vec<OsString>, VmmError> {
        // QEMU splits lists at commas: what goes into one is checked with all else.
        self.shape().check()?;
        let mut all = Arguments::default();
        all.option("-name", self.worker.as_str());
        all.flag("-nodefaults");
        all.flag("-no-user-config");
        // The guest ends itself by a reboot.
        all.flag("-no-reboot");
        all.option("-display", "none");
        all.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        let (machine, cpu) = self.board().machine_and_cpu(self.accelerator);
        all.option("-machine", format!("{machine},memory-backend=memory"));
        all.option("-cpu", cpu);
        all.option("-smp", self.cpus.to_string());
        all.option("-m", format!("{}M", self.memory_mib));
        // Shared with the vhost-user server; a memfd is sealed by default, so that nobody can
        // truncate it under the server.
        all.option(
            "-object",
            format!(
                "memory-backend-memfd,id=memory,size={}M,share=on",
                self.memory_mib
            ),
        );
        all.option("-kernel", &self.kernel);
        all.option("-initrd", format!("/proc/self/fd/{}", self.initrd));
        all.option("-append", self.command_line()?);

        // A console's chardev and port 0 come first: the kernel takes the first for hvc0.
        all.option("-device", "virtio-serial-device");
        match self.console {
            Console::File(fd) => {
                all.option("-add-fd", format!("fd={fd},set=1"));
                all.option("-chardev", "file,id=console,path=/dev/fdset/1,append=on");
            }
            Console::Socket(fd) => all.option("-chardev", format!("socket,id=console,fd={fd}")),
        }
        all.option("-device", "virtconsole,chardev=console");
        for (n, port) in self.ports.iter().enumerate() {
            all.option("-chardev", format!("socket,id=port{n},fd={}", port.fd));
            all.option(
                "-device",
                format!(
                    "virtserialport,chardev=port{n},nr={},name={}",
                    n + 1,
                    port.name
                ),
            );
        }
        if let Some(network) = &self.network {
            all.option(
                "-netdev",
                format!("dgram,id=network,local.type=fd,local.str={}", network.fd),
            );
            let [a, b, c, d, e, f] = network.mac;
            all.option(
                "-device",
                format!(
                    "virtio-net-device,netdev=network,host_mtu={},\
                     mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}{UNUSED_OF_NETWORK}",
                    network.mtu
                ),
            );
        }
        for (n, export) in self.exports.iter().enumerate() {
            all.option("-chardev", format!("socket,id=export{n},fd={}", export.fd));
            all.option(
                "-device",
                format!("vhost-user-fs-device,chardev=export{n},tag={}", export.tag),
            );
        }
        for (n, disk) in self.disks.iter().enumerate() {
            // Set 1 is the console's.
            let set = n + 2;
            let (read_only, locking) = match disk.read_only {
                // Many VMs may read one image.
                true => ("on", "off"),
                false => ("off", "on"),
            };
            all.option("-add-fd", format!("fd={},set={set}", disk.fd));
            all.option(
                "-blockdev",
                format!(
                    "driver=raw,node-name=disk{n},read-only={read_only},discard=unmap,\
                     cache.direct=off,cache.no-flush=off,\
                     file.driver=file,file.filename=/dev/fdset/{set},file.locking={locking},\
                     file.read-only={read_only},file.discard=unmap"
                ),
            );
            // The guest is told that there is a cache to flush, and of every error: without a
            // monitor nobody could wake a VM that QEMU stops when the host's disk is full.
            all.option(
                "-device",
                format!(
                    "virtio-blk-device,drive=disk{n},serial={},write-cache=on,\
                     werror=report,rerror=report",
                    disk.serial
                ),
            );
        }
        // The last, so that it takes a transport only where one is left: it gives the host back what
        // the guest has freed, and a guest works without.
        if self.shape().devices() < self.board().slots {
            all.option("-device", "virtio-balloon-device,free-page-reporting=on");
        }
        Ok(all.0)
    }

    fn command_line(&self) -> Result<String, VmmError> {
        let mut words = vec!["console=hvc0", "panic=-1"];
        words.extend(self.board().kernel_words);
        words.extend(["quiet", ROOT_AND_MODULES, SKIPPED_INITCALLS]);
        let mut line = words.join(" ");
        match (self.guest, self.accelerator) {
            (GuestArch::Aarch64, _) | (GuestArch::X86_64, Accelerator::Kvm) => {}
            (GuestArch::X86_64, Accelerator::Tcg { tsc_khz }) => {
                // The kernel counts a timer's ticks within a span of the time stamp counter, and
                // panics where a busy host has kept the translator from bringing enough of them.
                line.push_str(" noreplace-smp no_timer_check");
                if self.cpus == 1 {
                    line.push_str(" nolapic_timer");
                }
                if let Some(khz) = tsc_khz {
                    write!(line, " tsc_early_khz={khz} tsc=reliable").map_err(|_| {
                        machine::invalid(&self.worker, "its kernel command line is too long")
                    })?;
                }
            }
        }
        if !self.ports.is_empty() {
            // The serial device comes first and so is the first of its bus; port 0 is the console.
            let ports = self.ports.iter().zip(1..);
            let ports: Vec<String> = ports
                .map(|(port, number)| format!("{}:vport0p{number}", port.name))
                .collect();
            line.push_str(&format!(" {PORTS_VARIABLE}={}", ports.join(",")));
        }
        self.shape().finish_command_line(line)
    }

    fn board(&self) -> &'static Board {
        Board::of(self.guest)
    }

    fn shape(&self) -> Shape<'_> {
        Shape {
            worker: &self.worker,
            slots: self.board().slots,
            names_devices: self.board().names_devices,
            // The ports, which the console is one of.
            own_devices: 1,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            kernel: &self.kernel,
            mtu: self.network.as_ref().map(|network| network.mtu),
            ports: self.ports.iter().map(|port| port.name.as_str()).collect(),
            tags: self.exports.iter().map(|e| e.tag.as_str()).collect(),
            serials: self.disks.iter().map(|d| d.serial.as_str()).collect(),
            kernel_words: &self.kernel_words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{MAX_COMMAND_LINE, MAX_TAG};

    fn machine() -> Machine {
        Machine {
            worker: WorkerName::new("api").unwrap(),
            guest: GuestArch::X86_64,
            accelerator: Accelerator::Tcg {
                tsc_khz: Some(2_400_000),
            },
            cpus: 1,
            memory_mib: 256,
            kernel: "/k/vmlinux".into(),
            initrd: 4,
            console: Console::File(3),
            ports: Vec::new(),
            network: None,
            exports: Vec::new(),
            disks: Vec::new(),
            kernel_words: Vec::new(),
        }
    }

    fn export(tag: &str) -> Export {
        Export {
            tag: tag.into(),
            fd: 20,
        }
    }

    fn lines(machine: &Machine) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for argument in machine.arguments().unwrap() {
            let argument = argument.into_string().unwrap();
            match lines.last_mut() {
                Some(last) if !argument.starts_with('-') => {
                    last.push(' ');
                    last.push_str(&argument);
                }
                _ => lines.push(argument),
            }
        }
        lines
    }

    #[test]
    fn golden_command_line_with_every_device() {
        let machine = Machine {
            ports: vec![
                Port {
                    name: "iii.control".into(),
                    fd: 5,
                },
                Port {
                    name: "iii.log".into(),
                    fd: 6,
                },
            ],
            network: Some(Network {
                fd: 7,
                mac: [2, 0, 0, 0, 0, 0x2a],
                mtu: 65_520,
            }),
            exports: vec![Export {
                tag: "usr".into(),
                fd: 8,
            }],
            disks: vec![
                Disk {
                    fd: 9,
                    serial: "upper".into(),
                    read_only: false,
                },
                Disk {
                    fd: 10,
                    serial: "root".into(),
                    read_only: true,
                },
            ],
            kernel_words: vec!["loglevel=7".into()],
            ..machine()
        };
        let expected = "\
-name api
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine microvm,accel=tcg,acpi=off,memory-backend=memory
-cpu max,-svm
-smp 1
-m 256M
-object memory-backend-memfd,id=memory,size=256M,share=on
-kernel /k/vmlinux
-initrd /proc/self/fd/4
-append console=hvc0 panic=-1 reboot=t quiet rootfstype=ramfs lsm=capability initcall_blacklist=jent_mod_init,cacheinfo_sysfs_init,cpuid_init,loop_init,dummy_init_module,init_btrfs_fs,init_xfs_fs,init_encrypted,cmos_init,param_sysfs_builtin_init noreplace-smp no_timer_check nolapic_timer tsc_early_khz=2400000 tsc=reliable III_PORTS=iii.control:vport0p1,iii.log:vport0p2 loglevel=7
-device virtio-serial-device
-add-fd fd=3,set=1
-chardev file,id=console,path=/dev/fdset/1,append=on
-device virtconsole,chardev=console
-chardev socket,id=port0,fd=5
-device virtserialport,chardev=port0,nr=1,name=iii.control
-chardev socket,id=port1,fd=6
-device virtserialport,chardev=port1,nr=2,name=iii.log
-netdev dgram,id=network,local.type=fd,local.str=7
-device virtio-net-device,netdev=network,host_mtu=65520,mac=02:00:00:00:00:2a,status=off,ctrl_vq=off,ctrl_rx=off,ctrl_rx_extra=off,ctrl_vlan=off,ctrl_mac_addr=off,ctrl_guest_offloads=off,guest_announce=off
-chardev socket,id=export0,fd=8
-device vhost-user-fs-device,chardev=export0,tag=usr
-add-fd fd=9,set=2
-blockdev driver=raw,node-name=disk0,read-only=off,discard=unmap,cache.direct=off,cache.no-flush=off,file.driver=file,file.filename=/dev/fdset/2,file.locking=on,file.read-only=off,file.discard=unmap
-device virtio-blk-device,drive=disk0,serial=upper,write-cache=on,werror=report,rerror=report
-add-fd fd=10,set=3
-blockdev driver=raw,node-name=disk1,read-only=on,discard=unmap,cache.direct=off,cache.no-flush=off,file.driver=file,file.filename=/dev/fdset/3,file.locking=off,file.read-only=on,file.discard=unmap
-device virtio-blk-device,drive=disk1,serial=root,write-cache=on,werror=report,rerror=report
-device virtio-balloon-device,free-page-reporting=on";
        assert_eq!(lines(&machine).join("\n"), expected);
    }

    #[test]
    fn golden_command_line_of_an_aarch64_guest() {
        let machine = Machine {
            guest: GuestArch::Aarch64,
            ports: vec![Port {
                name: "iii.control".into(),
                fd: 5,
            }],
            ..machine()
        };
        let expected = "\
-name api
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine virt,accel=tcg,acpi=off,gic-version=3,memory-backend=memory
-cpu neoverse-n1
-smp 1
-m 256M
-object memory-backend-memfd,id=memory,size=256M,share=on
-kernel /k/vmlinux
-initrd /proc/self/fd/4
-append console=hvc0 panic=-1 cryptomgr.notests=1 quiet rootfstype=ramfs lsm=capability initcall_blacklist=jent_mod_init,cacheinfo_sysfs_init,cpuid_init,loop_init,dummy_init_module,init_btrfs_fs,init_xfs_fs,init_encrypted,cmos_init,param_sysfs_builtin_init III_PORTS=iii.control:vport0p1
-device virtio-serial-device
-add-fd fd=3,set=1
-chardev file,id=console,path=/dev/fdset/1,append=on
-device virtconsole,chardev=console
-chardev socket,id=port0,fd=5
-device virtserialport,chardev=port0,nr=1,name=iii.control
-device virtio-balloon-device,free-page-reporting=on";
        assert_eq!(lines(&machine).join("\n"), expected);

        let under_kvm = lines(&Machine {
            accelerator: Accelerator::Kvm,
            ..machine
        });
        for line in [
            "-machine virt,accel=kvm,acpi=off,gic-version=host,memory-backend=memory",
            "-cpu host",
        ] {
            assert!(under_kvm.iter().any(|l| l == line), "{line}: {under_kvm:?}");
        }
    }

    #[test]
    fn an_aarch64_guest_has_room_for_more_devices_and_none_of_them_on_its_command_line() {
        let mut machine = Machine {
            guest: GuestArch::Aarch64,
            exports: (0..31).map(|n| export(&format!("e{n}"))).collect(),
            ..machine()
        };
        let room = MAX_COMMAND_LINE - machine.command_line().unwrap().len() - 2;
        machine.kernel_words = vec!["x".repeat(room)];
        machine.arguments().unwrap();
        machine.kernel_words = vec!["x".repeat(room + 1)];
        machine.arguments().unwrap_err();
        machine.kernel_words.clear();
        machine.exports.push(export("last"));
        let error = machine.arguments().unwrap_err();
        assert!(matches!(error, VmmError::TooManyDevices { slots: 32, .. }));
    }

    #[test]
    fn kernel_words_follow_accelerator_and_cpus() {
        let line = |accelerator, cpus| {
            let machine = Machine {
                accelerator,
                cpus,
                ..machine()
            };
            machine.command_line().unwrap()
        };
        let smp = line(Accelerator::Tcg { tsc_khz: Some(5) }, 2);
        assert!(!smp.contains("nolapic_timer") && smp.contains("tsc_early_khz=5 tsc=reliable"));
        let no_counter = line(Accelerator::Tcg { tsc_khz: None }, 1);
        assert!(no_counter.contains("nolapic_timer") && !no_counter.contains("tsc"));
        let kvm = line(Accelerator::Kvm, 1);
        assert!(
            !kvm.contains("noreplace-smp")
                && !kvm.contains("no_timer_check")
                && !kvm.contains("nolapic_timer")
        );
        assert!(!kvm.contains("tsc"));
    }

    #[test]
    fn under_kvm_the_host_cpu_is_shown_and_a_socket_console_is_a_socket() {
        let lines = lines(&Machine {
            accelerator: Accelerator::Kvm,
            console: Console::Socket(3),
            ..machine()
        });
        assert!(lines.contains(&"-cpu host".into()));
        assert!(
            lines
                .iter()
                .any(|l| l.starts_with("-machine microvm,accel=kvm,"))
        );
        assert!(lines.contains(&"-chardev socket,id=console,fd=3".into()));
    }

    #[test]
    fn too_many_devices_are_named() {
        let mut machine = Machine {
            network: Some(Network {
                fd: 7,
                mac: [2; 6],
                mtu: 1500,
            }),
            exports: (0..5).map(|n| export(&format!("e{n}"))).collect(),
            disks: vec![Disk {
                fd: 9,
                serial: "upper".into(),
                read_only: false,
            }],
            ..machine()
        };
        // All transports are taken: there is none for what a guest can do without.
        let arguments = machine.arguments().unwrap();
        assert!(
            !arguments
                .iter()
                .any(|a| a.to_string_lossy().contains("balloon"))
        );
        machine.exports.push(export("last"));
        let error = machine.arguments().unwrap_err();
        assert!(matches!(error, VmmError::TooManyDevices { slots: 8, .. }));
        assert!(
            error.to_string().contains(
                "1 by the ports, 1 by the network, 6 by exports (e0, e1, e2, e3, e4, last), \
                 1 by disks (upper)"
            ),
            "{error}"
        );
    }

    #[test]
    fn values_that_qemu_or_the_kernel_would_read_otherwise_are_refused() {
        let fault = |change: &dyn Fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            match machine.arguments() {
                Err(VmmError::Invalid { worker, reason }) => {
                    assert_eq!(worker.as_str(), "api");
                    reason
                }
                other => panic!("{other:?}"),
            }
        };
        for tag in ["", "a,b", "a b", &"x".repeat(MAX_TAG + 1)] {
            fault(&|m| m.exports = vec![export(tag)]);
        }
        for word in ["", "--", "a b", "a\n"] {
            fault(&|m| m.kernel_words = vec![word.into()]);
        }
        fault(&|m| m.cpus = 0);
        fault(&|m| m.cpus = 256);
        fault(&|m| m.memory_mib = 63);
        fault(&|m| m.kernel = "vmlinux".into());
        let long = fault(&|m| m.kernel_words = vec!["x".repeat(MAX_COMMAND_LINE)]);
        assert!(long.contains("there is room for"), "{long}");
    }
}
