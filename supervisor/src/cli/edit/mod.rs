//! `iii-super add` and `remove`: edits of the workers file.
//!
//! An edit is made on the text that was read, checked by the ordinary reader, and put in the file's
//! place only if that is still what was read; otherwise all of it is done again.

mod add;
mod remove;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use iii_firmware::home::IiiHome;
use serde_json::json;
use similar::TextDiff;

pub(super) use add::{AddArguments, add};
pub(super) use remove::{RemoveArguments, remove};

use super::say::{print, say, say_plain};
use super::{FAILED, REFUSED, project};
use crate::workers_file::edit::{EditFile, EditFileError, Original, Replaced, real_path};
use crate::workers_file::{FILE_NAME, Fault, WorkersFileError};

/// How often a file that others change at the same moment is read anew.
const ATTEMPTS: usize = 100;

/// Which file is edited, and how that is told.
#[derive(Debug, Args)]
pub(super) struct EditArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why nothing was changed.
#[derive(Debug)]
pub(super) struct Refusal {
    code: u8,
    /// What was wrong with the file, as lines that editors find the place by.
    faults: String,
    message: String,
}

impl Refusal {
    /// What was asked for cannot be done.
    fn new(message: impl Display) -> Self {
        Self {
            code: REFUSED,
            faults: String::new(),
            message: message.to_string(),
        }
    }

    fn with_faults(faults: &WorkersFileError, message: impl Display) -> Self {
        Self {
            faults: faults.to_string(),
            ..Self::new(message)
        }
    }
}

impl From<EditFileError> for Refusal {
    fn from(error: EditFileError) -> Self {
        let code = if error.is_refusal() { REFUSED } else { FAILED };
        Self {
            code,
            ..Self::new(error)
        }
    }
}

/// What came of an edit.
struct Edited {
    target: PathBuf,
    created: bool,
    before: String,
    after: String,
}

/// Edits the file: `change` makes of what was read what is to be there.
fn edit(
    arguments: &EditArguments,
    change: impl Fn(&Original) -> Result<String, Refusal>,
) -> Result<Edited, Refusal> {
    let target = real_path(&arguments.file)?;
    if arguments.dry_run {
        let original = EditFile::look(&target)?;
        return Ok(Edited {
            after: change(&original)?,
            created: !original.exists(),
            before: original.text,
            target,
        });
    }
    let home = IiiHome::from_env().map_err(Refusal::new)?;
    let file = EditFile::lock(&target, &project::state_dir_of(&home, &target))?;
    for _ in 0..ATTEMPTS {
        let original = file.read()?;
        let after = change(&original)?;
        match file.replace(&original, &after)? {
            Replaced::Done => {
                return Ok(Edited {
                    after,
                    created: !original.exists(),
                    before: original.text,
                    target,
                });
            }
            Replaced::Raced => {}
        }
    }
    Err(Refusal {
        code: FAILED,
        ..Refusal::new(format_args!(
            "failed to edit {}: another program changes it all the time; stop that first",
            target.display()
        ))
    })
}

/// Tells what came of it. `done` is for people, `next` what they may do now.
fn tell(
    arguments: &EditArguments,
    result: Result<Edited, Refusal>,
    action: &str,
    workers: &[String],
    next: &str,
) -> u8 {
    let edited = match result {
        Ok(edited) => edited,
        Err(refusal) => {
            if !refusal.faults.is_empty() {
                say_plain(&refusal.faults);
            }
            say(&refusal.message);
            return refusal.code;
        }
    };
    let file = arguments.file.display();
    let diff = diff(&edited, &arguments.file);
    if arguments.json {
        let value = json!({
            "file": edited.target,
            "action": action,
            "workers": workers,
            "created": edited.created,
            "dry_run": arguments.dry_run,
            "diff": diff,
        });
        // Values with text keys: writing them cannot fail.
        return print(&(serde_json::to_string_pretty(&value).expect("a value is JSON") + "\n"));
    }
    if arguments.dry_run {
        return print(&diff);
    }
    let names: Vec<String> = workers.iter().map(|name| format!("{name:?}")).collect();
    let made = if edited.created {
        ", which was made"
    } else {
        ""
    };
    let kind = if names.len() == 1 {
        "worker"
    } else {
        "workers"
    };
    let names = names.join(", ");
    print(&format!("{action} {kind} {names} in {file}{made}\n{next}"))
}

fn diff(edited: &Edited, shown: &Path) -> String {
    let name = shown.display().to_string();
    let old = if edited.created { "/dev/null" } else { &name };
    TextDiff::from_lines(&*edited.before, &*edited.after)
        .unified_diff()
        .header(old, &name)
        .to_string()
}

/// Faults of the file, but not that it has no workers yet.
fn faults(result: Result<impl Sized, WorkersFileError>) -> Vec<Fault> {
    match result {
        Ok(_) => Vec::new(),
        Err(WorkersFileError::Read { .. }) => Vec::new(),
        Err(WorkersFileError::Invalid { faults, .. }) => faults,
    }
}

/// Whether a setting is one of this worker's.
fn is_about(fault: &Fault, worker: &str) -> bool {
    fault
        .path
        .strip_prefix("workers.")
        .and_then(|path| path.strip_prefix(worker))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
