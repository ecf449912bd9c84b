//! Scripts and dependencies that a `package.json` or a `deno.json` names.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dev::project::Kind;

/// Scripts that start a project, the one for development first.
const STARTS: [&str; 2] = ["dev", "start"];

/// Programs that watch the files themselves, by the word that a script begins with.
const WATCHERS: &[&str] = &[
    "nodemon",
    "vite",
    "vitest",
    "next",
    "nuxt",
    "astro",
    "remix",
    "ts-node-dev",
    "tsnd",
    "ng",
    "webpack-dev-server",
    "parcel",
    "svelte-kit",
    "gatsby",
];
/// Arguments by which a program is made to.
const WATCH_FLAGS: &[&str] = &["watch", "--watch", "--hot", "-w"];

/// Most bytes of such a file.
const MAX_FILE: u64 = 4 << 20;

/// Why a file of scripts cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScriptsError {
    /// It is there and cannot be opened.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// It is no JSON.
    #[error("{}:{line}:{column}: not valid JSON: {reason}", path.display())]
    Json {
        path: PathBuf,
        line: usize,
        column: usize,
        reason: String,
    },
}

/// What such a file says.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    file: &'static str,
    value: Value,
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) found: String,
    pub(super) command: String,
    pub(super) program: Option<String>,
    pub(super) watches_itself: Option<String>,
}

/// Reads the file that this kind of project names its scripts in, if it is there.
pub(super) fn read(directory: &Path, kind: Kind) -> Result<Scripts, ScriptsError> {
    let files: &[&'static str] = match kind {
        // What has comments is left to Deno itself.
        Kind::Deno => &["deno.json"],
        Kind::Bun | Kind::Node => &["package.json"],
        Kind::Python | Kind::Rust | Kind::Go | Kind::Executable | Kind::Manifest => &[],
    };
    for file in files {
        let path = directory.join(file);
        let bytes = match crate::dev::project::read_small(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(ScriptsError::Read { path, source }),
        };
        let value = serde_json::from_slice(&bytes).map_err(|error| ScriptsError::Json {
            path,
            line: error.line(),
            column: error.column(),
            reason: error.to_string(),
        })?;
        return Ok(Scripts { file, value });
    }
    Ok(Scripts::default())
}

impl Scripts {
    /// Whether there is anything to install. Without a file of dependencies there may be.
    pub(super) fn has_dependencies(&self) -> bool {
        if self.file != "package.json" {
            return true;
        }
        let names = ["dependencies", "devDependencies", "optionalDependencies"];
        let any = |name: &&str| {
            let map = self.value.get(name).and_then(Value::as_object);
            map.is_some_and(|map| !map.is_empty())
        };
        self.value.get("workspaces").is_some() || names.iter().any(any)
    }

    /// The script that starts the project, or its main file.
    pub(super) fn start(&self, kind: Kind) -> Option<Start> {
        let (key, run) = match kind {
            Kind::Deno => ("tasks", "deno task"),
            Kind::Bun => ("scripts", "bun run"),
            Kind::Node => ("scripts", "npm run"),
            Kind::Python | Kind::Rust | Kind::Go | Kind::Executable | Kind::Manifest => {
                return None;
            }
        };
        let all = self.value.get(key).and_then(Value::as_object);
        let named = STARTS.iter().find_map(|name| {
            let text = all?.get(*name)?.as_str()?;
            Some((*name, text))
        });
        if let Some((name, text)) = named {
            let around = [format!("pre{name}"), format!("post{name}")];
            let hooks = around
                .iter()
                .any(|hook| all.is_some_and(|all| all.contains_key(hook)));
            let runner = run.split(' ').next();
            // The script itself, where that is the same: a package manager takes a second to start
            // it.
            let direct = kind == Kind::Node && !hooks;
            return Some(Start {
                found: format!("{}: {key}.{name}", self.file),
                command: match direct {
                    true => text.to_owned(),
                    false => format!("{run} {name}"),
                },
                program: match direct {
                    true => Some(String::from("node")),
                    false => runner.map(str::to_owned),
                },
                watches_itself: watcher(text),
            });
        }
        let main = self.value.get("main").and_then(Value::as_str)?;
        let program = if kind == Kind::Bun { "bun" } else { "node" };
        (kind != Kind::Deno).then(|| Start {
            found: format!("{}: main", self.file),
            command: format!("{program} {}", shell_words::quote(main)),
            program: Some(program.to_owned()),
            watches_itself: None,
        })
    }
}

/// What the script watches its files with, if it does.
fn watcher(script: &str) -> Option<String> {
    let words: Vec<&str> = script.split_whitespace().collect();
    let name = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let program = words.iter().map(|word| name(word)).find(|word| {
        // Settings of the environment, and what only starts another program.
        !word.contains('=') && !matches!(word.as_str(), "npx" | "cross-env" | "exec" | "env")
    })?;
    let flagged = words.iter().any(|word| {
        WATCH_FLAGS.contains(word)
            || word.starts_with("--watch=")
            || word.starts_with("--watch-path")
    });
    (WATCHERS.contains(&program.as_str()) || flagged).then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_watch_are_known_by_their_name_or_their_flag() {
        for (script, watches) in [
            ("nodemon src/index.js", Some("nodemon")),
            ("NODE_ENV=development npx nodemon .", Some("nodemon")),
            ("./node_modules/.bin/vite --port 3000", Some("vite")),
            ("node --watch index.js", Some("node")),
            ("tsx watch src/index.ts", Some("tsx")),
            ("node index.js", None),
            ("node watcher.js", None),
            ("", None),
        ] {
            assert_eq!(watcher(script).as_deref(), watches, "{script}");
        }
    }
}
