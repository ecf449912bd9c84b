//! What `iii-vmm` asks of the launcher, and what the launcher makes of it: a launch as VmActor
//! describes it, through both, to the calls that libkrun sees.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use iii_proto::ids::{BootId, WorkerName};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::host::Acceleration;
use iii_vmm::krun::Krun;
use iii_vmm::vmm::{
    ExportService, ExportSource, VmDisk, VmExport, VmLaunch, VmNetwork, VmPort, Vmm,
};

use crate::launcher::{file, kernel};
use crate::program;

/// A directory whose `iii-krun` is the recording one.
fn places(directory: &Path) -> HelperPlaces {
    let command = program::command();
    let library = command
        .get_envs()
        .find_map(|(name, value)| (name == "LD_LIBRARY_PATH").then_some(value?))
        .unwrap();
    let script = format!(
        "#!/bin/sh\n# iii-helper:iii-krun:{};\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        env!("CARGO_PKG_VERSION"),
        library.display(),
        command.get_program().display(),
    );
    let path = directory.join("iii-krun");
    // By a process of its own: the kernel executes no file that somebody has open for writing, and
    // what another test starts could inherit ours.
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$2\"", "sh", &script])
        .arg(&path)
        .status()
        .unwrap();
    assert!(written.success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    HelperPlaces::in_directory(directory)
}

#[test]
fn a_launch_of_the_supervisors_becomes_these_calls() {
    let (directory, kernel) = kernel();
    let krun = Krun::new(places(directory.path()));
    let info = krun.check().unwrap();
    assert_eq!(info.version.to_string(), program::LIBRARY_VERSION);
    assert_eq!((info.name, info.acceleration), ("krun", Acceleration::Kvm));
    assert_eq!(krun.exports(), ExportService::Vmm);

    let (mut console, vmm_console) = std::io::pipe().unwrap();
    let (mut control, vmm_control) = UnixStream::pair().unwrap();
    let (network, vmm_network) = UnixDatagram::pair().unwrap();
    let launch = VmLaunch {
        worker: WorkerName::new("api").unwrap(),
        boot_id: BootId::from_random(1),
        cpus: 3,
        memory_mib: 512,
        kernel: kernel.clone(),
        initrd: file(b"the initramfs").into(),
        console: vmm_console.into(),
        ports: vec![VmPort {
            name: "iii.control".into(),
            fd: vmm_control.into(),
        }],
        network: Some(VmNetwork {
            fd: vmm_network.into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 65_520,
        }),
        exports: vec![VmExport {
            tag: "usr".into(),
            source: ExportSource::Directory {
                path: "/usr".into(),
                read_only: true,
            },
        }],
        disks: vec![VmDisk {
            fd: file(b"a disk").into(),
            serial: "upper".into(),
            read_only: false,
        }],
        kernel_words: Vec::new(),
    };
    let spec = krun.command(launch).unwrap();
    let recording = directory.path().join("recording");
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env("III_RECORDING", &recording)
        .env("III_RECORDING_ANSWERS", "krun_start_enter=speak");
    let mappings = spec
        .inherit
        .into_iter()
        .map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
    command.fd_mappings(mappings.collect()).unwrap();
    let mut child = command.spawn().unwrap();
    drop(command);

    let mut line = [0; 22];
    control.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"from port iii.control\n");
    let mut frame = [0; 32];
    let length = network.recv(&mut frame).unwrap();
    assert_eq!(&frame[..length], b"a frame");
    control.write_all(b"to the guest").unwrap();
    drop(control);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    console.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the console\n");

    let text = std::fs::read_to_string(recording).unwrap();
    let kernel = kernel.display();
    for part in [
        "krun_set_vm_config(7, 3, 512)",
        &format!(
            "krun_set_kernel(7, {kernel}, 1, /proc/self/fd/3, \"console=hvc0 panic=-1 reboot=k"
        ),
        "krun_add_virtiofs4(7, usr, /usr, 0, true, 0)",
        "krun_add_disk3(7, upper, /proc/self/fd/7, 0, false, false, 2)",
        "krun_add_net_unixgram(7, null, 6, 02:00:00:00:00:01, 0x182, 0)",
        "saw initramfs \"the initramfs\"",
        "saw disk upper \"a disk\"",
        "heard \"to the guest\"",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_console_that_is_a_socket_is_refused() {
    let (directory, kernel) = kernel();
    let krun = Krun::new(places(directory.path()));
    let null = || File::open("/dev/null").unwrap().into();
    let launch = VmLaunch {
        worker: WorkerName::new("api").unwrap(),
        boot_id: BootId::from_random(1),
        cpus: 1,
        memory_mib: 128,
        kernel,
        initrd: null(),
        console: UnixStream::pair().unwrap().0.into(),
        ports: Vec::new(),
        network: None,
        exports: Vec::new(),
        disks: Vec::new(),
        kernel_words: Vec::new(),
    };
    let error = krun.command(launch).unwrap_err().to_string();
    assert!(error.contains("its console is a socket"), "{error}");
}
