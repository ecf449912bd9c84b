//! Fetching libkrunfw: from the release of the project that builds it, else out of the same
//! project's Python wheel by the user's own pip, which knows the user's mirrors and proxies.

mod pip;
mod release;

use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::install::{
    InstallError, Lock, TEMPORARY_PREFIX, make_dir, remove_unfinished, replace_symlink, sync_dir,
};
use crate::known::KnownLibrary;
use crate::progress::Progress;
use crate::verified::VerifiedFiles;

/// Fetching failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Every source failed.
    #[error("failed to download libkrunfw {version}:{}", listed(attempts))]
    AllFailed {
        /// The wanted version.
        version: &'static str,
        /// What was tried, and why it failed.
        attempts: Vec<(&'static str, FetchError)>,
    },
    /// Nothing wrong with the sources, but with this machine's disk.
    #[error(transparent)]
    Install(#[from] InstallError),
}

fn listed(attempts: &[(&'static str, FetchError)]) -> String {
    attempts
        .iter()
        .map(|(source, error)| format!("\n  from {source}: {error}"))
        .collect()
}

/// One source failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server could not be reached or answered with an error.
    #[error("failed to fetch {url}: {reason}")]
    Http {
        /// What was asked for.
        url: String,
        /// Why it failed.
        reason: String,
    },
    /// More bytes than there can be.
    #[error("failed to accept {what}: it has more than the {size} bytes of the pinned one")]
    TooLarge {
        /// What was fetched.
        what: String,
        /// Pinned size.
        size: u64,
    },
    /// Other bytes than the pinned ones.
    #[error("failed to accept {what}: its SHA-256 is {found}, and {wanted} is pinned")]
    Digest {
        /// What was fetched.
        what: String,
        /// Its digest.
        found: Digest,
        /// The pinned one.
        wanted: &'static str,
    },
    /// No pip on this machine.
    #[error("failed to find pip (tried {tried}): install python3-pip")]
    NoPip {
        /// Commands.
        tried: String,
    },
    /// pip ran and failed.
    #[error("failed to fetch {requirement} with {pip}: {reason}")]
    Pip {
        /// What was asked for.
        requirement: &'static str,
        /// The command.
        pip: String,
        /// The last it said.
        reason: String,
    },
    /// The wheel is not as it should be.
    #[error("failed to unpack {member} from the wheel: {reason}")]
    Wheel {
        /// File in the wheel.
        member: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// This machine's disk, not the source.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// Fetches `known` into `lib_dir` and answers its path. Concurrent calls, of other processes
/// too, fetch once.
pub(crate) fn fetch(
    lib_dir: &Path,
    known: &'static KnownLibrary,
    verified: &VerifiedFiles,
    progress: &dyn Progress,
) -> Result<PathBuf, DownloadError> {
    let _lock = Lock::take(&lib_dir.join(".lock"), progress)?;
    let path = lib_dir.join(known.file_name);
    if path.exists() && verified.digest_of(&path)?.to_string() == known.sha256 {
        return Ok(path);
    }
    remove_unfinished(lib_dir)?;
    // Beside its destination: what fits here fits there, and the rename stays on one disk.
    let scratch = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(lib_dir)
        .map_err(|error| InstallError::new("make a temporary directory in", lib_dir, error))?;

    let mut attempts = Vec::new();
    for (source, fetch) in [
        ("the project's release", release::fetch as Fetch),
        ("the project's Python wheel", pip::fetch as Fetch),
    ] {
        match fetch(known, scratch.path(), progress) {
            Ok(fetched) => {
                install(&fetched, &path, known)?;
                return Ok(path);
            }
            Err(FetchError::Install(error)) => return Err(error.into()),
            Err(error) => {
                tracing::info!(source, %error, "a source of libkrunfw failed");
                attempts.push((source, error));
            }
        }
    }
    Err(DownloadError::AllFailed {
        version: known.version,
        attempts,
    })
}

/// Leaves a verified file in the scratch directory and answers its path.
type Fetch = fn(&'static KnownLibrary, &Path, &dyn Progress) -> Result<PathBuf, FetchError>;

/// Puts a verified file, and the link by which libkrun finds it, into place.
fn install(fetched: &Path, path: &Path, known: &KnownLibrary) -> Result<(), InstallError> {
    use std::os::unix::fs::PermissionsExt as _;

    let parent = path.parent().unwrap_or(Path::new("/"));
    make_dir(parent)?;
    fs::File::open(fetched)
        .and_then(|file| {
            file.set_permissions(fs::Permissions::from_mode(0o755))?;
            file.sync_all()
        })
        .map_err(|error| InstallError::new("write", fetched, error))?;
    fs::rename(fetched, path)
        .map_err(|error| InstallError::new("rename a file to", path, error))?;
    sync_dir(parent)?;
    link(path, known)
}

/// Makes sure of the link by which libkrun finds the library.
pub(crate) fn link(path: &Path, known: &KnownLibrary) -> Result<(), InstallError> {
    match known.link_name {
        Some(link) => replace_symlink(&path.with_file_name(link), Path::new(known.file_name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::IiiHome;
    use crate::known::{KNOWN_LIBRARIES, KnownWheel};

    /// A build whose pinned bytes are these.
    pub(super) fn known(library: &[u8]) -> &'static KnownLibrary {
        known_in_wheel(library, b"")
    }

    pub(super) fn known_in_wheel(library: &[u8], wheel: &[u8]) -> &'static KnownLibrary {
        let real = KNOWN_LIBRARIES[0];
        let hex = |bytes: &[u8]| -> &'static str { Digest::of(bytes).to_string().leak() };
        Box::leak(Box::new(KnownLibrary {
            size: library.len() as u64,
            sha256: hex(library),
            wheel: KnownWheel {
                size: wheel.len() as u64,
                sha256: hex(wheel),
                ..real.wheel
            },
            ..real
        }))
    }

    #[test]
    fn what_is_there_already_is_not_fetched_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = IiiHome::at(dir.path()).expect("absolute");
        make_dir(&home.lib_dir()).expect("made");
        let path = home.lib_dir().join("libkrunfw.so.5.6.1");
        fs::write(&path, b"the library").expect("written");
        let verified = VerifiedFiles::in_cache(&home.cache_dir());
        let fetched =
            fetch(&home.lib_dir(), known(b"the library"), &verified, &()).expect("it is there");
        assert_eq!(fetched, path);
    }

    #[test]
    fn installing_puts_file_and_link_in_place_over_what_was_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let known = known(b"the library");
        let path = dir.path().join("lib").join(known.file_name);
        make_dir(&dir.path().join("lib")).expect("made");
        fs::write(&path, b"damaged").expect("written");
        let fetched = dir.path().join("fetched");
        fs::write(&fetched, b"the library").expect("written");
        install(&fetched, &path, known).expect("installed");
        let link = path.with_file_name("libkrunfw.so.5");
        assert_eq!(
            fs::read(&link).expect("leads to the library"),
            b"the library"
        );

        // A link that cannot be made is an error, not a success without a link.
        fs::remove_file(&link).expect("removed");
        fs::create_dir(&link).expect("made");
        fs::write(&fetched, b"the library").expect("written");
        let error = install(&fetched, &path, known).expect_err("a directory is in the way");
        assert!(error.to_string().contains("libkrunfw.so.5"), "{error}");
    }

    #[test]
    fn pins_are_whole() {
        for known in KNOWN_LIBRARIES {
            known.sha256.parse::<Digest>().expect("a digest");
            known.wheel.sha256.parse::<Digest>().expect("a digest");
            assert!(known.wheel.member.ends_with(known.file_name));
        }
    }
}
