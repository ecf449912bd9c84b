//! Kernels ready to boot, under `~/.iii/cache/kernel/<digest of libkrunfw>-v<format>/`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use object::Architecture;
use serde::{Deserialize, Serialize};

use super::extract::{Extracted, KernelError, extract, release};
use super::pvh;
use crate::digest::{Digest, HashingWriter};
use crate::install::{InstallError, Lock, write_atomically};
use crate::progress::Progress;
use crate::verified::{Stamp, hash_stable, write_json};

/// To be raised whenever the bytes made from the same libkrunfw change.
const FORMAT_VERSION: u32 = 1;

/// How the file is to be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelFormat {
    /// x86-64: an ELF file with a PVH note, for QEMU's `-kernel`.
    PvhElf,
    /// 64-bit ARM: the kernel's own `Image`.
    Arm64Image,
}

impl KernelFormat {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::PvhElf => "vmlinux",
            Self::Arm64Image => "Image",
        }
    }
}

/// A kernel on the disk, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The file.
    pub path: PathBuf,
    /// How it is to be booted.
    pub format: KernelFormat,
    /// `uname -r` of the guest.
    pub release: String,
}

/// Lies beside a kernel; written after it.
#[derive(Serialize, Deserialize)]
struct Record {
    format: KernelFormat,
    release: String,
    sha256: Digest,
    stamp: Stamp,
}

/// Making or reading a cached kernel failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// The kernel of the libkrunfw at `library`, whose digest the caller has checked: from the cache,
/// else made.
pub(crate) fn prepare(
    cache_dir: &Path,
    library: &Path,
    digest: Digest,
    progress: &dyn Progress,
) -> Result<Kernel, PrepareError> {
    let dir = directory(cache_dir, digest);
    if let Some(kernel) = inspect(cache_dir, digest) {
        return Ok(kernel);
    }
    let _lock = Lock::take(&dir.join(".lock"), progress)?;
    // Another process may have made it meanwhile, or only the stamp may be out of date.
    if let Some(kernel) = inspect(cache_dir, digest).or_else(|| restamp(&dir)) {
        return Ok(kernel);
    }
    progress.phase("taking the guest kernel out of libkrunfw");
    crate::install::remove_unfinished(&dir)?;
    let bytes = fs::read(library).map_err(|error| InstallError::new("read", library, error))?;
    let Extracted {
        architecture,
        image,
    } = extract(&bytes)?;
    let (format, header) = match architecture {
        Architecture::X86_64 => (KernelFormat::PvhElf, pvh::header(image)?),
        Architecture::Aarch64 => {
            /// The magic of Documentation/arch/arm64/booting.rst, at byte 56.
            const MAGIC: &[u8] = b"ARM\x64";
            if image.get(56..60) != Some(MAGIC) {
                return Err(KernelError::Arm64Header.into());
            }
            (KernelFormat::Arm64Image, Vec::new())
        }
        other => return Err(KernelError::Architecture(other).into()),
    };
    let release = release(image)?;
    let path = dir.join(format.file_name());
    let sha256 = write_atomically(&path, 0o644, |file| {
        let mut writer = HashingWriter::new(file);
        writer
            .write_all(&header)
            .and_then(|()| writer.write_all(image))
            .map_err(|error| InstallError::new("write", &path, error))?;
        Ok::<_, InstallError>(writer.finish())
    })?;
    let metadata = fs::metadata(&path).map_err(|error| InstallError::new("read", &path, error))?;
    let record = Record {
        format,
        release,
        sha256,
        stamp: Stamp::of(&metadata),
    };
    write_json(&dir.join(RECORD), &record)?;
    Ok(Kernel {
        path,
        format,
        release: record.release,
    })
}

/// The cached kernel, if it is there and unchanged since it was made.
pub(crate) fn inspect(cache_dir: &Path, digest: Digest) -> Option<Kernel> {
    let dir = directory(cache_dir, digest);
    let record = read_record(&dir)?;
    let path = dir.join(record.format.file_name());
    let stamp = Stamp::of(&fs::metadata(&path).ok()?);
    (stamp == record.stamp).then_some(Kernel {
        path,
        format: record.format,
        release: record.release,
    })
}

/// A copied or restored cache has new inodes and times and the same bytes.
fn restamp(dir: &Path) -> Option<Kernel> {
    let record = read_record(dir)?;
    let path = dir.join(record.format.file_name());
    let (sha256, stamp) = hash_stable(&path).ok()?;
    if sha256 != record.sha256 {
        tracing::warn!(path = %path.display(), "the cached kernel was changed; it is made anew");
        return None;
    }
    let record = Record { stamp, ..record };
    write_json(&dir.join(RECORD), &record).ok()?;
    Some(Kernel {
        path,
        format: record.format,
        release: record.release,
    })
}

const RECORD: &str = "kernel.json";

fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

fn directory(cache_dir: &Path, digest: Digest) -> PathBuf {
    cache_dir
        .join("kernel")
        .join(format!("{digest}-v{FORMAT_VERSION}"))
}
