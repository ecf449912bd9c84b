//! One at a time edits a project's workers file: a lock between processes, in the project's state
//! directory and not beside the user's file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::{StateError, directory_fault, is_current, make_directory, open_lock};

const LOCK: &str = "edit.lock";

/// Held while it lives.
#[derive(Debug)]
pub(crate) struct EditLock {
    directory: PathBuf,
    /// Held for its drop, which unlocks.
    _lock: Flock<File>,
}

impl EditLock {
    /// Waits for whoever has it, but not for ever: an editor that was stopped must be named.
    pub(crate) fn take(directory: &Path, patience: Duration) -> Result<Self, StateError> {
        loop {
            make_directory(directory)?;
            let path = directory.join(LOCK);
            let Some(file) = open_lock(directory, &path)? else {
                continue;
            };
            let mut lock = wait(file, &path, patience)?;
            // Whoever had it has removed it; others may have made a new one.
            if !is_current(&lock, &path).map_err(directory_fault(directory, "lock"))? {
                continue;
            }
            // Only names us to those who wait; a full disk must not keep anybody from it.
            lock.set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .unwrap_or_default();
            return Ok(Self {
                directory: directory.to_owned(),
                _lock: lock,
            });
        }
    }
}

/// A file lock cannot be waited for with a limit, so a thread waits. Where it waits in vain, it
/// ends with the program, which has nothing else to do then.
fn wait(file: File, path: &Path, patience: Duration) -> Result<Flock<File>, StateError> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(directory_fault(path, "lock")(errno.into())),
    };
    let mut reader = file.try_clone().map_err(directory_fault(path, "lock"))?;
    let (sender, receiver) = channel();
    let waiting = std::thread::Builder::new().spawn(move || {
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        // Nobody waits for it any more.
        sender.send(lock).ok();
    });
    waiting.map_err(directory_fault(path, "lock"))?;
    match receiver.recv_timeout(patience) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(errno)) => Err(directory_fault(path, "lock")(errno.into())),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let mut pid = String::new();
            // Without it the rest of the message is still true.
            reader.read_to_string(&mut pid).unwrap_or_default();
            Err(StateError::Editing {
                pid: pid.trim().to_owned(),
                path: path.to_owned(),
            })
        }
    }
}

impl Drop for EditLock {
    /// Leaves nothing behind. The lock is still held, so nobody else removes it.
    fn drop(&mut self) {
        let removed = std::fs::remove_file(self.directory.join(LOCK));
        // A directory that a supervisor uses stays.
        if let Err(error) = removed.and_then(|()| std::fs::remove_dir(&self.directory)) {
            tracing::debug!(path = %self.directory.display(), %error, "the state directory stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/project");
        let patience = Duration::from_secs(60);
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let lock = EditLock::take(&path, patience).unwrap();
                        let before = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(before, 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn whoever_keeps_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = EditLock::take(dir.path(), Duration::ZERO).unwrap();
        let error = EditLock::take(dir.path(), Duration::ZERO).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
    }
}
