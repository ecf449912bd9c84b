//! What holds a life of the workload together, so that all of it can be ended and its end seen.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
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

/// The cgroup of the current life, below the one that carries the workload's limits. A life whose
/// cgroup was killed is followed by one with a new cgroup.
#[derive(Debug)]
pub struct LifeCgroup {
    limits: PathBuf,
    number: u32,
    killed: bool,
    group: Cgroup,
}

impl LifeCgroup {
    /// Makes the first life's cgroup below `limits`, an absolute path.
    pub fn new(limits: PathBuf) -> nix::Result<Self> {
        let group = Cgroup::make(limits.join("life0"))?;
        Ok(Self {
            limits,
            number: 0,
            killed: false,
            group,
        })
    }

    fn replace(&mut self) -> nix::Result<()> {
        self.group.remove();
        self.number += 1;
        self.group = Cgroup::make(self.limits.join(format!("life{}", self.number)))?;
        self.killed = false;
        Ok(())
    }
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
            Self::Cgroup(cgroup) => Some(cgroup.group.directory()),
            Self::ProcessGroup => None,
        }
    }

    /// SIGTERM to what is left of a life and is not in its process group. What cannot be reached
    /// so is killed when its grace is over.
    pub fn terminate_strays(&self, pid: GuestPid) {
        let Self::Cgroup(cgroup) = self else {
            return;
        };
        let path = cgroup.group.path().join("cgroup.procs");
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
                if cgroup.group.is_empty() {
                    return Ok(());
                }
                cgroup.killed = true;
                cgroup.group.kill()
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
            Self::Cgroup(cgroup) => cgroup.group.is_empty(),
            Self::ProcessGroup => sys::kill(pid.0, true, 0) == Err(Errno::ESRCH),
        }
    }

    /// The cgroup with the workload's limits, below which others can be made.
    pub fn limits(&self) -> Option<&Path> {
        match self {
            Self::Cgroup(cgroup) => Some(&cgroup.limits),
            Self::ProcessGroup => None,
        }
    }
}
