//! The launcher's program: where it is, and which libkrun it has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::HELPER;
use crate::helpers::{self, HelperPlaces};
use crate::vmm::{Version, VmmError};

/// What to do about a launcher that does not run.
const REMEDY: &str = "reinstall iii-super, or use --vmm qemu";
/// `krun_add_virtiofs4`, `krun_disable_implicit_init` and a disk's serial number came with it.
const NEEDED: Version = Version(1, 19, 0);

#[derive(Debug)]
pub(super) struct Launcher {
    places: HelperPlaces,
    known: Mutex<Option<(PathBuf, Version)>>,
}

impl Launcher {
    pub(super) fn new(places: HelperPlaces) -> Self {
        Self {
            places,
            known: Mutex::new(None),
        }
    }

    /// Its path, if it is of this build. Looked at anew only where the file has changed.
    pub(super) fn find(&self) -> Result<PathBuf, VmmError> {
        Ok(helpers::find(HELPER, &self.places)?)
    }

    /// Path, and the version of its libkrun, if it can be used.
    pub(super) fn check(&self) -> Result<(PathBuf, Version), VmmError> {
        let path = self.find()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = match &*known {
            Some((asked, version)) if *asked == path => *version,
            Some(_) | None => {
                let version = ask(&path).map_err(|reason| VmmError::Unknown {
                    program: path.clone(),
                    reason,
                    remedy: REMEDY,
                })?;
                *known = Some((path.clone(), version));
                version
            }
        };
        if version < NEEDED {
            return Err(VmmError::TooOld {
                program: path,
                found: version,
                needed: NEEDED,
                remedy: REMEDY,
            });
        }
        Ok((path, version))
    }
}

fn ask(path: &Path) -> Result<Version, String> {
    let mut command = Command::new(path);
    let output = command
        .arg("--check")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        // Its own words, or those of the dynamic linker that finds no libkrun.
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().last().unwrap_or_default().trim();
        return Err(format!("it ended with {}: {line}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| format!("it says {:?}", text.trim()))
}

/// `libkrun 1.19.7 built in`
fn parse(text: &str) -> Option<Version> {
    let mut numbers = text
        .strip_prefix("libkrun ")?
        .split_whitespace()
        .next()?
        .split('.')
        .map(|number| number.parse().ok());
    let version = Version(numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions() {
        assert_eq!(parse("libkrun 1.19.7 built in\n"), Some(Version(1, 19, 7)));
        assert_eq!(parse("libkrun 2.0.0 of the system"), Some(Version(2, 0, 0)));
        for wrong in [
            "",
            "libkrun",
            "libkrun 1.19",
            "libkrun 1.2.3.4",
            "krun 1.2.3",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    /// A launcher that answers `--check` so.
    fn answering(script: &str) -> (tempfile::TempDir, Launcher) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(HELPER);
        let marker = format!("iii-helper:{HELPER}:{};", helpers::VERSION);
        // By a process of its own: a descriptor of ours that is open for writing could be inherited
        // by what another test starts, and the kernel executes no file that is being written.
        let script = format!("#!/bin/sh\n# {marker}\n{script}\n");
        let written = Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$2\"", "sh", &script])
            .arg(&path)
            .status()
            .unwrap();
        assert!(written.success());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let places = HelperPlaces::in_directory(directory.path());
        (directory, Launcher::new(places))
    }

    #[test]
    fn a_launcher_is_asked_once_and_an_old_or_broken_libkrun_is_told_with_the_remedy() {
        let (directory, launcher) =
            answering("echo libkrun 1.19.7 built in; echo x >> \"$0.asked\"");
        launcher.check().unwrap();
        assert_eq!(launcher.check().unwrap().1, Version(1, 19, 7));
        let asked = directory.path().join("iii-krun.asked");
        assert_eq!(std::fs::read_to_string(asked).unwrap(), "x\n");

        let (_directory, launcher) = answering("echo libkrun 1.9.3 of the system");
        let error = launcher.check().unwrap_err();
        assert!(matches!(error, VmmError::TooOld { .. }), "{error}");

        let (_directory, launcher) = answering("echo no libkrun.so.1 >&2; exit 127");
        let error = launcher.check().unwrap_err().to_string();
        assert!(error.contains("127: no libkrun.so.1"), "{error}");
        assert!(error.contains(REMEDY), "{error}");

        let nowhere = Launcher::new(HelperPlaces::in_directory("/nonexistent"));
        let error = nowhere.check().unwrap_err().to_string();
        assert!(error.contains(HELPER), "{error}");
    }
}
