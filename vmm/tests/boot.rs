//! A real guest under QEMU, below the shim: every kind of device that is given by descriptor.
//!
//! Needs libkrunfw (found or fetched as for any user) and `qemu-system-x86_64`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use iii_firmware::initramfs::{Initramfs, sealed};
use iii_firmware::{Firmware, FirmwareOptions};
use iii_proto::ids::{BootId, WorkerName};
use iii_vmm::host::{HostFacts, virtualisation};
use iii_vmm::process::{ChildExit, ChildHandle, KillOnDrop, Signal};
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::vmm::{VmDisk, VmLaunch, VmNetwork, VmPort, Vmm};

/// The guest: tells what it sees, answers on its port, writes to its disk, waits for a frame.
const INIT: &str = r#"
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ffi::{c_char, c_int, c_ulong, c_void};
unsafe extern "C" {
    fn mount(s: *const c_char, t: *const c_char, f: *const c_char, l: c_ulong, d: *const c_void) -> c_int;
    fn socket(d: c_int, t: c_int, p: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn sync();
}
fn main() {
    for (kind, target) in [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")] {
        fs::create_dir_all(target.to_str().unwrap()).unwrap();
        unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }
    let mut console = File::options().write(true).open("/dev/hvc0").unwrap();
    for path in [
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        "/sys/class/virtio-ports/vport0p1/name",
        "/sys/class/virtio-ports/vport0p2/name",
        "/sys/class/net/eth0/address",
        "/sys/class/net/eth0/mtu",
        "/sys/block/vda/serial",
        "/sys/block/vda/ro",
        "/sys/block/vdb/serial",
        "/sys/block/vdb/ro",
    ] {
        let value = fs::read_to_string(path).unwrap_or_else(|e| e.to_string());
        writeln!(console, "{path}={}", value.trim()).unwrap();
    }
    if let Ok(mut disk) = File::options().write(true).open("/dev/vda") {
        disk.write_all(&[b'g'; 512]).unwrap();
        disk.sync_all().unwrap();
        let written = File::options()
            .write(true)
            .open("/dev/vdb")
            .and_then(|mut disk| disk.write_all(&[0; 512]).and_then(|()| disk.sync_all()));
        writeln!(console, "vdb refused: {}", written.is_err()).unwrap();
    }
    let mut eth0 = [0u8; 40];
    eth0[..4].copy_from_slice(b"eth0");
    unsafe {
        let socket = socket(2, 2, 0);
        ioctl(socket, 0x8913, eth0.as_mut_ptr());
        eth0[16] |= 1;
        ioctl(socket, 0x8914, eth0.as_mut_ptr());
    }
    let received = || fs::read_to_string("/sys/class/net/eth0/statistics/rx_bytes")
        .map(|n| n.trim().parse::<u64>().unwrap_or(0)).unwrap_or(0);
    let mut port = File::options().read(true).write(true).open("/dev/vport0p1").unwrap();
    port.write_all(b"up\n").unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if port.read(&mut byte).unwrap_or(0) == 1 { line.push(byte[0]); }
    }
    if line == b"hang\n" { loop { std::thread::park(); } }
    while received() < 1400 { std::thread::yield_now(); }
    console.write_all(&line).unwrap();
    unsafe { sync() };
}
"#;

fn initramfs() -> OwnedFd {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (
        directory.path().join("init.rs"),
        directory.path().join("init"),
    );
    std::fs::write(&source, INIT).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .args([&program, &source])
        .status()
        .expect("rustc is there, since cargo is");
    assert!(built.success());
    let mut medium = Initramfs::new();
    medium.init(&std::fs::read(program).unwrap()).unwrap();
    medium.dir("/dev", 0o755).unwrap();
    sealed(&[&medium.finish()]).unwrap()
}

fn kernel() -> PathBuf {
    struct Quiet;
    impl iii_firmware::Progress for Quiet {
        fn phase(&self, _text: &str) {}
        fn bytes(&self, _done: u64, _total: Option<u64>) {}
    }
    let options = FirmwareOptions::from_env().unwrap();
    Firmware::locate(&options, &Quiet)
        .unwrap()
        .kernel()
        .to_owned()
}

/// A guest that says that it is up, and what the host holds of it.
struct Guest {
    child: KillOnDrop,
    console: Box<dyn Read>,
    port: UnixStream,
    _log: UnixStream,
    network: UnixDatagram,
    disk: std::fs::File,
}

fn boot(cpus: u32, socket_console: bool) -> Guest {
    let verdict = virtualisation(&HostFacts::collect());
    let qemu = Qemu::new(QemuOptions {
        program: None,
        cache_directory: None,
        acceleration: verdict.acceleration,
        guest: None,
    });
    qemu.check().unwrap();
    let (console, console_writer): (Box<dyn Read>, OwnedFd) = if socket_console {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Box::new(ours), theirs.into())
    } else {
        let (ours, theirs) = std::io::pipe().unwrap();
        (Box::new(ours), theirs.into())
    };
    let (mut port, control) = UnixStream::pair().unwrap();
    let (log, guest_log) = UnixStream::pair().unwrap();
    let (network, guest_network) = UnixDatagram::pair().unwrap();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let read_only = tempfile::NamedTempFile::new().unwrap();
    read_only.as_file().set_len(1 << 20).unwrap();
    let port_of = |name: &str, fd: UnixStream| VmPort {
        name: name.into(),
        fd: fd.into(),
    };
    let spec = qemu
        .command(VmLaunch {
            worker: WorkerName::new("boot").unwrap(),
            boot_id: BootId::from_random(1),
            cpus,
            memory_mib: 128,
            kernel: kernel(),
            initrd: initramfs(),
            console: console_writer,
            ports: vec![
                port_of(iii_proto::CONTROL_PORT, control),
                port_of(iii_proto::LOG_PORT, guest_log),
            ],
            network: Some(VmNetwork {
                fd: guest_network.into(),
                mac: [2, 0, 0, 0, 0, 0x2a],
                mtu: 65_520,
            }),
            exports: Vec::new(),
            disks: vec![
                VmDisk {
                    fd: disk.try_clone().unwrap().into(),
                    serial: "upper".into(),
                    read_only: false,
                },
                VmDisk {
                    fd: std::fs::File::open(read_only.path()).unwrap().into(),
                    serial: "root".into(),
                    read_only: true,
                },
            ],
            kernel_words: Vec::new(),
        })
        .unwrap();
    let child = KillOnDrop(spawn(spec));
    let mut up = [0; 3];
    if let Err(error) = port.read_exact(&mut up) {
        panic!(
            "the guest does not come up: {error}, {:?}",
            child.0.wait_blocking(LONG)
        );
    }
    assert_eq!(&up, b"up\n");
    Guest {
        child,
        console,
        port,
        _log: log,
        network,
        disk,
    }
}

fn ends(child: &ChildHandle) -> ChildExit {
    child.wait_blocking(LONG).expect("it ends")
}

fn sees_everything(mut guest: Guest) {
    // The kernel greets its IPv6 neighbourhood as soon as the interface is up.
    let mut frame = [0; 70_000];
    guest.network.set_read_timeout(Some(LONG)).unwrap();
    let length = guest.network.recv(&mut frame).unwrap();
    assert!(length > 14);
    assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 0x2a]);

    // To it, from a neighbour, of an experimental type (IEEE 802).
    let mut frame = vec![0; 1500];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x2a]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    guest.network.send(&frame).unwrap();
    guest.port.write_all(b"go on\n").unwrap();

    let mut console = String::new();
    guest.console.read_to_string(&mut console).unwrap();
    for expected in [
        "/vport0p1/name=iii.control",
        "/vport0p2/name=iii.log",
        "/eth0/address=02:00:00:00:00:2a",
        "/eth0/mtu=65520",
        "/vda/serial=upper",
        "/vda/ro=0",
        "/vdb/serial=root",
        "/vdb/ro=1",
        "vdb refused: true",
        "go on",
    ] {
        assert!(
            console.contains(expected),
            "{expected} is not in:\n{console}"
        );
    }
    if virtualisation(&HostFacts::collect()).acceleration == iii_vmm::host::Acceleration::Tcg
        && iii_vmm::tsc::frequency_khz().is_some()
    {
        assert!(console.contains("current_clocksource=tsc"), "{console}");
    }
    // The guest's end is a panic of its kernel, which reboots, which ends QEMU in good order.
    assert_eq!(ends(&guest.child.0), ChildExit::Code(0));
    let mut written = [0; 512];
    guest.disk.read_exact_at(&mut written, 0).unwrap();
    assert_eq!(written, [b'g'; 512]);
}

#[test]
fn a_guest_has_its_devices_with_one_cpu_and_a_console_on_a_pipe() {
    sees_everything(boot(1, false));
}

#[test]
fn a_guest_has_its_devices_with_two_cpus_and_a_console_on_a_socket() {
    sees_everything(boot(2, true));
}

fn ends_with(end: impl FnOnce(&ChildHandle), exit: ChildExit) {
    let mut guest = boot(1, false);
    guest.port.write_all(b"hang\n").unwrap();
    end(&guest.child.0);
    assert_eq!(ends(&guest.child.0), exit);
    let process = Path::new("/proc").join(guest.child.0.pid().to_string());
    assert!(!process.exists());
}

#[test]
fn qemu_dies_of_signals() {
    ends_with(
        |child| child.kill(Signal::SIGKILL).unwrap(),
        ChildExit::Signal(9),
    );
    ends_with(
        |child| child.kill(Signal::SIGABRT).unwrap(),
        ChildExit::Signal(6),
    );
    // QEMU's own handler shuts the machine down.
    ends_with(
        |child| child.kill(Signal::SIGTERM).unwrap(),
        ChildExit::Code(0),
    );
}

#[test]
fn qemu_dies_with_its_shim() {
    let kill_shim = |child: &ChildHandle| {
        let shim = nix::unistd::Pid::from_raw(child.shim_pid());
        nix::sys::signal::kill(shim, Signal::SIGKILL).unwrap();
    };
    ends_with(kill_shim, ChildExit::Signal(9));
}
