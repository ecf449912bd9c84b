//! Walks the tree, collects faults: the words that every setting's parser is written in.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use super::fault::Fault;
use super::interpolate::interpolate;
use super::node::{Node, Position, Value};
use super::{duration, size};

/// What parsing needs to know of the world, and what it found wrong.
pub(crate) struct Reader<'a> {
    /// Relative paths start here: the file's own directory.
    pub(crate) directory: &'a Path,
    /// The host's environment.
    pub(crate) lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) faults: Vec<Fault>,
}

/// A value and the path that leads to it.
#[derive(Clone, Debug)]
pub(crate) struct Setting<'n> {
    pub(crate) path: String,
    pub(crate) node: &'n Node,
}

impl<'n> Setting<'n> {
    pub(crate) fn at(&self) -> Position {
        self.node.at
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    fn child(&self, key: &str, node: &'n Node) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self { path, node }
    }
}

/// The entries of a map whose keys were checked.
pub(crate) struct Fields<'n> {
    map: Setting<'n>,
    entries: Vec<(&'n str, &'n Node)>,
}

impl<'n> Fields<'n> {
    pub(crate) fn get(&self, key: &str) -> Option<Setting<'n>> {
        let (_, node) = self.entries.iter().find(|(name, _)| *name == key)?;
        Some(self.map.child(key, node))
    }
}

/// Words of other tools for keys of ours.
const SYNONYMS: [(&str, &str); 18] = [
    ("services", "workers"),
    ("environment", "env"),
    ("volumes", "mounts"),
    ("working_dir", "cwd"),
    ("workdir", "cwd"),
    ("cmd", "command"),
    ("args", "command"),
    ("pull_policy", "pull"),
    ("build", "path"),
    ("healthcheck", "health"),
    ("mem_limit", "resources.memory"),
    ("memory", "resources.memory"),
    ("cpus", "resources.cpus"),
    ("stop_grace_period", "stop_grace"),
    ("nofile", "open_files"),
    ("backoff", "initial"),
    ("test", "exec"),
    ("logging", "logs"),
];

/// The key that was probably meant.
pub(crate) fn did_you_mean<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let most = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|key| (strsim::damerau_levenshtein(word, key), key))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, key)| key)
}

fn synonym(word: &str, known: &[&str]) -> Option<&'static str> {
    SYNONYMS
        .iter()
        .find(|(theirs, ours)| {
            let first = ours.split('.').next().unwrap_or(ours);
            *theirs == word && known.contains(&first)
        })
        .map(|(_, ours)| *ours)
}

impl Reader<'_> {
    pub(crate) fn fault_at(&mut self, at: Position, path: &str, message: impl Display) {
        self.faults.push(Fault {
            at: Some(at),
            path: path.to_owned(),
            message: message.to_string(),
            remedy: None,
        });
    }

    pub(crate) fn fault(&mut self, setting: &Setting<'_>, message: impl Display) {
        self.fault_at(setting.at(), &setting.path, message);
    }

    pub(crate) fn fault_with_remedy(
        &mut self,
        setting: &Setting<'_>,
        message: impl Display,
        remedy: impl Display,
    ) {
        self.faults.push(Fault {
            at: Some(setting.at()),
            path: setting.path.clone(),
            message: message.to_string(),
            remedy: Some(remedy.to_string()),
        });
    }

    fn expected(&mut self, setting: &Setting<'_>, what: &str) {
        let found = setting.node.value.kind();
        self.fault(setting, format!("expected {what}, found {found}"));
    }

    /// The map's entries, in order, after a look at duplicates.
    pub(crate) fn entries<'n>(
        &mut self,
        setting: &Setting<'n>,
        what: &str,
    ) -> Option<Vec<(&'n str, Position, Setting<'n>)>> {
        let Value::Map(entries) = &setting.node.value else {
            self.expected(setting, what);
            return None;
        };
        let mut seen: Vec<(&str, Position, Setting<'_>)> = Vec::new();
        for entry in entries {
            let child = setting.child(&entry.key, &entry.value);
            match seen.iter().find(|(key, ..)| *key == entry.key) {
                Some((_, first, _)) => self.fault_at(
                    entry.at,
                    &child.path,
                    format!("given twice, first at line {}", first.line),
                ),
                None => seen.push((&entry.key, entry.at, child)),
            }
        }
        Some(seen)
    }

    /// The map's entries, all of whose keys are among `known` and have a value.
    pub(crate) fn fields<'n>(
        &mut self,
        setting: &Setting<'n>,
        known: &[&str],
    ) -> Option<Fields<'n>> {
        let entries = self.entries(setting, "a map")?;
        let mut fields = Vec::new();
        for (key, at, child) in entries {
            if setting.path.is_empty() && key.starts_with("x-") {
                continue;
            }
            if !known.contains(&key) {
                let meant = synonym(key, known)
                    .or_else(|| did_you_mean(key, known.iter().copied()))
                    .map(|meant| format!(", did you mean `{meant}`?"));
                let all = format!("known keys here: {}", known.join(", "));
                self.faults.push(Fault {
                    at: Some(at),
                    path: child.path.clone(),
                    message: format!("unknown key `{key}`{}", meant.as_deref().unwrap_or("")),
                    remedy: meant.is_none().then_some(all),
                });
            } else if child.node.value == Value::Null {
                self.fault_at(
                    at,
                    &child.path,
                    "has no value: give it one or remove the line",
                );
            } else {
                fields.push((key, child.node));
            }
        }
        Some(Fields {
            map: setting.clone(),
            entries: fields,
        })
    }

    /// The scalar's text as it stands in the file.
    pub(crate) fn text<'n>(&mut self, setting: &Setting<'n>) -> Option<&'n str> {
        match &setting.node.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected(setting, "a single value");
                None
            }
        }
    }

    /// The scalar's text with `${…}` replaced.
    pub(crate) fn expanded(&mut self, setting: &Setting<'_>) -> Option<String> {
        let text = self.text(setting)?;
        match interpolate(text, self.lookup) {
            Ok(text) => Some(text),
            Err(message) => {
                self.fault(setting, message);
                None
            }
        }
    }

    /// The list's items.
    pub(crate) fn items<'n>(&mut self, setting: &Setting<'n>) -> Vec<Setting<'n>> {
        match &setting.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(n, node)| Setting {
                    path: format!("{}[{n}]", setting.path),
                    node,
                })
                .collect(),
            Value::Null | Value::Text(_) | Value::Map(_) => {
                self.expected(setting, "a list");
                Vec::new()
            }
        }
    }

    /// The list's items, or the single value as a list of one.
    pub(crate) fn items_or_one<'n>(&mut self, setting: &Setting<'n>) -> Vec<Setting<'n>> {
        match setting.node.value {
            Value::Text(_) => vec![setting.clone()],
            Value::Null | Value::List(_) | Value::Map(_) => self.items(setting),
        }
    }

    /// Parses the text as it stands; the parser's message names the text itself.
    pub(crate) fn parsed<T>(
        &mut self,
        setting: &Setting<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(setting)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(setting, message);
                None
            }
        }
    }

    /// Parses the text with `${…}` replaced. The parser's message follows the text as the file has
    /// it: the value of a variable is never shown.
    pub(crate) fn parsed_expanded<T>(
        &mut self,
        setting: &Setting<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let raw = self.text(setting)?;
        let text = self.expanded(setting)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(setting, format!("{raw:?} {message}"));
                None
            }
        }
    }

    pub(crate) fn duration(&mut self, setting: &Setting<'_>) -> Option<Duration> {
        self.parsed(setting, duration::parse)
    }

    /// A duration that must not be zero.
    pub(crate) fn positive_duration(&mut self, setting: &Setting<'_>) -> Option<Duration> {
        let value = self.duration(setting)?;
        if value.is_zero() {
            self.fault(setting, "must be longer than 0");
            return None;
        }
        Some(value)
    }

    pub(crate) fn size(&mut self, setting: &Setting<'_>) -> Option<u64> {
        self.parsed(setting, size::parse)
    }

    /// A whole number within bounds.
    pub(crate) fn number(&mut self, setting: &Setting<'_>, least: u64, most: u64) -> Option<u64> {
        self.parsed(setting, |text| {
            let value = text
                .replace('_', "")
                .parse::<u64>()
                .map_err(|_| format!("{text:?} is not a whole number from {least} to {most}"))?;
            if value < least || value > most {
                return Err(format!("{value} is outside of {least} to {most}"));
            }
            Ok(value)
        })
    }

    /// A number within bounds.
    pub(crate) fn fraction(&mut self, setting: &Setting<'_>, least: f64, most: f64) -> Option<f64> {
        self.parsed(setting, |text| match text.parse::<f64>() {
            Ok(value) if value >= least && value <= most => Ok(value),
            _ => Err(format!("{text:?} is not a number from {least} to {most}")),
        })
    }

    /// One of some words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        setting: &Setting<'_>,
        words: &[(&str, T)],
    ) -> Option<T> {
        self.parsed(setting, |text| {
            if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
                return Ok(*value);
            }
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let meant = did_you_mean(text, all.iter().copied())
                .map(|m| format!(", did you mean `{m}`?"))
                .unwrap_or_default();
            Err(format!("{text:?} is not one of {}{meant}", all.join(", ")))
        })
    }
}
