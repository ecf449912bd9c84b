//! Disks that outlive a VM: sparse images with an ext4 file system, in the directory `disks` of a
//! project's state directory.
//!
//! * `WORKER.ext4` holds what a worker has changed in its root, `WORKER.NAME.ext4` another disk of
//!   it; both are readable by their owner alone, and as long as the disk is large, whatever little
//!   of it is used;
//! * [`make`] makes the file system, once, by mke2fs. After that no program of the host reads what
//!   a guest has written there: the guest's own kernel repairs it after a VM that was killed, and
//!   lets it grow;
//! * whoever uses a disk holds a lock (flock(2)) on the open file: each VM does.

mod make;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use iii_proto::ids::WorkerName;
use serde::Serialize;

use crate::workers_file::format_size;

/// Directory of a state directory.
const DIRECTORY: &str = "disks";
/// Behind every disk's name.
const SUFFIX: &str = ".ext4";
/// Disks are whole multiples of this.
const GRAIN: u64 = 1 << 20;

/// Smallest disk: its journal alone takes 4 MiB.
pub(crate) const LEAST_DISK: u64 = 16 << 20;
/// Largest disk.
pub(crate) const MOST_DISK: u64 = 16 << 40;

/// Why a disk cannot be made, changed or looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// e2fsprogs is not there.
    #[error(
        "failed to find mke2fs, which makes disks: it is neither in PATH nor in /usr/sbin; install \
         e2fsprogs (apt-get install e2fsprogs)"
    )]
    NoTool,
    /// It could not be made.
    #[error("failed to make disk {}: {cause}; free some space, or make the directory writable", path.display())]
    Make {
        /// The disk.
        path: PathBuf,
        /// What mke2fs or the file system said.
        cause: String,
    },
    /// It cannot be opened, read or changed.
    #[error("failed to {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A smaller one was asked for.
    #[error(
        "failed to shrink disk {} from {has} to {wanted}: a disk only grows; ask for {has} or more, \
         or remove what is on it (`iii-super reset {worker}`) and then the file", path.display()
    )]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// Whose it is.
        worker: WorkerName,
        /// Its size.
        has: String,
        /// The size that was asked for.
        wanted: String,
    },
    /// It is in use.
    #[error("failed to empty disk {}: a VM or another program uses it; stop worker {worker} first", path.display())]
    Busy {
        /// The disk.
        path: PathBuf,
        /// Whose it is.
        worker: WorkerName,
    },
    /// There is none.
    #[error("failed to find a disk of worker {worker} in {}: {known}", directory.display())]
    None {
        /// Whose it would be.
        worker: WorkerName,
        /// Where it would be.
        directory: PathBuf,
        /// Who has one.
        known: String,
    },
}

/// How much of a disk is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// Whose it is.
    pub worker: WorkerName,
    /// Its name; `None`: it keeps the changes to the root.
    pub name: Option<String>,
    /// The image.
    pub path: PathBuf,
    /// Bytes that it takes on the host.
    pub used: u64,
    /// Bytes that it can hold.
    pub limit: u64,
}

/// The disks of a project.
#[derive(Clone, Debug)]
pub(crate) struct DiskStore {
    directory: PathBuf,
}

impl DiskStore {
    /// Those of this state directory. Makes nothing.
    pub(crate) fn of(state_directory: &Path) -> Self {
        Self {
            directory: state_directory.join(DIRECTORY),
        }
    }

    /// Makes sure that a disk is there and has this size; where it is. It may be in use: a VM that
    /// runs goes on with the size that it knows.
    pub(crate) fn provide(
        &self,
        worker: &WorkerName,
        name: Option<&str>,
        size: u64,
    ) -> Result<PathBuf, DiskError> {
        let path = self.directory.join(file_name(worker, name));
        let size = size.next_multiple_of(GRAIN);
        let failed = |what| {
            let path = path.clone();
            move |source| DiskError::File { what, path, source }
        };
        let has = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => return Err(failed("use")(std::io::Error::other("it is no file"))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_directory()?;
                make::make(&path, size)?;
                return Ok(path);
            }
            Err(error) => return Err(failed("look at")(error)),
        };
        if has > size {
            return Err(DiskError::Shrink {
                worker: worker.clone(),
                has: format_size(has),
                wanted: format_size(size),
                path,
            });
        }
        if has < size {
            let file = OpenOptions::new().write(true).open(&path);
            file.and_then(|file| file.set_len(size))
                .map_err(failed("enlarge"))?;
        }
        Ok(path)
    }

    fn make_directory(&self) -> Result<(), DiskError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        made.map_err(|source| DiskError::File {
            what: "make",
            path: self.directory.clone(),
            source,
        })
    }

    /// All disks, by worker and name.
    pub(crate) fn all(&self) -> Result<Vec<DiskUse>, DiskError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::File { what, path, source }
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.directory)(error)),
        };
        let mut disks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &self.directory))?;
            let Some((worker, name)) = entry.file_name().to_str().and_then(parse_name) else {
                continue;
            };
            let path = entry.path();
            let found = entry.metadata().map_err(failed("look at", &path))?;
            disks.push(DiskUse {
                worker,
                name,
                // stat(2) counts in units of 512 bytes, whatever the file system's blocks are.
                used: found.blocks().saturating_mul(512),
                limit: found.len(),
                path,
            });
        }
        disks.sort_by(|a, b| (&a.worker, &a.name).cmp(&(&b.worker, &b.name)));
        Ok(disks)
    }

    /// Empties all disks of a worker; what they took on the host before.
    pub(crate) fn reset(&self, worker: &WorkerName) -> Result<Vec<DiskUse>, DiskError> {
        let all = self.all()?;
        let disks: Vec<DiskUse> = all
            .iter()
            .filter(|d| d.worker == *worker)
            .cloned()
            .collect();
        if disks.is_empty() {
            let mut known: Vec<&str> = all.iter().map(|disk| disk.worker.as_str()).collect();
            known.dedup();
            return Err(DiskError::None {
                worker: worker.clone(),
                directory: self.directory.clone(),
                known: match known.is_empty() {
                    true => String::from("no worker of this project has one"),
                    false => format!("there are disks of {}", known.join(", ")),
                },
            });
        }
        // All are locked before the first is emptied.
        let locks = disks
            .iter()
            .map(lock)
            .collect::<Result<Vec<File>, DiskError>>()?;
        for disk in &disks {
            make::make(&disk.path, disk.limit)?;
        }
        drop(locks);
        Ok(disks)
    }
}

/// The program that makes disks.
#[cfg(feature = "cli")]
pub(crate) fn mke2fs() -> Option<PathBuf> {
    make::tool("mke2fs")
}

fn lock(disk: &DiskUse) -> Result<File, DiskError> {
    let failed = |source| DiskError::File {
        what: "lock",
        path: disk.path.clone(),
        source,
    };
    let file = File::options().read(true).write(true).open(&disk.path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::Busy {
            path: disk.path.clone(),
            worker: disk.worker.clone(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A worker's name holds no dot, which is what parts the two.
fn file_name(worker: &WorkerName, name: Option<&str>) -> String {
    match name {
        None => format!("{worker}{SUFFIX}"),
        Some(name) => format!("{worker}.{name}{SUFFIX}"),
    }
}

fn parse_name(file: &str) -> Option<(WorkerName, Option<String>)> {
    let stem = file.strip_suffix(SUFFIX)?;
    let (worker, name) = match stem.split_once('.') {
        Some((worker, name)) => (worker, Some(name.to_owned())),
        None => (stem, None),
    };
    Some((WorkerName::new(worker).ok()?, name))
}

/// Whether a disk of a worker may have this name: it becomes part of a file's name and of the serial
/// number by which the guest finds the disk.
pub(crate) fn is_disk_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=15).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    const SIZE: u64 = 64 << 20;

    fn worker(name: &str) -> WorkerName {
        WorkerName::new(name).unwrap()
    }

    fn is_clean(path: &Path) -> bool {
        let mut check = Command::new(make::tool("e2fsck").unwrap());
        check
            .arg("-fn")
            .arg(path)
            .output()
            .unwrap()
            .status
            .success()
    }

    #[test]
    fn a_disk_is_made_once_sparse_and_private() {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        assert_eq!(store.all().unwrap(), []);
        let path = store.provide(&worker("web"), None, SIZE).unwrap();
        assert_eq!(path, state.path().join("disks/web.ext4"));
        assert!(is_clean(&path));
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        assert_eq!(made.len(), SIZE);
        assert!(made.blocks() * 512 < SIZE / 4, "{} blocks", made.blocks());
        let again = store.provide(&worker("web"), None, SIZE).unwrap();
        assert_eq!(std::fs::metadata(again).unwrap().ino(), made.ino());

        let cache = store.provide(&worker("web"), Some("cache"), SIZE).unwrap();
        let all = store.all().unwrap();
        let names: Vec<Option<&str>> = all.iter().map(|disk| disk.name.as_deref()).collect();
        assert_eq!(names, [None, Some("cache")]);
        assert_eq!(all[1].path, cache);
        assert_eq!(all[1].limit, SIZE);
    }

    #[test]
    fn a_disk_grows_and_does_not_shrink() {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        let path = store.provide(&worker("web"), None, SIZE).unwrap();
        store.provide(&worker("web"), None, 2 * SIZE).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * SIZE);
        let error = store.provide(&worker("web"), None, SIZE).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("from 128MiB to 64MiB: a disk only grows"),
            "{error}"
        );
    }

    #[test]
    fn a_reset_empties_all_disks_unless_one_is_in_use() {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        let error = store.reset(&worker("web")).unwrap_err();
        assert!(
            error.to_string().contains("no worker of this project"),
            "{error}"
        );
        let root = store.provide(&worker("web"), None, SIZE).unwrap();
        let cache = store.provide(&worker("web"), Some("cache"), SIZE).unwrap();
        let other = store.provide(&worker("other"), None, SIZE).unwrap();
        for path in [&root, &cache, &other] {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"used").unwrap();
        }
        let user = OpenOptions::new().read(true).open(&cache).unwrap();
        user.lock().unwrap();
        let error = store.reset(&worker("web")).unwrap_err();
        assert!(
            error.to_string().contains("stop worker web first"),
            "{error}"
        );
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(size(&root), SIZE + 4, "none is emptied");
        drop(user);
        assert_eq!(store.reset(&worker("web")).unwrap().len(), 2);
        assert!(is_clean(&root) && is_clean(&cache));
        assert_eq!(size(&other), SIZE + 4);
        let error = store.reset(&worker("api")).unwrap_err();
        assert!(error.to_string().contains("disks of other, web"), "{error}");
    }

    #[test]
    fn a_disk_that_was_being_made_when_its_maker_was_killed_is_made_again() {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        std::fs::create_dir(state.path().join("disks")).unwrap();
        std::fs::write(state.path().join("disks/web.ext4.new"), "half").unwrap();
        let path = store.provide(&worker("web"), None, SIZE).unwrap();
        assert!(is_clean(&path));
        assert_eq!(store.all().unwrap().len(), 1);
        assert_eq!(
            std::fs::read_dir(state.path().join("disks"))
                .unwrap()
                .count(),
            1
        );
    }
}
