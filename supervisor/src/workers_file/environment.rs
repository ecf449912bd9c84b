//! `env:`, `env_file:` and `secrets:`.

use std::collections::BTreeSet;

use super::dotenv;
use super::fault::Fault;
use super::interpolate::{interpolate, is_name};
use super::node::Value;
use super::paths;
use super::reader::{Reader, Setting, did_you_mean};

/// Largest env_file: the environment has to fit into a process's initial stack.
const MAX_ENV_FILE: u64 = 1 << 20;

/// The variables in order, and the names of those that are secret: what an `env_file` sets and
/// `env` does not override, and what `secrets` names.
pub(crate) fn environment(
    reader: &mut Reader<'_>,
    env: Option<Setting<'_>>,
    env_file: Option<Setting<'_>>,
    marked: Option<Setting<'_>>,
) -> (Vec<(String, String)>, BTreeSet<String>) {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut secrets = BTreeSet::new();
    let faults = reader.faults.len();
    let files = env_file.map(|s| reader.items_or_one(&s));
    for file in files.unwrap_or_default() {
        for (name, value) in read_file(reader, &file) {
            secrets.insert(name.clone());
            set(&mut variables, name, value);
        }
    }
    let own = env.map(|s| read_env(reader, &s));
    for (name, value) in own.unwrap_or_default() {
        secrets.remove(&name);
        set(&mut variables, name, value);
    }
    if let Some(marked) = marked {
        // A variable that could not be read is missing here, and was told already.
        let known = (reader.faults.len() == faults).then_some(&variables[..]);
        secrets.extend(read_marked(reader, &marked, known));
    }
    (variables, secrets)
}

/// Names of variables, each among `known` if all are known. No fault repeats a text: it may be a
/// secret in the wrong place.
fn read_marked(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    known: Option<&[(String, String)]>,
) -> Vec<String> {
    let mut marked: Vec<(String, usize)> = Vec::new();
    for item in reader.items_or_one(setting) {
        let Some(name) = reader.text(&item) else {
            continue;
        };
        if let Some((_, line)) = marked.iter().find(|(other, _)| other == name) {
            reader.fault(&item, format!("given twice, first at line {line}"));
            continue;
        }
        marked.push((name.to_owned(), item.at().line));
        let names = known.map(|known| known.iter().map(|(known, _)| known.as_str()));
        if let Some(mut names) = names
            && !names.clone().any(|known| known == name)
        {
            let meant = did_you_mean(name, &mut names)
                .map(|meant| format!(", did you mean `{meant}`?"))
                .unwrap_or_default();
            reader.fault_with_remedy(
                &item,
                format!("names no variable of `env` or `env_file`{meant}"),
                "`secrets` lists names of this worker's variables; their values stand in `env`, \
                 where a name alone takes the host's",
            );
        }
    }
    marked.into_iter().map(|(name, _)| name).collect()
}

fn set(variables: &mut Vec<(String, String)>, name: String, value: String) {
    match variables.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => variables.push((name, value)),
    }
}

/// A map, or a list of `NAME=value`. A name without a value takes the host's.
fn read_env(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    if setting.is_list() {
        for item in reader.items(setting) {
            let Some(text) = reader.text(&item) else {
                continue;
            };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            variables.extend(variable(reader, &item, name, value));
        }
    } else {
        let what = "a map or a list of NAME=value";
        for (name, _, child) in reader.entries(setting, what).unwrap_or_default() {
            let value = match &child.node.value {
                Value::Null => None,
                Value::Text(text) => Some(text.as_str()),
                Value::List(_) | Value::Map(_) => {
                    reader.fault(&child, "expected a single value");
                    continue;
                }
            };
            variables.extend(variable(reader, &child, name, value));
        }
    }
    variables
}

fn variable(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    name: &str,
    value: Option<&str>,
) -> Option<(String, String)> {
    if !is_name(name) {
        // The text may be a secret in the wrong place, so it is not repeated.
        reader.fault(
            setting,
            "the name of a variable is made of letters, digits and `_`, and does not start with \
             a digit",
        );
        return None;
    }
    let value = match value {
        Some(value) => interpolate(value, reader.lookup),
        None => (reader.lookup)(name).ok_or_else(|| {
            format!("{name} has no value here and is not set in the environment either")
        }),
    };
    match value {
        Ok(value) if value.contains('\0') => {
            reader.fault(setting, "the value holds a NUL character");
            None
        }
        Ok(value) => Some((name.to_owned(), value)),
        Err(message) => {
            reader.fault(setting, message);
            None
        }
    }
}

fn read_file(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Vec<(String, String)> {
    let Some(path) = paths::resolve(reader, setting) else {
        return Vec::new();
    };
    let bytes = match std::fs::metadata(&path).and_then(|meta| {
        if !meta.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        if meta.len() > MAX_ENV_FILE {
            return Err(std::io::Error::other("it is larger than 1 MiB"));
        }
        std::fs::read(&path)
    }) {
        Ok(bytes) => bytes,
        Err(error) => {
            reader.fault(
                setting,
                format!("failed to read {}: {error}", path.display()),
            );
            return Vec::new();
        }
    };
    let Ok(text) = String::from_utf8(bytes) else {
        reader.fault(setting, format!("{} is not UTF-8", path.display()));
        return Vec::new();
    };
    let (variables, faults) = dotenv::parse(&text);
    for fault in faults {
        reader.faults.push(Fault {
            at: Some(setting.at()),
            path: setting.path.clone(),
            message: format!("{}:{}: {}", path.display(), fault.line, fault.message),
            remedy: None,
        });
    }
    variables
}
