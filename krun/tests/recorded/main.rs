//! The launcher, built with the feature `system-libkrun` against a libkrun that writes down how it is
//! called. What cannot be tested here, where no CPU has virtualisation, is libkrun's own part.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod confined;
mod launcher;
mod program;
mod through_vmm;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use iii_proto::codec::encode_spec;
use iii_proto::krun::{KrunDisk, KrunExport, KrunLaunch, KrunNetwork, KrunPort};

use launcher::{Inherited, Run, kernel};

const INITRD: i32 = 10;
const CONSOLE: i32 = 11;
const CONTROL: i32 = 12;
const LOG: i32 = 13;
const NETWORK: i32 = 14;
const DISK: i32 = 15;
const IMAGE: i32 = 16;

fn launch(kernel: PathBuf) -> KrunLaunch {
    KrunLaunch {
        worker: "api".into(),
        cpus: 2,
        memory_mib: 256,
        kernel,
        command_line: "console=hvc0 quiet".into(),
        initrd_fd: INITRD,
        console_fd: CONSOLE,
        ports: Vec::new(),
        network: None,
        exports: Vec::new(),
        disks: Vec::new(),
    }
}

/// What the smallest launch needs.
fn bare() -> Inherited {
    let mut inherited = Inherited::default();
    inherited.file(INITRD, b"initramfs");
    inherited.file(CONSOLE, b"");
    inherited
}

#[test]
fn each_device_is_made_by_its_call_and_its_descriptors_are_the_vms() {
    let (directory, kernel) = kernel();
    let mut inherited = Inherited::default();
    inherited.file(INITRD, b"the initramfs");
    let (mut console, its_console) = std::io::pipe().unwrap();
    inherited.give(CONSOLE, its_console);
    let (mut control, its_control) = UnixStream::pair().unwrap();
    inherited.give(CONTROL, its_control);
    let (mut log, its_log) = UnixStream::pair().unwrap();
    inherited.give(LOG, its_log);
    let (network, its_network) = UnixDatagram::pair().unwrap();
    inherited.give(NETWORK, its_network);
    inherited.file(DISK, b"a disk");
    inherited.file(IMAGE, b"an image");
    let description = KrunLaunch {
        ports: vec![
            KrunPort {
                name: "iii.control".into(),
                fd: CONTROL,
            },
            KrunPort {
                name: "iii.log".into(),
                fd: LOG,
            },
        ],
        network: Some(KrunNetwork {
            fd: NETWORK,
            mac: [2, 0, 0, 0, 0, 0x2a],
        }),
        exports: vec![
            KrunExport {
                tag: "usr".into(),
                path: "/usr".into(),
                read_only: true,
            },
            KrunExport {
                tag: "mount0".into(),
                path: directory.path().into(),
                read_only: false,
            },
        ],
        disks: vec![
            KrunDisk {
                fd: DISK,
                serial: "upper".into(),
                read_only: false,
            },
            KrunDisk {
                fd: IMAGE,
                serial: "root".into(),
                read_only: true,
            },
        ],
        ..launch(kernel.clone())
    };
    let run = Run::new(&description)
        .answers("krun_start_enter=speak")
        .start(inherited);

    let mut line = [0; 22];
    control.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"from port iii.control\n");
    let mut frame = [0; 32];
    let length = network.recv(&mut frame).unwrap();
    assert_eq!(&frame[..length], b"a frame");
    control.write_all(b"to the guest").unwrap();
    // Which ends it: only then do the others end.
    drop(control);
    let ended = run.wait();
    let mut text = String::new();
    console.read_to_string(&mut text).unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the console\nfrom port iii.log\n");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);

    let mount = directory.path().display();
    let kernel = kernel.display();
    let expected = format!(
        "\
krun_init_log(-1, 2, 2, 1)
krun_create_ctx()
krun_set_vm_config(7, 2, 256)
krun_disable_implicit_init(7)
krun_disable_implicit_vsock(7)
krun_set_kernel(7, {kernel}, 1, /proc/self/fd/10, \"console=hvc0 quiet\")
krun_set_console_output(7, /proc/self/fd/11)
krun_add_virtio_console_multiport(7)
krun_add_console_port_inout(7, 3, iii.control, 12, 12)
krun_add_console_port_inout(7, 3, iii.log, 13, 13)
krun_add_virtiofs4(7, usr, /usr, 0, true, 0)
krun_add_virtiofs4(7, mount0, {mount}, 0, false, 0)
krun_add_disk3(7, upper, /proc/self/fd/15, 0, false, false, 2)
krun_add_disk3(7, root, /proc/self/fd/16, 0, true, false, 2)
krun_add_net_unixgram(7, null, 14, 02:00:00:00:00:2a, 0x182, 0)
krun_start_enter(7)
saw initramfs \"the initramfs\"
saw disk upper \"a disk\"
saw disk root \"an image\"
heard \"to the guest\"
"
    );
    assert_eq!(ended.recording, expected);
}

#[test]
fn a_stream_of_frames_is_a_network_too() {
    let (_directory, kernel) = kernel();
    let (_network, its_network) = UnixStream::pair().unwrap();
    let mut inherited = bare();
    inherited.give(NETWORK, its_network);
    let description = KrunLaunch {
        network: Some(KrunNetwork {
            fd: NETWORK,
            mac: [2, 0, 0, 0, 0, 1],
        }),
        ..launch(kernel)
    };
    let ended = Run::new(&description).start(inherited).wait();
    let call = "krun_add_net_unixstream(7, null, 14, 02:00:00:00:00:01, 0x182, 0)";
    assert!(ended.recording.contains(call), "{}", ended.recording);

    let mut inherited = bare();
    inherited.file(NETWORK, b"");
    let ended = Run::new(&description).start(inherited).wait();
    ended.refused("failed to take over descriptor 14 (the network)");
}

#[test]
fn the_status_with_which_libkrun_ends_the_process_is_the_launchers() {
    let (_directory, kernel) = kernel();
    for status in [0, 3, 125] {
        let ended = Run::new(&launch(kernel.clone()))
            .answers(&format!("krun_start_enter=exit:{status}"))
            .start(bare())
            .wait();
        assert_eq!(ended.status.code(), Some(status));
        assert_eq!(ended.stderr, "");
    }
    let ended = Run::new(&launch(kernel))
        .answers("krun_start_enter=abort")
        .start(bare())
        .wait();
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT));
}

#[test]
fn killed_it_is_gone_with_all_that_it_held() {
    let (_directory, kernel) = kernel();
    let (mut control, its_control) = UnixStream::pair().unwrap();
    let mut inherited = bare();
    inherited.give(CONTROL, its_control);
    let description = KrunLaunch {
        ports: vec![KrunPort {
            name: "iii.control".into(),
            fd: CONTROL,
        }],
        ..launch(kernel)
    };
    let mut run = Run::new(&description)
        .answers("krun_start_enter=speak")
        .start(inherited);
    let mut line = [0; 22];
    control.read_exact(&mut line).unwrap();
    run.kill();
    // Nobody else has the other end of the port.
    assert_eq!(control.read(&mut line).unwrap(), 0);
    assert_eq!(run.wait().status.signal(), Some(libc::SIGKILL));
}

#[test]
fn every_refusal_of_libkrun_names_the_call_what_it_was_for_and_the_cause() {
    let (directory, kernel) = kernel();
    let description = KrunLaunch {
        ports: vec![KrunPort {
            name: "iii.control".into(),
            fd: CONTROL,
        }],
        exports: vec![KrunExport {
            tag: "usr".into(),
            path: directory.path().into(),
            read_only: true,
        }],
        disks: vec![KrunDisk {
            fd: DISK,
            serial: "upper".into(),
            read_only: false,
        }],
        network: Some(KrunNetwork {
            fd: NETWORK,
            mac: [2; 6],
        }),
        ..launch(kernel)
    };
    let given = || {
        let mut inherited = bare();
        inherited.give(CONTROL, UnixStream::pair().unwrap().0);
        inherited.give(NETWORK, UnixDatagram::pair().unwrap().0);
        inherited.file(DISK, b"");
        inherited
    };
    for (call, action) in [
        ("krun_init_log", "write the log"),
        ("krun_create_ctx", "make a VM"),
        ("krun_set_vm_config", "give it CPUs and memory"),
        ("krun_disable_implicit_init", "leave out libkrun's init"),
        ("krun_disable_implicit_vsock", "leave out the vsock device"),
        ("krun_set_kernel", "give it the kernel"),
        ("krun_set_console_output", "give it the console"),
        ("krun_add_virtio_console_multiport", "give it ports"),
        ("krun_add_console_port_inout", "add port iii.control"),
        ("krun_add_virtiofs4", "export /"),
        ("krun_add_disk3", "add disk upper"),
        ("krun_add_net_unixgram", "add the network"),
        ("krun_start_enter", "enter the VM"),
    ] {
        let ended = Run::new(&description)
            .answers(&format!("{call}=-{}", libc::EINVAL))
            .start(given())
            .wait();
        ended.refused(&format!("failed to {action}"));
        ended.refused(&format!("{call} answered Invalid argument"));
        let last = ended.recording.lines().last().unwrap();
        assert!(last.starts_with(call), "nothing follows a refusal: {last}");
    }
    let ended = Run::new(&description)
        .answers("krun_start_enter=0")
        .start(given())
        .wait();
    ended.refused("krun_start_enter answered 0 and came back");
}

#[test]
fn a_libkrun_without_disks_or_network_is_refused_with_the_remedy() {
    let (_directory, kernel) = kernel();
    for (feature, name) in [(0, "NET"), (1, "BLK")] {
        for answer in [0, -libc::EINVAL] {
            let ended = Run::new(&launch(kernel.clone()))
                .answers(&format!("krun_has_feature.{feature}={answer}"))
                .start(bare())
                .wait();
            ended.refused(name);
            ended.refused("BLK=1 NET=1");
            assert_eq!(ended.recording, "");
        }
    }
}

#[test]
fn a_wrong_firmware_is_told_before_libkrun_is_asked() {
    let (directory, good) = kernel();
    let wrong = directory.path().join("libkrunfw.so");
    std::fs::write(&wrong, b"MZ no kernel at all").unwrap();
    let cut = directory.path().join("cut");
    std::fs::write(&cut, &std::fs::read(&good).unwrap()[..3]).unwrap();
    for (kernel, expected) in [
        (wrong, "it is no kernel that libkrun takes (an ELF file)"),
        (cut, "it is no kernel that libkrun takes (an ELF file)"),
        (directory.path().join("missing"), "No such file"),
        (directory.path().into(), "Is a directory"),
    ] {
        let ended = Run::new(&launch(kernel)).start(bare()).wait();
        ended.refused(expected);
        ended.refused("`iii-super firmware fetch` fetches it anew");
        assert_eq!(ended.recording, "");
    }
}

#[test]
fn what_is_no_launch_is_refused_before_libkrun_is_asked() {
    let (_directory, kernel) = kernel();
    let good = launch(kernel);
    let changed = |change: &dyn Fn(&mut KrunLaunch)| {
        let mut launch = good.clone();
        change(&mut launch);
        launch
    };
    for (launch, expected) in [
        (changed(&|l| l.cpus = 0), "no CPU"),
        (changed(&|l| l.memory_mib = 0), "no memory"),
        (changed(&|l| l.kernel = "vmlinux".into()), "absolute path"),
        (changed(&|l| l.command_line = "a\nb".into()), "command line"),
        (
            changed(&|l| l.command_line = "a -- b".into()),
            "command line",
        ),
        (
            changed(&|l| l.command_line = "x".repeat(2048)),
            "command line",
        ),
        (changed(&|l| l.console_fd = INITRD), "descriptor 10"),
        (changed(&|l| l.console_fd = 2), "descriptor 2"),
        (changed(&|l| l.initrd_fd = -1), "descriptor -1"),
        (
            changed(&|l| {
                l.exports.push(KrunExport {
                    tag: "x".repeat(37),
                    path: "/".into(),
                    read_only: true,
                })
            }),
            "the tag",
        ),
        (
            changed(&|l| {
                l.exports.push(KrunExport {
                    tag: "x".into(),
                    path: "relative".into(),
                    read_only: true,
                })
            }),
            "absolute path",
        ),
        (
            changed(&|l| {
                l.disks.push(KrunDisk {
                    fd: 20,
                    serial: "x".repeat(21),
                    read_only: true,
                })
            }),
            "the serial",
        ),
        (
            changed(&|l| {
                l.ports.push(KrunPort {
                    name: String::new(),
                    fd: 20,
                })
            }),
            "the port",
        ),
    ] {
        let ended = Run::new(&launch).start(bare()).wait();
        ended.refused("failed to launch worker api");
        ended.refused(expected);
        assert_eq!(ended.recording, "");
    }
    let lost = changed(&|l| l.initrd_fd = 30);
    let ended = Run::new(&lost).start(bare()).wait();
    ended.refused("failed to take over descriptor 30 (the initramfs)");

    let mut bytes = encode_spec(&good).unwrap();
    bytes.push(0);
    let ended = Run::of_bytes(&bytes).start(bare()).wait();
    ended.refused("must be of one build");
    let ended = Run::of_bytes(&vec![0; 1 << 20]).start(bare()).wait();
    ended.refused("it is longer than 65536 bytes");
    let ended = Run::of_bytes(&[]).start(bare()).wait();
    ended.refused("failed to read the launch description");
}

#[test]
fn it_tells_its_version_and_its_librarys() {
    let asked = |arguments: &[&str], answers: &str| {
        let output = program::command()
            .args(arguments)
            .env("III_RECORDING_ANSWERS", answers)
            .output()
            .unwrap();
        let text =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let version = format!("iii-krun {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(asked(&["--version"], ""), (Some(0), version));
    let check = format!("libkrun {} of the system\n", program::LIBRARY_VERSION);
    assert_eq!(asked(&["--check"], ""), (Some(0), check));
    let (status, text) = asked(&["--check"], "krun_has_feature.1=0");
    assert_eq!(status, Some(1));
    assert!(text.contains("built without disks"), "{text}");
    for wrong in [
        &[][..],
        &["--launch-fd"],
        &["--launch-fd", "x"],
        &["--check", "x"],
    ] {
        let (status, text) = asked(wrong, "");
        assert_eq!(status, Some(2), "{wrong:?}");
        assert!(text.starts_with("usage:"), "{text}");
    }
    let (status, text) = asked(&["--launch-fd", "99"], "");
    assert_eq!(status, Some(1));
    assert!(text.contains("descriptor 99"), "{text}");
}

#[test]
fn the_built_in_libkrun_says_which_it_is() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_iii-krun"))
        .arg("--check")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let version = include_str!("../../Cargo.toml")
        .lines()
        .find_map(|line| line.strip_prefix("krun = { package = \"libkrun\", version = \"="))
        .and_then(|rest| rest.split('"').next())
        .expect("an exact version");
    assert_eq!(text, format!("libkrun {version} built in\n"));
}
