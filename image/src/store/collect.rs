//! Taking away what no name stands for any more, and never what a worker runs on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::lock::{self, Held};
use super::{ImageStore, Record, StoreError};
use crate::oci::Reference;

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files.
    pub files: u64,
    /// Bytes of disk that they had.
    pub bytes: u64,
    /// Roots that stay although no name stands for them, because workers run on them.
    pub in_use: u64,
}

/// Why a name cannot be taken away.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error(
        "failed to remove the image {0}: there is none of that name; `iii-super image ls` shows all"
    )]
    Unknown(String),
    /// A worker runs on it.
    #[error("failed to remove the image {0}: a worker runs on it; stop the worker first")]
    InUse(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImageStore {
    /// Whether a worker runs on the image.
    pub fn is_in_use(&self, record: &Record) -> Result<bool, StoreError> {
        let path = self.root_path(&record.root);
        lock::is_in_use(&path).map_err(|error| StoreError::file("look at", &path, error))
    }

    /// Takes a name away, and what only it stood for.
    pub fn remove(&self, reference: &Reference) -> Result<Collected, RemoveError> {
        let _alone = self.alone()?;
        let records = self.records()?;
        let Some(record) = records.iter().find(|record| record.reference == *reference) else {
            return Err(RemoveError::Unknown(reference.familiar()));
        };
        let others = || records.iter().filter(|other| other.reference != *reference);
        if others().all(|other| other.root != record.root) && self.is_in_use(record)? {
            return Err(RemoveError::InUse(reference.familiar()));
        }
        // The name first: files without one are taken away later, names without files are wrong.
        self.change(|index| index.records.retain(|known| known.reference != *reference))?;
        let mut collected = Collected::default();
        if others().all(|other| other.root != record.root) {
            self.take_away(self.root_path(&record.root), &mut collected)?;
        }
        for blob in &record.blobs {
            if others().all(|other| !other.blobs.contains(blob)) {
                self.take_away(self.blob_path(blob), &mut collected)?;
            }
        }
        Ok(collected)
    }

    /// Takes away all files that no name stands for, unfinished downloads included.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let _alone = self.alone()?;
        let records = self.records()?;
        let mut named: BTreeSet<PathBuf> = BTreeSet::new();
        for record in &records {
            named.insert(self.root_path(&record.root));
            named.extend(record.blobs.iter().map(|blob| self.blob_path(blob)));
        }
        let mut collected = Collected::default();
        for directory in ["blobs", "partial", "roots"] {
            let directory = self.directory.join(directory);
            let fault = |error| StoreError::file("list", &directory, error);
            for entry in fs::read_dir(&directory).map_err(fault)? {
                let path = entry.map_err(fault)?.path();
                if !named.contains(&path) {
                    self.take_away(path, &mut collected)?;
                }
            }
        }
        Ok(collected)
    }

    /// Nobody else is about to use what is taken away.
    fn alone(&self) -> Result<Held, StoreError> {
        Held::try_exclusive(&self.directory.join("lock"))?.ok_or(StoreError::Busy)
    }

    fn take_away(&self, path: PathBuf, collected: &mut Collected) -> Result<(), StoreError> {
        let fault = |error| StoreError::file("take away", &path, error);
        if lock::is_in_use(&path).map_err(fault)? {
            collected.in_use += 1;
            return Ok(());
        }
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fault(error)),
        };
        fs::remove_file(&path).map_err(fault)?;
        collected.files += 1;
        collected.bytes += found.blocks() * 512;
        Ok(())
    }
}
