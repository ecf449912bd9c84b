//! The launcher, confined and started as the supervisor starts it: with the recording libkrun, which
//! opens what libkrun opens and in the same way, and with the real one, as far as that gets here.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use iii_proto::ids::{BootId, WorkerName};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::krun::Krun;
use iii_vmm::process::{ChildExit, ChildSpec, Layer, Namespace, Spawner, Stdio};
use iii_vmm::vmm::{ExportSource, VmDisk, VmExport, VmLaunch, VmNetwork, VmPort, Vmm};

use crate::program;

/// Where cargo has put the programs of the workspace.
fn programs() -> HelperPlaces {
    let launcher = Path::new(env!("CARGO_BIN_EXE_iii-krun"));
    HelperPlaces::in_directory(launcher.parent().unwrap())
}

/// A launcher in a prefix of its own, as it is installed where libkrun is not the system's.
fn installed(prefix: &Path) -> HelperPlaces {
    let command = program::command();
    let library = program::library();
    for (directory, files) in [
        (
            "bin",
            vec![(PathBuf::from(command.get_program()), "iii-krun")],
        ),
        ("lib", vec![(library.join("libkrun.so"), "libkrun.so")]),
    ] {
        let directory = prefix.join(directory);
        fs::create_dir(&directory).unwrap();
        for (from, name) in files {
            // Linked, not written: what another test starts could inherit a descriptor of ours that
            // is open for writing, and the kernel executes no such file.
            if fs::hard_link(&from, directory.join(name)).is_err() {
                let copied = std::process::Command::new("cp")
                    .arg(&from)
                    .arg(directory.join(name))
                    .status();
                assert!(copied.unwrap().success());
            }
        }
    }
    HelperPlaces::in_directory(prefix.join("bin"))
}

/// Both ends of what a VM has.
struct Ends {
    console: std::io::PipeReader,
    _control: UnixStream,
    _network: UnixDatagram,
}

fn launch(kernel: PathBuf, exports: &[(&str, &Path, bool)]) -> (VmLaunch, Ends) {
    let (console, vmm_console) = std::io::pipe().unwrap();
    let (control, vmm_control) = UnixStream::pair().unwrap();
    let (network, vmm_network) = UnixDatagram::pair().unwrap();
    let disk = tempfile::NamedTempFile::new().unwrap();
    fs::write(disk.path(), vec![b'd'; 4096]).unwrap();
    let launch = VmLaunch {
        worker: WorkerName::new("api").unwrap(),
        boot_id: BootId::from_random(1),
        cpus: 1,
        memory_mib: 128,
        kernel,
        initrd: initramfs(),
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
        exports: exports
            .iter()
            .map(|(tag, path, read_only)| VmExport {
                tag: (*tag).into(),
                source: ExportSource::Directory {
                    path: (*path).into(),
                    read_only: *read_only,
                },
            })
            .collect(),
        disks: vec![VmDisk {
            fd: disk.reopen().unwrap().into(),
            serial: "upper".into(),
            read_only: false,
        }],
        kernel_words: Vec::new(),
    };
    let ends = Ends {
        console,
        _control: control,
        _network: network,
    };
    (launch, ends)
}

/// A memfd, as the supervisor's is.
fn initramfs() -> OwnedFd {
    use std::io::{Seek, Write};
    let name = c"initramfs";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut memory = fs::File::from(fd.unwrap());
    memory.write_all(b"the initramfs").unwrap();
    memory.rewind().unwrap();
    memory.into()
}

/// Runs it to its end: what it has said on standard error, and how it ended.
fn run(mut spec: ChildSpec) -> (String, ChildExit) {
    let (mut said, its_stderr) = std::io::pipe().unwrap();
    spec.stderr = Stdio::Fd(its_stderr.into());
    let is_confined = spec.confinement.is_some();
    let (ended, end) = channel();
    let handle = Spawner::global()
        .unwrap()
        .spawn(spec, &programs(), move |exit| ended.send(exit).unwrap())
        .unwrap_or_else(|error| panic!("{error}"));
    if is_confined {
        let isolation = handle.isolation();
        assert!(
            isolation.namespaces.contains(&Namespace::Network),
            "{isolation:?}"
        );
        let layers = isolation.layers.unwrap();
        assert_eq!(layers.root, Layer::Applied);
        assert_eq!(layers.system_calls, Layer::Applied);
        assert!(!matches!(layers.landlock, Layer::Refused(_)), "{layers:?}");
    }
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    (text, end.recv().unwrap())
}

#[test]
fn confined_it_serves_its_exports_with_the_access_of_its_guest() {
    let place = tempfile::tempdir().unwrap();
    let (_directory, kernel) = crate::launcher::kernel();
    let (mine, theirs) = (place.path().join("mine"), place.path().join("theirs"));
    for export in [&mine, &theirs] {
        fs::create_dir(export).unwrap();
        fs::write(export.join("given"), "given").unwrap();
    }
    // By a link, which is not there in a private root.
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&mine, &link).unwrap();
    let krun = Krun::new(installed(place.path()));
    let (launch, mut ends) = launch(kernel, &[("mine", &link, false), ("theirs", &theirs, true)]);
    let mut spec = krun.command(launch).unwrap();
    spec.env("LD_LIBRARY_PATH", place.path().join("lib"));
    spec.env("III_RECORDING", "/proc/self/fd/2");
    spec.env("III_RECORDING_ANSWERS", "krun_start_enter=serve");
    let (said, exit) = run(spec);
    assert_eq!(exit, ChildExit::Code(0), "{said}");
    for line in [
        "saw initramfs \"the initramfs\"",
        "saw disk upper 4096",
        "disk upper: written",
        "export mine: read \"given\", 1 entries, made",
        "export theirs: read \"given\", 1 entries, refused 30",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    let mut text = String::new();
    ends.console.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the console\n");
    assert_eq!(
        fs::read_to_string(mine.join("made")).unwrap(),
        "by the guest"
    );
    assert!(!theirs.join("made").exists());
}

/// A kernel of a few bytes that passes for one: an ELF file with nothing to load.
fn tiny_kernel(directory: &Path) -> PathBuf {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // An executable for x86-64, with program headers behind this header and none of them.
    elf[16] = 2;
    elf[18] = 62;
    elf[20] = 1;
    elf[32] = 64;
    elf[52] = 64;
    elf[54] = 56;
    let path = directory.join("vmlinux");
    fs::write(&path, elf).unwrap();
    path
}

#[test]
fn confined_the_real_libkrun_gets_as_far_as_it_does_unconfined() {
    let place = tempfile::tempdir().unwrap();
    let kernel = tiny_kernel(place.path());
    let krun = Krun::new(programs());
    let told = [true, false].map(|confined| {
        let (launch, _ends) = launch(
            kernel.clone(),
            &[
                ("usr", Path::new("/usr"), true),
                ("mine", place.path(), false),
            ],
        );
        let mut spec = krun.command(launch).unwrap();
        if !confined {
            spec.confinement = None;
            spec.namespaces = vec![Namespace::Pid, Namespace::Ipc];
            spec.rlimits.clear();
        }
        run(spec)
    });
    let [confined, unconfined] = told;
    assert_eq!(confined, unconfined);
    // It has got to the machine itself, whatever KVM and such a kernel then make of it here.
    let (said, _) = confined;
    let refused: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("iii-krun: "))
        .collect();
    assert!(
        refused
            .iter()
            .all(|line| line.contains("failed to enter the VM")),
        "{said}"
    );
}
