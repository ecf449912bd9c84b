//! Edits of a workers file's text that leave everything else in it as it was, byte for byte.
//!
//! * [`outline`] knows where each entry stands, from the events of the parser that the reader uses;
//! * [`draft`] and [`scalar`] write a new entry as people write it;
//! * [`insert`] and [`cut`] find the place, in maps written by indentation and by braces;
//! * [`file`](mod@file) reads a file and replaces it as a whole, between processes and through
//!   crashes.
//!
//! An edit is never trusted: the tree of the new text must be the tree of the old one with just
//! this change, or the edit is refused and the user is shown what to write by hand. Pure but for
//! `file`. Must never be in it: what a worker's keys mean.

mod cut;
mod draft;
mod file;
mod insert;
mod outline;
mod scalar;

#[cfg(test)]
mod tests;

use super::node::{self, Entry, Node, SyntaxError, Value};

pub(crate) use draft::Draft;
pub(crate) use file::{EditFile, EditFileError, Original, Replaced, real_path};

use draft::Layout;
use outline::{EntryPlace, Kind, MapPlace, Place};

/// The key that workers stand below.
const WORKERS: &str = "workers";

/// First lines of a file that is made, for editors.
pub(crate) fn first_lines(schema_url: &str) -> String {
    format!("# yaml-language-server: $schema={schema_url}\n")
}

/// Why a text was not edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    /// There is one of that name.
    #[error("there is a worker {0:?} already")]
    Present(String),
    /// There is none of that name.
    #[error("there is no worker {0:?}")]
    Absent(String),
    /// The text cannot be read.
    #[error("{}: not valid YAML: {}", .0.at, .0.message)]
    Syntax(SyntaxError),
    /// It is written in a way that is not edited without changing something else.
    #[error("{0}")]
    ByHand(String),
}

impl EditError {
    fn by_hand(reason: impl Into<String>) -> Self {
        Self::ByHand(reason.into())
    }
}

/// Adds a worker.
pub(crate) fn add(text: &str, name: &str, worker: &Draft) -> Result<String, EditError> {
    let old = read(text)?;
    if own(&old, name).is_some() {
        return Err(EditError::Present(name.to_owned()));
    }
    let new = insert::worker(text, place(text)?, name, worker)?;
    let mut expected = workers_of(&old)?;
    expected.push(entry(name, worker));
    checked(&old, expected, new)
}

/// Puts a worker in the place of the one of its name.
pub(crate) fn replace(text: &str, name: &str, worker: &Draft) -> Result<String, EditError> {
    let old = read(text)?;
    if own(&old, name).is_none() {
        return Err(EditError::Absent(name.to_owned()));
    }
    let root = place(text)?;
    let (_, map, at) = find(root.as_ref(), name)?;
    let new = insert::instead(text, map, at, worker)?;
    let mut expected = workers_of(&old)?;
    expected.retain(|entry| entry.key != name);
    expected.push(entry(name, worker));
    checked(&old, expected, new)
}

/// Takes a worker out.
pub(crate) fn remove(text: &str, name: &str) -> Result<String, EditError> {
    let old = read(text)?;
    if own(&old, name).is_none() {
        return Err(EditError::Absent(name.to_owned()));
    }
    let root = place(text)?;
    let (workers, map, at) = find(root.as_ref(), name)?;
    let new = cut::entry(text, workers, map, at)?;
    let mut expected = workers_of(&old)?;
    expected.retain(|entry| entry.key != name);
    checked(&old, expected, new)
}

/// The entry as it would be written into an ordinary file, for people to write it.
pub(crate) fn by_hand(name: &str, worker: &Draft) -> String {
    let layout = Layout {
        indent: 2,
        step: 2,
        newline: "\n",
    };
    format!("{WORKERS}:\n{}", draft::block(name, worker, layout))
}

/// The names of the workers, as far as the text can be read.
pub(crate) fn names(text: &str) -> Vec<String> {
    let workers = read(text).and_then(|root| workers_of(&root));
    let workers = workers.unwrap_or_default();
    workers.into_iter().map(|entry| entry.key).collect()
}

fn read(text: &str) -> Result<Option<Node>, EditError> {
    if text.replace("\r\n", "").contains('\r') {
        let reason = "it has lines that end in a carriage return alone, which editors show as one";
        return Err(EditError::by_hand(reason));
    }
    node::parse(text).map_err(EditError::Syntax)
}

/// The document's place; `None`: there is nothing in it.
fn place(text: &str) -> Result<Option<Place>, EditError> {
    match outline::outline(text) {
        Some(place) if place.kind == Kind::Null && place.start == place.end => Ok(None),
        Some(place) => Ok(Some(place)),
        None if text.lines().all(is_idle) => Ok(None),
        None => Err(EditError::by_hand("its keys are not all single values")),
    }
}

/// Whether a line holds nothing but white space, a comment or the mark of a document's beginning.
fn is_idle(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}');
    line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with("---")
}

/// The worker in the tree of the whole file.
fn own<'n>(root: &'n Option<Node>, name: &str) -> Option<&'n Entry> {
    let workers = get(root.as_ref()?, WORKERS)?;
    let Value::Map(entries) = &workers.value.value else {
        return None;
    };
    entries.iter().find(|entry| entry.key == name)
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
        Value::Null | Value::Text(_) | Value::List(_) => None,
    }
}

/// Where a worker stands: the entry `workers`, its map and the worker's position in it.
fn find<'p>(
    root: Option<&'p Place>,
    name: &str,
) -> Result<(&'p EntryPlace, &'p MapPlace, usize), EditError> {
    let workers = match root.map(|place| &place.kind) {
        Some(Kind::Map(map)) => map.position(WORKERS).map(|at| &map.entries[at]),
        Some(Kind::Null | Kind::Scalar | Kind::Alias | Kind::List) | None => None,
    };
    let elsewhere = "its workers stand elsewhere in the file, by an alias or a merge key";
    let Some(workers) = workers else {
        return Err(EditError::by_hand(elsewhere));
    };
    match &workers.value.kind {
        Kind::Map(map) => match map.position(name) {
            Some(at) => Ok((workers, map, at)),
            None => Err(EditError::by_hand(elsewhere)),
        },
        Kind::Null | Kind::Scalar | Kind::Alias | Kind::List => Err(EditError::by_hand(elsewhere)),
    }
}

/// The workers of the old tree.
fn workers_of(root: &Option<Node>) -> Result<Vec<Entry>, EditError> {
    let Some(root) = root else {
        return Ok(Vec::new());
    };
    let no_map = |what: &str| EditError::by_hand(format!("{what} is not a map"));
    if !matches!(root.value, Value::Map(_)) {
        return Err(no_map("the file"));
    }
    match get(root, WORKERS).map(|workers| &workers.value.value) {
        Some(Value::Map(entries)) => Ok(entries.clone()),
        Some(Value::Null) | None => Ok(Vec::new()),
        Some(Value::Text(_) | Value::List(_)) => Err(no_map("`workers`")),
    }
}

fn entry(name: &str, worker: &Draft) -> Entry {
    let at = node::Position { line: 0, column: 0 };
    Entry {
        key: name.to_owned(),
        at,
        value: Node {
            at,
            value: worker.value(),
        },
    }
}

/// The new text, if it means what the old one means but for its workers, which are `workers`.
fn checked(old: &Option<Node>, workers: Vec<Entry>, new: String) -> Result<String, EditError> {
    let tree = match node::parse(&new) {
        Ok(tree) => tree,
        Err(error) if error.message.contains("anchor") => {
            return Err(EditError::by_hand(format!(
                "an anchor within it is used elsewhere: {}",
                error.message
            )));
        }
        Err(error) => {
            return Err(EditError::by_hand(format!(
                "the result would not be YAML: {}",
                error.message
            )));
        }
    };
    let at = node::Position { line: 0, column: 0 };
    let mut expected = match old.as_ref().map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.clone(),
        Some(Value::Null | Value::Text(_) | Value::List(_)) | None => Vec::new(),
    };
    expected.retain(|entry| entry.key != WORKERS);
    expected.push(Entry {
        key: WORKERS.to_owned(),
        at,
        value: Node {
            at,
            value: Value::Map(workers),
        },
    });
    match tree {
        Some(tree) if same(&tree.value, &Value::Map(expected)) => Ok(new),
        Some(_) | None => Err(EditError::by_hand(
            "the edit would change the meaning of something else in the file",
        )),
    }
}

/// Whether two trees mean the same: places do not count, nor does the order of a map's keys.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(&a.value, &b.value))
        }
        (Value::Map(a), Value::Map(b)) => {
            let sorted = |entries: &[Entry]| {
                let mut order: Vec<usize> = (0..entries.len()).collect();
                order.sort_by_key(|at| &entries[*at].key);
                order
            };
            let (left, right) = (sorted(a), sorted(b));
            a.len() == b.len()
                && left.into_iter().zip(right).all(|(left, right)| {
                    a[left].key == b[right].key && same(&a[left].value.value, &b[right].value.value)
                })
        }
        (Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_), _) => false,
    }
}
