//! What a directory holds, by the files in it.
//!
//! The manifest comes first. Else the first [`KINDS`] row whose file is there decides what the
//! project is, and the first row of [`INSTALLS`] and of [`STARTS`] for that kind whose file is there
//! says what to do. Only what cannot be said by the name of a file is code: scripts that a
//! `package.json` or `deno.json` names ([`scripts`]), and executables ([`executable`]).

mod executable;
mod scripts;
mod tables;

use std::path::{Path, PathBuf};

use super::manifest::{self, ManifestError};
use super::project::{Kind, Project, Settings, Steps};

pub(crate) use self::scripts::ScriptsError;
use self::tables::{INSTALLS, KINDS, STARTS};

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DetectError {
    /// The path leads nowhere.
    #[error("failed to find {}: {source}; name the project's directory, or one program", path.display())]
    Missing {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The manifest has faults.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file that names scripts cannot be read.
    #[error(transparent)]
    Scripts(#[from] ScriptsError),
    /// Nothing that is known.
    #[error(
        "failed to recognise the project in {}: it has none of {}; say how it is started in \
         {}/{}, as\n    scripts:\n      start: ./my-program",
        directory.display(), known.join(", "), directory.display(), manifest::FILE_NAME
    )]
    Unknown {
        directory: PathBuf,
        known: Vec<&'static str>,
    },
    /// It is known what it is, but not how it is started.
    #[error(
        "failed to find what to start in {}: it is {} by its {marker}, and has none of {}; say how \
         it is started in {}/{}, as\n    scripts:\n      start: {example}",
        directory.display(), kind.name(), known.join(", "), directory.display(), manifest::FILE_NAME
    )]
    NoStart {
        directory: PathBuf,
        kind: Kind,
        marker: &'static str,
        known: Vec<&'static str>,
        example: &'static str,
    },
}

/// Finds out what is at `path`: a project's directory, or a program to be run in its own.
pub(crate) fn detect(path: &Path) -> Result<Project, DetectError> {
    let missing = |source| DetectError::Missing {
        path: path.to_owned(),
        source,
    };
    let path = path.canonicalize().map_err(missing)?;
    if !path.is_dir() {
        return executable::file(&path);
    }
    let guessed = guess(&path);
    match manifest::read(&path)? {
        None => guessed,
        Some(manifest) => manifest.over(path, guessed),
    }
}

fn guess(directory: &Path) -> Result<Project, DetectError> {
    let has = |name: &str| directory.join(name).is_file();
    let Some((kind, marker)) = KINDS.iter().find(|(_, file)| has(file)).copied() else {
        return executable::in_directory(directory)?.ok_or_else(|| DetectError::Unknown {
            directory: directory.to_owned(),
            known: KINDS.iter().map(|(_, file)| *file).collect(),
        });
    };
    let mut project = Project {
        directory: directory.to_owned(),
        name: None,
        kind,
        found: String::new(),
        steps: Steps::default(),
        programs: Vec::new(),
        depends_on: Vec::new(),
        cached: Vec::new(),
        watches_itself: None,
        settings: Settings::default(),
    };
    if matches!(kind, Kind::Node | Kind::Bun) {
        project.cached.push(String::from("node_modules"));
    }
    let scripts = scripts::read(directory, kind)?;
    let install = INSTALLS
        .iter()
        .find(|row| row.kind == kind && has(row.file));
    if let Some(row) = install
        && scripts.has_dependencies()
    {
        project.steps.install = Some(row.command.to_owned());
        project.programs.push(row.program.to_owned());
        project.depends_on = depends_on(kind, row.file);
    }
    if let Some(start) = scripts.start(kind) {
        project.found = start.found;
        project.steps.start = start.command;
        project.watches_itself = start.watches_itself;
        project.programs.extend(start.program);
    } else if let Some(row) = STARTS.iter().find(|row| row.kind == kind && has(row.file)) {
        project.found = row.file.to_owned();
        project.steps.start = row.command.to_owned();
        project.programs.push(row.program.to_owned());
    } else {
        let rows = STARTS.iter().filter(|row| row.kind == kind);
        return Err(DetectError::NoStart {
            directory: directory.to_owned(),
            kind,
            marker,
            known: rows.clone().map(|row| row.file).collect(),
            example: rows
                .clone()
                .map(|row| row.command)
                .next()
                .unwrap_or("./run"),
        });
    }
    project.programs.dedup();
    Ok(project)
}

/// Files whose change makes an install necessary: those that name dependencies and those that pin
/// them.
fn depends_on(kind: Kind, lock: &str) -> Vec<String> {
    let mut files: Vec<&str> = KINDS
        .iter()
        .filter(|(k, file)| *k == kind && !is_started(file))
        .map(|(_, file)| *file)
        .collect();
    if kind == Kind::Bun {
        files.push("package.json");
    }
    if !files.contains(&lock) {
        files.push(lock);
    }
    files.into_iter().map(str::to_owned).collect()
}

/// Whether a change of this file may change what the project is, or how it is installed.
pub(crate) fn decides(directory: &Path, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name.filter(|_| path.parent() == Some(directory)) else {
        return false;
    };
    name == manifest::FILE_NAME
        || INSTALLS.iter().any(|row| row.file == name)
        || KINDS
            .iter()
            .any(|(_, file)| *file == name && !is_started(file))
}

/// Whether the file is itself what is started, and so only a source.
fn is_started(file: &str) -> bool {
    let starts =
        |row: &tables::Row| row.file == file && row.command.split(' ').any(|word| word == file);
    STARTS.iter().any(starts)
}

#[cfg(test)]
mod tests;
