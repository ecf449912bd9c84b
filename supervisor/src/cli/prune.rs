//! `iii-super prune`: removes what is kept of projects that are gone.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use iii_firmware::home::IiiHome;
use serde::Serialize;

use super::arguments::PruneArguments;
use super::say::{print, say};
use super::{FAILED, OK, REFUSED};
use crate::disks::{DiskError, DiskStore};
use crate::output::escape;
use crate::output::json::escape_c1;
use crate::state::origin::Origin;
use crate::state::{StateDirectory, StateError};
use crate::workers_file::format_size;

/// What became of a project's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    Removed,
    /// It would have been, were this no dry run.
    Removable,
    /// There are disks, and nobody said that they may go.
    KeptForDisks,
    /// A supervisor runs with it.
    InUse,
}

/// A project that is gone.
#[derive(Debug, Serialize)]
struct Gone {
    /// Its workers file, or the directory that was developed.
    project: PathBuf,
    state: PathBuf,
    /// What its state takes of the disk.
    bytes: u64,
    fate: Fate,
}

pub(super) fn run(args: &PruneArguments) -> u8 {
    let projects = match IiiHome::from_env() {
        Ok(home) => home.path().join("projects"),
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let states = match directories(&projects) {
        Ok(states) => states,
        Err(error) => {
            say(format_args!(
                "failed to read {}: {error}",
                projects.display()
            ));
            return FAILED;
        }
    };
    let mut code = OK;
    let mut gone = Vec::new();
    let mut unnamed = 0;
    for state in states {
        let Some(origin) = Origin::read(&state) else {
            unnamed += 1;
            continue;
        };
        let is_gone = origin
            .path()
            .symlink_metadata()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if !is_gone {
            continue;
        }
        match prune(&origin, state, args) {
            Ok(one) => gone.push(one),
            Err(error) => {
                say(&error);
                code = FAILED;
            }
        }
    }
    code.max(print(&report(&gone, unnamed, args.json)))
}

fn directories(projects: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(projects) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Why a project's state is not removed.
#[derive(Debug, thiserror::Error)]
enum PruneError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn prune(origin: &Origin, state: PathBuf, args: &PruneArguments) -> Result<Gone, PruneError> {
    // Held while it is removed: no supervisor may begin in the middle.
    let lock = match StateDirectory::open(&state, true) {
        Ok(lock) => Some(lock),
        Err(StateError::Busy { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let has_disks = match origin {
        // They are gone with nobody's work: what fills them is installed anew.
        Origin::Developed(_) => false,
        Origin::WorkersFile(_) => !DiskStore::of(&state).all()?.is_empty(),
    };
    let bytes = allocated(&state);
    let fate = match lock {
        None => Fate::InUse,
        Some(_) if has_disks && !args.disks => Fate::KeptForDisks,
        Some(_) if args.dry_run => Fate::Removable,
        Some(_) => {
            std::fs::remove_dir_all(&state).map_err(|source| StateError::Directory {
                what: "remove",
                path: state.clone(),
                source,
            })?;
            Fate::Removed
        }
    };
    Ok(Gone {
        project: origin.path().to_owned(),
        state,
        bytes,
        fate,
    })
}

/// Bytes of the disk below a directory. What ends meanwhile takes nothing.
fn allocated(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => pending.push(entry.path()),
                Ok(found) => bytes += found.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

fn report(gone: &[Gone], unnamed: usize, json: bool) -> String {
    if json {
        return gone
            .iter()
            // Paths, numbers and words: nothing in them can fail to be written.
            .filter_map(|one| serde_json::to_string(one).ok())
            .map(|line| escape_c1(line) + "\n")
            .collect();
    }
    let mut text = String::new();
    for one in gone {
        let project = escape::text(&one.project.display().to_string());
        let size = format_size(one.bytes);
        text += &match one.fate {
            Fate::Removed => format!("{project}: {size} removed\n"),
            Fate::Removable => format!("{project}: {size} would be removed\n"),
            Fate::KeptForDisks => {
                format!("{project}: {size} kept, since there are disks; --disks removes them too\n")
            }
            Fate::InUse => format!("{project}: {size} in use by a supervisor\n"),
        };
    }
    if gone.is_empty() {
        text += "nothing is kept of a project that is gone\n";
    }
    if unnamed > 0 {
        text += &format!(
            "{unnamed} directories say no project, since an older version made them; they stay\n"
        );
    }
    text
}
