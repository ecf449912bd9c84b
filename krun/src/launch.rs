//! Reads the launch description and checks it before libkrun sees any of it: some of what libkrun
//! finds wrong ends in a panic of its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::path::Path;

use iii_proto::codec::decode_spec;
use iii_proto::krun::{KrunLaunch, MAX_KRUN_LAUNCH};

use crate::error::KrunError;
use crate::sys;

/// First descriptor number that is not a standard stream.
const FIRST_FD: RawFd = 3;
/// Bytes of the kernel's command line on x86-64 and aarch64 (COMMAND_LINE_SIZE).
const MAX_COMMAND_LINE: usize = 2048;
/// Width of a virtio-fs device's tag; libkrun copies a longer one beyond its field.
const MAX_TAG: usize = 36;
/// Width of a virtio-blk device's serial number.
const MAX_SERIAL: usize = 20;

/// What a kernel begins with, where, and what it is called.
#[cfg(not(target_arch = "aarch64"))]
const KERNEL: (usize, &[u8], &str) = (0, b"\x7fELF", "an ELF file");
#[cfg(target_arch = "aarch64")]
const KERNEL: (usize, &[u8], &str) = (56, b"ARM\x64", "an arm64 Image");

/// Reads it from an inherited descriptor, which is closed.
pub(crate) fn read(fd: RawFd) -> Result<KrunLaunch, KrunError> {
    let failed = |source| KrunError::Read { fd, source };
    let mut bytes = Vec::new();
    File::from(sys::take(fd).map_err(failed)?)
        .take(MAX_KRUN_LAUNCH as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > MAX_KRUN_LAUNCH {
        return Err(KrunError::TooLong {
            limit: MAX_KRUN_LAUNCH,
        });
    }
    let launch: KrunLaunch = decode_spec(&bytes)?;
    check(&launch).map_err(|reason| KrunError::Invalid {
        worker: launch.worker.clone(),
        reason,
    })?;
    check_kernel(&launch.kernel)?;
    Ok(launch)
}

fn check(launch: &KrunLaunch) -> Result<(), String> {
    if launch.cpus == 0 {
        return Err("it has no CPU".into());
    }
    if launch.memory_mib == 0 {
        return Err("it has no memory".into());
    }
    for path in std::iter::once(&launch.kernel).chain(launch.exports.iter().map(|e| &e.path)) {
        if !path.is_absolute() || path.to_str().is_none_or(|text| text.contains('\0')) {
            return Err(format!("{path:?} is no absolute path that libkrun takes"));
        }
    }
    let line = &launch.command_line;
    // Behind a separator the kernel would take the words for devices as arguments of its init.
    if line.len() >= MAX_COMMAND_LINE
        || line.chars().any(|c| !matches!(c, ' '..='~'))
        || line.split(' ').any(|word| word == "--")
    {
        return Err(format!("{line:?} is no command line of a kernel"));
    }
    let mut seen = BTreeSet::new();
    for fd in launch.descriptors() {
        if fd < FIRST_FD || !seen.insert(fd) {
            return Err(format!(
                "descriptor {fd} is named twice, or is none of ours"
            ));
        }
    }
    let names = (launch.ports.iter())
        .map(|p| ("port", &p.name, usize::MAX))
        .chain(launch.exports.iter().map(|e| ("tag", &e.tag, MAX_TAG)))
        .chain(
            launch
                .disks
                .iter()
                .map(|d| ("serial", &d.serial, MAX_SERIAL)),
        );
    for (kind, name, most) in names {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > most || !name.chars().all(plain) {
            return Err(format!(
                "the {kind} {name:?} is empty, too long, or no name"
            ));
        }
    }
    Ok(())
}

/// libkrun would only say that building the VM failed.
fn check_kernel(path: &Path) -> Result<(), KrunError> {
    let (offset, magic, expected) = KERNEL;
    let failed = |source| KrunError::Kernel {
        path: path.to_owned(),
        source,
    };
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take((offset + magic.len()) as u64)
                .read_to_end(&mut start)
        })
        .map_err(failed)?;
    if start.get(offset..) == Some(magic) {
        return Ok(());
    }
    Err(KrunError::NotAKernel {
        path: path.to_owned(),
        expected,
    })
}
