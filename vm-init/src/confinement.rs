//! What holds a life of the workload together, so that all of it can be ended and its end seen.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::{pread, pwrite};

use crate::sys;

const SIGKILL: i32 = 9;

/// Holds a life together.
#[derive(Debug)]
pub enum Confinement {
    /// A cgroup (v2): nothing that the workload starts can leave it.
    Cgroup(Cgroup),
    /// Its process group, for vm-init as a plain process: what makes a session of its own gets
    /// away.
    ProcessGroup,
}

/// An open cgroup.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    events: OwnedFd,
    kill: OwnedFd,
    memory_events: Option<OwnedFd>,
}

impl Cgroup {
    /// Opens the files of the cgroup behind `directory`.
    pub fn open(directory: OwnedFd) -> nix::Result<Self> {
        let file = |name: &CStr, flags| {
            openat(
                directory.as_fd(),
                name,
                flags | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
        };
        Ok(Self {
            events: file(c"cgroup.events", OFlag::O_RDONLY)?,
            kill: file(c"cgroup.kill", OFlag::O_WRONLY)?,
            // Missing without the memory controller, and then nothing is killed by its limit.
            memory_events: file(c"memory.events", OFlag::O_RDONLY).ok(),
            directory,
        })
    }
}

impl Confinement {
    /// The cgroup into which processes are born.
    pub fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup.directory.as_fd()),
            Self::ProcessGroup => None,
        }
    }

    /// SIGKILL to all that is left of the life whose main process is or was `pid`.
    pub fn kill(&self, pid: GuestPid) -> nix::Result<()> {
        match self {
            Self::Cgroup(cgroup) => {
                if self.is_empty(pid) {
                    return Ok(());
                }
                pwrite(cgroup.kill.as_fd(), b"1", 0).map(drop)
            }
            Self::ProcessGroup => match sys::kill(pid.0, true, SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(errno) => Err(errno),
            },
        }
    }

    /// Nothing is left of that life. In a process group the dead count until they are reaped.
    pub fn is_empty(&self, pid: GuestPid) -> bool {
        match self {
            Self::Cgroup(cgroup) => value_of(&cgroup.events, "populated") == Some(0),
            Self::ProcessGroup => sys::kill(pid.0, true, 0) == Err(Errno::ESRCH),
        }
    }

    /// How many processes the memory limit has killed so far.
    pub fn memory_kills(&self) -> u64 {
        match self {
            Self::Cgroup(Cgroup {
                memory_events: Some(events),
                ..
            }) => value_of(events, "oom_kill").unwrap_or(0),
            Self::Cgroup(Cgroup {
                memory_events: None,
                ..
            })
            | Self::ProcessGroup => 0,
        }
    }
}

/// The number behind `key` in a flat keyed file of the kernel's.
fn value_of(file: &OwnedFd, key: &str) -> Option<u64> {
    let mut buffer = [0; 512];
    let count = pread(file.as_fd(), &mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..count])
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}
