//! The worker that a project becomes.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iii_actors::spec::{
    AtRest, DiskMountSpec, DiskSpec, EngineAddress, MountSpec, PublishSpec, Resources, WorkerSpec,
};
use iii_proto::ids::{WorkerName, WorkerNameError};
use sha2::{Digest, Sha256};

use super::project::{Kind, Project};
use super::script::{CACHE, script};

/// Where the guest sees the project.
pub(crate) const APP: &str = "/app";
/// The cache's disk.
const DISK: &str = "cache";
/// Only what is used of it takes space on the host.
const DISK_SIZE: u64 = 16 << 30;
/// Memory of a project that does not say: an install needs more than most workers.
const MEMORY: u64 = 1 << 30;
/// Between SIGTERM and SIGKILL: somebody is waiting for the new one.
const GRACE: Duration = Duration::from_secs(2);
/// A failure this soon after a start is what was saved, and not tried again.
const QUICK: Duration = Duration::from_secs(5);

/// Where programs of the host's root are in the guest.
const GUEST_PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];

/// What the command line adds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Additions {
    pub(crate) env: Vec<(String, String)>,
    /// Names of variables whose values are secret.
    pub(crate) secret: BTreeSet<String>,
    pub(crate) ports: Vec<PublishSpec>,
    pub(crate) name: Option<WorkerName>,
    pub(crate) engine: Option<EngineAddress>,
}

/// Why a project cannot become a worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// Its name cannot be a worker's.
    #[error(
        "failed to name the worker {name:?}: {source}; choose another in iii.worker.yaml, or by --name"
    )]
    Name {
        name: String,
        source: WorkerNameError,
    },
    /// What it needs is not on the host.
    #[error(
        "failed to find `{program}`, which {found} needs: it is not in {} of this host, which is \
         what the guest has{}",
        GUEST_PATH.join(", "), elsewhere(program, place.as_deref())
    )]
    Program {
        program: String,
        found: String,
        place: Option<PathBuf>,
    },
}

fn elsewhere(program: &str, place: Option<&Path>) -> String {
    match place {
        Some(place) => format!(
            "; it is at {}: install it for the whole system, or show it to the guest by `mounts` \
             in iii.worker.yaml and name it whole in `scripts`",
            place.display()
        ),
        None => format!("; install {program}"),
    }
}

/// The worker of a project.
pub(crate) fn spec(project: &Project, additions: &Additions) -> Result<WorkerSpec, WorkerError> {
    for program in &project.programs {
        require(program, project)?;
    }
    let name = match &additions.name {
        Some(name) => name.clone(),
        None => name_of(project)?,
    };
    let cached = needs_cache(project);
    let text = script(&project.steps, &key(project), &search_path(project, cached));
    let command = ["/bin/sh", "-c", &text].map(str::to_owned);
    let mut spec = WorkerSpec::new(name, command.to_vec());
    spec.cwd = Some(APP.to_owned());
    // What is started right after a save must not see what was there before it.
    spec.live_mounts = true;
    spec.mounts.push(MountSpec {
        host: project.directory.clone(),
        guest: APP.to_owned(),
        read_only: false,
    });
    spec.mounts.extend(project.settings.mounts.iter().cloned());
    spec.resources = project.settings.resources.clone().unwrap_or(resources());
    spec.env = environment(project.kind, cached);
    for (name, value) in project.settings.env.iter().chain(&additions.env) {
        spec.env.retain(|(known, _)| known != name);
        spec.env.push((name.clone(), value.clone()));
    }
    spec.secret_env = additions.secret.clone();
    spec.secret_env
        .extend(project.settings.secret.iter().cloned());
    spec.engine = additions.engine.clone();
    spec.ports = project.settings.ports.clone();
    spec.ports.extend(&additions.ports);
    if cached {
        let show = |directory: &str, guest: String| DiskMountSpec {
            directory: directory.to_owned(),
            guest,
        };
        let mut mounts = vec![show("", CACHE.to_owned())];
        let over = |directory: &String| show(directory, format!("{APP}/{directory}"));
        mounts.extend(project.cached.iter().map(over));
        spec.disks.push(DiskSpec {
            name: DISK.to_owned(),
            size: DISK_SIZE,
            mounts,
        });
    }
    spec.at_rest = AtRest::Wait {
        quick_ms: QUICK.as_millis() as u64,
    };
    spec.stop_grace = GRACE;
    Ok(spec)
}

/// What a manifest's `resources` are added to.
pub(crate) fn resources() -> Resources {
    Resources {
        memory: MEMORY,
        ..Resources::default()
    }
}

/// Whether anything is made that should outlive the VM.
pub(crate) fn needs_cache(project: &Project) -> bool {
    let compiles = matches!(project.kind, Kind::Rust | Kind::Go | Kind::Deno | Kind::Bun);
    compiles || project.steps.install.is_some() || project.steps.setup.is_some()
}

/// Directories of the host's project over which the guest has its own.
pub(crate) fn covered(project: &Project) -> Vec<PathBuf> {
    match needs_cache(project) {
        true => project
            .cached
            .iter()
            .map(|d| project.directory.join(d))
            .collect(),
        false => Vec::new(),
    }
}

fn require(program: &str, project: &Project) -> Result<(), WorkerError> {
    let in_guest = GUEST_PATH
        .iter()
        .any(|directory| Path::new(directory).join(program).is_file());
    if in_guest {
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(program));
    Err(WorkerError::Program {
        program: program.to_owned(),
        found: project.found.clone(),
        place: places.find(|place| place.is_file()),
    })
}

/// The project's name as a host name.
fn name_of(project: &Project) -> Result<WorkerName, WorkerError> {
    if let Some(name) = &project.name {
        return WorkerName::new(name.clone()).map_err(|source| WorkerError::Name {
            name: name.clone(),
            source,
        });
    }
    let directory = project.directory.file_name().unwrap_or_default();
    let plain: String = directory
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let plain = plain.trim_matches('-');
    let name = if plain.is_empty() { "dev" } else { plain };
    WorkerName::new(name).map_err(|source| WorkerError::Name {
        name: name.to_owned(),
        source,
    })
}

/// Directories in which a start looks for programs first.
fn search_path(project: &Project, cached: bool) -> Vec<String> {
    let mut path = Vec::new();
    if project.kind == Kind::Python && project.steps.install.is_some() && cached {
        path.push(format!("{CACHE}/venv/bin"));
    }
    if matches!(project.kind, Kind::Node | Kind::Bun) {
        path.push(format!("{APP}/node_modules/.bin"));
    }
    path
}

/// Where tools put what they make, and that output is seen when it is written.
fn environment(kind: Kind, cached: bool) -> Vec<(String, String)> {
    let place = if cached { CACHE } else { "/tmp/iii" };
    let pairs: &[(&str, &str)] = match kind {
        Kind::Deno => &[("DENO_DIR", "deno")],
        Kind::Bun => &[("BUN_INSTALL_CACHE_DIR", "bun")],
        Kind::Node => &[("npm_config_cache", "npm")],
        Kind::Python => &[
            ("VIRTUAL_ENV", "venv"),
            ("PIP_CACHE_DIR", "pip"),
            ("UV_CACHE_DIR", "uv"),
            ("PYTHONPYCACHEPREFIX", "pycache"),
        ],
        Kind::Rust => &[("CARGO_TARGET_DIR", "target"), ("CARGO_HOME", "cargo")],
        Kind::Go => &[("GOPATH", "go"), ("GOCACHE", "go-build")],
        Kind::Executable | Kind::Manifest => &[],
    };
    let mut env: Vec<(String, String)> = pairs
        .iter()
        .map(|(name, directory)| ((*name).to_owned(), format!("{place}/{directory}")))
        .collect();
    if kind == Kind::Python {
        env.push((String::from("PYTHONUNBUFFERED"), String::from("1")));
        env.push((
            String::from("PIP_DISABLE_PIP_VERSION_CHECK"),
            String::from("1"),
        ));
    }
    if kind == Kind::Node {
        env.push((
            String::from("npm_config_update_notifier"),
            String::from("false"),
        ));
    }
    env
}

/// Stands for everything that decides whether an install is still right: its commands, the files
/// that name and pin dependencies, and the programs of the root that it is for.
fn key(project: &Project) -> String {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for step in [&project.steps.setup, &project.steps.install] {
        part(step.as_deref().unwrap_or_default().as_bytes());
    }
    for file in &project.depends_on {
        part(file.as_bytes());
        // One that is not there counts as such: it may come.
        part(&std::fs::read(project.directory.join(file)).unwrap_or_default());
    }
    part(b"root: host");
    for program in &project.programs {
        let places = GUEST_PATH
            .iter()
            .map(|directory| Path::new(directory).join(program));
        let found = places
            .filter_map(|place| std::fs::metadata(place).ok())
            .next();
        let version = found.map(|meta| (meta.len(), meta.mtime(), meta.mtime_nsec()));
        part(format!("{program} {version:?}").as_bytes());
    }
    let digest = digest.finalize();
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::detect::detect;

    fn project(name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join(name);
        std::fs::create_dir(&root).unwrap();
        for (file, text) in files {
            std::fs::write(root.join(file), text).unwrap();
        }
        (directory, root)
    }

    fn spec_of(root: &Path) -> WorkerSpec {
        let mut project = detect(root).unwrap();
        // What this host has is not what is tested.
        project.programs.clear();
        spec(&project, &Additions::default()).unwrap()
    }

    #[test]
    fn what_is_installed_is_on_a_disk_that_covers_the_hosts() {
        let package = r#"{"dependencies": {"a": "1"}}"#;
        let files = [("package.json", package), ("index.js", "")];
        let (_directory, root) = project("My App", &files);
        let spec = spec_of(&root);
        assert_eq!(spec.name.as_str(), "my-app");
        let guests: Vec<&str> = spec.disks[0]
            .mounts
            .iter()
            .map(|m| m.guest.as_str())
            .collect();
        assert_eq!(guests, [CACHE, "/app/node_modules"]);
        assert_eq!(spec.mounts[0].guest, "/app");
        assert!(
            spec.env
                .contains(&("npm_config_cache".into(), format!("{CACHE}/npm")))
        );
        let text = &spec.command[2];
        assert!(text.contains("npm install --no-package-lock"), "{text}");
        let covered = covered(&detect(&root).unwrap());
        assert_eq!(covered, [root.canonicalize().unwrap().join("node_modules")]);

        std::fs::write(root.join("package.json"), "{}").unwrap();
        assert_eq!(spec_of(&root).disks, [], "nothing to be installed");
    }

    #[test]
    fn the_key_changes_with_what_an_install_depends_on_and_with_nothing_else() {
        let files = [("requirements.txt", "a==1\n"), ("main.py", "")];
        let (_directory, root) = project("p", &files);
        let key_now = || key(&detect(&root).unwrap());
        let first = key_now();
        std::fs::write(root.join("main.py"), "print()").unwrap();
        assert_eq!(key_now(), first);
        std::fs::write(root.join("requirements.txt"), "a==2\n").unwrap();
        let second = key_now();
        assert_ne!(second, first);
        std::fs::write(
            root.join("iii.worker.yaml"),
            "scripts: {install: pip install b}",
        )
        .unwrap();
        assert_ne!(key_now(), second);
    }

    #[test]
    fn a_program_that_the_guest_has_not_is_named() {
        let (_directory, root) = project("p", &[("main.py", "")]);
        let mut project = detect(&root).unwrap();
        project.programs = vec![String::from("no-such-program")];
        let error = spec(&project, &Additions::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`no-such-program`, which main.py needs"),
            "{error}"
        );
        project.programs.clear();
        project.name = Some(String::from("No Name"));
        let error = spec(&project, &Additions::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("--name"), "{error}");
    }

    #[test]
    fn what_the_user_sets_wins() {
        let manifest = "env: {PYTHONUNBUFFERED: '0', A: '1'}\nports: ['8080:80']\n";
        let files = [("main.py", ""), ("iii.worker.yaml", manifest)];
        let (_directory, root) = project("p", &files);
        let mut project = detect(&root).unwrap();
        project.programs.clear();
        let additions = Additions {
            env: vec![(String::from("A"), String::from("2"))],
            secret: BTreeSet::from([String::from("A")]),
            ports: vec![PublishSpec::loopback(1, 2)],
            name: Some(WorkerName::new("other").unwrap()),
            engine: Some("ws://localhost:49134".parse().unwrap()),
        };
        let spec = spec(&project, &additions).unwrap();
        assert_eq!(spec.engine, additions.engine);
        let values = |name: &str| {
            let all = spec.env.iter().filter(|(known, _)| known == name);
            all.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(values("PYTHONUNBUFFERED"), ["0"]);
        assert_eq!(values("A"), ["2"]);
        assert_eq!(spec.ports.len(), 2);
        assert_eq!(spec.name.as_str(), "other");
        assert!(spec.secret_env.contains("A"));
    }
}
