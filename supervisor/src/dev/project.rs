//! What a directory holds, and how it is installed and started.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use iii_actors::spec::{MountSpec, PublishSpec, Resources};

/// What a project is written in, or for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Deno,
    Bun,
    Node,
    Python,
    Rust,
    Go,
    /// A program or script that the kernel can start.
    Executable,
    /// What its manifest says.
    Manifest,
}

impl Kind {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Deno => "Deno",
            Self::Bun => "Bun",
            Self::Node => "Node",
            Self::Python => "Python",
            Self::Rust => "Rust",
            Self::Go => "Go",
            Self::Executable => "an executable",
            Self::Manifest => "a worker",
        }
    }
}

/// Commands of a shell, run in the project's directory in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Once for a new cache.
    pub(crate) setup: Option<String>,
    /// Whenever what is to be installed has changed.
    pub(crate) install: Option<String>,
    /// The worker itself.
    pub(crate) start: String,
}

/// A project.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Project {
    /// Absolute and without links.
    pub(crate) directory: PathBuf,
    /// From the manifest; else the directory's.
    pub(crate) name: Option<String>,
    pub(crate) kind: Kind,
    /// By what it was recognised: `package.json: scripts.dev`.
    pub(crate) found: String,
    pub(crate) steps: Steps,
    /// Programs that the guest must have.
    pub(crate) programs: Vec<String>,
    /// What decides whether an install is still right, beside the commands themselves.
    pub(crate) depends_on: Vec<String>,
    /// Directories of the project that are the cache's in the guest.
    pub(crate) cached: Vec<String>,
    /// What it watches its files with, if it does so itself.
    pub(crate) watches_itself: Option<String>,
    pub(crate) settings: Settings,
}

/// What a manifest may say beside the steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) env: Vec<(String, String)>,
    /// Names in `env` whose values are secret.
    pub(crate) secret: Vec<String>,
    pub(crate) ports: Vec<PublishSpec>,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) resources: Option<Resources>,
    /// The worker sees to its restarts by itself, whatever it does so with.
    pub(crate) no_restart: bool,
    /// Patterns, as in a .gitignore.
    pub(crate) ignore: Vec<String>,
}

/// A file that is not larger than what one of its kind ever is.
pub(crate) fn read_small(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let most = crate::workers_file::format_size(most);
        return Err(std::io::Error::other(format!("it is larger than {most}")));
    }
    Ok(bytes)
}
