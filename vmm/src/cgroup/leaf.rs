//! The cgroup of one VM's processes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::facts::Controller;
use super::limits::Limits;

/// How long what was killed in a cgroup may take to be gone: a process that hangs in a host's file
/// system cannot be killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Cgroups below a leaf that are removed with it; nothing of ours makes any.
const MOST_NESTED: usize = 64;

/// A cgroup with limits, for one boot of one VM. Dropped, it is removed, with what is left in it.
///
/// Linux 6.12 kills at once whatever is cloned into a cgroup whose `cgroup.kill` was ever used. A leaf
/// is killed only when it is removed, and its name is that of a boot, which does not come again.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    /// In bytes, if it was set.
    memory: Option<u64>,
    /// Out of memory ends all of its processes.
    end_together: bool,
}

impl Leaf {
    /// Makes the cgroup at `path`, which must not be there. What cannot be limited is left unlimited.
    pub(super) fn make(
        path: PathBuf,
        limits: &Limits,
        controllers: &[Controller],
    ) -> io::Result<Self> {
        fs::create_dir(&path)?;
        let mut leaf = Self {
            path,
            memory: None,
            end_together: false,
        };
        for controller in controllers {
            match controller {
                Controller::Memory => {
                    let most = limits.memory.to_string();
                    if leaf.set("memory.max", &most) {
                        leaf.memory = Some(limits.memory);
                    }
                    // A guest may be swapped out; no more than that.
                    leaf.set("memory.swap.max", &most);
                    // Half a VM is neither alive nor dead.
                    leaf.end_together = leaf.set("memory.oom.group", "1");
                }
                Controller::Pids => {
                    leaf.set("pids.max", &limits.processes.to_string());
                }
                Controller::Cpu => {
                    leaf.set("cpu.max", &limits.cpu_max());
                    leaf.set("cpu.weight", &limits.cpu_weight().to_string());
                }
            }
        }
        Ok(leaf)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn set(&self, file: &str, value: &str) -> bool {
        let path = self.path.join(file);
        // Not made: to an ordinary user the kernel would call a missing file a forbidden one.
        let opened = File::options().write(true).open(&path);
        match opened.and_then(|mut file| file.write_all(value.as_bytes())) {
            Ok(()) => true,
            // A kernel without swap, or without that part of a controller.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), value, %error, "failed to set a limit");
                false
            }
        }
    }

    /// By which a process moves itself into it.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        let file = File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))?;
        Ok(file.into())
    }

    /// The kernel has killed all that was in it for want of memory: no part of the VM alone is at
    /// fault.
    pub fn ended_for_want_of_memory(&self) -> bool {
        self.end_together && self.out_of_memory().is_some()
    }

    /// What the kernel has killed in it for want of memory.
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        let events = fs::read_to_string(self.path.join("memory.events")).ok()?;
        if value_of(&events, "oom_kill").unwrap_or(0) == 0 {
            return None;
        }
        // `oom_kill` counts whoever was the cause; `oom` is this cgroup's own limit.
        let own_limit = value_of(&events, "oom").unwrap_or(0) > 0;
        Some(OutOfMemory {
            limit: self.memory.filter(|_| own_limit),
        })
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Ok(()) => return,
            Err(error) => {
                // Its own manager may have taken it away.
                tracing::debug!(path = %self.path.display(), %error, "failed to remove a cgroup");
                return;
            }
        }
        // Whoever drops it must not wait: it may be the thread that starts every process.
        let path = std::mem::take(&mut self.path);
        let removing = std::thread::Builder::new().name("iii-cgroup".into());
        if let Err(error) = removing.spawn(move || end(&path)) {
            tracing::warn!(%error, "a cgroup is left for the next run to remove");
        }
    }
}

/// Kills all that is in the cgroup at `path` and removes it.
pub(super) fn end(path: &Path) {
    if let Err(error) = kill_and_remove(path) {
        tracing::warn!(path = %path.display(), %error, "failed to remove a cgroup");
    }
}

fn kill_and_remove(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.kill"), "1")?;
    let events = File::open(path.join("cgroup.events"))?;
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        // By the descriptor: a change is announced to who has read the state before.
        let mut text = [0; 256];
        let length = events.read_at(&mut text, 0)?;
        if value_of(&String::from_utf8_lossy(&text[..length]), "populated") == Some(0) {
            let mut left = MOST_NESTED;
            match remove_tree(path, &mut left) {
                // The last of its dead are on their way out.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                other => return other,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel announces each change of that file. Looked at again anyway: the directory may
        // be let go of a moment later.
        let wait = Timespec::try_from(left.min(Duration::from_millis(50)))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&wait)))?;
    }
}

fn remove_tree(path: &Path, left: &mut usize) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        other => return other,
    }
    for entry in fs::read_dir(path)?.flatten() {
        if *left > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            *left -= 1;
            remove_tree(&entry.path(), left)?;
        }
    }
    fs::remove_dir(path)
}

/// The number behind `key` in a flat keyed file of the kernel's.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// The host's kernel has killed a VM's processes for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The limit of the VM's own cgroup that was reached; else the host, or something above, had none
    /// left.
    pub limit: Option<u64>,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(
                f,
                "the host's kernel killed it for want of memory: with its file server it reached \
                 the {} MiB that this VM's processes may have (memory.max), which only a fault or \
                 an attack needs; {}=off runs it without such limits",
                limit >> 20,
                super::VARIABLE
            ),
            None => f.write_str(
                "the host's kernel killed it for want of memory: the host, or the service or \
                 container that iii-super runs in, had none left; give its workers less \
                 (resources.memory), or it more",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_keys() {
        let text = "low 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(value_of(text, "oom"), Some(1));
        assert_eq!(value_of(text, "oom_kill"), Some(3));
        assert_eq!(value_of(text, "group"), None);
        assert_eq!(value_of("populated x\n", "populated"), None);
    }

    #[test]
    fn whose_limit_it_was_is_told_by_the_events() {
        let directory = tempfile::tempdir().unwrap();
        let leaf = Leaf {
            path: directory.path().join("vm"),
            memory: Some(300 << 20),
            end_together: true,
        };
        fs::create_dir(&leaf.path).unwrap();
        assert_eq!(leaf.out_of_memory(), None);
        let events = leaf.path.join("memory.events");
        fs::write(&events, "max 4\noom 0\noom_kill 0\n").unwrap();
        assert_eq!(leaf.out_of_memory(), None);
        fs::write(&events, "max 4\noom 1\noom_kill 2\n").unwrap();
        let text = leaf.out_of_memory().unwrap().to_string();
        assert!(text.contains("the 300 MiB"), "{text}");
        assert!(leaf.ended_for_want_of_memory());
        fs::write(&events, "max 4\noom 0\noom_kill 2\n").unwrap();
        let text = leaf.out_of_memory().unwrap().to_string();
        assert!(text.contains("the host, or the service"), "{text}");
        fs::remove_file(&events).unwrap();
    }
}
