//! Images on this host's disk: what was pulled or imported, once for all workers of this user.
//!
//! ```text
//! images/
//!   index.json         what each name stands for                                (index)
//!   blobs/HEX          manifests, configurations and layers as registries have them, verified
//!   partial/HEX        blobs that are being downloaded, or were
//!   roots/HEX.erofs    merged layers, named by the digest of what they are made from
//!   lock, index.lock   between processes                                        (lock)
//!   linux-arm64/       all this once more, for guests of another platform than the host's
//! ```
//!
//! A file has its name only once it is whole and on the disk; the index is replaced as a whole. So
//! a crash at any instant leaves files that are right, and unfinished ones that are continued or
//! taken away by [`collect`].
//!
//! Two locks order processes: `lock` is held shared by whoever is about to use files that it found
//! in the index, and exclusively by whoever takes files away; `index.lock` by whoever changes the
//! index. A root that a worker runs on is locked by its own descriptor, which its VMs inherit: it
//! is never taken away, whatever becomes of the supervisor.

pub mod collect;
mod index;
mod lock;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub use index::{Origin, Record};
pub use lock::Held;
pub(crate) use lock::open_locked;

use crate::oci::{Digest, Platform, Reference};
use index::Index;

/// Part of a root's name: roots of another making are made again.
const ROOT_FORMAT: &str = "iii-erofs-1";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or a directory.
    #[error("failed to {verb} {path}: {source}{hint}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// An index that was not written by this program.
    #[error(
        "failed to read the index of images {path}: {reason}; take the file away, and images are \
         pulled again"
    )]
    Index {
        /// Where.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Somebody else is at it.
    #[error("failed to take images away: another process is using or pulling some; try again")]
    Busy,
}

impl StoreError {
    pub(crate) fn file(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::StorageFull => {
                "; free some space, as with `iii-super image prune`, or set III_HOME to another disk"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; set III_HOME to a directory that this user can write"
            }
            _ => "",
        };
        Self::File {
            verb,
            path: path.display().to_string(),
            source,
            hint,
        }
    }
}

/// The images of one user.
#[derive(Clone, Debug)]
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// The store in this directory, which is made if it is missing.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let directory = directory.into();
        for name in ["blobs", "partial", "roots"] {
            let path = directory.join(name);
            // Images hold what is nobody else's business.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|error| StoreError::file("make", &path, error))?;
        }
        Ok(Self { directory })
    }

    /// The store for guests of this platform in the directory of all images. What a name stands for
    /// is another image on each platform, so those of others than the host's have stores of their
    /// own below it.
    pub fn of_platform(images: &Path, platform: &Platform) -> Result<Self, StoreError> {
        if *platform == Platform::of_host() {
            return Self::open(images);
        }
        Self::open(images.join(format!("{}-{}", platform.os, platform.architecture)))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn at(&self, directory: &str, name: &str) -> PathBuf {
        self.directory.join(directory).join(name)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.at("blobs", &digest.hex())
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.at("partial", &digest.hex())
    }

    pub(crate) fn root_path(&self, root: &Digest) -> PathBuf {
        self.at("roots", &format!("{}.erofs", root.hex()))
    }

    /// Where the file of an image's root is.
    pub fn root_file(&self, record: &Record) -> PathBuf {
        self.root_path(&record.root)
    }

    fn index_path(&self) -> PathBuf {
        self.directory.join("index.json")
    }

    /// Keeps all files from being taken away meanwhile.
    pub fn hold(&self) -> Result<Held, StoreError> {
        Held::shared(&self.directory.join("lock"))
    }

    /// All images, by name.
    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        Ok(Index::read(&self.index_path())?.records)
    }

    /// What a name stands for.
    pub fn record(&self, reference: &Reference) -> Result<Option<Record>, StoreError> {
        let found = |record: &Record| record.reference == *reference;
        Ok(self.records()?.into_iter().find(found))
    }

    /// Enters an image under its name, in place of what has it.
    pub(crate) fn enter(&self, record: Record) -> Result<(), StoreError> {
        self.change(|index| {
            index
                .records
                .retain(|known| known.reference != record.reference);
            index.records.push(record);
            index.records.sort_by(|a, b| a.reference.cmp(&b.reference));
        })
    }

    fn change<T>(&self, how: impl FnOnce(&mut Index) -> T) -> Result<T, StoreError> {
        let _alone = Held::exclusive(&self.directory.join("index.lock"))?;
        let mut index = Index::read(&self.index_path())?;
        let result = how(&mut index);
        index.write(&self.index_path())?;
        Ok(result)
    }

    /// A small blob that is there, checked against its name.
    pub(crate) fn read_blob(
        &self,
        digest: &Digest,
        most: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::file("read", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(most)
            .read_to_end(&mut bytes)
            .map_err(|error| StoreError::file("read", &path, error))?;
        // One that a disk has changed is as good as none.
        Ok((Digest::of(&bytes) == *digest).then_some(bytes))
    }

    /// Keeps a small blob.
    pub(crate) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        write_whole(&self.blob_path(digest), bytes)
    }

    /// The file of a root, locked against being taken away; `None` if it is not there.
    pub(crate) fn open_root(&self, root: &Digest) -> Result<Option<File>, StoreError> {
        let path = self.root_path(root);
        match File::open(&path) {
            Ok(file) => {
                lock::share(&file).map_err(|error| StoreError::file("lock", &path, error))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::file("open", &path, error)),
        }
    }

    /// Makes a root unless it is there. Of several processes that want to, one does.
    pub(crate) fn make_root<E: From<StoreError>>(
        &self,
        root: &Digest,
        make: impl FnOnce(File, &Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.root_path(root);
        let partial = self.at("roots", &format!("{}.partial", root.hex()));
        let fault = |verb, error| StoreError::file(verb, &partial, error);
        let file = open_locked(&partial).map_err(|error| fault("make", error))?;
        if path.exists() {
            // Another process was faster; what was locked is empty.
            fs::remove_file(&partial).map_err(|error| fault("take away", error))?;
            return Ok(());
        }
        file.set_len(0).map_err(|error| fault("write", error))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|error| fault("write", error))?;
        let output = file.try_clone().map_err(|error| fault("write", error))?;
        match make(output, &self.directory.join("roots")) {
            Ok(()) => {}
            Err(error) => {
                // Of no use to anybody: it is made from the start.
                fs::remove_file(&partial).map_err(|error| fault("take away", error))?;
                return Err(error);
            }
        }
        put_in_place(&partial, &path)?;
        Ok(())
    }
}

/// The digest that a root is named by: that of what its layers hold, and how it is made.
pub(crate) fn root_digest(diff_ids: &[Digest]) -> Digest {
    let mut text = format!("{ROOT_FORMAT}\n");
    for digest in diff_ids {
        text += &format!("{digest}\n");
    }
    Digest::of(text.as_bytes())
}

/// Renames, and makes sure that the disk knows.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> Result<(), StoreError> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    fs::rename(from, to)
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| StoreError::file("put in place", to, error))
}

/// Writes a small file that is there as a whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let fault = |error| StoreError::file("write", path, error);
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(parent)
        .map_err(fault)?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(fault)?;
    file.persist(path).map_err(|error| fault(error.error))?;
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(fault)
}

#[cfg(test)]
mod tests;
