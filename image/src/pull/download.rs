//! One blob: fetched into `partial`, from where an earlier try broke off, checked, put in place.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::layers::limits::MAX_CONTENT;
use crate::oci::{Descriptor, Digest};
use crate::registry::{Client, RegistryError};
use crate::store::{self, ImageStore, StoreError};

/// Tries in a row that bring nothing.
const TRIES: u32 = 5;
/// Pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause, also where a registry asks for a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(30);
const BUFFER: usize = 256 << 10;

/// Why a blob is not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It breaks off again and again.
    #[error(
        "failed to fetch {digest}: it broke off {TRIES} times in a row, the last time at byte {at} of {size} ({reason}); what came is kept, and the next try goes on there"
    )]
    Broken {
        /// The blob.
        digest: Digest,
        /// Where.
        at: u64,
        /// Its size.
        size: u64,
        /// Why.
        reason: String,
    },
    /// More than was announced.
    #[error(
        "failed to fetch {digest}: the registry sends more than the {size} bytes that it announced"
    )]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// Something else.
    #[error("failed to fetch {wanted}: what came is {found}; nothing of it was used")]
    Digest {
        /// The blob.
        wanted: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another blob of the image failed.
    #[error("failed to fetch {0}: the pull was given up")]
    Cancelled(Digest),
}

/// Whether to give up.
#[derive(Debug, Default)]
pub(super) struct Cancelled(AtomicBool);

impl Cancelled {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Between whom blobs are moved.
pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client,
    pub(super) store: &'a ImageStore,
    pub(super) cancelled: &'a Cancelled,
    /// Told how many more bytes are there.
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// Asks again where that may help.
pub(super) fn patiently<T>(
    mut ask: impl FnMut() -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut tries = 0;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => match error.again() {
                Some(wait) if tries + 1 < TRIES => {
                    std::thread::sleep(pause(tries, wait));
                    tries += 1;
                }
                Some(_) | None => return Err(error),
            },
        }
    }
}

fn pause(tries: u32, wanted: Option<u64>) -> Duration {
    let own = FIRST_PAUSE.saturating_mul(1 << tries.min(10));
    own.max(Duration::from_secs(wanted.unwrap_or(0)))
        .min(MAX_PAUSE)
}

/// A blob that is being put together.
struct Partial {
    file: File,
    hash: Sha256,
    length: u64,
}

impl Partial {
    /// What an earlier try left, hashed.
    fn resume(mut file: File, size: u64) -> io::Result<Self> {
        let mut hash = Sha256::new();
        if file.metadata()?.len() > size {
            file.set_len(0)?;
        }
        let length = io::copy(&mut file, &mut hash)?;
        Ok(Self { file, hash, length })
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }
}

/// Makes sure that a blob is in the store.
pub(super) fn fetch(transfer: &Transfer<'_>, blob: &Descriptor) -> Result<(), DownloadError> {
    let (digest, size) = (blob.digest, blob.size);
    let target = transfer.store.blob_path(&digest);
    if is_there(&target, size) {
        (transfer.progress)(size);
        return Ok(());
    }
    if size > MAX_CONTENT {
        return Err(DownloadError::TooLarge { digest, size });
    }
    let path = transfer.store.partial_path(&digest);
    let fault = |verb, error| DownloadError::Store(StoreError::file(verb, &path, error));
    let file = store::open_locked(&path).map_err(|error| fault("write", error))?;
    if is_there(&target, size) {
        // Another process was faster; what was locked is empty.
        std::fs::remove_file(&path).map_err(|error| fault("take away", error))?;
        (transfer.progress)(size);
        return Ok(());
    }
    let mut partial = Partial::resume(file, size).map_err(|error| fault("read", error))?;
    let mut resumed = partial.length > 0;
    (transfer.progress)(partial.length);
    loop {
        download(transfer, blob, &mut partial, &fault)?;
        let found = Digest::of_hash(partial.hash.clone());
        if found == digest {
            break;
        }
        // What an earlier process left may have been damaged by a crash of the host.
        if !resumed {
            std::fs::remove_file(&path).map_err(|error| fault("take away", error))?;
            let wanted = digest;
            return Err(DownloadError::Digest { wanted, found });
        }
        resumed = false;
        partial.restart().map_err(|error| fault("write", error))?;
    }
    partial
        .file
        .sync_all()
        .map_err(|error| fault("write", error))?;
    Ok(store::put_in_place(&path, &target)?)
}

/// A blob got its name only once it was whole and right.
fn is_there(path: &std::path::Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == size)
}

/// Fills the partial file up to the blob's size.
fn download(
    transfer: &Transfer<'_>,
    blob: &Descriptor,
    partial: &mut Partial,
    fault: &dyn Fn(&'static str, io::Error) -> DownloadError,
) -> Result<(), DownloadError> {
    let (digest, size) = (blob.digest, blob.size);
    let mut tries = 0;
    while partial.length < size {
        let before = partial.length;
        let reason = match attempt(transfer, blob, partial, fault) {
            Ok(()) => "the connection was closed".to_owned(),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Again { error, wait }) => {
                if partial.length <= before {
                    std::thread::sleep(pause(tries, wait));
                }
                error
            }
        };
        tries = if partial.length > before {
            0
        } else {
            tries + 1
        };
        if partial.length < size && tries >= TRIES {
            return Err(DownloadError::Broken {
                digest,
                at: partial.length,
                size,
                reason,
            });
        }
    }
    Ok(())
}

enum Attempt {
    Again { error: String, wait: Option<u64> },
    Final(DownloadError),
}

fn attempt(
    transfer: &Transfer<'_>,
    blob: &Descriptor,
    partial: &mut Partial,
    fault: &dyn Fn(&'static str, io::Error) -> DownloadError,
) -> Result<(), Attempt> {
    let (digest, size) = (blob.digest, blob.size);
    let body = transfer
        .client
        .blob(&digest, partial.length)
        .map_err(|error| match error.again() {
            Some(wait) => Attempt::Again {
                error: error.to_string(),
                wait,
            },
            None => Attempt::Final(error.into()),
        })?;
    let disk = |error| Attempt::Final(fault("write", error));
    if body.from != partial.length {
        partial.restart().map_err(disk)?;
    }
    let mut reader = body.reader;
    let mut buffer = vec![0; BUFFER];
    loop {
        if transfer.cancelled.is_set() {
            return Err(Attempt::Final(DownloadError::Cancelled(digest)));
        }
        let n = reader.read(&mut buffer).map_err(|error| Attempt::Again {
            error: error.to_string(),
            wait: None,
        })?;
        if n == 0 {
            return Ok(());
        }
        // A layer without an end.
        if partial.length + n as u64 > size {
            partial.restart().map_err(disk)?;
            return Err(Attempt::Final(DownloadError::TooLarge { digest, size }));
        }
        partial.file.write_all(&buffer[..n]).map_err(disk)?;
        partial.hash.update(&buffer[..n]);
        partial.length += n as u64;
        (transfer.progress)(n as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_heed_the_registry() {
        let seconds = |tries, wanted| pause(tries, wanted).as_secs_f64();
        assert_eq!(seconds(0, None), 0.25);
        assert_eq!(seconds(3, Some(0)), 2.0);
        assert_eq!(seconds(0, Some(7)), 7.0);
        assert_eq!(seconds(0, Some(86_400)), 30.0);
        assert_eq!(seconds(u32::MAX, None), 30.0);
    }
}
