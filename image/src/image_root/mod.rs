//! `image: NAME`: an image as a guest's root.
//!
//! * [`Image`] is one that is on this host, and how it wants to be run;
//! * [`accounts`] finds users in the image's own `/etc/passwd`;
//! * [`command`] finds out, before a VM is started, whether the image has a worker's command.

pub mod accounts;
pub mod command;

use std::fs::File;

use crate::erofs::read::{FileKind, Image as Files, Lookup, ReadError};
use crate::oci::RunConfig;
use crate::store::Record;

pub use accounts::{Account, AccountError};
pub use command::{ImageCommandError, ImageCommandLookup};

/// Most bytes of `/etc/passwd` or `/etc/group`: vm-init reads no more either.
const MAX_ACCOUNTS: u64 = 8 << 20;

/// An image on this host. While it, or a duplicate of its file, is open, nothing takes the file
/// away.
#[derive(Debug)]
pub struct Image {
    record: Record,
    run: RunConfig,
    root: File,
}

impl Image {
    pub(crate) fn new(record: Record, run: RunConfig, root: File) -> Self {
        Self { record, run, root }
    }

    /// Its name and digests.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How it wants to be run.
    pub fn run(&self) -> &RunConfig {
        &self.run
    }

    /// The EROFS file system that is its root: what a VM gets as a disk.
    pub fn into_root(self) -> File {
        self.root
    }

    /// Its files.
    pub(crate) fn files(&self) -> Result<Files<&File>, ReadError> {
        Files::open(&self.root)
    }

    /// A user of the image: `name`, `uid`, `name:group` or `uid:gid`.
    pub fn account(&self, user: &str) -> Result<Account, AccountError> {
        let files = self.files()?;
        let passwd = text(&files, b"/etc/passwd")?;
        let group = text(&files, b"/etc/group")?;
        accounts::find(&passwd, &group, user)
    }

    /// What an entry point and a command come to: those of the worker where it names them, the
    /// image's else. A worker's own entry point has nothing to do with the image's command.
    pub fn command(&self, entrypoint: Option<&[String]>, command: &[String]) -> Vec<String> {
        let cmd = match (command, entrypoint) {
            ([], None) => &self.run.cmd,
            (own, _) => own,
        };
        entrypoint
            .unwrap_or(&self.run.entrypoint)
            .iter()
            .chain(cmd)
            .cloned()
            .collect()
    }
}

/// A text file; empty if there is none.
fn text(files: &Files<&File>, path: &[u8]) -> Result<String, ReadError> {
    match files.lookup(path)? {
        Lookup::Found(inode) if inode.kind == FileKind::File => {
            let bytes = files.content(&inode, MAX_ACCOUNTS)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Lookup::Found(_) | Lookup::Missing | Lookup::Circle => Ok(String::new()),
    }
}
