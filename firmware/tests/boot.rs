//! The boot medium and the kernel, as others read them: cpio, and QEMU.
//!
//! The second test needs libkrunfw (found or fetched as for any user) and `qemu-system-x86_64`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use iii_firmware::initramfs::{Initramfs, sealed};
use iii_firmware::{Firmware, FirmwareOptions};

fn base(init: &[u8]) -> Vec<u8> {
    let mut base = Initramfs::new();
    base.init(init)
        .and_then(|base| base.dir("/iii/skeleton/tmp", 0o1777))
        .and_then(|base| base.file("/iii/skeleton/etc/hostname", 0o644, b"guest\n"))
        .and_then(|base| base.symlink("/iii/skeleton/bin", "usr/bin"))
        .expect("sound");
    base.finish()
}

/// The second segment, made as the spec's is.
fn spec(bytes: &[u8]) -> Vec<u8> {
    let mut spec = Initramfs::new();
    spec.file(iii_proto::GUEST_SPEC_PATH, 0o400, bytes)
        .expect("sound");
    spec.finish()
}

#[test]
fn cpio_reads_what_was_written() {
    let mut child = Command::new("cpio")
        .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cpio is installed (apt install cpio)");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&base(b"#!")).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success());
    let listing = String::from_utf8(output.stdout).expect("text");
    let rows: Vec<(&str, &str)> = listing
        .lines()
        .map(|line| {
            let (mode, rest) = line.split_once(' ').expect("a mode");
            (mode, rest.rsplit_once("1970 ").expect("the epoch").1)
        })
        .collect();
    let expected = [
        ("-rwxr-xr-x", "init"),
        ("drwxr-xr-x", "iii"),
        ("drwxr-xr-x", "iii/skeleton"),
        ("drwxrwxrwt", "iii/skeleton/tmp"),
        ("drwxr-xr-x", "iii/skeleton/etc"),
        ("-rw-r--r--", "iii/skeleton/etc/hostname"),
        ("lrwxrwxrwx", "iii/skeleton/bin -> usr/bin"),
    ];
    assert_eq!(rows, expected);
}

/// Tells on the console what it finds, and ends, which ends the guest.
const INIT: &str = r#"
use std::fs;
use std::os::unix::fs::PermissionsExt;
fn main() {
    let mode = |path| fs::symlink_metadata(path).map(|found| found.permissions().mode());
    println!("spec={:?}", fs::read_to_string("/iii/spec"));
    println!("mode={:o}", mode("/iii/spec").unwrap_or(0));
    println!("tmp={:o}", mode("/iii/skeleton/tmp").unwrap_or(0));
    println!("hostname={:?}", fs::read_to_string("/iii/skeleton/etc/hostname"));
    println!("bin={:?}", fs::read_link("/iii/skeleton/bin"));
}
"#;

fn built(dir: &Path) -> Vec<u8> {
    let (source, program) = (dir.join("init.rs"), dir.join("init"));
    fs::write(&source, INIT).expect("written");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .args([&program, &source])
        .status()
        .expect("rustc is there, since cargo is");
    assert!(status.success());
    fs::read(program).expect("built")
}

#[test]
fn qemu_boots_the_kernel_and_unpacks_both_segments() {
    struct Told;
    impl iii_firmware::Progress for Told {
        fn phase(&self, text: &str) {
            println!("{text}");
        }
        fn bytes(&self, _done: u64, _total: Option<u64>) {}
    }
    let options = FirmwareOptions::from_env().expect("HOME is set");
    let firmware = Firmware::locate(&options, &Told).expect("found or fetched");
    assert!(
        firmware.kernel_release().starts_with("6.12."),
        "{}",
        firmware.kernel_release()
    );

    let dir = tempfile::tempdir().expect("temporary directory");
    let init = built(dir.path());
    let medium = sealed(&[&base(&init), &spec(b"what to become")]).expect("memory");
    let output = Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "microvm,accel=tcg,acpi=off",
            "-cpu",
            "max,-svm",
            "-m",
            "256",
        ])
        .arg("-kernel")
        .arg(firmware.kernel())
        .args(["-initrd", "/dev/stdin"])
        .args([
            "-append",
            "console=hvc0 panic=-1 reboot=t quiet noreplace-smp nolapic_timer",
        ])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args([
            "-device",
            "virtio-serial-device",
            "-chardev",
            "file,id=con,path=/dev/stdout",
        ])
        .args(["-device", "virtconsole,chardev=con"])
        .stdin(medium)
        .output()
        .expect("qemu-system-x86_64 is installed (apt install qemu-system-x86)");
    let console = String::from_utf8_lossy(&output.stdout);
    for line in [
        "spec=Ok(\"what to become\")",
        "mode=100400",
        "tmp=41777",
        "hostname=Ok(\"guest\\n\")",
        "bin=Ok(\"usr/bin\")",
    ] {
        assert!(
            console.contains(line),
            "{line} is missing in:\n{console}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
