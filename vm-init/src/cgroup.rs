//! A cgroup (v2) that holds processes together, so that all of them can be ended and their end seen.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::{pread, pwrite};

/// Directories that are removed with a cgroup at most. Root of the guest can make cgroups without
/// end below its own, which would keep PID 1 busy with removing them.
const MOST_NESTED: usize = 256;

/// One cgroup, with its directory open: whatever the workload mounts over it, it is this one.
///
/// Linux 6.12 kills at once whatever is cloned into a cgroup (CLONE_INTO_CGROUP) whose
/// `cgroup.kill` was ever used: it compares the kill count of the parent's cgroup with that of the
/// child's. So a cgroup that was killed is not used again.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    /// Opened when it is first asked for, at the end of a life: not on the way to its start.
    events: OnceCell<OwnedFd>,
}

impl Cgroup {
    /// Makes the cgroup at `path`, which must not be there.
    pub(crate) fn make(path: PathBuf) -> nix::Result<Self> {
        nix::unistd::mkdir(&path, Mode::from_bits_truncate(0o755))?;
        Ok(Self {
            directory: open_file(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?,
            events: OnceCell::new(),
            path,
        })
    }

    /// Where processes are cloned into.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// No process runs in it or below it. The dead that nobody has reaped yet do not count.
    pub(crate) fn is_empty(&self) -> bool {
        let events = match self.events.get() {
            Some(events) => events,
            None => match self.open("cgroup.events", OFlag::O_RDONLY) {
                Ok(events) => self.events.get_or_init(|| events),
                // Not known to be empty; it is asked again.
                Err(_) => return false,
            },
        };
        value_of(events, "populated") == Some(0)
    }

    /// SIGKILL to all in it and below it, even if they fork meanwhile.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        let kill = self.open("cgroup.kill", OFlag::O_WRONLY)?;
        pwrite(kill.as_fd(), b"1", 0).map(drop)
    }

    fn open(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(
            &self.directory,
            name,
            flags | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    }

    /// Removes it, with what root of the guest has made below it. One that holds processes that
    /// could not be killed stays with them.
    pub(crate) fn remove(&self) {
        let mut left = MOST_NESTED;
        remove_tree(&self.path, &mut left);
    }
}

fn remove_tree(path: &Path, left: &mut usize) {
    // Without nested cgroups, which is as good as always, this is all.
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
        Ok(()) | Err(_) => return,
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if *left > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            *left -= 1;
            remove_tree(&entry.path(), left);
        }
    }
    // See `remove`.
    std::fs::remove_dir(path).unwrap_or(());
}

/// Opens one of the kernel's files.
pub(crate) fn open_file(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// The number behind `key` in a flat keyed file of the kernel's.
pub(crate) fn value_of(file: &OwnedFd, key: &str) -> Option<u64> {
    let mut buffer = [0; 512];
    let count = pread(file.as_fd(), &mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..count])
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}
