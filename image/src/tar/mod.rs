//! tar archives, as layers of images and `docker save` have them, read in one pass.
//!
//! * [`Archive`] goes from entry to entry and gives each one's content as it lies;
//! * `header` is the checked view of a header's 512 bytes;
//! * `pax` is that of the records of an extended header (POSIX.1-2001).
//!
//! Read: the old format, ustar, GNU's long names and base-256 numbers, pax. Refused: sparse files,
//! parts of archives that span volumes. What an archive says is hostile: whoever wrote it wants to
//! fill this process's memory, or to be read differently here than elsewhere. So every extension is
//! bounded, a size is taken from one place only, and nothing in here touches a file system.

mod header;
mod pax;

use std::io::{self, Read};

use header::{Header, HeaderFault, Kind};
use pax::Extended;

/// Bytes of a header, and of what content is padded to.
pub(crate) const RECORD: usize = 512;
/// Most bytes of one extension (a long name, a pax header): one without an end would fill memory.
const MAX_EXTENSION: u64 = 1 << 20;

/// One file of an archive, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it was written: relative or absolute, with any component, never with a NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since the Unix epoch; 0 for what lies before it.
    pub mtime: u64,
    /// Bytes of content.
    pub size: u64,
    /// Extended attributes, whole names with their values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kinds of [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharacterDevice {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream fails.
    #[error("failed to read the archive: {0}")]
    Read(#[from] io::Error),
    /// It ends within an entry.
    #[error("failed to read the archive: it breaks off at byte {0}")]
    Truncated(u64),
    /// A header that is none.
    #[error("failed to read the archive's header at byte {at}: {fault}")]
    Header {
        /// Bytes from the start.
        at: u64,
        /// What is wrong.
        fault: HeaderFault,
    },
    /// An extension that is larger than any real one.
    #[error(
        "failed to read the archive: the extended header at byte {at} has {size} bytes, at most {MAX_EXTENSION} are read"
    )]
    ExtensionSize {
        /// Bytes from the start.
        at: u64,
        /// As its header says.
        size: u64,
    },
    /// Records that are none.
    #[error("failed to read the archive's extended header at byte {at}: {reason}")]
    Extension {
        /// Bytes from the start.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A kind that is not read.
    #[error("failed to read {path:?} of the archive: {what} not read; write the archive without")]
    Unsupported {
        /// The entry.
        path: String,
        /// What it is.
        what: &'static str,
    },
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Archive<R> {
    input: R,
    /// Bytes that were read.
    at: u64,
    /// Bytes of the present entry's content that were not.
    content: u64,
    /// Bytes behind the content, up to the next header.
    padding: u64,
    ended: bool,
}

/// What the headers before an entry's own say about it.
#[derive(Debug, Default)]
struct Announced {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: Extended,
}

impl<R: Read> Archive<R> {
    /// Reads from the stream's present place.
    pub fn new(input: R) -> Self {
        Self {
            input,
            at: 0,
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry; what is left of the last one's content is passed over. `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut announced = Announced::default();
        loop {
            self.skip()?;
            if self.ended {
                return Ok(None);
            }
            let at = self.at;
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let fault = |fault| TarError::Header { at, fault };
            match header.kind() {
                Kind::LongName => announced.long_name = Some(self.extension(&header, at)?),
                Kind::LongLink => announced.long_link = Some(self.extension(&header, at)?),
                Kind::Extended => {
                    let records = self.extension_bytes(&header, at)?;
                    announced.extended = Extended::parse(&records)
                        .map_err(|reason| TarError::Extension { at, reason })?;
                }
                // What it says of all entries (a commit's id) is nothing that a file has.
                Kind::Global => self.expect(header.size().map_err(fault)?),
                Kind::Entry(kind) => {
                    return self
                        .entry(&header, kind, announced)
                        .map(Some)
                        .map_err(|error| match error {
                            EntryFault::Header(found) => fault(found),
                            EntryFault::Unsupported { path, what } => {
                                TarError::Unsupported { path, what }
                            }
                        });
                }
            }
        }
    }

    /// Bytes from the start at which the present entry's content begins, if none was read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Passes over the present entry and everything behind the archive's end mark: a stream's
    /// digest covers it all.
    pub fn finish(mut self) -> Result<R, TarError> {
        while self.next_entry()?.is_some() {}
        io::copy(&mut self.input, &mut io::sink())?;
        Ok(self.input)
    }

    fn expect(&mut self, content: u64) {
        self.content = content;
        self.padding = content.next_multiple_of(RECORD as u64) - content;
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let wanted = self.content + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(wanted), &mut io::sink())?;
        self.at += skipped;
        (self.content, self.padding) = (0, 0);
        if skipped == wanted {
            Ok(())
        } else {
            Err(TarError::Truncated(self.at))
        }
    }

    /// `None` at the end: two zero records, or none at all. GNU tar takes a single zero record for
    /// the end too.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut bytes = [0; RECORD];
        let read = self.fill(&mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        if read < RECORD {
            return Err(TarError::Truncated(self.at));
        }
        let at = self.at - RECORD as u64;
        Header::check(bytes).map_err(|fault| TarError::Header { at, fault })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    fn extension_bytes(&mut self, header: &Header, at: u64) -> Result<Vec<u8>, TarError> {
        let size = header
            .size()
            .map_err(|fault| TarError::Header { at, fault })?;
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionSize { at, size });
        }
        let mut bytes = vec![0; size as usize];
        if self.fill(&mut bytes)? < bytes.len() {
            return Err(TarError::Truncated(self.at));
        }
        self.expect(size);
        self.content = 0;
        Ok(bytes)
    }

    /// A GNU extension: a name that ends with a NUL.
    fn extension(&mut self, header: &Header, at: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.extension_bytes(header, at)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(end.unwrap_or(bytes.len()));
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: header::EntryKind,
        announced: Announced,
    ) -> Result<Entry, EntryFault> {
        let Announced {
            long_name,
            long_link,
            extended,
        } = announced;
        let path = (extended.path)
            .or(long_name)
            .unwrap_or_else(|| header.path());
        let link = (extended.link_path)
            .or(long_link)
            .unwrap_or_else(|| header.link_path());
        if extended.sparse || kind == header::EntryKind::Sparse {
            return Err(unsupported(&path, "sparse files are"));
        }
        let kind = match kind {
            // Before there was a type for directories, their names ended like this.
            header::EntryKind::File if path.ends_with(b"/") => EntryKind::Directory,
            header::EntryKind::File => EntryKind::File,
            header::EntryKind::HardLink => EntryKind::HardLink(link),
            header::EntryKind::Symlink => EntryKind::Symlink(link),
            header::EntryKind::CharacterDevice => {
                let (major, minor) = header.device()?;
                EntryKind::CharacterDevice { major, minor }
            }
            header::EntryKind::BlockDevice => {
                let (major, minor) = header.device()?;
                EntryKind::BlockDevice { major, minor }
            }
            header::EntryKind::Directory => EntryKind::Directory,
            header::EntryKind::Fifo => EntryKind::Fifo,
            header::EntryKind::Sparse => return Err(unsupported(&path, "sparse files are")),
            header::EntryKind::Other => return Err(unsupported(&path, "entries of this type are")),
        };
        // Of what is no regular file writers put other things there: a quota, a link's target's
        // size. No content follows it.
        let size = match (&kind, extended.size) {
            (EntryKind::File, Some(size)) => size,
            (EntryKind::File, None) => header.size()?,
            _ => 0,
        };
        self.expect(size);
        Ok(Entry {
            kind,
            size,
            mode: header.mode()?,
            uid: match extended.uid {
                Some(uid) => uid,
                None => header.uid()?,
            },
            gid: match extended.gid {
                Some(gid) => gid,
                None => header.gid()?,
            },
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => header.mtime()?,
            },
            xattrs: extended.xattrs,
            path,
        })
    }
}

enum EntryFault {
    Header(HeaderFault),
    Unsupported { path: String, what: &'static str },
}

impl From<HeaderFault> for EntryFault {
    fn from(fault: HeaderFault) -> Self {
        Self::Header(fault)
    }
}

fn unsupported(path: &[u8], what: &'static str) -> EntryFault {
    EntryFault::Unsupported {
        path: String::from_utf8_lossy(path).into_owned(),
        what,
    }
}

/// The present entry's content.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(self.content.try_into().unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..most])?;
        if n == 0 {
            let what = format!("the archive breaks off at byte {}", self.at);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.at += n as u64;
        self.content -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
