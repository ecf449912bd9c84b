//! What holds a life of the workload together, so that all of it can be ended and its end seen.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::Pid;

use crate::sys;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Holds a life together.
#[derive(Debug)]
pub enum Confinement {
    /// A cgroup (v2): nothing that the workload starts can leave it.
    Cgroup(LifeCgroup),
    /// Its process group, for vm-init as a plain process: what makes a session of its own gets
    /// away.
    ProcessGroup,
}

/// The cgroup of the current life, below the one that carries the workload's limits.
///
/// Linux 6.12 kills at once whatever is cloned into a cgroup (CLONE_INTO_CGROUP) whose
/// `cgroup.kill` was ever used: it compares the kill count of the parent's cgroup with that of the
/// child's. So a cgroup that was killed is replaced by a new one.
#[derive(Debug)]
pub struct LifeCgroup {
    limits: PathBuf,
    number: u32,
    killed: bool,
    directory: OwnedFd,
    events: OwnedFd,
    kill: OwnedFd,
}

impl LifeCgroup {
    /// Makes the first life's cgroup below `limits`, an absolute path.
    pub fn new(limits: PathBuf) -> nix::Result<Self> {
        let (directory, events, kill) = make_life(&limits, 0)?;
        Ok(Self {
            limits,
            number: 0,
            killed: false,
            directory,
            events,
            kill,
        })
    }

    fn replace(&mut self) -> nix::Result<()> {
        // One that is not empty holds processes that could not be killed: it stays with them.
        std::fs::remove_dir(life_path(&self.limits, self.number)).unwrap_or(());
        self.number += 1;
        (self.directory, self.events, self.kill) = make_life(&self.limits, self.number)?;
        self.killed = false;
        Ok(())
    }

    fn is_empty(&self) -> bool {
        value_of(&self.events, "populated") == Some(0)
    }
}

fn life_path(limits: &Path, number: u32) -> PathBuf {
    limits.join(format!("life{number}"))
}

fn make_life(limits: &Path, number: u32) -> nix::Result<(OwnedFd, OwnedFd, OwnedFd)> {
    let path = life_path(limits, number);
    nix::unistd::mkdir(&path, Mode::from_bits_truncate(0o755))?;
    Ok((
        open_file(path.clone(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?,
        open_file(path.join("cgroup.events"), OFlag::O_RDONLY)?,
        open_file(path.join("cgroup.kill"), OFlag::O_WRONLY)?,
    ))
}

fn open_file(path: PathBuf, flags: OFlag) -> nix::Result<OwnedFd> {
    open(&path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

impl Confinement {
    /// Before a life: nothing of what held the one before is left in the way.
    pub fn prepare(&mut self) -> nix::Result<()> {
        match self {
            Self::Cgroup(cgroup) if cgroup.killed => cgroup.replace(),
            Self::Cgroup(_) | Self::ProcessGroup => Ok(()),
        }
    }

    /// The cgroup into which processes are born.
    pub fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup.directory.as_fd()),
            Self::ProcessGroup => None,
        }
    }

    /// SIGTERM to what is left of a life and is not in its process group. What cannot be reached
    /// so is killed when its grace is over.
    pub fn terminate_strays(&self, pid: GuestPid) {
        let Self::Cgroup(cgroup) = self else {
            return;
        };
        let path = life_path(&cgroup.limits, cgroup.number).join("cgroup.procs");
        let processes = std::fs::read_to_string(path).unwrap_or_default();
        for process in processes.lines().filter_map(|line| line.parse().ok()) {
            let group = nix::unistd::getpgid(Some(Pid::from_raw(process)));
            if group.is_ok_and(|group| group.as_raw() != pid.0) {
                // It may have ended since.
                sys::kill(process, false, SIGTERM).unwrap_or(());
            }
        }
    }

    /// SIGKILL to all that is left of the life whose main process is or was `pid`.
    pub fn kill(&mut self, pid: GuestPid) -> nix::Result<()> {
        match self {
            Self::Cgroup(cgroup) => {
                if cgroup.is_empty() {
                    return Ok(());
                }
                cgroup.killed = true;
                pwrite(cgroup.kill.as_fd(), b"1", 0).map(drop)
            }
            Self::ProcessGroup => match sys::kill_group_of(pid.0, SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(errno) => Err(errno),
            },
        }
    }

    /// Nothing is left of that life. In a process group the dead count until they are reaped.
    pub fn is_empty(&self, pid: GuestPid) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.is_empty(),
            Self::ProcessGroup => sys::kill(pid.0, true, 0) == Err(Errno::ESRCH),
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
