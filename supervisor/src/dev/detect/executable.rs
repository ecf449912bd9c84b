//! Programs and scripts that the kernel can start.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::DetectError;
use crate::dev::project::{Kind, Project, Settings, Steps};

/// What a directory's program is called, the likeliest first.
const NAMES: &[&str] = &[
    "dev",
    "start",
    "run",
    "main",
    "server",
    "worker",
    "dev.sh",
    "start.sh",
    "run.sh",
    "main.sh",
    "server.sh",
    "worker.sh",
];

/// What runs a file that is not executable itself, by how its name ends.
const RUNNERS: &[(&str, &str)] = &[
    ("py", "python3"),
    ("js", "node"),
    ("mjs", "node"),
    ("cjs", "node"),
    ("sh", "sh"),
];

/// A program that was named.
pub(super) fn file(path: &Path) -> Result<Project, DetectError> {
    let unknown = || DetectError::Unknown {
        directory: path.to_owned(),
        known: vec!["an executable's permissions", "a known ending"],
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(unknown());
    };
    let quoted = shell_words::quote(name);
    if is_program(path) {
        return Ok(project(directory, name, format!("./{quoted}"), None));
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    let runner = RUNNERS.iter().find(|(known, _)| Some(*known) == ending);
    let (_, runner) = runner.ok_or_else(unknown)?;
    Ok(project(
        directory,
        name,
        format!("{runner} {quoted}"),
        Some(runner),
    ))
}

/// A directory's program, if it has one of a usual name, or only one at all.
pub(super) fn in_directory(directory: &Path) -> Result<Option<Project>, DetectError> {
    let usual = NAMES.iter().find(|name| is_program(&directory.join(name)));
    let name = match usual {
        Some(name) => Some((*name).to_owned()),
        None => only_program(directory).map_err(|source| DetectError::Missing {
            path: directory.to_owned(),
            source,
        })?,
    };
    Ok(name.map(|name| {
        let command = format!("./{}", shell_words::quote(&name));
        project(directory, &name, command, None)
    }))
}

fn only_program(directory: &Path) -> std::io::Result<Option<String>> {
    let mut found = None;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with('.') && is_program(&entry.path()) && found.replace(name).is_some() {
            return Ok(None);
        }
    }
    Ok(found)
}

fn project(directory: &Path, name: &str, start: String, program: Option<&str>) -> Project {
    Project {
        directory: directory.to_owned(),
        name: None,
        kind: Kind::Executable,
        found: name.to_owned(),
        steps: Steps {
            start,
            ..Steps::default()
        },
        programs: program.map(str::to_owned).into_iter().collect(),
        depends_on: Vec::new(),
        cached: Vec::new(),
        watches_itself: None,
        settings: Settings::default(),
    }
}

/// An executable file that the kernel knows how to start: an ELF, or a script with its `#!`.
fn is_program(path: &Path) -> bool {
    let executable = std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let mut magic = [0; 4];
    executable
        && std::fs::File::open(path)
            .and_then(|mut file| file.read(&mut magic))
            .is_ok_and(|n| magic[..n].starts_with(b"#!") || magic == *b"\x7fELF")
}
