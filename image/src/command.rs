//! What a worker's command will be in the guest, found out before a VM is started.
//!
//! A user names a command as in a shell of the host: `node`, `./server`. It is looked up on the
//! host as the shell would, and then followed in the guest's namespace, link by link: what is found
//! on the host may lead to where the guest sees nothing (nvm, pyenv, rustup), and then the error
//! says which directory to mount, instead of a guest that says "not found".

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::host_root::HostRoot;
use crate::paths;
use crate::skeleton::{self, EntryKind, SkeletonEntry};

/// Where the guest itself looks, and what a missing PATH means.
const STANDARD_DIRS: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/usr/sbin"];
/// As many as the kernel follows.
const MAX_LINKS: usize = 40;
/// As much of a script as the kernel reads.
const SHEBANG: u64 = 256;

/// A directory of the host that the guest sees, beside the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountView {
    /// On the host.
    pub host: PathBuf,
    /// Absolute in the guest.
    pub guest: String,
}

/// Where a command is looked up.
#[derive(Clone, Copy, Debug)]
pub struct CommandLookup<'a> {
    /// The user's PATH.
    pub path: Option<&'a OsStr>,
    /// The workload's working directory, absolute in the guest.
    pub cwd: &'a str,
    /// What the guest sees beside the root.
    pub mounts: &'a [MountView],
}

/// A command that the guest can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedCommand {
    /// Its path in the guest, links not followed: some programs look at the name they are called by.
    pub guest: String,
    /// The file that will run, on the host.
    pub host: PathBuf,
}

/// Why the guest could not run a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No program at all.
    #[error("failed to find the command: it is empty")]
    Empty,
    /// Nothing of this name.
    #[error(
        "failed to find the command `{program}`: it is not in PATH{}",
        did_you_mean(suggestions)
    )]
    NotFound {
        /// As it was given.
        program: String,
        /// Names like it, best first.
        suggestions: Vec<String>,
    },
    /// A path at which there is nothing.
    #[error("failed to find the command `{program}`: there is no {guest} in the guest{}", on_host(host.as_deref()))]
    Missing {
        /// As it was given.
        program: String,
        /// In the guest.
        guest: String,
        /// What that is on the host, if a mount covers it.
        host: Option<PathBuf>,
    },
    /// Without permission to run.
    #[error("failed to use the command `{program}`: {} {reason}", host.display())]
    NotExecutable {
        /// As it was given.
        program: String,
        /// On the host.
        host: PathBuf,
        /// What is wrong, with the remedy.
        reason: &'static str,
    },
    /// On the host, but nowhere in the guest.
    #[error(
        "failed to use the command `{program}`: it is {} on this host, and the guest does not see \
         that; add `mounts: [\"{directory}:{directory}:ro\"]` to the worker{}",
        found.display(), alternative_to(alternative.as_deref())
    )]
    Outside {
        /// As it was given.
        program: String,
        /// On the host.
        found: PathBuf,
        /// What to mount.
        directory: String,
        /// The same name where the guest sees it.
        alternative: Option<String>,
    },
    /// A script whose interpreter is missing in the guest.
    #[error(
        "failed to use the command `{program}`: its first line asks for {interpreter}, which the \
         guest does not see{}",
        mount_hint(directory.as_deref())
    )]
    Interpreter {
        /// As it was given.
        program: String,
        /// As the script names it.
        interpreter: String,
        /// What to mount, if this host has the interpreter.
        directory: Option<String>,
    },
    /// Links in a circle.
    #[error("failed to find the command `{program}`: more than {MAX_LINKS} symbolic links")]
    Links {
        /// As it was given.
        program: String,
    },
    /// The host's files could not be looked at.
    #[error("failed to find the command `{program}`: {}: {source}", path.display())]
    Read {
        /// As it was given.
        program: String,
        /// On the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn did_you_mean(suggestions: &[String]) -> String {
    match suggestions {
        [] => "; install it on this host, or give its path in a mounted directory".to_owned(),
        names => {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("; did you mean {}?", names.join(" or "))
        }
    }
}

fn on_host(host: Option<&Path>) -> String {
    match host {
        Some(host) => format!(" ({} on this host)", host.display()),
        None => ", and no mount covers it".to_owned(),
    }
}

fn alternative_to(alternative: Option<&str>) -> String {
    alternative.map_or_else(String::new, |path| format!(", or use `{path}`"))
}

fn mount_hint(directory: Option<&str>) -> String {
    directory.map_or_else(String::new, |directory| {
        format!("; add `mounts: [\"{directory}:{directory}:ro\"]` to the worker")
    })
}

impl HostRoot {
    /// Finds what `program` will be in a guest with this root.
    pub fn resolve_command(
        &self,
        program: &str,
        lookup: &CommandLookup<'_>,
    ) -> Result<ResolvedCommand, CommandError> {
        let view = GuestView::new(self, lookup.mounts);
        if program.is_empty() {
            return Err(CommandError::Empty);
        }
        let resolved = if program.contains('/') {
            by_path(&view, program, lookup.cwd)?
        } else {
            by_name(&view, program, lookup.path)?
        };
        check_interpreter(&view, program, &resolved)?;
        Ok(resolved)
    }
}

fn by_path(
    view: &GuestView<'_>,
    program: &str,
    cwd: &str,
) -> Result<ResolvedCommand, CommandError> {
    // `..` is not taken away by text: behind a link it is the parent of what the link leads to.
    let guest = if program.starts_with('/') {
        program.to_owned()
    } else {
        format!("{cwd}/{program}")
    };
    let guest = if guest.split('/').any(|part| part == "..") {
        guest
    } else {
        paths::join("/", &guest)
    };
    match view.follow(&guest) {
        Ok(host) => executable(program, host, guest),
        Err(Unseen::Links) => Err(CommandError::Links {
            program: program.to_owned(),
        }),
        Err(Unseen::Read { path, source }) => Err(CommandError::Read {
            program: program.to_owned(),
            path,
            source,
        }),
        Err(Unseen::Missing { guest, host }) => Err(CommandError::Missing {
            program: program.to_owned(),
            guest,
            host,
        }),
        Err(Unseen::Outside { guest }) => {
            let found = PathBuf::from(&guest);
            if is_executable(&found) {
                let directory = directory_to_mount(&found);
                let program = program.to_owned();
                Err(CommandError::Outside {
                    program,
                    found,
                    directory,
                    alternative: None,
                })
            } else {
                Err(CommandError::Missing {
                    program: program.to_owned(),
                    guest,
                    host: None,
                })
            }
        }
    }
}

fn by_name(
    view: &GuestView<'_>,
    program: &str,
    path: Option<&OsStr>,
) -> Result<ResolvedCommand, CommandError> {
    let of_path: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    let dirs = || {
        let standard = STANDARD_DIRS
            .iter()
            .map(|dir| view.host_root.join(dir.trim_start_matches('/')));
        of_path
            .iter()
            .filter(|dir| dir.is_absolute())
            .cloned()
            .chain(standard)
    };
    let mut candidates = dirs()
        .map(|dir| dir.join(program))
        .filter(|path| is_executable(path));
    let Some(first) = candidates.next() else {
        let program = program.to_owned();
        let suggestions = similar(&program, dirs());
        return Err(CommandError::NotFound {
            program,
            suggestions,
        });
    };
    match view.command_at(&first) {
        Ok(resolved) => Ok(resolved),
        Err(outside) => Err(CommandError::Outside {
            program: program.to_owned(),
            directory: directory_to_mount(&outside),
            alternative: candidates
                .find_map(|path| view.command_at(&path).ok())
                .map(|resolved| resolved.guest),
            found: outside,
        }),
    }
}

fn executable(
    program: &str,
    host: PathBuf,
    guest: String,
) -> Result<ResolvedCommand, CommandError> {
    let refuse = |reason| {
        let (program, host) = (program.to_owned(), host.clone());
        Err(CommandError::NotExecutable {
            program,
            host,
            reason,
        })
    };
    match fs::metadata(&host) {
        Ok(metadata) if !metadata.is_file() => refuse("is not a file"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            refuse("is not executable; `chmod +x` it, or put its interpreter before it")
        }
        Ok(_) => Ok(ResolvedCommand { guest, host }),
        Err(source) => Err(CommandError::Read {
            program: program.to_owned(),
            path: host,
            source,
        }),
    }
}

/// A script is only as runnable as what its first line names.
fn check_interpreter(
    view: &GuestView<'_>,
    program: &str,
    resolved: &ResolvedCommand,
) -> Result<(), CommandError> {
    let mut start = Vec::new();
    let read =
        fs::File::open(&resolved.host).and_then(|file| file.take(SHEBANG).read_to_end(&mut start));
    // A program may be executable and not readable; then it is no script.
    if read.is_err() {
        return Ok(());
    }
    let Some(interpreter) = shebang(&start) else {
        return Ok(());
    };
    let from = paths::parent(&resolved.guest);
    let guest = paths::join(from, interpreter);
    if view.follow(&guest).is_ok() {
        return Ok(());
    }
    let on_host = Path::new(interpreter);
    Err(CommandError::Interpreter {
        program: program.to_owned(),
        interpreter: interpreter.to_owned(),
        directory: is_executable(on_host).then(|| directory_to_mount(on_host)),
    })
}

pub(crate) fn shebang(start: &[u8]) -> Option<&str> {
    let line = start
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    std::str::from_utf8(line)
        .ok()?
        .split_ascii_whitespace()
        .next()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Up to three names in `dirs` that a typing error turns into `program`.
fn similar(program: &str, dirs: impl Iterator<Item = PathBuf>) -> Vec<String> {
    let names = dirs
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    closest(program, names)
}

/// Up to three of `names` that a typing error turns into `program`.
pub(crate) fn closest(program: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    const SHOWN: usize = 3;
    let allowed = (program.chars().count() / 3).clamp(1, 3);
    let mut found: Vec<(usize, String)> = names
        .filter(|name| name.chars().count().abs_diff(program.chars().count()) <= allowed)
        .map(|name| (strsim::damerau_levenshtein(program, &name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    found.sort();
    found.dedup();
    let best = found.first().map_or(0, |(distance, _)| *distance);
    found
        .into_iter()
        .take_while(|(distance, _)| *distance == best)
        .take(SHOWN)
        .map(|(_, name)| name)
        .collect()
}

/// What has to be mounted for `program` to work: the home of the version manager that it belongs
/// to, whose shims lead all over it; else the prefix that it is installed in.
fn directory_to_mount(program: &Path) -> String {
    const TOOL_HOMES: [&str; 19] = [
        ".asdf",
        ".bun",
        ".cargo",
        ".deno",
        ".fnm",
        ".goenv",
        ".local",
        ".nodenv",
        ".nvm",
        ".pyenv",
        ".rbenv",
        ".rustup",
        ".rvm",
        ".sdkman",
        ".volta",
        "anaconda3",
        "mambaforge",
        "miniconda3",
        "miniforge3",
    ];
    let is = |path: &Path, names: &[&str]| {
        path.file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| names.contains(&name))
    };
    let parent = program.parent().unwrap_or(Path::new("/"));
    let prefix = parent.parent().filter(|prefix| *prefix != Path::new("/"));
    let of_tool = program.ancestors().skip(1).find(|dir| is(dir, &TOOL_HOMES));
    let directory = match (of_tool, prefix) {
        (Some(home), _) => home,
        (None, Some(prefix)) if is(parent, &["bin", "sbin"]) && !is_home(prefix) => prefix,
        (None, _) => parent,
    };
    directory.display().to_string()
}

/// A whole home is never what a worker should see.
fn is_home(path: &Path) -> bool {
    path == Path::new("/root") || path.parent() == Some(Path::new("/home"))
}

/// Why a path of the guest leads to no file of the host.
enum Unseen {
    Outside {
        guest: String,
    },
    Missing {
        guest: String,
        host: Option<PathBuf>,
    },
    Links,
    Read {
        path: PathBuf,
        source: io::Error,
    },
}

/// What is at one path of the guest, links not followed.
enum Place<'a> {
    /// In a mount; `true` for its root, which the server of files opens whatever leads to it.
    Host(PathBuf, bool),
    Skeleton(&'a EntryKind),
    /// A directory that exists because something is mounted below it.
    AboveMount,
    Nothing,
}

/// The guest's namespace, as far as the host knows it.
struct GuestView<'a> {
    host_root: PathBuf,
    skeleton: &'a [SkeletonEntry],
    /// Longest guest path first.
    mounts: Vec<(&'a str, &'a Path)>,
}

impl<'a> GuestView<'a> {
    fn new(root: &'a HostRoot, mounts: &'a [MountView]) -> Self {
        let exports = root
            .exports
            .iter()
            .map(|export| (&*export.guest_path, &*export.host_path));
        let mut all: Vec<(&str, &Path)> = mounts
            .iter()
            .map(|mount| (mount.guest.trim_end_matches('/'), &*mount.host))
            .chain(exports)
            .collect();
        all.sort_by_key(|(guest, _)| std::cmp::Reverse(guest.len()));
        // The host's root is what its /usr lies in; another one than `/` only under test.
        let host_root = root
            .exports
            .iter()
            .find(|export| export.guest_path == "/usr")
            .and_then(|export| export.host_path.parent())
            .unwrap_or(Path::new("/"));
        Self {
            host_root: host_root.to_owned(),
            skeleton: &root.skeleton,
            mounts: all,
        }
    }

    fn look(&self, guest: &str) -> Place<'a> {
        let mount = self
            .mounts
            .iter()
            .find_map(|(dir, host)| paths::below(guest, dir).map(|rest| (*host, rest)));
        if let Some((host, rest)) = mount {
            return if rest.is_empty() {
                Place::Host(host.to_owned(), true)
            } else {
                Place::Host(host.join(rest), false)
            };
        }
        if let Some(kind) = skeleton::get(self.skeleton, guest) {
            return Place::Skeleton(kind);
        }
        if self
            .mounts
            .iter()
            .any(|(dir, _)| paths::below(dir, guest).is_some())
        {
            return Place::AboveMount;
        }
        Place::Nothing
    }

    /// Follows a path as the guest's kernel would, to the file on the host.
    fn follow(&self, guest: &str) -> Result<PathBuf, Unseen> {
        let mut pending: VecDeque<String> = components(guest);
        let mut at = String::from("/");
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            match &*name {
                "" | "." => continue,
                ".." => {
                    at = paths::parent(&at).to_owned();
                    continue;
                }
                _ => {}
            }
            let next = paths::join(&at, &name);
            let rest = || {
                pending
                    .iter()
                    .fold(next.clone(), |path, name| format!("{path}/{name}"))
            };
            let target = match self.look(&next) {
                Place::Nothing => return Err(Unseen::Outside { guest: rest() }),
                Place::AboveMount
                | Place::Skeleton(EntryKind::Dir { .. } | EntryKind::File { .. }) => None,
                Place::Skeleton(EntryKind::Symlink { target }) => Some(target.clone()),
                Place::Host(path, is_mount_root) => {
                    let metadata = if is_mount_root {
                        fs::metadata(&path)
                    } else {
                        fs::symlink_metadata(&path)
                    };
                    match metadata {
                        Ok(metadata) if metadata.is_symlink() => {
                            let target = fs::read_link(&path).map_err(|source| Unseen::Read {
                                path: path.clone(),
                                source,
                            })?;
                            Some(target.to_string_lossy().into_owned())
                        }
                        Ok(_) => None,
                        Err(error)
                            if matches!(
                                error.kind(),
                                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                            ) =>
                        {
                            return Err(Unseen::Missing {
                                guest: rest(),
                                host: Some(path),
                            });
                        }
                        Err(source) => return Err(Unseen::Read { path, source }),
                    }
                }
            };
            match target {
                None => at = next,
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Unseen::Links);
                    }
                    if target.starts_with('/') {
                        at = String::from("/");
                    }
                    for name in components(&target).into_iter().rev() {
                        pending.push_front(name);
                    }
                }
            }
        }
        match self.look(&at) {
            Place::Host(path, _) => Ok(path),
            // No program is made by the skeleton.
            Place::Skeleton(_) | Place::AboveMount | Place::Nothing => Err(Unseen::Missing {
                guest: at,
                host: None,
            }),
        }
    }

    /// The guest's paths for a file that was found on the host, likeliest first.
    fn guest_paths(&self, host: &Path) -> Vec<String> {
        let relative = host
            .strip_prefix(&self.host_root)
            .ok()
            .and_then(Path::to_str);
        let as_it_is = relative
            .map(|relative| paths::join("/", relative))
            .filter(|guest| {
                // In /usr, or behind a link of the merged /usr.
                let first = components(guest).into_iter().next().unwrap_or_default();
                first == "usr"
                    || matches!(
                        skeleton::get(self.skeleton, &format!("/{first}")),
                        Some(EntryKind::Symlink { .. })
                    )
            });
        let mounted = self.mounts.iter().filter_map(|(guest, dir)| {
            let rest = host.strip_prefix(dir).ok()?.to_str()?;
            Some(paths::join(guest, rest))
        });
        as_it_is.into_iter().chain(mounted).collect()
    }

    /// The command for a file that was found on the host; the path that is out of sight otherwise.
    fn command_at(&self, host: &Path) -> Result<ResolvedCommand, PathBuf> {
        let mut out_of_sight = host.to_owned();
        let canonical = fs::canonicalize(host).ok();
        for path in std::iter::once(host).chain(canonical.as_deref()) {
            for guest in self.guest_paths(path) {
                match self.follow(&guest) {
                    Ok(host) => return Ok(ResolvedCommand { guest, host }),
                    Err(Unseen::Outside { guest }) => out_of_sight = PathBuf::from(guest),
                    Err(Unseen::Missing { .. } | Unseen::Links | Unseen::Read { .. }) => {}
                }
            }
        }
        Err(out_of_sight)
    }
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}
