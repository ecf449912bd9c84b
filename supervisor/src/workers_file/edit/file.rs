//! Replaces a file as a whole: at any instant, also of a crash, there is the old one or the new.
//!
//! The new text goes into a file of its own beside the old one, to the disk, and then takes the old
//! one's name. Before that, what is there is compared with what was read, so that an editor's save
//! in the meantime is not overwritten. Other processes of ours wait for the [`EditLock`].

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::super::MAX_FILE;
use crate::state::{EditLock, StateError};

/// An edit takes milliseconds. This is for a crowd of them on a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a file was not replaced. But for [`Self::Unsafe`] it is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditFileError {
    /// The lock cannot be had.
    #[error(transparent)]
    Lock(#[from] StateError),
    /// It cannot be found or read.
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: Error },
    /// The directory that it is to be in is not there.
    #[error(
        "failed to find directory {}, in which {} is to be; make it first (mkdir -p)",
        directory.display(), path.display()
    )]
    Directory { directory: PathBuf, path: PathBuf },
    /// It is of a kind that is not replaced.
    #[error("failed to edit {}: it {what}", path.display())]
    Kind { path: PathBuf, what: &'static str },
    /// The new one cannot be written, or cannot take the old one's place.
    #[error("failed to {what} {}: {source}; {} is unchanged", path.display(), target.display())]
    Write {
        what: &'static str,
        path: PathBuf,
        target: PathBuf,
        source: Error,
    },
    /// The new one is there, and may be gone again after a crash of the host.
    #[error(
        "failed to bring the new {} to the disk: {source}; it is there, but a crash of the host \
         may bring the old one back",
        path.display()
    )]
    Unsafe { path: PathBuf, source: Error },
}

impl EditFileError {
    /// Whether the user named something that cannot be edited at all.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Lock(StateError::Editing { .. }) => false,
            Self::Lock(_) | Self::Read { .. } | Self::Directory { .. } | Self::Kind { .. } => true,
            Self::Write { .. } | Self::Unsafe { .. } => false,
        }
    }
}

/// A file that nobody else of us edits meanwhile.
#[derive(Debug)]
pub(crate) struct EditFile {
    /// Behind all symbolic links.
    target: PathBuf,
    /// Where the target is.
    directory: PathBuf,
    _lock: EditLock,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Original {
    /// Empty if there is no file.
    pub(crate) text: String,
    stat: Option<Stat>,
}

impl Original {
    pub(crate) fn exists(&self) -> bool {
        self.stat.is_some()
    }
}

/// What a file is known by, and what its successor must have too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    device: u64,
    inode: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    Done,
    /// Somebody else has changed the file meanwhile: it is to be read again.
    Raced,
}

/// The file's real path: behind all symbolic links, whether or not it is there yet.
pub(crate) fn real_path(path: &Path) -> Result<PathBuf, EditFileError> {
    let fail = |source| EditFileError::Read {
        path: path.to_owned(),
        source,
    };
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if path.is_symlink() {
                return Err(EditFileError::Kind {
                    path: path.to_owned(),
                    what: "is a symbolic link that leads nowhere: correct the link",
                });
            }
            let name = path.file_name().ok_or_else(|| fail(error))?;
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                Some(_) | None => Path::new("."),
            };
            let real = parent.canonicalize().map_err(|error| match error.kind() {
                ErrorKind::NotFound => EditFileError::Directory {
                    directory: parent.to_owned(),
                    path: path.to_owned(),
                },
                _ => fail(error),
            });
            Ok(real?.join(name))
        }
        Err(error) => Err(fail(error)),
    }
}

impl EditFile {
    /// Waits until nobody else of us edits the file. `path` is a [`real_path`], `state` its
    /// project's directory.
    pub(crate) fn lock(path: &Path, state: &Path) -> Result<Self, EditFileError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let file = Self {
            target: path.to_owned(),
            directory: directory.to_owned(),
            _lock: EditLock::take(state, PATIENCE)?,
        };
        file.sweep();
        Ok(file)
    }

    /// What is there.
    pub(crate) fn read(&self) -> Result<Original, EditFileError> {
        Self::look(&self.target)
    }

    /// What is at a [`real_path`], without the lock.
    pub(crate) fn look(target: &Path) -> Result<Original, EditFileError> {
        let fail = |source| EditFileError::Read {
            path: target.to_owned(),
            source,
        };
        let kind = |what| EditFileError::Kind {
            path: target.to_owned(),
            what,
        };
        let (bytes, stat, links) = match read(target) {
            Ok(Some(read)) => read,
            Ok(None) => {
                return Ok(Original {
                    text: String::new(),
                    stat: None,
                });
            }
            Err(source) => return Err(fail(source)),
        };
        if links > 1 {
            return Err(kind(
                "has several names (hard links), of which replacing it would change one only: \
                 edit it by hand",
            ));
        }
        let text = String::from_utf8(bytes).map_err(|_| kind("is not UTF-8"))?;
        Ok(Original {
            text,
            stat: Some(stat),
        })
    }

    /// Puts `text` in the place of what was read.
    pub(crate) fn replace(
        &self,
        original: &Original,
        text: &str,
    ) -> Result<Replaced, EditFileError> {
        self.replace_on(&HostDisk, original, text)
    }

    fn replace_on(
        &self,
        disk: &dyn Disk,
        original: &Original,
        text: &str,
    ) -> Result<Replaced, EditFileError> {
        let new = self.temporary(std::process::id());
        let fail = |what, path: &Path| {
            let (path, target) = (path.to_owned(), self.target.clone());
            move |source| EditFileError::Write {
                what,
                path,
                target,
                source,
            }
        };
        let written = self
            .write(disk, &new, original.stat, text)
            .map_err(fail("write", &new));
        let replaced = written.and_then(|()| {
            if !self
                .is_as_it_was(original)
                .map_err(fail("read", &self.target))?
            {
                return Ok(Replaced::Raced);
            }
            let result = match original.stat {
                Some(_) => disk.rename(&new, &self.target),
                None => disk.rename_new(&new, &self.target),
            };
            match result {
                Ok(()) => Ok(Replaced::Done),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Replaced::Raced),
                Err(error) => Err(fail("replace", &self.target)(error)),
            }
        });
        match replaced {
            Ok(Replaced::Done) => {
                disk.sync_directory(&self.directory)
                    .map_err(|source| EditFileError::Unsafe {
                        path: self.target.clone(),
                        source,
                    })?;
            }
            // It may be what keeps the disk full.
            Ok(Replaced::Raced) | Err(_) => disk.remove(&new),
        }
        replaced
    }

    fn write(
        &self,
        disk: &dyn Disk,
        new: &Path,
        like: Option<Stat>,
        text: &str,
    ) -> Result<(), Error> {
        // Readable by nobody else until it has its owner.
        let mode = if like.is_some() { 0o600 } else { 0o666 };
        let mut file = disk.create(new, mode)?;
        disk.write(&mut file, text.as_bytes())?;
        if let Some(like) = like {
            disk.dress(&file, like)?;
        }
        disk.sync(&file)
    }

    fn is_as_it_was(&self, original: &Original) -> Result<bool, Error> {
        Ok(match (read(&self.target)?, original.stat) {
            (None, None) => true,
            (Some((bytes, stat, _)), Some(was)) => stat == was && bytes == original.text.as_bytes(),
            (Some(_), None) | (None, Some(_)) => false,
        })
    }

    fn temporary(&self, pid: u32) -> PathBuf {
        self.directory
            .join(format!("{}{pid}{SUFFIX}", self.prefix()))
    }

    fn prefix(&self) -> String {
        let name = self.target.file_name().unwrap_or_default();
        format!(".{}.", name.to_string_lossy())
    }

    /// Removes what edits that were killed have left beside the file.
    fn sweep(&self) {
        let prefix = self.prefix();
        // What cannot be looked at now is looked at by the next edit.
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(SUFFIX))
                .and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid == std::process::id() || !is_alive(pid))
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::debug!(path = %entry.path().display(), %error, "a stale file stays");
            }
        }
    }
}

const SUFFIX: &str = ".iii-new";

fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else {
        return false;
    };
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// The file's bytes, what it is known by, and how many names it has; `None`: there is none.
fn read(path: &Path) -> Result<Option<(Vec<u8>, Stat, u64)>, Error> {
    // O_NONBLOCK: a pipe of that name must not keep us waiting for a writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::other(
            "it is larger than 1 MiB, so it is hardly a workers file",
        ));
    }
    let stat = Stat {
        device: meta.dev(),
        inode: meta.ino(),
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
    };
    Ok(Some((bytes, stat, meta.nlink())))
}

/// The steps of a replacement that can fail or be the last before a crash.
trait Disk {
    fn create(&self, path: &Path, mode: u32) -> Result<File, Error>;
    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<(), Error>;
    /// Gives the file another's owner, group and mode.
    fn dress(&self, file: &File, like: Stat) -> Result<(), Error>;
    fn sync(&self, file: &File) -> Result<(), Error>;
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error>;
    /// The same, where nothing may be there yet.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), Error>;
    fn sync_directory(&self, path: &Path) -> Result<(), Error>;
    fn remove(&self, path: &Path);
}

#[derive(Debug)]
struct HostDisk;

impl Disk for HostDisk {
    fn create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<(), Error> {
        file.write_all(bytes)
    }

    fn dress(&self, file: &File, like: Stat) -> Result<(), Error> {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (like.uid, like.gid) {
            fchown(file, Some(like.uid), Some(like.gid)).map_err(|error| {
                let (uid, gid) = (like.uid, like.gid);
                let what = format!("its owner {uid}:{gid} cannot be kept: {error}");
                Error::new(error.kind(), what)
            })?;
        }
        file.set_permissions(PermissionsExt::from_mode(like.mode & 0o7777))
    }

    fn sync(&self, file: &File) -> Result<(), Error> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        std::fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), Error> {
        // A link, unlike a rename, never takes another's name.
        match std::fs::hard_link(from, to) {
            Ok(()) => std::fs::remove_file(from),
            // A file system without links, as FAT: that nothing is there was seen just now.
            Err(error) if Errno::from_raw(error.raw_os_error().unwrap_or(0)) == Errno::EPERM => {
                std::fs::rename(from, to)
            }
            Err(error) => Err(error),
        }
    }

    fn sync_directory(&self, path: &Path) -> Result<(), Error> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "failed to remove a temporary file");
            }
        }
    }
}

#[cfg(test)]
mod tests;
