//! Whether a guest whose root is an image can run a command, found out before a VM is started: the
//! image's files and what is mounted over them are followed as the guest's kernel will.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Image;
use crate::command::{MountView, closest, shebang};
use crate::erofs::read::{FileKind, Image as Files, Inode, ReadError};
use crate::paths;

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;
/// As much of a script as the kernel reads.
const SHEBANG: u64 = 256;

/// Where a command is looked up.
#[derive(Clone, Copy, Debug)]
pub struct ImageCommandLookup<'a> {
    /// The workload's PATH.
    pub path: &'a str,
    /// Its working directory, absolute in the guest.
    pub cwd: &'a str,
    /// What is mounted over the image.
    pub mounts: &'a [MountView],
}

/// Why the guest could not run a command.
#[derive(Debug, thiserror::Error)]
pub enum ImageCommandError {
    /// Neither the worker nor the image has one.
    #[error(
        "failed to find the command: the image {image} names none; name one, as \
         `command: [\"node\", \"server.js\"]`"
    )]
    Empty {
        /// The image.
        image: String,
    },
    /// Nothing of this name.
    #[error(
        "failed to find the command `{program}`: the image {image} has none in its PATH ({path}){}",
        remedy(suggestions)
    )]
    NotFound {
        /// As it was given.
        program: String,
        /// The image.
        image: String,
        /// What was searched.
        path: String,
        /// Names like it, best first.
        suggestions: Vec<String>,
    },
    /// A path at which there is nothing.
    #[error(
        "failed to find the command `{program}`: there is no {guest} in the image {image} or in its \
         `mounts`; correct `command`, or mount the directory that holds it"
    )]
    Missing {
        /// As it was given.
        program: String,
        /// The image.
        image: String,
        /// In the guest.
        guest: String,
    },
    /// No file that may be run.
    #[error("failed to use the command `{program}`: {guest} in the image {image} {reason}")]
    NotExecutable {
        /// As it was given.
        program: String,
        /// The image.
        image: String,
        /// In the guest.
        guest: String,
        /// What is wrong, with the remedy.
        reason: &'static str,
    },
    /// A script whose interpreter is missing.
    #[error(
        "failed to use the command `{program}`: its first line asks for {interpreter}, which the \
         image {image} does not have; use an image that has it"
    )]
    Interpreter {
        /// As it was given.
        program: String,
        /// The image.
        image: String,
        /// As the script names it.
        interpreter: String,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A mounted directory cannot be read.
    #[error("failed to find the command `{program}`: {}: {source}", path.display())]
    Host {
        /// As it was given.
        program: String,
        /// On the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn remedy(suggestions: &[String]) -> String {
    match suggestions {
        [] => "; use an image that has it, or give its whole path".to_owned(),
        names => {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("; did you mean {}?", names.join(" or "))
        }
    }
}

impl Image {
    /// Checks that `program` can be run in a guest with this root.
    pub fn check_command(
        &self,
        program: Option<&str>,
        lookup: &ImageCommandLookup<'_>,
    ) -> Result<(), ImageCommandError> {
        let image = self.record().reference.familiar();
        let Some(program) = program.filter(|program| !program.is_empty()) else {
            return Err(ImageCommandError::Empty { image });
        };
        let view = View {
            files: self.files()?,
            mounts: lookup.mounts,
        };
        let search = Search {
            view: &view,
            program,
            image: &image,
            lookup,
        };
        search.run()
    }
}

struct Search<'a> {
    view: &'a View<'a>,
    program: &'a str,
    image: &'a str,
    lookup: &'a ImageCommandLookup<'a>,
}

impl Search<'_> {
    fn run(&self) -> Result<(), ImageCommandError> {
        let guest = if self.program.contains('/') {
            absolute(self.lookup.cwd, self.program)
        } else {
            self.in_path()?
        };
        let (program, image) = (self.program.to_owned(), self.image.to_owned());
        let Some(place) = self.follow(&guest)? else {
            return Err(ImageCommandError::Missing {
                program,
                image,
                guest,
            });
        };
        if let Some(reason) = self.refusal(&place)? {
            return Err(ImageCommandError::NotExecutable {
                program,
                image,
                guest,
                reason,
            });
        }
        let start = self.start_of(&place)?;
        if let Some(interpreter) = shebang(&start) {
            let at = absolute(paths::parent(&guest), interpreter);
            if self.follow(&at)?.is_none() {
                return Err(ImageCommandError::Interpreter {
                    program,
                    image,
                    interpreter: interpreter.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn directories(&self) -> impl Iterator<Item = String> {
        // An empty entry is the working directory.
        let directories = self.lookup.path.split(':');
        directories.map(|directory| absolute(self.lookup.cwd, directory))
    }

    /// As vm-init looks.
    fn in_path(&self) -> Result<String, ImageCommandError> {
        let mut names = Vec::new();
        for directory in self.directories() {
            let guest = absolute(&directory, self.program);
            if let Some(place) = self.follow(&guest)?
                && self.refusal(&place)?.is_none()
            {
                return Ok(guest);
            }
            if let Some(Place::Image(inode)) = self.follow(&directory)?
                && inode.kind == FileKind::Directory
            {
                let entries = self.view.files.entries(&inode)?;
                names.extend(
                    entries
                        .into_iter()
                        .filter_map(|e| String::from_utf8(e.name).ok()),
                );
            }
        }
        Err(ImageCommandError::NotFound {
            program: self.program.to_owned(),
            image: self.image.to_owned(),
            path: self.lookup.path.to_owned(),
            suggestions: closest(self.program, names.into_iter()),
        })
    }

    fn follow(&self, guest: &str) -> Result<Option<Place>, ImageCommandError> {
        self.view.follow(guest).map_err(|fault| match fault {
            Fault::Read(error) => ImageCommandError::Read(error),
            Fault::Host(path, source) => ImageCommandError::Host {
                program: self.program.to_owned(),
                path,
                source,
            },
        })
    }

    /// Why it cannot be executed.
    fn refusal(&self, place: &Place) -> Result<Option<&'static str>, ImageCommandError> {
        let (is_file, mode) = match place {
            Place::Image(inode) => (inode.kind == FileKind::File, inode.mode),
            Place::Host(path) => {
                let found = fs::metadata(path).map_err(|source| self.of_host(path, source))?;
                (found.is_file(), found.permissions().mode())
            }
            Place::AboveMount => (false, 0),
        };
        Ok(if !is_file {
            Some("is not a file")
        } else if mode & 0o111 == 0 {
            Some("is not executable; `chmod +x` it, or put its interpreter before it")
        } else {
            None
        })
    }

    fn start_of(&self, place: &Place) -> Result<Vec<u8>, ImageCommandError> {
        match place {
            Place::Image(inode) => Ok(self.view.files.content(inode, SHEBANG)?),
            Place::Host(path) => {
                let mut start = Vec::new();
                match fs::File::open(path) {
                    Ok(file) => file
                        .take(SHEBANG)
                        .read_to_end(&mut start)
                        .map_err(|source| self.of_host(path, source))?,
                    // A program may be executable and not readable; then it is no script.
                    Err(_) => 0,
                };
                Ok(start)
            }
            Place::AboveMount => Ok(Vec::new()),
        }
    }

    fn of_host(&self, path: &Path, source: io::Error) -> ImageCommandError {
        ImageCommandError::Host {
            program: self.program.to_owned(),
            path: path.to_owned(),
            source,
        }
    }
}

/// `..` is not taken away by text: behind a link it is the parent of what the link leads to.
fn absolute(from: &str, path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else if path.split('/').any(|part| part == "..") {
        format!("{from}/{path}")
    } else {
        paths::join(from, path)
    }
}

/// What is at a path of the guest.
#[derive(Clone, Debug)]
enum Place {
    Image(Inode),
    /// In a mounted directory.
    Host(PathBuf),
    /// A directory that will be made because something is mounted below it.
    AboveMount,
}

enum Fault {
    Read(ReadError),
    Host(PathBuf, io::Error),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// The guest's namespace: the image, and what is mounted over it.
struct View<'a> {
    files: Files<&'a fs::File>,
    mounts: &'a [MountView],
}

impl View<'_> {
    /// Follows a path, links included; `None`: it leads nowhere.
    fn follow(&self, guest: &str) -> Result<Option<Place>, Fault> {
        let root = self.look(None, "/", "")?;
        let mut above: Vec<(String, Place)> = root
            .map(|root| ("/".to_owned(), root))
            .into_iter()
            .collect();
        let mut pending: Vec<String> = guest.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match &*name {
                "" | "." => continue,
                ".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some((at, place)) = above.last() else {
                return Ok(None);
            };
            let next = paths::join(at, &name);
            let Some(found) = self.look(Some(place), &next, &name)? else {
                return Ok(None);
            };
            match self.target(&found)? {
                None => above.push((next, found)),
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if target.starts_with('/') {
                        above.truncate(1);
                    }
                    pending.extend(target.split('/').rev().map(str::to_owned));
                }
            }
        }
        Ok(above.pop().map(|(_, place)| place))
    }

    /// What `name` is in `directory`, whose path with the name is `guest`.
    fn look(
        &self,
        directory: Option<&Place>,
        guest: &str,
        name: &str,
    ) -> Result<Option<Place>, Fault> {
        let mounted = self
            .mounts
            .iter()
            .rev()
            .find(|mount| paths::join("/", &mount.guest) == guest);
        if let Some(mount) = mounted {
            return Ok(Some(Place::Host(mount.host.clone())));
        }
        let found = match directory {
            None => Some(Place::Image(self.files.root()?)),
            Some(Place::Image(inode)) if inode.kind == FileKind::Directory => {
                self.files.child(inode, name.as_bytes())?.map(Place::Image)
            }
            Some(Place::Image(_) | Place::AboveMount) => None,
            Some(Place::Host(path)) => {
                let path = path.join(name);
                match fs::symlink_metadata(&path) {
                    Ok(_) => Some(Place::Host(path)),
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                        ) =>
                    {
                        None
                    }
                    Err(error) => return Err(Fault::Host(path, error)),
                }
            }
        };
        let below = |mount: &MountView| {
            paths::below(&paths::join("/", &mount.guest), guest)
                .is_some_and(|rest| !rest.is_empty())
        };
        Ok(found.or_else(|| self.mounts.iter().any(below).then_some(Place::AboveMount)))
    }

    /// Where a symbolic link leads.
    fn target(&self, place: &Place) -> Result<Option<String>, Fault> {
        match place {
            Place::Image(inode) if inode.kind == FileKind::Symlink => {
                let target = self.files.target(inode)?;
                Ok(Some(String::from_utf8_lossy(&target).into_owned()))
            }
            Place::Host(path) => match fs::read_link(path) {
                // A mount's own root is what its link leads to.
                Ok(_) if self.mounts.iter().any(|mount| mount.host == *path) => Ok(None),
                Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
                Err(error) => Err(Fault::Host(path.clone(), error)),
            },
            Place::Image(_) | Place::AboveMount => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
