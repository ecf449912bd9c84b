//! `iii.worker.yaml`: what a project says of itself. It wins over what is guessed from its files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::detect::DetectError;
use super::project::{Kind, Project, Settings, Steps, read_small};
use super::worker;
use crate::workers_file::WorkersFileError;
use crate::workers_file::parts::{self, Fault, Reader, Setting, Value};

/// The file's name.
pub(crate) const FILE_NAME: &str = "iii.worker.yaml";

/// Most bytes of it.
const MAX_FILE: u64 = 1 << 20;

/// Keys that say something to us.
const KEYS: &[&str] = &[
    "name",
    "scripts",
    "env",
    "env_file",
    "secrets",
    "ports",
    "mounts",
    "resources",
    "ignore",
    "watch",
];
/// Keys of `scripts:`.
const SCRIPTS_KEYS: &[&str] = &["setup", "install", "start"];
/// Keys of the same file that say something to other tools.
const OTHERS: &[&str] = &[
    "iii",
    "version",
    "description",
    "language",
    "runtime",
    "type",
    "deploy",
    "manifest",
    "config",
    "dependencies",
    "repository",
    "homepage",
    "license",
    "author",
    "authors",
    "tags",
    "bin",
];

/// Why a manifest was not taken: as a workers file's.
pub(crate) type ManifestError = WorkersFileError;

/// A manifest without a fault.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    name: Option<String>,
    setup: Option<String>,
    install: Option<String>,
    start: Option<String>,
    settings: Settings,
}

/// Reads the manifest of a directory, if it has one.
pub(crate) fn read(directory: &Path) -> Result<Option<Manifest>, ManifestError> {
    let path = directory.join(FILE_NAME);
    let failed = |source| WorkersFileError::Read {
        path: path.clone(),
        source,
        remedy: None,
    };
    let bytes = match read_small(&path, MAX_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let text =
        String::from_utf8(bytes).map_err(|_| failed(std::io::Error::other("it is not UTF-8")))?;
    let lookup = |name: &str| std::env::var(name).ok();
    parse(&text, &path, directory, &lookup).map(Some)
}

fn parse(
    text: &str,
    path: &Path,
    directory: &Path,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Manifest, ManifestError> {
    let mut reader = Reader {
        directory,
        lookup,
        faults: Vec::new(),
    };
    let manifest = match parts::parse_yaml(text) {
        Ok(Some(root)) => {
            let top = Setting {
                path: String::new(),
                node: &root,
            };
            manifest(&mut reader, &top)
        }
        Ok(None) => Manifest::default(),
        Err(error) => {
            reader.fault_at(error.at, "", format!("not valid YAML: {}", error.message));
            Manifest::default()
        }
    };
    if reader.faults.is_empty() {
        return Ok(manifest);
    }
    let mut faults: Vec<Fault> = reader.faults;
    faults.sort_by_key(|fault| fault.at);
    Err(WorkersFileError::Invalid {
        path: path.to_owned(),
        faults,
    })
}

fn manifest(reader: &mut Reader<'_>, top: &Setting<'_>) -> Manifest {
    let mut manifest = Manifest::default();
    let settings = &mut manifest.settings;
    let (mut env, mut env_file, mut secrets) = (None, None, None);
    for (key, at, setting) in reader.entries(top, "a map").unwrap_or_default() {
        if setting.node.value == Value::Null {
            continue;
        }
        match key {
            "name" => manifest.name = reader.text(&setting).map(str::to_owned),
            "scripts" => {
                let Some(fields) = reader.fields(&setting, SCRIPTS_KEYS) else {
                    continue;
                };
                let mut script = |key| fields.get(key).and_then(|s| command(reader, &s));
                manifest.setup = script("setup");
                manifest.install = script("install");
                manifest.start = script("start");
            }
            "env" => env = Some(setting),
            "env_file" => env_file = Some(setting),
            "secrets" => secrets = Some(setting),
            "ports" => settings.ports = parts::ports(reader, &setting, &mut Vec::new()),
            "mounts" => settings.mounts = parts::mounts(reader, None, Some(&setting)),
            "resources" => {
                settings.resources = Some(parts::resources(reader, &setting, worker::resources()))
            }
            "ignore" => {
                let items = reader.items_or_one(&setting);
                let items = items.iter().filter_map(|item| reader.text(item));
                settings.ignore = items.map(str::to_owned).collect();
            }
            "watch" => {
                let words = [("true", false), ("false", true)];
                settings.no_restart = reader.word(&setting, &words).unwrap_or_default();
            }
            "image" => reader.fault_with_remedy(
                &setting,
                "is not supported by `iii-super dev` yet",
                "take it out: the host's own /usr is used",
            ),
            other if OTHERS.contains(&other) => {}
            other => {
                // A key of a tool that we have not heard of is no fault; a slip of the pen is.
                let known = KEYS.iter().chain(OTHERS).copied();
                if let Some(meant) = parts::did_you_mean(other, known) {
                    let message = format!("unknown key `{other}`, did you mean `{meant}`?");
                    reader.fault_at(at, &setting.path, message);
                }
            }
        }
    }
    let (env, secret) = parts::environment(reader, env, env_file, secrets);
    settings.env = env;
    settings.secret = secret.into_iter().collect();
    manifest
}

/// A script for a shell; lines of it, as a list, follow one another.
fn command(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<String> {
    let lines = reader.items_or_one(setting);
    let lines: Vec<&str> = lines.iter().filter_map(|line| reader.text(line)).collect();
    let text = lines.join(" && ");
    if text.trim().is_empty() {
        reader.fault(setting, "is empty: write what is to be run, or take it out");
        return None;
    }
    Some(text)
}

impl Manifest {
    /// What is guessed from the directory's files, as far as the manifest leaves it open.
    pub(crate) fn over(
        self,
        directory: PathBuf,
        guessed: Result<Project, DetectError>,
    ) -> Result<Project, DetectError> {
        let mut project = match (guessed, &self.start) {
            (Ok(project), _) => project,
            (Err(DetectError::Unknown { .. } | DetectError::NoStart { .. }), Some(_)) => Project {
                directory,
                name: None,
                kind: Kind::Manifest,
                found: String::new(),
                steps: Steps::default(),
                programs: Vec::new(),
                depends_on: Vec::new(),
                cached: Vec::new(),
                watches_itself: None,
                settings: Settings::default(),
            },
            (Err(error), _) => return Err(error),
        };
        project.name = self.name.or(project.name);
        if let Some(start) = self.start {
            project.found = format!("{FILE_NAME}: scripts.start");
            project.steps.start = start;
            project.programs.clear();
            project.watches_itself = None;
        }
        if let Some(install) = self.install {
            project.steps.install = Some(install);
            project.programs.clear();
        }
        project.steps.setup = self.setup;
        if project.steps.install.is_some() || project.steps.setup.is_some() {
            project.depends_on.push(FILE_NAME.to_owned());
        }
        project.settings = self.settings;
        Ok(project)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Manifest, String> {
        let lookup = |_: &str| None;
        parse(text, Path::new("m.yaml"), Path::new("/nowhere"), &lookup).map_err(|e| e.to_string())
    }

    #[test]
    fn what_it_says_is_taken_and_what_it_says_to_others_is_left() {
        let manifest = read(
            "iii: v1\nname: math\nlanguage: python\nscripts:\n  setup: apt-get update\n  install: \
             [pip install a, pip install b]\n  start: python3 main.py\nenv: {A: '1'}\nports: \
             ['8080:80']\nignore: [data/, '*.tmp']\nresources: {memory: 512MiB}\nx-ours: 1\n",
        )
        .unwrap();
        assert_eq!(manifest.name.as_deref(), Some("math"));
        assert_eq!(
            manifest.install.as_deref(),
            Some("pip install a && pip install b")
        );
        assert_eq!(manifest.start.as_deref(), Some("python3 main.py"));
        assert_eq!(manifest.settings.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(manifest.settings.ignore, ["data/", "*.tmp"]);
        assert_eq!(manifest.settings.ports.len(), 1);
        assert!(!manifest.settings.no_restart);
        let marked = read("env: {A: '1', B: '2'}\nsecrets: [A]").unwrap();
        assert_eq!(marked.settings.secret, ["A"]);
        assert!(read("watch: false").unwrap().settings.no_restart);
        assert!(read("").unwrap().start.is_none());
    }

    #[test]
    fn faults_have_their_place() {
        for (text, expected) in [
            (
                "scirpts: {start: x}",
                "m.yaml:1:1: scirpts: unknown key `scirpts`, did you mean `scripts`?",
            ),
            ("scripts: {strat: x}", "did you mean `start`?"),
            ("scripts: {start: ''}", "is empty"),
            ("name: [a]", "expected a single value, found a list"),
            ("env: {1A: x}", "name of a variable"),
            ("image: node:22", "not supported by `iii-super dev` yet"),
            ("a: [", "not valid YAML"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
