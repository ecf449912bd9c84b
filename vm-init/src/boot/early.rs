//! The first instants of PID 1: its name, the devices, descriptors 0 to 2, and a place in the
//! scheduler and in memory from which the workload cannot push it out.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::stat::Mode;
use nix::sys::statfs::FsType;

use super::filesystem::{Filesystem, FilesystemError, make_directory};
use crate::sys::{self, Scheduling};

/// The virtio console. Opened directly: on about one SMP boot in thirty the kernel finds no
/// `/dev/console`.
const CONSOLE: &str = "/dev/hvc0";

/// As `/proc/1/comm` shows it; the kernel calls its first process after the file, `init`.
const NAME: &CStr = c"vm-init";

/// Why nothing can begin.
#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    /// A kernel file system is missing.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// A system call failed.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
    /// A kernel file cannot be written.
    #[error("failed to write {0}: {1}")]
    Write(&'static str, std::io::Error),
}

/// Names this process for whoever lists the guest's.
pub fn name_self() -> Result<(), EarlyError> {
    nix::sys::prctl::set_name(NAME).map_err(|errno| EarlyError::System("name itself", errno))
}

/// Mounts /dev on the boot medium; it moves to the new root with all that is in it.
pub fn mount_devices() -> Result<(), EarlyError> {
    let target = Path::new("/dev");
    make_directory(target, 0o755)?;
    let devices = Filesystem {
        kind: "devtmpfs",
        source: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        options: "",
    };
    match devices.mount(target) {
        // The kernel mounts /dev itself where its root is no initramfs.
        Ok(())
        | Err(FilesystemError::Mount {
            errno: Errno::EBUSY,
            ..
        }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Mounts /sys on the boot medium, where something must be looked for in it before the new root has
/// one.
pub fn mount_sys() -> Result<(), EarlyError> {
    let target = Path::new("/sys");
    make_directory(target, 0o755)?;
    let sys = Filesystem {
        kind: "sysfs",
        source: "sysfs",
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        options: "",
    };
    match sys.mount(target) {
        Ok(())
        | Err(FilesystemError::Mount {
            errno: Errno::EBUSY,
            ..
        }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens descriptors 0 to 2 where the kernel gave none, so that no later descriptor gets such a
/// number; 1 and 2 become the console, for what Rust itself would say in a panic.
pub fn open_standard_descriptors() -> Result<(), EarlyError> {
    let null = || {
        open("/dev/null", OFlag::O_RDWR, Mode::empty())
            .map_err(|errno| EarlyError::System("open /dev/null", errno))
    };
    let mut spare = null()?;
    while spare.as_raw_fd() <= 2 {
        // Stays open for good: it is one of the three.
        std::mem::forget(spare);
        spare = null()?;
    }
    let console = match open(CONSOLE, OFlag::O_WRONLY | OFlag::O_NOCTTY, Mode::empty()) {
        Ok(console) => console,
        // A VM without a console has nobody who reads one.
        Err(_) => null()?,
    };
    let result = nix::unistd::dup2_stdin(&spare)
        .and_then(|()| nix::unistd::dup2_stdout(&console))
        .and_then(|()| nix::unistd::dup2_stderr(&console));
    result.map_err(|errno| EarlyError::System("set up descriptors 0 to 2", errno))
}

/// Keeps this process scheduled and in memory. The out-of-memory killer never takes PID 1 of the
/// machine, whatever its score. What it starts is
/// scheduled as usual (see `ChildPlan`).
pub fn protect_self(in_memory: bool) -> Result<(), EarlyError> {
    // Still the next to run, but not in the middle of another's time slice: on one CPU it would
    // read a command's output after each write of 4 or 8 KiB, which took three times as long
    // (11 MB/s instead of 38 under TCG).
    sys::schedule_self(Scheduling::Supervisor)
        .map_err(|errno| EarlyError::System("choose its own scheduling", errno))?;
    if in_memory {
        return Ok(());
    }
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
        .map_err(|errno| EarlyError::System("lock its own memory", errno))
}

/// The boot medium is an initramfs. Its pages cannot be reclaimed and a guest has no swap, so that
/// locking them again would only cost the start 7 ms (under TCG); and it cannot be left by
/// pivot_root(2).
pub fn is_in_memory() -> bool {
    const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
    nix::sys::statfs::statfs("/").is_ok_and(|found| {
        let kind = found.filesystem_type();
        kind == FsType(RAMFS_MAGIC as _) || kind == nix::sys::statfs::TMPFS_MAGIC
    })
}

/// Writes a short text to a file of the kernel's.
pub fn write_file(path: &'static str, text: &str) -> Result<(), EarlyError> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| EarlyError::Write(path, error))
}
