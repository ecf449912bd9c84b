//! What outlives a supervisor: one directory with a lock, one file, and the output that is kept
//! (`crate::log_store`).
//!
//! * `lock` is held for the supervisor's life and names its process, so that no two supervisors
//!   share a directory;
//! * `supervisor.json` ([`record`]) is there while a supervisor runs. One that ends in order
//!   removes it, so that its presence at a start says that the one before did not;
//! * [`keeper`] writes it, from a thread of its own;
//! * `workers-file` or `developed` ([`origin`]) says whose state it is;
//! * `edit.lock` ([`edit_lock`]) is there while somebody edits the project's workers file.
//!
//! After the end of a supervisor that was killed, restart counters go on and a worker that had
//! ended (failed, done, stopped) stays so until it is asked for, unless its spec has changed since.
//! A reboot of the host begins anew, and what was lost is told.

#[cfg(feature = "cli")]
mod edit_lock;
mod keeper;
#[cfg(feature = "cli")]
pub(crate) mod origin;
mod record;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iii_actors::event::EventBus;
use iii_actors::memory::WorkerMemory;
use iii_actors::spec::WorkerSpec;
use iii_proto::ids::WorkerName;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

#[cfg(feature = "cli")]
pub(crate) use self::edit_lock::EditLock;
pub(crate) use self::keeper::FileKeeper;
use self::record::Remembered;

const LOCK: &str = "lock";
/// Who has a lock and has not said yet who it is.
const UNKNOWN: &str = "unknown";
const RECORD: &str = "supervisor.json";
const WORKERS_FILE: &str = "workers-file";
const DEVELOPED: &str = "developed";

/// Whether a supervisor runs with this state directory, or did not end in order.
#[cfg(feature = "cli")]
pub(crate) fn was_in_use(path: &Path) -> bool {
    path.join(LOCK).exists()
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another supervisor uses it.
    #[error(
        "failed to lock state directory {path}: a supervisor with process id {pid} runs there; {}",
        ending(pid)
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Who; "unknown" if it has not said yet.
        pid: String,
    },
    /// Somebody edits the project's workers file and does not come to an end.
    #[error(
        "failed to lock {path}: process {pid} has been editing the workers file for too long; \
         end it and try again"
    )]
    Editing {
        /// The lock.
        path: PathBuf,
        /// Who; empty if it has not said yet.
        pid: String,
    },
    /// It cannot be made, read or written.
    #[error(
        "failed to {what} state directory {path}: {source}; {}",
        remedy(source)
    )]
    Directory {
        /// What failed.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn ending(pid: &str) -> String {
    let process = match pid {
        UNKNOWN => String::new(),
        pid => format!(", or by `kill {pid}`"),
    };
    format!("end it first, with Ctrl-C (or q) in its terminal{process}")
}

fn remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on that disk, or name another place (III_HOME)"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "move away the file that stands in its path, or name another place (III_HOME)"
        }
        _ => "make it writable for this user, or name another place (III_HOME)",
    }
}

/// A locked state directory, and what an earlier supervisor has left in it.
#[derive(Debug)]
pub(crate) struct StateDirectory {
    path: PathBuf,
    /// Held for its drop, which unlocks.
    lock: Flock<File>,
    /// Left by a supervisor that was killed.
    left: BTreeMap<WorkerName, Remembered>,
}

impl StateDirectory {
    /// Makes, locks and reads the directory. With `forget`, what was left is not looked at.
    pub(crate) fn open(path: &Path, forget: bool) -> Result<Self, StateError> {
        let failed = |what| directory_fault(path, what);
        let lock = loop {
            if let Some(lock) = lock(path)? {
                break lock;
            }
        };
        // From here on its drop leaves nothing behind, whatever fails.
        let mut directory = Self {
            path: path.to_owned(),
            lock,
            left: BTreeMap::new(),
        };
        let lock = &mut directory.lock;
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed("write"))?;
        directory.left = match std::fs::read(path.join(RECORD)) {
            Ok(bytes) if !forget => record::decode(&bytes),
            Ok(_) => BTreeMap::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed("read")(error)),
        };
        Ok(directory)
    }

    /// What was left of a worker with this very spec.
    pub(crate) fn left_of(&self, spec: &WorkerSpec) -> Option<WorkerMemory> {
        let left = self.left.get(&spec.name)?;
        (left.spec == record::digest(spec)).then(|| left.memory.clone())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins to keep.
    pub(crate) fn keeper(&self, bus: EventBus) -> std::io::Result<Arc<FileKeeper>> {
        FileKeeper::start(self.path.join(RECORD), bus).map(Arc::new)
    }
}

impl Drop for StateDirectory {
    /// Leaves nothing behind where nothing is to be remembered. The lock is still held.
    fn drop(&mut self) {
        if self.path.join(RECORD).exists() {
            return;
        }
        let removed = std::fs::remove_file(self.path.join(LOCK));
        if let Err(error) = removed.and_then(|()| remove_if_bare(&self.path)) {
            tracing::debug!(path = %self.path.display(), %error, "the state directory stays");
        }
    }
}

/// Removes a state directory in which nothing is kept. One that holds more than a word about whose
/// it is stays.
fn remove_if_bare(state: &Path) -> std::io::Result<()> {
    let is_word = |name: &std::ffi::OsStr| name == WORKERS_FILE || name == DEVELOPED;
    let names: std::io::Result<Vec<_>> = std::fs::read_dir(state)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect();
    let names = names?;
    if names.iter().all(|name| is_word(name)) {
        for name in names {
            std::fs::remove_file(state.join(name))?;
        }
    }
    std::fs::remove_dir(state)
}

fn directory_fault(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> StateError {
    move |source| StateError::Directory {
        what,
        path: path.to_owned(),
        source,
    }
}

fn make_directory(path: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    match made {
        // Another process removed it just after it stood in the way. Opening the lock notices.
        Err(error)
            if error.kind() == std::io::ErrorKind::AlreadyExists
                && path.symlink_metadata().is_err() =>
        {
            Ok(())
        }
        made => made.map_err(directory_fault(path, "make")),
    }
}

/// Opens a lock in a directory. `None`: who had it removed the directory just now; try again.
fn open_lock(directory: &Path, lock: &Path) -> Result<Option<File>, StateError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(directory_fault(directory, "lock")(error)),
    }
}

/// Whether the locked file still has its name: it may have been removed between the opening and
/// the locking.
fn is_current(lock: &File, path: &Path) -> std::io::Result<bool> {
    let locked = lock.metadata()?.ino();
    Ok(std::fs::metadata(path).is_ok_and(|now| now.ino() == locked))
}

/// Makes the directory and locks it. `None`: who had it removed the lock just now; try again.
fn lock(path: &Path) -> Result<Option<Flock<File>>, StateError> {
    let failed = |what| directory_fault(path, what);
    make_directory(path)?;
    let name = path.join(LOCK);
    let Some(file) = open_lock(path, &name)? else {
        return Ok(None);
    };
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed("read"))?;
            let pid = pid.trim();
            return Err(StateError::Busy {
                path: path.to_owned(),
                pid: if pid.is_empty() { UNKNOWN } else { pid }.to_owned(),
            });
        }
        Err((_, errno)) => return Err(failed("lock")(errno.into())),
    };
    let current = is_current(&lock, &name).map_err(failed("lock"))?;
    Ok(current.then_some(lock))
}

#[cfg(test)]
mod tests;
