//! Finds the helper binaries and makes sure that they are of this build.
//!
//! Order: the explicit path; the directory in `III_HELPER_DIR`; the directory of the running
//! executable, and the one above it where cargo has put the executable into `deps` or `examples`.
//! The first that is named must hold the helper: a wrong setting is an error, not a fallback.
//!
//! A helper holds a marker text with its name and version ([`iii_proto::helper_marker`]). The file
//! is searched for it once per path, size and change time in the life of this process; running it
//! with `--version` would cost milliseconds at every start.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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

/// Where helpers are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HelperPlaces {
    /// This directory and no other, whatever the environment says.
    pub directory: Option<PathBuf>,
}

/// Finds a helper by name and checks it.
pub fn find(name: &str, places: &HelperPlaces) -> Result<PathBuf, HelperError> {
    let candidates = candidates(
        places,
        std::env::var_os(HELPER_DIR_VARIABLE),
        std::env::current_exe().ok(),
    );
    let Some(path) = candidates.iter().map(|c| c.join(name)).find(|p| p.exists()) else {
        let places: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
        return Err(HelperError::Missing {
            name: name.to_owned(),
            places: places.join(", "),
        });
    };
    check(name, &path)?;
    Ok(path)
}

/// Finds a file that lies with the helpers and is none of them. What is in it is the caller's to
/// check.
pub fn find_file(name: &str, places: &HelperPlaces) -> Option<PathBuf> {
    candidates(
        places,
        std::env::var_os(HELPER_DIR_VARIABLE),
        std::env::current_exe().ok(),
    )
    .into_iter()
    .map(|directory| directory.join(name))
    .find(|path| path.is_file())
}

fn candidates(
    places: &HelperPlaces,
    variable: Option<OsString>,
    executable: Option<PathBuf>,
) -> Vec<PathBuf> {
    if let Some(directory) = &places.directory {
        return vec![directory.clone()];
    }
    if let Some(directory) = variable.filter(|d| !d.is_empty()) {
        return vec![directory.into()];
    }
    let mut candidates = Vec::new();
    if let Some(beside) = executable.as_deref().and_then(Path::parent) {
        candidates.push(beside.to_owned());
        if beside.ends_with("deps") || beside.ends_with("examples") {
            candidates.extend(beside.parent().map(Path::to_owned));
        }
    }
    candidates
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn an_explicit_directory_outweighs_the_variable_and_both_the_executable() {
        let explicit = HelperPlaces {
            directory: Some("/a".into()),
        };
        let none = HelperPlaces::default();
        let exe = Some(PathBuf::from("/t/debug/deps/x-1"));
        let of = |places, variable: Option<&str>| {
            candidates(places, variable.map(Into::into), exe.clone())
        };
        assert_eq!(of(&explicit, Some("/b")), [Path::new("/a")]);
        assert_eq!(of(&none, Some("/b")), [Path::new("/b")]);
        assert_eq!(
            of(&none, Some("")),
            [Path::new("/t/debug/deps"), Path::new("/t/debug")]
        );
        assert_eq!(
            candidates(&none, None, Some("/usr/bin/iii-super".into())),
            [Path::new("/usr/bin")]
        );
    }

    #[test]
    fn a_missing_helper_names_the_place_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let places = HelperPlaces {
            directory: Some(directory.path().into()),
        };
        let error = find("iii-none", &places).unwrap_err().to_string();
        assert!(
            error.contains(&directory.path().display().to_string()),
            "{error}"
        );
        assert!(error.contains(HELPER_DIR_VARIABLE), "{error}");
    }

    fn helper(directory: &Path, contents: &str, mode: u32) -> PathBuf {
        let path = directory.join("iii-x");
        let mut file = File::create(&path).unwrap();
        file.write_all(contents.as_bytes()).unwrap();
        file.set_permissions(fs::Permissions::from_mode(mode))
            .unwrap();
        path
    }

    #[test]
    fn other_versions_and_other_programs_are_refused_and_a_replaced_file_is_looked_at_again() {
        let directory = tempfile::tempdir().unwrap();
        let good = format!("..iii-helper:iii-x:{VERSION};..");
        let path = helper(directory.path(), &good, 0o755);
        check("iii-x", &path).unwrap();
        check("iii-x", &path).unwrap();
        assert!(matches!(
            check("iii-y", &path),
            Err(HelperError::NotAHelper { .. })
        ));

        fs::remove_file(&path).unwrap();
        helper(directory.path(), "iii-helper:iii-x:0.0.9;", 0o755);
        match check("iii-x", &path) {
            Err(HelperError::OtherVersion { found, .. }) => assert_eq!(found, "0.0.9"),
            other => panic!("{other:?}"),
        }

        fs::remove_file(&path).unwrap();
        helper(directory.path(), &good, 0o644);
        assert!(matches!(
            check("iii-x", &path),
            Err(HelperError::Unusable { .. })
        ));
    }

    /// Returns at most `step` bytes per read.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn a_marker_is_found_wherever_it_lies(before in 0usize..3 * CHUNK, step in 1000usize..CHUNK) {
            let mut bytes = vec![b'i'; before];
            bytes.extend(b"iii-helper:iii-x:no end, then iii-helper:iii-x:1.2.3;");
            bytes.resize(before + 100, 0);
            let found = marker_version(&mut Slow(&bytes, step), "iii-x").unwrap();
            prop_assert_eq!(found.as_deref(), Some("1.2.3"));
        }
    }
}
