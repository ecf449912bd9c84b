//! Directories and mounts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

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
    /// Mounts it on a path of the root that is in force, made with all that leads to it where it
    /// is missing.
    pub fn mount_made(&self, target: &Path) -> Result<(), FilesystemError> {
        match self.mount(target) {
            Err(FilesystemError::Mount {
                errno: Errno::ENOENT,
                ..
            }) => {
                make_directories(target)?;
                self.mount(target)
            }
            result => result,
        }
    }

    /// Mounts it on a path of the root that is in force.
    pub fn mount(&self, target: &Path) -> Result<(), FilesystemError> {
        mount(
            Some(self.source),
            target,
            Some(self.kind),
            self.flags,
            Some(self.options),
        )
        .map_err(|errno| FilesystemError::Mount {
            what: format!("{} {:?}", self.kind, self.source),
            target: target.to_owned(),
            errno,
            hint: hint(self.kind, errno),
        })
    }
}

fn hint(kind: &str, errno: Errno) -> &'static str {
    match (kind, errno) {
        ("virtiofs", Errno::EINVAL | Errno::ENOENT) => " (no export of this tag)",
        ("erofs", Errno::ENOENT) => " (the boot medium lacks it)",
        // A file is mounted without a block device only where its pages can be read: not on tmpfs.
        ("erofs", Errno::ENOTBLK) => " (the kernel was started without rootfstype=ramfs)",
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

/// Makes a directory of the root that is in force with all that leads to it. Symlinks on the way
/// are followed, as they are when something is mounted there.
fn make_directories(path: &Path) -> Result<(), FilesystemError> {
    let failed = |errno| FilesystemError::Directory {
        path: path.to_owned(),
        errno,
    };
    let mut walked = PathBuf::new();
    for component in path.components() {
        walked.push(component);
        match nix::unistd::mkdir(&walked, Mode::from_bits_truncate(0o755)) {
            // What is there and no directory shows at the next component, or at the mount.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
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
    fn directories_are_made_with_all_that_leads_to_them_and_over_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("var")).unwrap();
        std::fs::create_dir_all(at("run")).unwrap();
        std::os::unix::fs::symlink(at("run"), at("var/run")).unwrap();
        make_directories(&at("var/run/a/b")).unwrap();
        assert!(at("run/a/b").is_dir());
        make_directories(&at("var/run/a/b")).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = make_directories(&dir.path().join("file/sub")).unwrap_err();
        assert!(error.to_string().contains("/file/sub\""), "{error}");
    }
}
