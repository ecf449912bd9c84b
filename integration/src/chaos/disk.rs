//! A disk of its own for the state directory, small enough to be filled.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted tmpfs; unmounted when dropped.
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount: a disk cannot be filled then without filling that of
    /// others.
    pub fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("the host has room for a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "iii-chaos"])
            .arg(directory.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self { directory })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Takes all the room that there is.
    pub fn fill(&self) {
        let mut ballast = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("a directory entry takes no room");
        let page = [0; 4096];
        loop {
            match ballast.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("failed to fill the disk: {error}"),
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        File::create(self.ballast()).expect("the file is there");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is left mounted would be left behind; the directory's own drop cannot tell.
        let unmounted = Command::new("umount").arg(self.path()).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "failed to unmount {}",
            self.path().display()
        );
    }
}
