//! QEMU's program: where it is, and which version.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::board::Board;
use crate::vmm::{Version, VmmError};

/// `-netdev dgram` came with it.
const NEEDED: Version = Version(7, 2, 0);

/// A version and the file that it was asked of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    version: (u32, u32, u32),
}

impl Known {
    fn is_of(&self, path: &Path, metadata: &fs::Metadata) -> bool {
        *self == Self::new(path, metadata, self.version)
    }

    fn new(path: &Path, metadata: &fs::Metadata, version: (u32, u32, u32)) -> Self {
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            version,
        }
    }
}

/// The program.
#[derive(Debug)]
pub(super) struct Program {
    board: &'static Board,
    explicit: Option<PathBuf>,
    cache: Option<PathBuf>,
    known: Mutex<Option<Known>>,
}

impl Program {
    pub(super) fn new(
        board: &'static Board,
        explicit: Option<PathBuf>,
        cache_directory: Option<PathBuf>,
    ) -> Self {
        Self {
            board,
            explicit,
            cache: cache_directory.map(|directory| directory.join(board.cache_file)),
            known: Mutex::new(None),
        }
    }

    /// Its absolute path.
    pub(super) fn find(&self) -> Result<PathBuf, VmmError> {
        let missing = |program: String, looked_in: String| VmmError::Missing {
            program,
            looked_in,
            remedy: self.board.remedy,
        };
        if let Some(path) = &self.explicit {
            return match std::path::absolute(path) {
                Ok(path) if is_program(&path) => Ok(path),
                _ => Err(missing(
                    path.display().to_string(),
                    "the path that was given names no executable file".into(),
                )),
            };
        }
        let search = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&search)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(self.board.program))
            .find(|path| is_program(path))
            .ok_or_else(|| {
                missing(
                    self.board.program.into(),
                    format!("it is in no directory of PATH ({})", search.display()),
                )
            })
    }

    /// Path and version, if it can be used.
    pub(super) fn check(&self) -> Result<(PathBuf, Version), VmmError> {
        let path = self.find()?;
        let unknown = |reason: String| VmmError::Unknown {
            program: path.clone(),
            reason,
            remedy: self.board.remedy,
        };
        let metadata = fs::metadata(&path).map_err(|error| unknown(error.to_string()))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = known
            .clone()
            .or_else(|| read_cache(self.cache.as_deref()?))
            .filter(|known| known.is_of(&path, &metadata));
        let remembered = match remembered {
            Some(remembered) => remembered,
            None => {
                let version = ask(&path).map_err(unknown)?;
                let asked = Known::new(&path, &metadata, version);
                if let Some(cache) = &self.cache
                    && let Err(error) = write_cache(cache, &asked)
                {
                    // Costs time at the next start, nothing else.
                    tracing::debug!(cache = %cache.display(), %error, "failed to remember version");
                }
                asked
            }
        };
        let (major, minor, patch) = remembered.version;
        *known = Some(remembered);
        let version = Version(major, minor, patch);
        if version < NEEDED {
            return Err(VmmError::TooOld {
                program: path,
                found: version,
                needed: NEEDED,
                remedy: self.board.remedy,
            });
        }
        Ok((path, version))
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn ask(path: &Path) -> Result<(u32, u32, u32), String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", output.status, complaint.trim()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| format!("its answer holds no version: {:?}", text.trim()))
}

/// The version in `QEMU emulator version 7.2.22 (Debian …)`.
fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let (_, rest) = text.split_once("QEMU emulator version ")?;
    let end = rest
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(rest.len());
    let mut numbers = rest[..end].split('.').map(str::parse);
    let major = numbers.next()?.ok()?;
    let minor = numbers.next()?.ok()?;
    let patch = match numbers.next() {
        Some(patch) => patch.ok()?,
        None => 0,
    };
    Some((major, minor, patch))
}

fn read_cache(cache: &Path) -> Option<Known> {
    // Anything unreadable is as good as nothing: the program is asked again.
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

fn write_cache(cache: &Path, known: &Known) -> io::Result<()> {
    let directory = cache.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.persist(cache)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::GuestArch;

    #[test]
    fn versions_are_read_from_the_answer() {
        let cases = [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright",
                Some((7, 2, 22)),
            ),
            ("QEMU emulator version 10.0.2", Some((10, 0, 2))),
            ("QEMU emulator version 9.1", Some((9, 1, 0))),
            ("QEMU emulator version 6.2.0-rc1", Some((6, 2, 0))),
            ("qemu: error", None),
            ("QEMU emulator version ", None),
            ("QEMU emulator version 99999999999.1", None),
        ];
        for (text, version) in cases {
            assert_eq!(parse(text), version, "{text}");
        }
    }

    fn board() -> &'static Board {
        Board::of(GuestArch::Aarch64)
    }

    fn script(directory: &Path, body: &str) -> PathBuf {
        let path = directory.join("qemu");
        let staged = directory.join("staged");
        fs::write(&staged, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&staged, &path).unwrap();
        path
    }

    #[test]
    fn a_version_is_asked_once_per_file_and_remembered_between_runs() {
        let directory = tempfile::tempdir().unwrap();
        let asked = directory.path().join("asked");
        let body = |version: &str| {
            format!(
                "echo x >> {}; echo QEMU emulator version {version}",
                asked.display()
            )
        };
        let path = script(directory.path(), &body("8.0.1"));
        let cache = directory.path().join("cache/deep");
        let times = || fs::read_to_string(&asked).unwrap().lines().count();
        let open = || Program::new(board(), Some(path.clone()), Some(cache.clone()));

        let program = open();
        assert_eq!(program.check().unwrap(), (path.clone(), Version(8, 0, 1)));
        program.check().unwrap();
        open().check().unwrap();
        assert_eq!(times(), 1);

        script(directory.path(), &body("7.1.9"));
        let error = program.check().unwrap_err();
        assert!(matches!(error, VmmError::TooOld { .. }), "{error}");
        assert!(error.to_string().contains("apt-get install"), "{error}");
        assert_eq!(times(), 2);

        fs::write(cache.join(board().cache_file), "{").unwrap();
        open().check().unwrap_err();
        assert_eq!(times(), 3);
    }

    #[test]
    fn a_program_that_is_missing_or_says_nothing_is_an_error_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Program::new(board(), Some(directory.path().join("none")), None);
        let error = missing.check().unwrap_err();
        assert!(matches!(error, VmmError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("apt-get install"), "{error}");

        let path = script(directory.path(), "echo broken >&2; exit 3");
        let error = Program::new(board(), Some(path), None).check().unwrap_err();
        assert!(matches!(error, VmmError::Unknown { .. }), "{error}");
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
