//! `iii-super remove`.

use std::collections::BTreeSet;

use clap::Args;

use super::super::complete;
use super::{EditArguments, Refusal, edit, faults, tell};
use crate::workers_file::edit::{self as text, EditError, Original};
use crate::workers_file::{Fault, WorkersFile, WorkersFileError, did_you_mean};

#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArguments {
    /// The workers
    #[arg(value_name = "NAME", required = true, add = complete::workers())]
    names: Vec<String>,
    #[command(flatten)]
    edit: EditArguments,
}

pub(in crate::cli) fn remove(arguments: &RemoveArguments) -> u8 {
    let result = edit(&arguments.edit, |original| without(arguments, original));
    tell(&arguments.edit, result, "removed", &arguments.names, "")
}

/// The text without these workers.
fn without(arguments: &RemoveArguments, original: &Original) -> Result<String, Refusal> {
    let file = &arguments.edit.file;
    let shown = file.display();
    if !original.exists() {
        return Err(Refusal::new(format_args!(
            "failed to read {shown}: it is not there; name the file with --file FILE, or change into \
             its directory"
        )));
    }
    let before = WorkersFile::parse_edited(&original.text, file);
    if let Ok(before) = &before {
        needed(arguments, before)?;
    }
    let names: BTreeSet<&String> = arguments.names.iter().collect();
    let mut after = original.text.clone();
    for name in names {
        after = text::remove(&after, name)
            .map_err(|error| refused(name, &error, original, arguments))?;
    }
    // What was wrong before is no reason to keep a worker; what would be wrong now is.
    let was = faults(before);
    let parsed = WorkersFile::parse_edited(&after, file);
    let worse = |fault: &Fault| {
        let same = |other: &Fault| other.path == fault.path && words(other) == words(fault);
        !was.iter().any(same)
    };
    match parsed {
        Err(WorkersFileError::Invalid { path, faults }) if faults.iter().any(worse) => {
            let faults = faults.into_iter().filter(worse).collect();
            let invalid = WorkersFileError::Invalid { path, faults };
            Err(Refusal::with_faults(
                &invalid,
                format_args!("failed to remove from {shown}: these faults would be left"),
            ))
        }
        Err(error @ WorkersFileError::Read { .. }) => Err(Refusal::new(error)),
        Err(WorkersFileError::Invalid { .. }) | Ok(_) => Ok(after),
    }
}

/// A fault's message without the lines that it names, which an edit moves.
fn words(fault: &Fault) -> String {
    fault
        .message
        .chars()
        .filter(|c| !c.is_ascii_digit())
        .collect()
}

/// Refuses what others depend on.
fn needed(arguments: &RemoveArguments, file: &WorkersFile) -> Result<(), Refusal> {
    let goes = |name: &str| arguments.names.iter().any(|gone| gone == name);
    let mut dependents = BTreeSet::new();
    let mut needed = BTreeSet::new();
    for worker in &file.workers {
        let on = worker.depends_on.iter().map(|d| d.worker.as_str());
        let lost: Vec<&str> = on.filter(|name| goes(name)).collect();
        if !lost.is_empty() && !goes(worker.name.as_str()) {
            dependents.insert(worker.name.as_str());
            needed.extend(lost);
        }
    }
    if dependents.is_empty() {
        return Ok(());
    }
    let list = |names: &BTreeSet<&str>, between: &str| {
        let names: Vec<&str> = names.iter().copied().collect();
        names.join(between)
    };
    let mut all: Vec<&str> = arguments.names.iter().map(String::as_str).collect();
    all.extend(&dependents);
    let (who, what) = (list(&dependents, ", "), list(&needed, ", "));
    let all = all.join(" ");
    let verb = if dependents.len() == 1 {
        "depends"
    } else {
        "depend"
    };
    Err(Refusal::new(format_args!(
        "failed to remove {what}: {who} {verb} on it; take it out of their depends_on, or remove \
         them too: iii-super remove {all}"
    )))
}

fn refused(
    name: &str,
    error: &EditError,
    original: &Original,
    arguments: &RemoveArguments,
) -> Refusal {
    let shown = arguments.edit.file.display();
    let lead = format!("failed to remove worker {name:?} from {shown}");
    match error {
        EditError::Absent(_) => {
            let known = text::names(&original.text);
            let meant = did_you_mean(name, known.iter().map(String::as_str));
            let hint = match meant {
                Some(meant) => format!(", did you mean {meant:?}?"),
                None if known.is_empty() => String::new(),
                None => format!("\n    it has: {}", known.join(", ")),
            };
            Refusal::new(format_args!("{lead}: {error}{hint}"))
        }
        EditError::Syntax(fault) => Refusal::new(format_args!(
            "{shown}:{}: not valid YAML: {}",
            fault.at, fault.message
        )),
        EditError::Present(_) | EditError::ByHand(_) => Refusal::new(format_args!(
            "{lead}: {error}; nothing was changed, take it out by hand"
        )),
    }
}
