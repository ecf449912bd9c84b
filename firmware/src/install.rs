//! Files that appear whole or not at all.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::progress::Progress;

/// A step of putting a file into place failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}: {source}{}", path.display(), remedy(source))]
pub struct InstallError {
    /// What was tried.
    pub verb: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl InstallError {
    pub(crate) fn new(verb: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self {
            verb,
            path: path.into(),
            source,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or set III_HOME to a directory on another disk"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; set III_HOME to a directory that this user can write"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "; move away the file that stands in its path, or set III_HOME to another directory"
        }
        _ => "",
    }
}

/// Makes `path` and what leads to it.
pub(crate) fn make_dir(path: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(path).map_err(|error| InstallError::new("make the directory", path, error))
}

/// Calls `fill` with a temporary file beside `path`, brings its content to the disk, gives it
/// `mode` and renames it to `path`. When anything fails, what was at `path` is still there, whole.
pub(crate) fn write_atomically<T, E: From<InstallError>>(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    use std::os::unix::fs::PermissionsExt as _;

    let parent = path.parent().unwrap_or(Path::new("/"));
    make_dir(parent)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(parent)
        .map_err(|error| InstallError::new("make a temporary file in", parent, error))?;
    let filled = fill(temporary.as_file_mut())?;
    let file = temporary.as_file();
    file.set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.sync_all())
        .map_err(|error| InstallError::new("write", path, error))?;
    temporary
        .persist(path)
        .map_err(|error| InstallError::new("rename a temporary file to", path, error.error))?;
    sync_dir(parent)?;
    Ok(filled)
}

/// Makes `link` point to `target`, replacing what was there in one step.
pub(crate) fn replace_symlink(link: &Path, target: &Path) -> Result<(), InstallError> {
    if fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    let parent = link.parent().unwrap_or(Path::new("/"));
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .make_in(parent, |path| std::os::unix::fs::symlink(target, path))
        .map_err(|error| InstallError::new("make a symbolic link in", parent, error))?;
    temporary
        .persist(link)
        .map_err(|error| InstallError::new("make the symbolic link", link, error.error))?;
    sync_dir(parent)
}

/// Without this a rename can be lost in a crash of the machine.
pub(crate) fn sync_dir(path: &Path) -> Result<(), InstallError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| InstallError::new("bring to the disk the directory", path, error))
}

/// Begins the name of everything unfinished.
pub(crate) const TEMPORARY_PREFIX: &str = ".unfinished-";

/// Deletes what a killed process left unfinished in `parent`. Only under the lock that all who
/// write there hold: then whatever is unfinished is nobody's.
pub(crate) fn remove_unfinished(parent: &Path) -> Result<(), InstallError> {
    let fault = |error| InstallError::new("list", parent, error);
    for entry in fs::read_dir(parent).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        if !entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TEMPORARY_PREFIX.as_bytes())
        {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().map_err(fault)?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|error| InstallError::new("remove", path, error))?;
    }
    Ok(())
}

/// An exclusive lock among processes, held until it is dropped; the kernel drops it for a process
/// that dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock file `path`.
    pub(crate) fn take(path: &Path, progress: &dyn Progress) -> Result<Self, InstallError> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let fault = |error| InstallError::new("lock", path, error);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(fault)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.phase("waiting for another iii-super that prepares the firmware");
                file.lock().map_err(fault)?;
            }
            Err(TryLockError::Error(error)) => return Err(fault(error)),
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a/file");
        write_atomically(&path, 0o644, |file| -> Result<(), InstallError> {
            file.write_all(b"old").expect("writes");
            Ok(())
        })
        .expect("written");
        let failed = write_atomically(&path, 0o644, |file| -> Result<(), InstallError> {
            file.write_all(b"half of the ne").expect("writes");
            Err(InstallError::new(
                "test",
                "x",
                io::Error::from(io::ErrorKind::StorageFull),
            ))
        });
        assert!(failed.expect_err("fails").to_string().contains("III_HOME"));
        assert_eq!(fs::read(&path).expect("still there"), b"old");
        assert_eq!(
            fs::metadata(&path).expect("there").permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(
            fs::read_dir(dir.path().join("a")).expect("lists").count(),
            1
        );
    }

    #[test]
    fn a_symlink_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = dir.path().join("link");
        replace_symlink(&link, Path::new("one")).expect("made");
        replace_symlink(&link, Path::new("two")).expect("replaced");
        replace_symlink(&link, Path::new("two")).expect("kept");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("two"));

        let blocked = dir.path().join("blocked");
        fs::create_dir(&blocked).expect("made");
        fs::write(blocked.join("x"), b"").expect("written");
        let error = replace_symlink(&blocked, Path::new("two")).expect_err("a directory is there");
        assert!(error.to_string().contains("blocked"), "{error}");
        let missing = replace_symlink(&dir.path().join("no/link"), Path::new("two"));
        assert!(missing.is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join(".unfinished-a"), b"x").expect("written");
        fs::create_dir(dir.path().join(".unfinished-b")).expect("made");
        fs::write(dir.path().join(".unfinished-b/c"), b"x").expect("written");
        fs::write(dir.path().join("kept"), b"x").expect("written");
        remove_unfinished(dir.path()).expect("removed");
        let left: Vec<_> = fs::read_dir(dir.path()).expect("lists").flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "kept");
    }

    #[test]
    fn the_lock_excludes_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        let held = Lock::take(&path, &()).expect("free");
        let other = File::options().write(true).open(&path).expect("opens");
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        other.try_lock().expect("free again");
    }
}
