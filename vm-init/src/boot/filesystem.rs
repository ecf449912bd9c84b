//! Directories and mounts below a root that is not ours yet: every path is resolved inside it, so
//! that an absolute symlink in an image (`/var/run → /run`) never leads out of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};

/// Why a file system cannot be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// The mount point cannot be made.
    #[error("failed to make directory {path:?} in the guest: {errno}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The kernel refuses the mount.
    #[error("failed to mount {what} on {target:?}: {errno}{hint}")]
    Mount {
        /// Its type and source.
        what: String,
        /// Where.
        target: PathBuf,
        /// Why.
        errno: Errno,
        /// What may be behind it.
        hint: &'static str,
    },
}

/// A file system to be mounted.
#[derive(Clone, Copy, Debug)]
pub struct Filesystem<'a> {
    /// Its type.
    pub kind: &'a str,
    /// Device, tag or directory.
    pub source: &'a str,
    /// Flags.
    pub flags: MsFlags,
    /// Options.
    pub options: &'a str,
}

impl Filesystem<'_> {
    /// Mounts it on a path of the root that is in force.
    pub fn mount(&self, target: &Path) -> Result<(), FilesystemError> {
        self.mount_named(target, target)
    }

    fn mount_named(&self, target: &Path, shown: &Path) -> Result<(), FilesystemError> {
        mount(
            Some(self.source),
            target,
            Some(self.kind),
            self.flags,
            Some(self.options),
        )
        .map_err(|errno| FilesystemError::Mount {
            what: format!("{} {:?}", self.kind, self.source),
            target: shown.to_owned(),
            errno,
            hint: hint(self.kind, errno),
        })
    }
}

fn hint(kind: &str, errno: Errno) -> &'static str {
    match (kind, errno) {
        ("virtiofs", Errno::EINVAL | Errno::ENOENT) => " (no export of this tag)",
        (_, Errno::ENODEV) => " (the kernel does not know this file system)",
        _ => "",
    }
}

/// Makes a directory of the root that is in force, unless it is there. On a read-only medium a
/// missing one shows when it is mounted on.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), FilesystemError> {
    match nix::unistd::mkdir(path, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => Ok(()),
        Err(errno) => Err(FilesystemError::Directory {
            path: path.to_owned(),
            errno,
        }),
    }
}

/// A root under construction.
#[derive(Debug)]
pub struct NewRoot {
    directory: OwnedFd,
}

impl NewRoot {
    /// Opens the mounted root at `path`.
    pub fn open(path: &Path) -> Result<Self, FilesystemError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory =
            open(path, flags, Mode::empty()).map_err(|errno| FilesystemError::Directory {
                path: path.to_owned(),
                errno,
            })?;
        Ok(Self { directory })
    }

    /// The directory at `path`, made with its parents where it is missing.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, FilesystemError> {
        self.resolve(path)
            .or_else(|errno| match errno {
                Errno::ENOENT => self.make(path),
                errno => Err(errno),
            })
            .map_err(|errno| FilesystemError::Directory {
                path: path.to_owned(),
                errno,
            })
    }

    fn make(&self, path: &Path) -> nix::Result<OwnedFd> {
        let mut walked = PathBuf::from("/");
        let mut parent = self.resolve(&walked)?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            walked.push(name);
            parent = match self.resolve(&walked) {
                Err(Errno::ENOENT) => {
                    mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o755))?;
                    self.resolve(&walked)?
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(self.directory.as_fd(), path, how)
    }

    /// Mounts a file system on `path`.
    pub fn mount(&self, what: &Filesystem<'_>, path: &str) -> Result<(), FilesystemError> {
        let path = Path::new(path);
        let target = self.directory(path)?;
        what.mount_named(&by_descriptor(&target), path)
    }

    /// Shows the directory `source` of the root in force on `path`, with its mount's flags.
    pub fn bind(&self, source: &str, path: &str) -> Result<(), FilesystemError> {
        let bind = Filesystem {
            kind: "none",
            source,
            flags: MsFlags::MS_BIND,
            options: "",
        };
        self.mount(&bind, path)
    }
}

/// Makes the file system at `path` read-only, on all its mounts.
pub fn remount_read_only(path: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

/// A path to what the descriptor is open on; needs `/proc`.
pub fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_inside_the_root_even_over_absolute_symlinks() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("var")).unwrap();
        std::fs::create_dir_all(inner.join("run")).unwrap();
        std::os::unix::fs::symlink("/run", inner.join("var/run")).unwrap();
        std::os::unix::fs::symlink("../../..", inner.join("up")).unwrap();
        let root = NewRoot::open(&inner).unwrap();
        root.directory(Path::new("/var/run/a/b")).unwrap();
        assert!(inner.join("run/a/b").is_dir());
        root.directory(Path::new("/up/c")).unwrap();
        assert!(inner.join("c").is_dir());
        root.directory(Path::new("/../d")).unwrap();
        assert!(inner.join("d").is_dir());
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let root = NewRoot::open(dir.path()).unwrap();
        let error = root.directory(Path::new("/file/sub")).unwrap_err();
        assert!(error.to_string().contains("\"/file/sub\""), "{error}");
    }
}
