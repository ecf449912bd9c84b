//! A file that holds images: a directory, or a tar archive, compressed or not.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::layers::limits::{MAX_CONTENT, MAX_FILES};
use crate::layers::path::components;
use crate::layers::stream::{LayerStream, is_compressed};
use crate::tar::{Archive, EntryKind, TarError};

/// As many as are followed within an archive: old versions of Docker linked equal layers.
const MAX_LINKS: usize = 8;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file itself.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// As an archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// More files than any archive of images has.
    #[error("it has more files than any archive of images")]
    TooMany,
    /// A document that is larger than any real one.
    #[error("its {0} is larger than any real one")]
    TooLarge(String),
}

/// A file's size and bytes.
type Contents<'a> = (u64, Box<dyn Read + 'a>);

/// Where the parts of images are.
#[derive(Debug)]
pub(super) enum Source {
    Directory(PathBuf),
    Archive(File, HashMap<String, Member>),
}

/// A file of an archive.
#[derive(Clone, Debug)]
pub(super) enum Member {
    File { at: u64, size: u64 },
    Link(String),
}

impl Source {
    /// What an archive has to be unpacked to is kept in `scratch`, without a name.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, SourceError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path)?;
        let mut start = [0; 8];
        let length = file.read(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        if is_compressed(&start[..length]) {
            let mut plain = tempfile::tempfile_in(scratch)?;
            io::copy(&mut LayerStream::open(&file, MAX_CONTENT)?, &mut plain)?;
            plain.flush()?;
            plain.seek(SeekFrom::Start(0))?;
            file = plain;
        }
        let members = index(&file)?;
        Ok(Self::Archive(file, members))
    }

    /// A small file as a whole; `None` if there is none.
    pub(super) fn small(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let Some((size, reader)) = self.open_blob(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        reader.take(most + 1).read_to_end(&mut bytes)?;
        if size > most || bytes.len() as u64 > most {
            return Err(SourceError::TooLarge(name.to_owned()));
        }
        Ok(Some(bytes))
    }

    /// A file's size and bytes; `None` if there is none.
    pub(super) fn open_blob(&self, name: &str) -> Result<Option<Contents<'_>>, SourceError> {
        match self {
            Self::Directory(directory) => {
                // What an image's documents say must not lead out of it.
                let Ok(parts) = components(name.as_bytes()) else {
                    return Ok(None);
                };
                let path = parts.iter().fold(directory.clone(), |path, part| {
                    path.join(String::from_utf8_lossy(part).into_owned())
                });
                match File::open(path) {
                    Ok(file) => {
                        let found = file.metadata()?;
                        Ok(found
                            .is_file()
                            .then(|| (found.len(), Box::new(file) as Box<dyn Read>)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Archive(file, members) => {
                let Some((at, size)) = find(members, name) else {
                    return Ok(None);
                };
                let range = Range {
                    file,
                    at,
                    left: size,
                };
                Ok(Some((size, Box::new(range))))
            }
        }
    }
}

/// Where each file of an archive lies; of several of one name the last.
fn index(file: &File) -> Result<HashMap<String, Member>, SourceError> {
    let mut members = HashMap::new();
    let mut archive = Archive::new(io::BufReader::with_capacity(1 << 20, file));
    while let Some(entry) = archive.next_entry()? {
        if members.len() >= MAX_FILES {
            return Err(SourceError::TooMany);
        }
        let Some(name) = plain(&entry.path) else {
            continue;
        };
        let member = match entry.kind {
            EntryKind::File => Member::File {
                at: archive.position(),
                size: entry.size,
            },
            EntryKind::Symlink(target) => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                let target = String::from_utf8_lossy(&target).into_owned();
                Member::Link(crate::paths::join(&format!("/{parent}"), &target)[1..].to_owned())
            }
            EntryKind::HardLink(target) => match plain(&target) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            EntryKind::CharacterDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Directory
            | EntryKind::Fifo => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

fn plain(path: &[u8]) -> Option<String> {
    let parts = components(path).ok()?;
    String::from_utf8(parts.join(&b'/')).ok()
}

fn find(members: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = plain(name.as_bytes())?;
    for _ in 0..MAX_LINKS {
        match members.get(&name)? {
            Member::File { at, size } => return Some((*at, *size)),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// A part of a file; reading it moves nothing that others see.
struct Range<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
