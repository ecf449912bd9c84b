//! A writer of EROFS images (Documentation/filesystems/erofs.rst of the kernel): a read-only file
//! system in one file, which a guest mounts as it lies there, whatever number of files is in it.
//!
//! * [`Builder`] takes directories, files and links, and writes the image;
//! * `layout` decides where in the image each of them lies;
//! * `format` knows the bytes of superblock, inodes and directories.
//!
//! Written: format version 1 with blocks of 4 KiB; compact inodes, and extended ones for what they
//! cannot hold; the end of a file beside its inode where it fits; directories as sorted blocks.
//! Not written: compression, extended attributes, hard links, devices, checksum.
//!
//! Equal input makes equal bytes. Files are borrowed: a large one may be a mapping, and is copied
//! once, into the output.

mod format;
mod layout;

use std::collections::BTreeMap;
use std::io::{self, Write};

use format::{BLOCK, DirectoryEntry, Inode, Superblock};
use layout::{Layout, Place};

/// Longest name of a directory entry.
const NAME_MAX: usize = 255;
/// The kernel's limit on a link's target, its terminating NUL included.
const PATH_MAX: usize = 4096;

/// What belongs to a file beside its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-id and sticky bits; ignored for links.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since the Unix epoch.
    pub mtime: u64,
}

impl Attributes {
    /// Root's, of the epoch.
    pub fn of_root(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
        }
    }
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// Not absolute, or with `.`, `..`, an empty or overlong component, or a NUL in it.
    #[error(
        "failed to add {path:?} to the image: an absolute path without `.`, `..`, `//` or NUL, of \
         names of at most {NAME_MAX} bytes, is wanted"
    )]
    Path {
        /// As it was given.
        path: String,
    },
    /// Something else has the path, or a directory on the way to it is none.
    #[error("failed to add {path:?} to the image: {reason}")]
    Conflict {
        /// As it was given.
        path: String,
        /// What is in the way.
        reason: &'static str,
    },
    /// A link that points nowhere.
    #[error(
        "failed to add the link {path:?} to the image: its target is empty, too long or has a NUL"
    )]
    Target {
        /// Of the link.
        path: String,
    },
    /// More than the format's 32-bit block numbers reach.
    #[error("failed to write the image: it has more than {} blocks", u32::MAX)]
    TooLarge,
    /// The output fails.
    #[error("failed to write the image: {0}")]
    Write(#[from] io::Error),
}

#[derive(Debug)]
enum Content<'a> {
    Directory {
        /// By name, in the order of bytes, as the format wants them.
        children: BTreeMap<Box<[u8]>, usize>,
        /// Not asked for by itself.
        implied: bool,
    },
    File(&'a [u8]),
    Symlink(&'a [u8]),
}

#[derive(Debug)]
struct Node<'a> {
    attributes: Attributes,
    parent: usize,
    content: Content<'a>,
}

/// Collects what is to be in an image. Directories that lead to an entry are made (root's, 0755)
/// and may be added after it.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The root first; a directory before what it holds.
    nodes: Vec<Node<'a>>,
}

impl Default for Builder<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Builder<'a> {
    /// An image with an empty root (root's, 0755).
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::implied_directory(0)],
        }
    }

    /// Adds a directory; `/` sets the root's own attributes.
    pub fn directory(&mut self, path: &str, attributes: Attributes) -> Result<(), ErofsError> {
        if path == "/" {
            self.nodes[0].attributes = attributes;
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        if let Some(found) = self.child(parent, name) {
            return match &mut self.nodes[found].content {
                Content::Directory { implied, .. } if *implied => {
                    *implied = false;
                    self.nodes[found].attributes = attributes;
                    Ok(())
                }
                Content::Directory { .. } | Content::File(_) | Content::Symlink(_) => {
                    Err(conflict(path, "it was added before"))
                }
            };
        }
        let content = Content::Directory {
            children: BTreeMap::new(),
            implied: false,
        };
        self.insert(parent, name, attributes, content);
        Ok(())
    }

    /// Adds a regular file.
    pub fn file(
        &mut self,
        path: &str,
        attributes: Attributes,
        bytes: &'a [u8],
    ) -> Result<(), ErofsError> {
        self.add(path, attributes, Content::File(bytes))
    }

    /// Adds a symbolic link.
    pub fn symlink(
        &mut self,
        path: &str,
        attributes: Attributes,
        target: &'a [u8],
    ) -> Result<(), ErofsError> {
        if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
            return Err(ErofsError::Target {
                path: path.to_owned(),
            });
        }
        self.add(path, attributes, Content::Symlink(target))
    }

    fn add(
        &mut self,
        path: &str,
        attributes: Attributes,
        content: Content<'a>,
    ) -> Result<(), ErofsError> {
        let (parent, name) = self.parent(path)?;
        if self.child(parent, name).is_some() {
            return Err(conflict(path, "it was added before"));
        }
        self.insert(parent, name, attributes, content);
        Ok(())
    }

    /// The directory that is to hold `path`, made if it is missing, and the last name.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(usize, &'p str), ErofsError> {
        let refuse = || ErofsError::Path {
            path: path.to_owned(),
        };
        let relative = path.strip_prefix('/').ok_or_else(refuse)?;
        let sound = |name: &str| {
            !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains('\0')
        };
        if !relative.split('/').all(sound) {
            return Err(refuse());
        }
        let mut names = relative.split('/').peekable();
        let mut directory = 0;
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok((directory, name));
            }
            directory = match self.child(directory, name) {
                Some(found) => found,
                None => {
                    let content = Content::Directory {
                        children: BTreeMap::new(),
                        implied: true,
                    };
                    self.insert(directory, name, Attributes::of_root(0o755), content)
                }
            };
            if !matches!(self.nodes[directory].content, Content::Directory { .. }) {
                return Err(conflict(path, "what leads to it is no directory"));
            }
        }
        Err(refuse())
    }

    fn child(&self, directory: usize, name: &str) -> Option<usize> {
        match &self.nodes[directory].content {
            Content::Directory { children, .. } => children.get(name.as_bytes()).copied(),
            Content::File(_) | Content::Symlink(_) => None,
        }
    }

    fn insert(
        &mut self,
        parent: usize,
        name: &str,
        attributes: Attributes,
        content: Content<'a>,
    ) -> usize {
        let index = self.nodes.len();
        if let Content::Directory { children, .. } = &mut self.nodes[parent].content {
            children.insert(name.as_bytes().into(), index);
        }
        self.nodes.push(Node {
            attributes,
            parent,
            content,
        });
        index
    }

    /// Writes the image; its length in bytes, a multiple of 4096.
    pub fn write(&self, out: &mut impl Write) -> Result<u64, ErofsError> {
        let sizes: Vec<(u64, bool)> = self
            .nodes
            .iter()
            .map(|node| (node.size(), self.needs_extended(node)))
            .collect();
        let layout = Layout::of(&sizes).ok_or(ErofsError::TooLarge)?;

        let mut metadata = vec![0; layout.metadata_blocks as usize * BLOCK];
        Superblock {
            root: layout.places[0].number(),
            inodes: self.nodes.len() as u64,
            blocks: layout.blocks,
        }
        .put(&mut metadata);
        for (index, (node, place)) in self.nodes.iter().zip(&layout.places).enumerate() {
            let inode = self.inode(index, node, place);
            let start = place.offset();
            inode.put(&mut metadata[start..]);
            if place.inline > 0 {
                let data = self.data(index, node, &layout.places);
                let tail = &data[data.len() - place.inline..];
                let at = start + place.inode_size();
                metadata[at..at + tail.len()].copy_from_slice(tail);
            }
        }
        out.write_all(&metadata)?;

        for (index, (node, place)) in self.nodes.iter().zip(&layout.places).enumerate() {
            if place.data_blocks == 0 {
                continue;
            }
            let data = self.data(index, node, &layout.places);
            let body = &data[..data.len() - place.inline];
            out.write_all(body)?;
            let rest = body.len().next_multiple_of(BLOCK) - body.len();
            out.write_all(&[0; BLOCK][..rest])?;
        }
        Ok(u64::from(layout.blocks) * BLOCK as u64)
    }

    /// What the node's blocks hold, the inline part last.
    fn data(&self, index: usize, node: &Node<'a>, places: &[Place]) -> std::borrow::Cow<'a, [u8]> {
        match &node.content {
            Content::File(bytes) | Content::Symlink(bytes) => (*bytes).into(),
            Content::Directory { children, .. } => {
                let kind = |index: usize| self.nodes[index].kind();
                let entry = |name, index: usize| DirectoryEntry {
                    name,
                    number: places[index].number(),
                    kind: kind(index),
                };
                let mut entries = vec![entry(&b"."[..], index), entry(b"..", node.parent)];
                entries.extend(children.iter().map(|(name, child)| entry(&**name, *child)));
                // A name may come before the two.
                entries.sort_unstable_by_key(|entry| entry.name);
                format::directory(&entries).into()
            }
        }
    }

    fn inode(&self, index: usize, node: &Node<'_>, place: &Place) -> Inode {
        Inode {
            extended: place.extended,
            inline: place.inline > 0,
            mode: node.kind().mode_bits() | node.permissions(),
            links: self.links(node),
            size: node.size(),
            block: place.first_block,
            // Shown where 32 bits must do; the kernel's own number is the place.
            serial: index as u32 + 1,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
        }
    }

    fn links(&self, node: &Node<'_>) -> u32 {
        match &node.content {
            Content::File(_) | Content::Symlink(_) => 1,
            Content::Directory { children, .. } => {
                let below = children.values().filter(|child| {
                    matches!(self.nodes[**child].content, Content::Directory { .. })
                });
                2 + below.count() as u32
            }
        }
    }

    fn needs_extended(&self, node: &Node<'_>) -> bool {
        let fits = |number: u32| u16::try_from(number).is_ok();
        let Attributes {
            uid, gid, mtime, ..
        } = node.attributes;
        // The time of a compact inode is the superblock's, which is the epoch.
        !(fits(uid) && fits(gid) && mtime == 0 && fits(self.links(node)))
            || u32::try_from(node.size()).is_err()
    }
}

impl Node<'_> {
    fn implied_directory(parent: usize) -> Self {
        Self {
            attributes: Attributes::of_root(0o755),
            parent,
            content: Content::Directory {
                children: BTreeMap::new(),
                implied: true,
            },
        }
    }

    fn kind(&self) -> format::Kind {
        match self.content {
            Content::Directory { .. } => format::Kind::Directory,
            Content::File(_) => format::Kind::Regular,
            Content::Symlink(_) => format::Kind::Symlink,
        }
    }

    fn permissions(&self) -> u16 {
        match self.content {
            Content::Directory { .. } | Content::File(_) => self.attributes.mode & 0o7777,
            Content::Symlink(_) => 0o777,
        }
    }

    fn size(&self) -> u64 {
        match &self.content {
            Content::File(bytes) | Content::Symlink(bytes) => bytes.len() as u64,
            Content::Directory { children, .. } => {
                format::directory_size(children.keys().map(|name| &**name))
            }
        }
    }
}

fn conflict(path: &str, reason: &'static str) -> ErofsError {
    ErofsError::Conflict {
        path: path.to_owned(),
        reason,
    }
}
