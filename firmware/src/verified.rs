//! Digests remembered, so that a file of 21 MB is not hashed at each start.
//!
//! A start must not cost the 15 to 100 ms that hashing libkrunfw takes. So the digest of a file is
//! kept together with what the kernel says of the file: device, inode, size, and the times of the
//! last change of content and of metadata. A write, a rename over it, a truncate and even a
//! `touch` that sets the old time back all change at least one of these (the change time cannot be
//! set), and then the file is hashed again. Who can write the remembered digests, which lie in the
//! user's own cache, could as well replace the program that reads them.

use std::fs::{self, File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::install::{InstallError, write_atomically};

/// What identifies the content of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    stamp: Stamp,
    sha256: Digest,
}

/// The remembered digests.
#[derive(Clone, Debug)]
pub(crate) struct VerifiedFiles {
    dir: PathBuf,
}

impl VerifiedFiles {
    pub(crate) fn in_cache(cache_dir: &Path) -> Self {
        Self {
            dir: cache_dir.join("verified"),
        }
    }

    /// The digest of the file at `path`: remembered, or computed and then remembered.
    pub(crate) fn digest_of(&self, path: &Path) -> Result<Digest, InstallError> {
        let record = self.record(path);
        let metadata =
            fs::metadata(path).map_err(|error| InstallError::new("read", path, error))?;
        let stamp = Stamp::of(&metadata);
        // A record that is missing, unreadable or of another format only costs a hash.
        let known = fs::read(&record)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
            .filter(|known| known.path == path && known.stamp == stamp);
        if let Some(known) = known {
            return Ok(known.sha256);
        }
        let (sha256, stamp) = hash_stable(path)?;
        let remembered = Remembered {
            path: path.to_owned(),
            stamp,
            sha256,
        };
        write_json(&record, &remembered)?;
        Ok(sha256)
    }

    fn record(&self, path: &Path) -> PathBuf {
        let name = Digest::of(path.as_os_str().as_encoded_bytes()).to_string();
        self.dir.join(format!("{}.json", &name[..32]))
    }
}

/// The digest of a file that did not change meanwhile, with its stamp.
pub(crate) fn hash_stable(path: &Path) -> Result<(Digest, Stamp), InstallError> {
    let fault = |error| InstallError::new("read", path, error);
    let file = File::open(path).map_err(fault)?;
    let before = Stamp::of(&file.metadata().map_err(fault)?);
    let digest = Digest::of_reader(&file).map_err(fault)?;
    let after = Stamp::of(&file.metadata().map_err(fault)?);
    if before != after {
        return Err(fault(std::io::Error::other("it changed while it was read")));
    }
    Ok((digest, after))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), InstallError> {
    write_atomically(path, 0o644, |file| {
        serde_json::to_vec(value)
            .map_err(std::io::Error::from)
            .and_then(|bytes| file.write_all(&bytes))
            .map_err(|error| InstallError::new("write", path, error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(store: &VerifiedFiles) -> Vec<PathBuf> {
        fs::read_dir(&store.dir)
            .expect("lists")
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, store) = (dir.path().join("file"), VerifiedFiles::in_cache(dir.path()));
        fs::write(&path, b"content").expect("written");
        assert_eq!(
            store.digest_of(&path).expect("hashed"),
            Digest::of(b"content")
        );
        // A record that lies shows that the second answer comes from it.
        let record = records(&store).pop().expect("one record");
        let text = fs::read_to_string(&record).expect("reads");
        let lie = Digest::of(b"lie");
        fs::write(
            &record,
            text.replace(&Digest::of(b"content").to_string(), &lie.to_string()),
        )
        .expect("written");
        assert_eq!(store.digest_of(&path).expect("remembered"), lie);
    }

    #[test]
    fn a_change_is_noticed_even_when_size_and_time_are_put_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, store) = (dir.path().join("file"), VerifiedFiles::in_cache(dir.path()));
        fs::write(&path, b"content").expect("written");
        let time = fs::metadata(&path)
            .expect("there")
            .modified()
            .expect("has a time");
        store.digest_of(&path).expect("hashed");

        let before = Stamp::of(&fs::metadata(&path).expect("there"));
        // The clock of file times ticks every few milliseconds: write until it has.
        loop {
            fs::write(&path, b"CONTENT").expect("written");
            let file = File::options().write(true).open(&path).expect("opens");
            file.set_modified(time).expect("set back");
            let now = Stamp::of(&fs::metadata(&path).expect("there"));
            assert_eq!((now.size, now.modified), (before.size, before.modified));
            if now.changed != before.changed {
                break;
            }
        }
        assert_eq!(
            store.digest_of(&path).expect("hashed"),
            Digest::of(b"CONTENT")
        );
        assert_eq!(records(&store).len(), 1);
    }

    #[test]
    fn a_broken_record_only_costs_a_hash() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, store) = (dir.path().join("file"), VerifiedFiles::in_cache(dir.path()));
        fs::write(&path, b"content").expect("written");
        store.digest_of(&path).expect("hashed");
        for broken in [&b""[..], b"{}", b"\xff\xff", b"{\"path\":1}"] {
            fs::write(records(&store).pop().expect("one"), broken).expect("written");
            assert_eq!(
                store.digest_of(&path).expect("hashed"),
                Digest::of(b"content")
            );
        }
    }
}
