//! Finds the helper binaries and makes sure that they are of this build.
//!
//! Order: the explicit path; the directory in `III_HELPER_DIR`; the directory of the running
//! executable, and the one above it where cargo has put the executable into `deps` or `examples`;
//! what is embedded in the executable ([`EmbeddedHelpers`]). The first that is named must hold the
//! helper: a wrong setting is an error, not a fallback. What only happens to lie beside the executable
//! and does not fit gives way to what is embedded.
//!
//! A helper holds a marker text with its name and version ([`iii_proto::helper_marker`]). The file
//! is searched for it once per path, size and change time in the life of this process; running it
//! with `--version` would cost milliseconds at every start.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memchr::memmem;

/// Names the directory of the helper binaries.
pub const HELPER_DIR_VARIABLE: &str = "III_HELPER_DIR";

/// Version that every helper must have.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bytes read at a time while searching for the marker.
const CHUNK: usize = 256 * 1024;
/// Longest version text that is looked at behind the marker's name.
const MAX_VERSION: usize = 40;

/// Why a helper cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// It is in none of the places.
    #[error(
        "failed to find the helper {name}: not in {places}; reinstall iii-super, or name its \
         directory in III_HELPER_DIR (in a source tree: cargo build --workspace)"
    )]
    Missing {
        /// Its name.
        name: String,
        /// Where it was looked for.
        places: String,
    },
    /// There is a file, but it cannot be read or executed.
    #[error("failed to use the helper {path}: {source}", path = path.display())]
    Unusable {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is of another build.
    #[error(
        "failed to use the helper {path}: it is of version {found}, iii-super is {VERSION}; \
         install both from the same build",
        path = path.display()
    )]
    OtherVersion {
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// It is embedded, and cannot be laid where it can be executed.
    #[error("failed to use the embedded helper {name}: {source}")]
    Embedded {
        /// Its name.
        name: String,
        /// The cause, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is another program.
    #[error(
        "failed to use the helper {path}: the file is no {name} of iii-super; reinstall iii-super",
        path = path.display()
    )]
    NotAHelper {
        /// Its path.
        path: PathBuf,
        /// What it should be.
        name: String,
    },
}

/// Helpers that travel inside the executable.
pub trait EmbeddedHelpers: fmt::Debug + Send + Sync {
    /// Where a helper is once it was laid; `None`: it is not among them.
    fn place(&self, name: &str) -> Option<PathBuf>;

    /// Makes sure that a helper is there, as it was built, and can be executed. Called before each
    /// use, so it must be cheap where all is well.
    fn lay(&self, name: &str) -> Option<Result<PathBuf, Box<dyn Error + Send + Sync>>>;
}

/// Where helpers are looked for.
#[derive(Clone, Debug, Default)]
pub struct HelperPlaces {
    /// This directory and no other, whatever the environment says.
    pub directory: Option<PathBuf>,
    /// What is looked at last.
    pub embedded: Option<Arc<dyn EmbeddedHelpers>>,
}

impl HelperPlaces {
    /// This directory and no other.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
            embedded: None,
        }
    }
}

/// Which of the places a helper was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The explicit directory.
    Directory,
    /// The directory in `III_HELPER_DIR`.
    Variable,
    /// Beside the executable.
    Beside,
    /// Inside the executable.
    Embedded,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::Variable => HELPER_DIR_VARIABLE,
            Self::Beside => "beside",
            Self::Embedded => "embedded",
        })
    }
}

/// A helper that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The program.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
}

/// Finds a helper by name and checks it; lays it if it is embedded.
pub fn find(name: &str, places: &HelperPlaces) -> Result<PathBuf, HelperError> {
    let found = choose(name, places, |embedded| embedded.lay(name))?;
    Ok(found.path)
}

/// What [`find`] would find. Writes nothing: an embedded one may be laid only later.
pub fn look(name: &str, places: &HelperPlaces) -> Result<Found, HelperError> {
    choose(name, places, |embedded| embedded.place(name).map(Ok))
}

type Laid = Option<Result<PathBuf, Box<dyn Error + Send + Sync>>>;

fn choose(
    name: &str,
    places: &HelperPlaces,
    lay: impl Fn(&dyn EmbeddedHelpers) -> Laid,
) -> Result<Found, HelperError> {
    let outside = candidates(
        places,
        std::env::var_os(HELPER_DIR_VARIABLE),
        std::env::current_exe().ok(),
    );
    choose_from(name, outside, places.embedded.as_deref(), lay)
}

fn choose_from(
    name: &str,
    (origin, candidates): (Origin, Vec<PathBuf>),
    embedded: Option<&dyn EmbeddedHelpers>,
    lay: impl Fn(&dyn EmbeddedHelpers) -> Laid,
) -> Result<Found, HelperError> {
    let there = candidates.iter().map(|c| c.join(name)).find(|p| p.exists());
    let outside = match there {
        Some(path) => check(name, &path).map(|()| Found { path, origin }),
        None => {
            let places: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
            Err(HelperError::Missing {
                name: name.to_owned(),
                places: places.join(", "),
            })
        }
    };
    // Nobody has named the executable's own directory: what lies there may be an older installation.
    let embedded = embedded
        .filter(|_| outside.is_err() && origin == Origin::Beside)
        .and_then(lay);
    match embedded {
        None => outside,
        Some(Ok(path)) => {
            if let Err(
                error @ (HelperError::OtherVersion { .. } | HelperError::NotAHelper { .. }),
            ) = outside
            {
                tracing::debug!(%error, "the embedded helper is used in its place");
            }
            Ok(Found {
                path,
                origin: Origin::Embedded,
            })
        }
        Some(Err(source)) => Err(HelperError::Embedded {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Finds a file that lies with the helpers and is none of them. What is in it is the caller's to
/// check.
pub fn find_file(name: &str, places: &HelperPlaces) -> Option<PathBuf> {
    let (_, candidates) = candidates(
        places,
        std::env::var_os(HELPER_DIR_VARIABLE),
        std::env::current_exe().ok(),
    );
    let mut paths = candidates.iter().map(|directory| directory.join(name));
    paths.find(|path| path.is_file())
}

fn candidates(
    places: &HelperPlaces,
    variable: Option<OsString>,
    executable: Option<PathBuf>,
) -> (Origin, Vec<PathBuf>) {
    if let Some(directory) = &places.directory {
        return (Origin::Directory, vec![directory.clone()]);
    }
    if let Some(directory) = variable.filter(|d| !d.is_empty()) {
        return (Origin::Variable, vec![directory.into()]);
    }
    let mut candidates = Vec::new();
    if let Some(beside) = executable.as_deref().and_then(Path::parent) {
        candidates.push(beside.to_owned());
        if beside.ends_with("deps") || beside.ends_with("examples") {
            candidates.extend(beside.parent().map(Path::to_owned));
        }
    }
    (Origin::Beside, candidates)
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

static CHECKED: Mutex<Option<HashMap<(String, PathBuf), Stamp>>> = Mutex::new(None);

/// Checks that `path` is the helper `name` of this version.
pub fn check(name: &str, path: &Path) -> Result<(), HelperError> {
    let unusable = |source| HelperError::Unusable {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(unusable)?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(unusable(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is no executable file",
        )));
    }
    let stamp = Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let key = (name.to_owned(), path.to_owned());
    {
        let checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.as_ref().and_then(|c| c.get(&key)) == Some(&stamp) {
            return Ok(());
        }
    }
    let mut file = File::open(path).map_err(unusable)?;
    match marker_version(&mut file, name).map_err(unusable)? {
        Some(found) if found == VERSION => {
            let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
            checked.get_or_insert_default().insert(key, stamp);
            Ok(())
        }
        Some(found) => Err(HelperError::OtherVersion {
            path: path.to_owned(),
            found,
        }),
        None => Err(HelperError::NotAHelper {
            path: path.to_owned(),
            name: name.to_owned(),
        }),
    }
}

/// The version in the marker of `name`, if the bytes hold one.
fn marker_version(bytes: &mut impl Read, name: &str) -> io::Result<Option<String>> {
    let needle = format!("iii-helper:{name}:").into_bytes();
    let finder = memmem::Finder::new(&needle);
    // What must be kept of one chunk so that a marker across two is seen whole.
    let overlap = needle.len() + MAX_VERSION;
    let mut window = Vec::with_capacity(CHUNK + overlap);
    loop {
        let read = bytes.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
        let mut from = 0;
        while let Some(at) = finder.find(&window[from..]) {
            let start = from + at + needle.len();
            let rest = &window[start..];
            let rest = &rest[..rest.len().min(MAX_VERSION)];
            // The bare text without a version and its semicolon is some other mention.
            if let Some(end) = rest.iter().position(|&byte| byte == b';')
                && let Ok(version) = str::from_utf8(&rest[..end])
                && version
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || ".+-".contains(c))
            {
                return Ok(Some(version.to_owned()));
            }
            from = start;
        }
        if read == 0 {
            return Ok(None);
        }
        let keep = window.len().min(overlap);
        window.drain(..window.len() - keep);
    }
}

#[cfg(test)]
mod tests;
