//! Programs that travel inside an executable, laid where they can be executed:
//! `~/.iii/cache/programs/<SHA-256>/<name>`.
//!
//! A file rather than a memfd: see docs/architecture.md, "One file". What is executed is what was
//! built in, whoever has written to the cache meanwhile:
//! * a program is hashed whole at its first use in the life of a process, and afterwards whenever
//!   what the kernel says of the file ([`Stamp`]) is not the same; no record on the disk is believed;
//! * one that is not as it should be (its content, its mode, a link in its place) is made anew;
//! * nobody but this user and root may write where it lies, or it is not used at all.
//!
//! Who can write as this user after that could as well replace the program that reads this.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::digest::Digest;
use crate::embedded::Embedded;
use crate::install::{InstallError, Lock, make_dir, remove_unfinished, write_atomically};
use crate::verified::Stamp;

/// Of a program: for everybody to execute, since a helper may run as another user.
const PROGRAM_MODE: u32 = 0o755;
/// Of a directory of programs.
const DIRECTORY_MODE: u32 = 0o755;
/// What others must not have of it.
const WRITABLE_FOR_OTHERS: u32 = 0o022;

/// A program cannot be laid where it can be executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// A file could not be read or written.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Somebody else could replace the programs.
    #[error(
        "failed to use {} for programs: it belongs to user {owner}, who could replace them; set \
         III_HOME to a directory of your own",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// Nothing can be executed there.
    #[error(
        "failed to use {}: its file system is mounted noexec; set III_HOME to a directory on \
         another one, or install the helpers beside iii-super",
        path.display()
    )]
    NotExecutable {
        /// The program.
        path: PathBuf,
    },
}

/// The programs of this user's cache.
#[derive(Debug)]
pub struct Programs {
    directory: PathBuf,
    /// What was hashed, and found right.
    sound: Mutex<HashMap<PathBuf, Stamp>>,
}

impl Programs {
    /// In the cache of a home ([`crate::home::IiiHome::cache_dir`]).
    pub fn in_cache(cache_dir: &Path) -> Self {
        Self {
            directory: cache_dir.join("programs"),
            sound: Mutex::default(),
        }
    }

    /// Where a program is, once it is laid.
    pub fn place(&self, program: &Embedded) -> PathBuf {
        self.directory_of(program).join(program.name)
    }

    fn directory_of(&self, program: &Embedded) -> PathBuf {
        self.directory.join(program.sha256.to_string())
    }

    /// Makes sure that a program is there, unchanged, and can be executed. Any number of processes
    /// may do so at once.
    ///
    /// # Errors
    /// [`ProgramError`] says what to do.
    pub fn lay(&self, program: &Embedded) -> Result<PathBuf, ProgramError> {
        let (directory, path) = (self.directory_of(program), self.place(program));
        if is_ours(&self.directory)? && is_ours(&directory)? && self.is_sound(program, &path)? {
            return Ok(path);
        }
        if let Some(cache) = self.directory.parent() {
            make_dir(cache)?;
        }
        for directory in [&self.directory, &directory] {
            make_ours(directory)?;
        }
        let _lock = Lock::take(&self.directory.join(".lock"), &())?;
        // Another process may have made it meanwhile.
        if self.is_sound(program, &path)? {
            return Ok(path);
        }
        if path.symlink_metadata().is_ok() {
            tracing::warn!(path = %path.display(), "a program was changed; it is made anew");
        }
        remove_unfinished(&directory)?;
        write_atomically(&path, PROGRAM_MODE, |file| {
            program
                .unpack(file)
                .map_err(|error| InstallError::new("unpack", &path, error))
        })?;
        if self.is_sound(program, &path)? {
            Ok(path)
        } else {
            let changed = io::Error::other("it was changed while it was made");
            Err(InstallError::new("unpack", &path, changed).into())
        }
    }

    /// Whether the file at `path` is the program. Hashes it unless it is known to be.
    fn is_sound(&self, program: &Embedded, path: &Path) -> Result<bool, ProgramError> {
        let fault = |error| InstallError::new("read", path, error);
        let mut options = File::options();
        // Nothing that stands in its place may be followed, or keep us waiting.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = options.read(true).custom_flags(flags.bits()).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_something_else(&error) => return Ok(false),
            Err(error) => return Err(fault(error).into()),
        };
        let metadata = file.metadata().map_err(fault)?;
        let as_made = metadata.is_file()
            && metadata.len() == program.size
            && metadata.mode() & 0o7777 == PROGRAM_MODE
            && is_trusted(&metadata);
        if !as_made {
            return Ok(false);
        }
        let stamp = Stamp::of(&metadata);
        if self.known().get(path) == Some(&stamp) {
            return Ok(true);
        }
        let digest = Digest::of_reader(&file).map_err(fault)?;
        let after = Stamp::of(&file.metadata().map_err(fault)?);
        if digest != program.sha256 || after != stamp {
            return Ok(false);
        }
        if is_mounted_noexec(path)? {
            let path = path.to_owned();
            return Err(ProgramError::NotExecutable { path });
        }
        self.known().insert(path.to_owned(), stamp);
        Ok(true)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Stamp>> {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not there, or not a file: a link, or a file where a directory should be.
fn is_something_else(error: &io::Error) -> bool {
    let link = error.raw_os_error() == Some(Errno::ELOOP as i32);
    link || matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Root can do as it likes anyway.
fn is_trusted(metadata: &Metadata) -> bool {
    metadata.uid() == geteuid().as_raw() || metadata.uid() == 0
}

/// Whether a directory is there that nobody else can write.
///
/// # Errors
/// It is somebody else's.
fn is_ours(directory: &Path) -> Result<bool, ProgramError> {
    let metadata = match directory.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if is_something_else(&error) => return Ok(false),
        Err(error) => return Err(InstallError::new("read", directory, error).into()),
    };
    if !is_trusted(&metadata) {
        return Err(ProgramError::Foreign {
            path: directory.to_owned(),
            owner: metadata.uid(),
        });
    }
    Ok(metadata.is_dir() && metadata.mode() & WRITABLE_FOR_OTHERS == 0)
}

/// Makes it so.
fn make_ours(directory: &Path) -> Result<(), ProgramError> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        Err(error) => return Err(InstallError::new("make the directory", directory, error).into()),
    }
    if is_ours(directory)? {
        return Ok(());
    }
    // Ours, and too open: a umask that leaves the group everything, or a hand.
    fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
        .map_err(|error| InstallError::new("close to others", directory, error))?;
    if is_ours(directory)? {
        return Ok(());
    }
    let link = io::Error::from(io::ErrorKind::NotADirectory);
    Err(InstallError::new("use the directory", directory, link).into())
}

#[cfg(target_os = "linux")]
fn is_mounted_noexec(path: &Path) -> Result<bool, InstallError> {
    use nix::sys::statvfs::{FsFlags, statvfs};

    let found = statvfs(path).map_err(|error| InstallError::new("read", path, error.into()))?;
    Ok(found.flags().contains(FsFlags::ST_NOEXEC))
}

#[cfg(not(target_os = "linux"))]
fn is_mounted_noexec(_: &Path) -> Result<bool, InstallError> {
    Ok(false)
}

#[cfg(test)]
mod tests;
