//! Locks between processes (flock(2)): they end with the last descriptor, however a process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::StoreError;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "its drop is what it is for")] File);

impl Held {
    /// Together with others.
    pub(super) fn shared(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, File::lock_shared)
    }

    /// Alone; waits for others.
    pub(super) fn exclusive(path: &Path) -> Result<Self, StoreError> {
        Self::take(path, File::lock)
    }

    /// Alone, or not at all.
    pub(super) fn try_exclusive(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = open(path).map_err(|error| StoreError::file("open", path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::file("lock", path, error)),
        }
    }

    fn take(path: &Path, how: fn(&File) -> io::Result<()>) -> Result<Self, StoreError> {
        let fault = |error| StoreError::file("lock", path, error);
        let file = open(path).map_err(fault)?;
        how(&file).map_err(fault)?;
        Ok(Self(file))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Keeps a file that is in use from [`is_in_use`].
pub(super) fn share(file: &File) -> io::Result<()> {
    file.lock_shared()
}

/// Whether anybody holds a lock on the file.
pub(super) fn is_in_use(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Opens a file that one process at a time works on, and waits to be that process. Who had it
/// before may have renamed or removed it: then it is made anew.
pub(crate) fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = open(path)?;
        file.lock()?;
        let own = file.metadata()?;
        match std::fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}
