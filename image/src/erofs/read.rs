//! Looking into an image: what [`super::write()`] writes, and no other variant of the format.
//!
//! The images are made by this crate and lie in the user's own cache, yet a disk can hold anything:
//! each number is checked before it is used, and what is read is bounded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::{
    BLOCK, COMPACT_INODE, ENTRY, EXTENDED_INODE, FLAT_INLINE, FLAT_PLAIN, MAGIC, SLOT,
    SUPERBLOCK_AT,
};

/// Largest directory that is read: a size without an end would fill memory.
const MAX_DIRECTORY: u64 = 256 << 20;
/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Why an image cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file fails.
    #[error("failed to read the image: {0}")]
    Io(#[from] io::Error),
    /// Bytes that were not written by this crate.
    #[error("failed to read the image: it is damaged ({0})")]
    Damaged(&'static str),
}

/// What can be read at any place.
pub trait ReadAt {
    /// Fills the buffer from `at` on.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for &File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let found = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..at.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

/// An image.
#[derive(Debug)]
pub struct Image<R> {
    source: R,
    metadata: u64,
    root: u64,
}

/// Kinds of file, by the bits of the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device or a named pipe.
    Other,
}

/// A file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: FileKind,
    /// All bits of its mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: u64,
    /// Names that lead to it.
    pub links: u32,
    /// Bytes of content.
    pub size: u64,
    /// First block of the content, or a device's number.
    pub block: u32,
    /// Where the end of the content begins that lies beside the inode; `None`: all is in blocks.
    inline_at: Option<u64>,
    /// Where its extended attributes lie.
    xattrs: (u64, u32),
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The number of what it names.
    pub number: u64,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// What its name begins with, as the format numbers it: 1 for `user.`, 6 for `security.`.
    pub prefix: u8,
    /// The rest of the name.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Where a path of the image leads.
#[derive(Debug)]
pub enum Lookup {
    /// To this file.
    Found(Inode),
    /// Nowhere.
    Missing,
    /// In a circle of links.
    Circle,
}

impl<R: ReadAt> Image<R> {
    /// Checks the superblock.
    pub fn open(source: R) -> Result<Self, ReadError> {
        let mut bytes = [0; 128];
        source.read_at(&mut bytes, SUPERBLOCK_AT as u64)?;
        let fields = Fields(&bytes);
        if fields.u32(0) != MAGIC {
            return Err(ReadError::Damaged("no superblock"));
        }
        if usize::from(1u16.checked_shl(bytes[12].into()).unwrap_or(0)) != BLOCK
            || fields.u32(80) != 0
        {
            return Err(ReadError::Damaged(
                "a variant of the format that is not written",
            ));
        }
        Ok(Self {
            source,
            metadata: u64::from(fields.u32(40)) * BLOCK as u64,
            root: fields.u16(14).into(),
        })
    }

    /// The directory that everything is in.
    pub fn root(&self) -> Result<Inode, ReadError> {
        self.inode(self.root)
    }

    /// A file by its number.
    pub fn inode(&self, number: u64) -> Result<Inode, ReadError> {
        let damaged = ReadError::Damaged("a number of no file");
        let at = number
            .checked_mul(SLOT as u64)
            .and_then(|at| at.checked_add(self.metadata))
            .ok_or(damaged)?;
        let mut bytes = [0; EXTENDED_INODE];
        self.source.read_at(&mut bytes[..COMPACT_INODE], at)?;
        let fields = Fields(&bytes);
        let format = fields.u16(0);
        let extended = format & 1 == 1;
        let length = if extended {
            self.source.read_at(&mut bytes, at)?;
            EXTENDED_INODE
        } else {
            COMPACT_INODE
        };
        let fields = Fields(&bytes);
        let xattrs = match u32::from(fields.u16(2)) {
            0 => 0,
            count => 12 + (count - 1) * 4,
        };
        let behind = at + length as u64;
        let inline_at = match format >> 1 {
            FLAT_PLAIN => None,
            FLAT_INLINE => Some(behind + u64::from(xattrs)),
            _ => return Err(ReadError::Damaged("a layout that is not written")),
        };
        let mode = u32::from(fields.u16(4));
        let (links, size, uid, gid, mtime) = if extended {
            let (uid, gid) = (fields.u32(24), fields.u32(28));
            (fields.u32(44), fields.u64(8), uid, gid, fields.u64(32))
        } else {
            let (uid, gid) = (fields.u16(24).into(), fields.u16(26).into());
            let links = fields.u16(6).into();
            (links, fields.u32(8).into(), uid, gid, 0)
        };
        Ok(Inode {
            kind: match mode & 0o170_000 {
                0o100_000 => FileKind::File,
                0o040_000 => FileKind::Directory,
                0o120_000 => FileKind::Symlink,
                0o020_000 | 0o060_000 | 0o010_000 => FileKind::Other,
                _ => return Err(ReadError::Damaged("a file of no kind")),
            },
            mode,
            uid,
            gid,
            mtime,
            links,
            size,
            block: fields.u32(16),
            inline_at,
            xattrs: (behind, xattrs),
        })
    }

    /// The first `most` bytes of a file's content.
    pub fn content(&self, inode: &Inode, most: u64) -> Result<Vec<u8>, ReadError> {
        let size = inode.size.min(most);
        let length =
            usize::try_from(size).map_err(|_| ReadError::Damaged("a file without an end"))?;
        // What is inline is less than a block, so the file's own blocks come first.
        let in_blocks = match inode.inline_at {
            Some(_) => inode.size - inode.size % BLOCK as u64,
            None => inode.size,
        };
        let from_blocks = in_blocks.min(size) as usize;
        let mut bytes = Vec::new();
        // Piece by piece: a size that the file does not have must not take memory.
        let mut at = u64::from(inode.block) * BLOCK as u64;
        while bytes.len() < from_blocks {
            let piece = (from_blocks - bytes.len()).min(1 << 20);
            self.append(&mut bytes, at, piece)?;
            at += piece as u64;
        }
        if let Some(at) = inode.inline_at {
            self.append(&mut bytes, at, length - from_blocks)?;
        }
        Ok(bytes)
    }

    fn append(&self, bytes: &mut Vec<u8>, at: u64, length: usize) -> Result<(), ReadError> {
        let from = bytes.len();
        bytes.resize(from + length, 0);
        Ok(self.source.read_at(&mut bytes[from..], at)?)
    }

    /// What a directory holds, `.` and `..` left out.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<Entry>, ReadError> {
        if directory.kind != FileKind::Directory || directory.size > MAX_DIRECTORY {
            return Err(ReadError::Damaged("a directory that is none"));
        }
        let data = self.content(directory, MAX_DIRECTORY)?;
        let mut all = Vec::new();
        for block in data.chunks(BLOCK) {
            parse_block(block, &mut all)
                .ok_or(ReadError::Damaged("a directory that cannot be read"))?;
        }
        Ok(all)
    }

    /// What a directory holds under this name.
    pub fn child(&self, directory: &Inode, name: &[u8]) -> Result<Option<Inode>, ReadError> {
        let entries = self.entries(directory)?;
        match entries.into_iter().find(|entry| entry.name == name) {
            Some(entry) => self.inode(entry.number).map(Some),
            None => Ok(None),
        }
    }

    /// Where a symbolic link leads.
    pub fn target(&self, link: &Inode) -> Result<Vec<u8>, ReadError> {
        self.content(link, super::PATH_MAX as u64)
    }

    /// Follows an absolute path, links included, as the guest's kernel would in a root that is this
    /// image alone.
    pub fn lookup(&self, path: &[u8]) -> Result<Lookup, ReadError> {
        let mut pending = components(path);
        let mut above = vec![self.root()?];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            // Never empty: the root stays.
            let Some(directory) = above.last() else { break };
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ => {}
            }
            if directory.kind != FileKind::Directory {
                return Ok(Lookup::Missing);
            }
            let Some(found) = self.child(directory, &name)? else {
                return Ok(Lookup::Missing);
            };
            if found.kind != FileKind::Symlink {
                above.push(found);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(Lookup::Circle);
            }
            let target = self.target(&found)?;
            if target.first() == Some(&b'/') {
                above.truncate(1);
            }
            pending.extend(components(&target));
        }
        Ok(above
            .last()
            .map_or(Lookup::Missing, |inode| Lookup::Found(*inode)))
    }

    /// A file's extended attributes.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Attribute>, ReadError> {
        let (at, length) = inode.xattrs;
        let mut bytes = vec![0; length as usize];
        self.source.read_at(&mut bytes, at)?;
        let damaged = || ReadError::Damaged("attributes that cannot be read");
        let mut all = Vec::new();
        let mut rest = bytes.get(12..).unwrap_or_default();
        while !rest.is_empty() {
            let [name, prefix, low, high, ..] = *rest else {
                return Err(damaged());
            };
            let (name, value) = (
                usize::from(name),
                usize::from(u16::from_le_bytes([low, high])),
            );
            let end = 4 + name + value;
            let entry = rest.get(4..end).ok_or_else(damaged)?;
            all.push(Attribute {
                prefix,
                name: entry[..name].to_vec(),
                value: entry[name..].to_vec(),
            });
            rest = rest.get(end.next_multiple_of(4)..).ok_or_else(damaged)?;
        }
        Ok(all)
    }
}

/// The last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

/// Appends the entries of one block; `None` if it is none.
fn parse_block(block: &[u8], all: &mut Vec<Entry>) -> Option<()> {
    let fields = |n: usize| block.get(n * ENTRY..(n + 1) * ENTRY).map(Fields);
    let name_at = |n: usize| fields(n).map(|entry| usize::from(entry.u16(8)));
    let count = name_at(0)? / ENTRY;
    for n in 0..count {
        let end = if n + 1 < count {
            name_at(n + 1)?
        } else {
            block.len()
        };
        let name = block.get(name_at(n)?..end)?;
        let name = name.split(|byte| *byte == 0).next()?;
        if !matches!(name, b"." | b"..") {
            all.push(Entry {
                name: name.to_vec(),
                number: fields(n)?.u64(0),
            });
        }
    }
    Some(())
}

/// Numbers at places within bytes whose length is known.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.number(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.number(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.number(at))
    }
}
