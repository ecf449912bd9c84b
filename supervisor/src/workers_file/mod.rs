//! `iii.workers.yaml`: what a user wants to run, checked whole.
//!
//! [`WorkersFile::load`] reads, checks and turns the file into [`WorkerSpec`]s, or returns every
//! fault of the file at once, each with line, column and path. It looks at the host's environment
//! and at the directories that are mounted; it starts and changes nothing.
//!
//! The format is described in `docs/workers-file.md` and by the JSON Schema in [`SCHEMA`].

mod command;
mod depends_on;
mod dotenv;
mod duration;
#[cfg(feature = "cli")]
pub(crate) mod edit;
mod engine;
mod environment;
mod fault;
mod health;
mod interpolate;
mod logs;
mod mounts;
mod network;
mod node;
mod paths;
mod ports;
mod reader;
mod restart;
mod size;
mod worker;

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;

/// What other files of this project are read with.
#[cfg(feature = "cli")]
pub(crate) mod parts {
    pub(crate) use super::dotenv::{DotenvFault, parse as parse_variables};
    pub(crate) use super::duration::parse as parse_duration;
    pub(crate) use super::environment::environment;
    pub(crate) use super::fault::Fault;
    pub(crate) use super::mounts::mounts;
    pub(crate) use super::node::{Value, parse as parse_yaml};
    pub(crate) use super::ports::{parse as parse_port, ports};
    pub(crate) use super::reader::{Reader, Setting, did_you_mean};
    pub(crate) use super::worker::resources;
}

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use iii_actors::spec::WorkerSpec;
use iii_proto::ids::WorkerName;

#[cfg(feature = "cli")]
pub(crate) use duration::{format as format_duration, parse as parse_duration};
pub use engine::EngineKey;
pub use fault::{Fault, WorkersFileError};
pub use node::Position;
pub(crate) use reader::did_you_mean;
pub(crate) use size::format as format_size;
#[cfg(feature = "cli")]
pub(crate) use worker::{PLATFORMS, platform_word};

use node::{Node, Value};
use reader::{Reader, Setting};

/// The file's usual name.
pub const FILE_NAME: &str = "iii.workers.yaml";

/// The JSON Schema (draft 2020-12) of the format, for editors.
pub const SCHEMA: &str = include_str!("../../schema/iii.workers.schema.json");

/// Where the schema is found by editors: its `$id`.
#[cfg(feature = "cli")]
pub(crate) const SCHEMA_URL: &str = "https://raw.githubusercontent.com/iii-hq/iii-super/main/supervisor/schema/iii.workers.schema.json";

/// Keys of the file itself; `x-…` may hold anything, for anchors.
const KEYS: &[&str] = &["engine", "workers"];

/// Largest file that is read: a larger one is not a workers file.
const MAX_FILE: u64 = 1 << 20;

/// A workers file that has no fault.
#[derive(Clone, Debug)]
pub struct WorkersFile {
    /// Where it was read.
    pub path: PathBuf,
    /// Where its workers find the iii engine, if it says so. Each of [`Self::workers`] has it too.
    pub engine: EngineKey,
    /// In the file's order.
    pub workers: Vec<WorkerSpec>,
}

/// What it is if a file names no worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoWorkers {
    Fault,
    /// One that has lost its last worker takes the next one.
    #[cfg(feature = "cli")]
    Sound,
}

/// A name was asked for that the file does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to select worker {name:?}: {} has none of that name{}", path.display(), hint(meant, known))]
pub struct UnknownWorker {
    name: String,
    path: PathBuf,
    meant: Option<String>,
    known: Vec<String>,
}

fn hint(meant: &Option<String>, known: &[String]) -> String {
    match meant {
        Some(meant) => format!(", did you mean {meant:?}?"),
        None => format!("\n    it has: {}", known.join(", ")),
    }
}

impl WorkersFile {
    /// Reads and checks `path` with this process's environment.
    pub fn load(path: &Path) -> Result<Self, WorkersFileError> {
        // A variable that is not UTF-8 cannot be put into YAML text; it counts as unset.
        Self::load_with(path, &|name| std::env::var(name).ok())
    }

    /// Reads and checks `path`; `lookup` is the environment.
    pub fn load_with(
        path: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, WorkersFileError> {
        let text = read(path)?;
        let directory = directory_of(path)?;
        Self::parse(&text, path, &directory, lookup)
    }

    /// Checks `text`, which stands for the file `path` in `directory`.
    pub fn parse(
        text: &str,
        path: &Path,
        directory: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, WorkersFileError> {
        let reader = Reader {
            directory,
            lookup,
            faults: Vec::new(),
        };
        Self::parse_with(text, path, reader, NoWorkers::Fault)
    }

    /// Checks what is to become the text of `path`. It may have lost its last worker.
    #[cfg(feature = "cli")]
    pub(crate) fn parse_edited(text: &str, path: &Path) -> Result<Self, WorkersFileError> {
        let reader = Reader {
            directory: &directory_of(path)?,
            lookup: &|name| std::env::var(name).ok(),
            faults: Vec::new(),
        };
        Self::parse_with(text, path, reader, NoWorkers::Sound)
    }

    fn parse_with(
        text: &str,
        path: &Path,
        mut reader: Reader<'_>,
        none: NoWorkers,
    ) -> Result<Self, WorkersFileError> {
        let (engine, workers) = match node::parse(text) {
            Ok(Some(root)) => top(&mut reader, &root, none),
            Ok(None) => {
                reader.faults.push(Fault {
                    at: None,
                    path: String::new(),
                    message: String::from("the file is empty"),
                    remedy: Some(String::from(
                        "it needs at least: workers: {NAME: {command: …}}",
                    )),
                });
                Default::default()
            }
            Err(error) => {
                reader.fault_at(error.at, "", format!("not valid YAML: {}", error.message));
                Default::default()
            }
        };
        if reader.faults.is_empty() {
            return Ok(Self {
                path: path.to_owned(),
                engine,
                workers,
            });
        }
        let mut faults = reader.faults;
        faults.sort_by_key(|fault| fault.at);
        Err(WorkersFileError::Invalid {
            path: path.to_owned(),
            faults,
        })
    }

    /// The workers of these names and those that they depend on, in the file's order; all of them
    /// if no name is given.
    pub fn select(&self, names: &[String]) -> Result<Vec<WorkerSpec>, Vec<UnknownWorker>> {
        let known = || self.workers.iter().map(|w| w.name.as_str());
        let unknown: Vec<UnknownWorker> = names
            .iter()
            .filter(|name| !known().any(|k| k == name.as_str()))
            .map(|name| UnknownWorker {
                name: name.clone(),
                path: self.path.clone(),
                meant: did_you_mean(name, known()).map(str::to_owned),
                known: known().map(str::to_owned).collect(),
            })
            .collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        if names.is_empty() {
            return Ok(self.workers.clone());
        }
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        let mut todo: Vec<&str> = names.iter().map(String::as_str).collect();
        while let Some(name) = todo.pop() {
            if wanted.insert(name) {
                let worker = self.workers.iter().filter(|w| w.name.as_str() == name);
                todo.extend(worker.flat_map(|w| w.depends_on.iter().map(|d| d.worker.as_str())));
            }
        }
        let workers = self.workers.iter();
        Ok(workers
            .filter(|w| wanted.contains(w.name.as_str()))
            .cloned()
            .collect())
    }
}

fn read(path: &Path) -> Result<String, WorkersFileError> {
    let fail = |source: std::io::Error| {
        let remedy = (source.kind() == std::io::ErrorKind::NotFound).then_some(
            "name the file with --file FILE, change into its directory, or make one with \
                 `iii-super add NAME -- COMMAND`",
        );
        WorkersFileError::Read {
            path: path.to_owned(),
            source,
            remedy,
        }
    };
    // Opening a FIFO without this waits for somebody who writes to it.
    let nonblock = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path);
    let mut file = opened.map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(fail(std::io::Error::other("it is no regular file")));
    }
    let large = || {
        fail(std::io::Error::other(
            "it is larger than 1 MiB, so it is hardly a workers file",
        ))
    };
    if metadata.len() > MAX_FILE {
        return Err(large());
    }
    // It may grow while it is read.
    let mut bytes = Vec::new();
    let mut bounded = file.by_ref().take(MAX_FILE + 1);
    bounded.read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        fail(std::io::Error::other(format!("line {line} is not UTF-8")))
    })
}

/// The directory of the file itself, behind all symbolic links: a project is known by its file's real
/// path, so what the file means must not depend on the name by which it is read. The file need not
/// be there yet.
fn directory_of(path: &Path) -> Result<PathBuf, WorkersFileError> {
    let fail = |source| WorkersFileError::Read {
        path: path.to_owned(),
        source,
        remedy: None,
    };
    let real = match path.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let absolute = std::path::absolute(path).map_err(fail)?;
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            return parent.canonicalize().map_err(fail);
        }
        real => real.map_err(fail)?,
    };
    let parent = real.parent();
    Ok(parent.map_or_else(|| PathBuf::from("/"), Path::to_owned))
}

/// The file as a whole.
fn top(reader: &mut Reader<'_>, root: &Node, none: NoWorkers) -> (EngineKey, Vec<WorkerSpec>) {
    let top = Setting {
        path: String::new(),
        node: root,
    };
    let Some(fields) = reader.fields(&top, KEYS) else {
        return Default::default();
    };
    let engine = fields.get("engine");
    let engine = engine.map_or(EngineKey::Absent, |s| engine::engine(reader, &s));
    let Some(setting) = fields.get("workers") else {
        if reader.faults.is_empty() {
            reader.fault(&top, "has no `workers`");
        }
        return (engine, Vec::new());
    };
    let mut workers = workers(reader, &setting, none);
    for worker in &mut workers {
        worker.engine = engine.address().cloned();
    }
    (engine, workers)
}

fn workers(reader: &mut Reader<'_>, setting: &Setting<'_>, none: NoWorkers) -> Vec<WorkerSpec> {
    let entries = reader
        .entries(setting, "a map of workers by name")
        .unwrap_or_default();
    if entries.is_empty() && reader.faults.is_empty() && none == NoWorkers::Fault {
        reader.fault(setting, "names no worker");
    }
    let mut taken = Vec::new();
    let mut references = Vec::new();
    let mut names = Vec::new();
    let mut workers = Vec::new();
    for (name, at, child) in entries {
        let name = match WorkerName::new(name) {
            Ok(name) => name,
            Err(error) => {
                reader.fault_at(at, &child.path, error);
                continue;
            }
        };
        names.push(name.clone());
        if child.node.value == Value::Null {
            reader.fault_at(
                at,
                &child.path,
                "has no settings: it needs at least `command`",
            );
            continue;
        }
        workers.extend(worker::worker(
            reader,
            name,
            &child,
            &mut taken,
            &mut references,
        ));
    }
    depends_on::check(reader, &names, &references);
    workers
}
