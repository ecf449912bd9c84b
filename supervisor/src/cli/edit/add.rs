//! `iii-super add`.

use std::path::{Path, PathBuf};

use clap::Args;
use iii_firmware::home::IiiHome;
use iii_proto::ids::WorkerName;

use super::super::complete;
use super::super::project::running_state_dir;
use super::{EditArguments, Refusal, edit, faults, is_about, tell};
use crate::workers_file::edit::{self as text, Draft, EditError, Original, real_path};
use crate::workers_file::{SCHEMA_URL, WorkersFile, WorkersFileError};

#[derive(Debug, Args)]
pub(in crate::cli) struct AddArguments {
    /// The worker's name: a-z, 0-9 and -
    #[arg(value_name = "NAME")]
    name: String,
    /// What runs in the VM, as one text that is split into words; no shell runs it
    #[arg(long, value_name = "COMMAND", conflicts_with = "words")]
    command: Option<String>,
    /// What runs in the VM, word by word
    #[arg(last = true, value_name = "COMMAND")]
    words: Vec<String>,
    /// The image that is its root, as debian:12-slim; without, the host's own toolchain
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Project directory, at /app in the guest
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<String>,
    /// Working directory in the guest
    #[arg(long, value_name = "DIRECTORY")]
    cwd: Option<String>,
    /// A variable: NAME=VALUE, or NAME for the host's value at each run; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file of secret variables; may be repeated
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// A variable whose value is never shown; may be repeated
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// A port of the guest to be published: HOST:GUEST, or one number for both; may be repeated
    #[arg(short, long, visible_alias = "publish", value_name = "HOST:GUEST")]
    port: Vec<String>,
    /// A directory to be shown to the guest: HOST:GUEST or HOST:GUEST:ro; may be repeated
    #[arg(
        short,
        long,
        visible_alias = "volume",
        short_alias = 'v',
        value_name = "HOST:GUEST[:ro]"
    )]
    mount: Vec<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// The VM's memory, as 512MiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Most processes
    #[arg(long, value_name = "NUMBER")]
    pids: Option<String>,
    /// Most open files of a process
    #[arg(long, value_name = "NUMBER")]
    open_files: Option<String>,
    /// Size of the writable layer, held in the VM's memory
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Keep changes to the root on a disk of this size, as 2GiB
    #[arg(long, value_name = "SIZE")]
    persist: Option<String>,
    /// When the workload is started again: always, on-failure or never
    #[arg(long, value_name = "MODE")]
    restart: Option<String>,
    /// A probe: http:PORT/PATH, tcp:PORT or exec:COMMAND
    #[arg(long, value_name = "PROBE")]
    health: Option<String>,
    /// A worker that must be ready first, or NAME:started, NAME:done; may be repeated
    #[arg(long, value_name = "NAME[:CONDITION]", add = complete::workers())]
    depends_on: Vec<String>,
    /// What it may reach: public, engine or none
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// A destination that is allowed beside that: CIDR[:PORT] or DOMAIN[:PORT]; may be repeated
    #[arg(long, value_name = "DESTINATION")]
    allow: Vec<String>,
    /// A port of the host's loopback that it may reach; may be repeated
    #[arg(long, value_name = "PORT")]
    host_port: Vec<String>,
    /// As whom it runs in the guest: NAME, NAME:GROUP, UID or UID:GID
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Time between SIGTERM and SIGKILL, as 10s
    #[arg(long, value_name = "TIME")]
    stop_grace: Option<String>,
    /// Put it in the place of the worker of this name, if there is one
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    edit: EditArguments,
}

pub(in crate::cli) fn add(arguments: &AddArguments) -> u8 {
    let name = &arguments.name;
    let result = WorkerName::new(name.as_str())
        .map_err(|error| Refusal::new(format_args!("failed to add worker {name:?}: {error}")))
        .and_then(|_| draft(arguments))
        .and_then(|worker| {
            edit(&arguments.edit, |original| {
                with(arguments, &worker, original)
            })
        });
    let action = match &result {
        Ok(edited) if text::names(&edited.before).contains(name) => "replaced",
        Ok(_) | Err(_) => "added",
    };
    let file = match &arguments.edit.file {
        file if *file == Path::new(crate::workers_file::FILE_NAME) => String::new(),
        file => format!(" -f {}", shell_words::quote(&file.display().to_string())),
    };
    let runs = IiiHome::from_env()
        .ok()
        .and_then(|home| running_state_dir(&home, &arguments.edit.file).ok())
        .is_some_and(|state| crate::state::was_in_use(&state));
    let next = match runs {
        true => format!(
            "a supervisor runs this file; take it in: iii-super run{file} --reload {name}\n"
        ),
        false => format!("start it: iii-super run{file} {name}\n"),
    };
    tell(
        &arguments.edit,
        result,
        action,
        std::slice::from_ref(name),
        &next,
    )
}

/// The text with the worker.
fn with(arguments: &AddArguments, worker: &Draft, original: &Original) -> Result<String, Refusal> {
    let (name, file) = (&arguments.name, &arguments.edit.file);
    let before = match original.exists() {
        true => original.text.clone(),
        false => text::first_lines(SCHEMA_URL),
    };
    let after = match text::replace(&before, name, worker) {
        _ if !arguments.replace => text::add(&before, name, worker),
        Err(EditError::Absent(_)) => text::add(&before, name, worker),
        replaced => replaced,
    };
    let after = after.map_err(|error| refused(arguments, worker, &error))?;
    let Err(error) = WorkersFile::parse_edited(&after, file) else {
        return Ok(after);
    };
    let WorkersFileError::Invalid { path, faults: now } = error else {
        return Err(Refusal::new(error));
    };
    let shown = file.display();
    let (own, rest): (Vec<_>, Vec<_>) = now.into_iter().partition(|f| is_about(f, name));
    if own.is_empty() {
        // In the file as it is, where the user will look for them, if they are there already.
        let was = faults(WorkersFile::parse_edited(&before, file));
        let faults = if was.is_empty() { rest } else { was };
        let count = faults.len();
        let noun = if count == 1 { "fault" } else { "faults" };
        let invalid = WorkersFileError::Invalid { path, faults };
        return Err(Refusal::with_faults(
            &invalid,
            format_args!(
                "failed to add worker {name:?}: {count} {noun} in {shown}; correct that first"
            ),
        ));
    }
    let lines: Vec<String> = own
        .iter()
        .map(|fault| {
            let setting = fault.path.strip_prefix("workers.").unwrap_or(&fault.path);
            let remedy = fault.remedy.as_ref();
            let remedy = remedy.map_or(String::new(), |remedy| format!("\n    {remedy}"));
            format!("{setting}: {}{remedy}", fault.message)
        })
        .collect();
    Err(Refusal::new(format_args!(
        "failed to add worker {name:?}: {}",
        lines.join("\n")
    )))
}

fn refused(arguments: &AddArguments, worker: &Draft, error: &EditError) -> Refusal {
    let (name, shown) = (&arguments.name, arguments.edit.file.display());
    let lead = format!("failed to add worker {name:?} to {shown}");
    match error {
        EditError::Present(_) => {
            Refusal::new(format_args!("{lead}: {error}; --replace replaces it"))
        }
        EditError::Syntax(fault) => Refusal::new(format_args!(
            "{shown}:{}: not valid YAML: {}",
            fault.at, fault.message
        )),
        EditError::Absent(_) | EditError::ByHand(_) => Refusal::new(format_args!(
            "{lead}: {error}; nothing was changed, write it by hand:\n\n{}",
            text::by_hand(name, worker)
        )),
    }
}

/// The worker that the arguments describe, in the order in which people write keys.
fn draft(arguments: &AddArguments) -> Result<Draft, Refusal> {
    let places = Places::of(&arguments.edit.file)?;
    let mut keys = Keys::default();
    keys.text("image", arguments.image.clone());
    let mut root = Keys::default();
    root.setting("persist", arguments.persist.as_deref());
    keys.put("root", root.map());
    keys.text(
        "path",
        arguments.path.as_ref().map(|path| places.host(path)),
    );
    keys.text("command", arguments.command.clone());
    if !arguments.words.is_empty() {
        keys.put("command", Draft::texts(&arguments.words));
    }
    keys.text("cwd", arguments.cwd.clone());
    keys.put("env", environment(&arguments.env));
    let files: Vec<String> = arguments.env_file.iter().map(|f| places.host(f)).collect();
    match &files[..] {
        [file] => keys.text("env_file", Some(file.clone())),
        _ => keys.put("env_file", Draft::texts(&files)),
    }
    keys.put("secrets", Draft::texts(&arguments.secret));
    keys.put("ports", Draft::texts(&arguments.port));
    let mounts: Vec<String> = arguments.mount.iter().map(|m| places.mount(m)).collect();
    keys.put("mounts", Draft::texts(&mounts));
    let mut resources = Keys::default();
    for (key, value) in [
        ("cpus", &arguments.cpus),
        ("memory", &arguments.memory),
        ("pids", &arguments.pids),
        ("open_files", &arguments.open_files),
        ("disk", &arguments.disk),
    ] {
        resources.setting(key, value.as_deref());
    }
    keys.put("resources", resources.map());
    keys.setting("restart", arguments.restart.as_deref());
    if let Some(probe) = &arguments.health {
        keys.put("health", health(probe)?);
    }
    keys.put("depends_on", depends_on(&arguments.depends_on));
    keys.put("network", network(arguments));
    keys.setting("user", arguments.user.as_deref());
    keys.setting("stop_grace", arguments.stop_grace.as_deref());
    Ok(keys.map())
}

/// Entries of a map; what is not given is not written.
#[derive(Default)]
struct Keys(Vec<(String, Draft)>);

impl Keys {
    fn put(&mut self, key: &str, value: Draft) {
        let empty = match &value {
            Draft::List(items) => items.is_empty(),
            Draft::Map(entries) => entries.is_empty(),
            Draft::Text(_) | Draft::Word(_) => false,
        };
        if !empty {
            self.0.push((key.to_owned(), value));
        }
    }

    fn text(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.put(key, Draft::Text(value));
        }
    }

    fn setting(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.put(key, setting(value));
        }
    }

    fn map(self) -> Draft {
        Draft::Map(self.0)
    }
}

/// A number stands without quotes, as the schema wants it.
fn setting(text: &str) -> Draft {
    let number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if number {
        Draft::Word(text.to_owned())
    } else {
        Draft::text(text)
    }
}

fn environment(variables: &[String]) -> Draft {
    let pairs: Option<Vec<(&str, &str)>> = variables.iter().map(|v| v.split_once('=')).collect();
    match pairs {
        Some(pairs) => Draft::Map(
            pairs
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Draft::text(value)))
                .collect(),
        ),
        // A name without a value, which takes the host's, has its place in a list.
        None => Draft::texts(variables),
    }
}

fn health(probe: &str) -> Result<Draft, Refusal> {
    let (kind, value) = probe.split_once(':').unwrap_or(("", probe));
    match kind {
        "http" | "tcp" | "exec" => Ok(Draft::Map(vec![(kind.to_owned(), setting(value))])),
        _ => Err(Refusal::new(format_args!(
            "failed to read --health {probe:?}: write it http:8080/health, tcp:5432 or \
             exec:pg_isready"
        ))),
    }
}

fn depends_on(dependencies: &[String]) -> Draft {
    if dependencies.iter().all(|d| !d.contains(':')) {
        return Draft::texts(dependencies);
    }
    let entries = dependencies.iter().map(|dependency| {
        let (name, condition) = dependency.split_once(':').unwrap_or((dependency, "ready"));
        (name.to_owned(), Draft::text(condition))
    });
    Draft::Map(entries.collect())
}

fn network(arguments: &AddArguments) -> Draft {
    let mut keys = Keys::default();
    keys.setting("mode", arguments.network.as_deref());
    keys.put("allow", Draft::texts(&arguments.allow));
    let ports = arguments.host_port.iter().map(|port| setting(port));
    keys.put("host_ports", Draft::List(ports.collect()));
    match &keys.0[..] {
        [(key, mode)] if key == "mode" => mode.clone(),
        _ => keys.map(),
    }
}

/// Paths on the command line start where the user is, those in the file where the file is.
struct Places {
    here: PathBuf,
    file: PathBuf,
}

impl Places {
    fn of(file: &Path) -> Result<Self, Refusal> {
        let fail = |error| {
            Refusal::new(format_args!(
                "failed to find the current directory: {error}"
            ))
        };
        let here = std::env::current_dir().map_err(fail)?;
        // The reader takes relative paths from where the file really is.
        let file = real_path(file)?;
        let file = file.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { here, file })
    }

    fn host(&self, text: &str) -> String {
        let stays = text.is_empty()
            || text.starts_with(['/', '~'])
            || text.contains("${")
            || self.here == self.file;
        if stays {
            return text.to_owned();
        }
        let path: PathBuf = self.here.join(text).components().collect();
        match path.strip_prefix(&self.file) {
            Ok(rest) if rest == Path::new("") => String::from("."),
            Ok(rest) if !text.contains("..") => format!("./{}", rest.display()),
            Ok(_) | Err(_) => path.display().to_string(),
        }
    }

    fn mount(&self, text: &str) -> String {
        match text.split_once(':') {
            Some((host, guest)) => format!("{}:{guest}", self.host(host)),
            None => text.to_owned(),
        }
    }
}
