//! One layer's entries applied to the tree of those below it (OCI image layer specification).
//!
//! A directory that leads to an entry may be a symbolic link of a lower layer, as `/bin` is: it is
//! followed within the tree, as other runtimes do within the root that they unpack to.

use std::collections::HashSet;
use std::io::{self, Read};

use super::limits::{MAX_CONTENT, MAX_FILES, MAX_NAMES, MAX_STEPS};
use super::path::{PathFault, components};
use crate::erofs::{Attributes, Content, Device, Node, NodeId, PATH_MAX, Tree, XattrFault, Xattrs};
use crate::tar::{Archive, Entry, EntryKind, TarError};

/// Bytes that a file costs in memory beside its name.
const NODE: usize = 160;
/// A name that begins with this takes away what lower layers have under the rest of it.
const WHITEOUT: &[u8] = b".wh.";
/// Takes away all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other things that file systems with whiteouts kept for themselves.
const RESERVED: &[u8] = b".wh..wh.";

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that no file can be made of.
    #[error("failed to unpack {path:?}: {fault}")]
    Entry {
        /// As the layer has it.
        path: String,
        /// What is wrong.
        fault: EntryFault,
    },
    /// More than any image has.
    #[error("failed to unpack the layer: {0}")]
    Limit(&'static str),
    /// The file that is being made cannot be written.
    #[error("failed to write the image: {0}; is the disk full?")]
    Write(io::Error),
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    /// Its own name.
    #[error(transparent)]
    Path(#[from] PathFault),
    /// The path of the file that it is a name of.
    #[error("it is a link to {target:?}, but {fault}")]
    LinkPath {
        /// As the layer has it.
        target: String,
        /// What is wrong.
        fault: PathFault,
    },
    /// A hard link to what no layer has.
    #[error("it is a link to {0:?}, which is not there or is a directory")]
    LinkTarget(String),
    /// A symbolic link that no file system holds.
    #[error("its target is empty, too long or has a NUL")]
    SymlinkTarget,
    /// A file is where a directory must be.
    #[error("what leads to it is no directory")]
    NoDirectory,
    /// Links that lead to each other.
    #[error("too many links lead to it")]
    Links,
    /// The root.
    #[error("the root can only be a directory")]
    Root,
    /// A whiteout of nothing.
    #[error("it takes away no file that there can be")]
    Whiteout,
    /// More than fits beside an inode.
    #[error("its extended attributes are larger than 3 KiB")]
    Xattrs,
}

/// Takes the content of regular files.
pub trait Sink {
    /// Where a content was put.
    type File;
    /// Reads `size` bytes of `content`.
    fn store(
        &mut self,
        content: &mut dyn Read,
        size: u64,
        xattrs: &Xattrs,
    ) -> Result<Self::File, StoreError>;
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum StoreError {
    /// The layer.
    Read(io::Error),
    /// The image.
    Write(io::Error),
}

/// An image that layers are being added to.
#[derive(Debug)]
pub struct Merge<F> {
    tree: Tree<F>,
    names: usize,
    content: u64,
    /// Entries of directories that the present layer made, which its own whiteouts leave alone.
    fresh: HashSet<(NodeId, Box<[u8]>)>,
    /// Directories below which there are such entries.
    touched: HashSet<NodeId>,
    /// Attributes that were left out.
    left_out: u64,
}

impl<F> Default for Merge<F> {
    fn default() -> Self {
        Self {
            tree: Tree::new(Attributes::of_root(0o755)),
            names: 0,
            content: 0,
            fresh: HashSet::new(),
            touched: HashSet::new(),
            left_out: 0,
        }
    }
}

impl<F> Merge<F> {
    /// What all layers came to.
    pub fn into_tree(self) -> Tree<F> {
        self.tree
    }

    /// How many extended attributes a guest is not shown (`trusted.*` and the like).
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Applies a layer, to the end of its archive. Its stream comes back.
    pub fn layer<R: Read>(
        &mut self,
        stream: R,
        sink: &mut impl Sink<File = F>,
    ) -> Result<R, LayerError> {
        self.fresh.clear();
        self.touched.clear();
        let mut archive = Archive::new(stream);
        while let Some(entry) = archive.next_entry()? {
            if self.tree.len() >= MAX_FILES {
                return Err(LayerError::Limit("the image has more than 2,000,000 files"));
            }
            if self.names > MAX_NAMES {
                return Err(LayerError::Limit("its names take more than 512 MiB"));
            }
            self.content += entry.size;
            if self.content > MAX_CONTENT {
                return Err(LayerError::Limit("the image holds more than 128 GiB"));
            }
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            self.entry(entry, &mut archive, sink)
                .map_err(|fault| match fault {
                    Fault::Entry(fault) => LayerError::Entry { path: shown, fault },
                    Fault::Store(StoreError::Read(error)) => LayerError::Tar(error.into()),
                    Fault::Store(StoreError::Write(error)) => LayerError::Write(error),
                    Fault::TooMany => LayerError::Limit("the image has too many files"),
                })?;
        }
        Ok(archive.finish()?)
    }

    fn entry(
        &mut self,
        entry: Entry,
        content: &mut dyn Read,
        sink: &mut impl Sink<File = F>,
    ) -> Result<(), Fault> {
        let names = components(&entry.path).map_err(EntryFault::from)?;
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        };
        let Some((name, leading)) = names.split_last() else {
            let xattrs = self.xattrs(&entry.xattrs)?;
            if entry.kind != EntryKind::Directory {
                return Err(EntryFault::Root.into());
            }
            let root = self.tree.node_mut(NodeId::ROOT);
            (root.attributes, root.xattrs) = (attributes, xattrs);
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return Ok(self.whiteout(leading, name)?);
        }
        let xattrs = self.xattrs(&entry.xattrs)?;
        self.names += entry.path.len();
        let content = match entry.kind {
            EntryKind::Directory => return self.directory(leading, name, attributes, xattrs),
            EntryKind::HardLink(target) => {
                let found = self.link_target(&target)?;
                return self.put(leading, name, found);
            }
            EntryKind::File => {
                let stored = sink.store(content, entry.size, &xattrs);
                Content::File(stored.map_err(Fault::Store)?)
            }
            EntryKind::Symlink(target) => {
                if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
                    return Err(EntryFault::SymlinkTarget.into());
                }
                self.names += target.len();
                Content::Symlink(target.into())
            }
            EntryKind::CharacterDevice { major, minor } => {
                Content::CharacterDevice(Device { major, minor })
            }
            EntryKind::BlockDevice { major, minor } => {
                Content::BlockDevice(Device { major, minor })
            }
            EntryKind::Fifo => Content::Fifo,
        };
        let node = self.add(Node {
            attributes,
            xattrs,
            content,
        })?;
        self.put(leading, name, node)
    }

    fn xattrs(&mut self, all: &[(Vec<u8>, Vec<u8>)]) -> Result<Xattrs, EntryFault> {
        let mut xattrs = Xattrs::default();
        for (name, value) in all {
            match xattrs.set(name, value) {
                Ok(()) => self.names += name.len() + value.len(),
                Err(XattrFault::Name) => self.left_out += 1,
                Err(XattrFault::Size) => return Err(EntryFault::Xattrs),
            }
        }
        Ok(xattrs)
    }

    fn add(&mut self, node: Node<F>) -> Result<NodeId, Fault> {
        self.names += NODE;
        self.tree.add(node).ok_or(Fault::TooMany)
    }

    fn put(&mut self, leading: &[&[u8]], name: &[u8], node: NodeId) -> Result<(), Fault> {
        let above = self.walk(leading, true)?;
        self.link(&above, name, node)
    }

    /// Puts a node into the last of `above`, which are the directories from the root to it.
    fn link(&mut self, above: &[NodeId], name: &[u8], node: NodeId) -> Result<(), Fault> {
        let Some(&directory) = above.last() else {
            return Err(EntryFault::NoDirectory.into());
        };
        if !self.tree.link(directory, name, node) {
            return Err(EntryFault::NoDirectory.into());
        }
        self.fresh.insert((directory, name.into()));
        for directory in above.iter().rev() {
            // Then those above it are too.
            if !self.touched.insert(*directory) {
                break;
            }
        }
        Ok(())
    }

    /// A directory keeps what is in it, and what else there is gives way to it.
    fn directory(
        &mut self,
        leading: &[&[u8]],
        name: &[u8],
        attributes: Attributes,
        xattrs: Xattrs,
    ) -> Result<(), Fault> {
        let above = self.walk(leading, true)?;
        let known = above
            .last()
            .and_then(|directory| self.tree.child(*directory, name))
            .filter(|child| self.tree.node(*child).children().is_some());
        let node = match known {
            Some(known) => {
                let node = self.tree.node_mut(known);
                (node.attributes, node.xattrs) = (attributes, xattrs);
                known
            }
            None => self.add(Node {
                xattrs,
                ..Node::directory(attributes)
            })?,
        };
        self.link(&above, name, node)
    }

    fn link_target(&mut self, target: &[u8]) -> Result<NodeId, Fault> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let names = components(target).map_err(|fault| EntryFault::LinkPath {
            target: shown(),
            fault,
        })?;
        let missing = || EntryFault::LinkTarget(shown());
        let (name, leading) = names.split_last().ok_or_else(missing)?;
        let above = match self.walk(leading, false) {
            Err(Fault::Entry(EntryFault::NoDirectory)) => return Err(missing().into()),
            other => other?,
        };
        above
            .last()
            .and_then(|directory| self.tree.child(*directory, name))
            .filter(|found| self.tree.node(*found).children().is_none())
            .ok_or_else(|| missing().into())
    }

    /// The directories that `names` lead through, from the root to the last. Missing ones are made,
    /// or else are [`EntryFault::NoDirectory`].
    fn walk(&mut self, names: &[&[u8]], make: bool) -> Result<Vec<NodeId>, Fault> {
        let mut above = vec![NodeId::ROOT];
        let mut pending: Vec<Box<[u8]>> = names.iter().rev().map(|name| (*name).into()).collect();
        let mut steps = 0;
        while let Some(name) = pending.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(EntryFault::Links.into());
            }
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
            // Never empty: the root stays.
            let Some(&directory) = above.last() else {
                break;
            };
            let found = match self.tree.child(directory, &name) {
                Some(found) => found,
                None if make => {
                    // A link's target may hold what no name may.
                    if components(&name).is_err() {
                        return Err(EntryFault::NoDirectory.into());
                    }
                    self.names += name.len();
                    let made = self.add(Node::directory(Attributes::of_root(0o755)))?;
                    self.link(&above, &name, made)?;
                    made
                }
                None => return Err(EntryFault::NoDirectory.into()),
            };
            match &self.tree.node(found).content {
                Content::Directory(_) => above.push(found),
                Content::Symlink(target) => {
                    if target.first() == Some(&b'/') {
                        above.truncate(1);
                    }
                    pending.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                Content::File(_)
                | Content::CharacterDevice(_)
                | Content::BlockDevice(_)
                | Content::Fifo => return Err(EntryFault::NoDirectory.into()),
            }
        }
        Ok(above)
    }

    fn whiteout(&mut self, leading: &[&[u8]], name: &[u8]) -> Result<(), EntryFault> {
        let above = match self.walk(leading, false) {
            Ok(above) => above,
            // Nothing is there already.
            Err(Fault::Entry(EntryFault::NoDirectory)) => return Ok(()),
            Err(Fault::Entry(fault)) => return Err(fault),
            // Only making something can fail like this.
            Err(Fault::Store(_) | Fault::TooMany) => return Ok(()),
        };
        let Some(&directory) = above.last() else {
            return Ok(());
        };
        if name == OPAQUE {
            self.take_lower(vec![directory]);
            return Ok(());
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryFault::Whiteout);
        }
        let below = self.take_lower_child(directory, hidden);
        self.take_lower(below.into_iter().collect());
        Ok(())
    }

    /// Takes from these directories, and from what stays in them, all that lower layers put there.
    fn take_lower(&mut self, mut directories: Vec<NodeId>) {
        while let Some(directory) = directories.pop() {
            let names: Vec<Box<[u8]>> = match self.tree.node(directory).children() {
                Some(children) => children.keys().cloned().collect(),
                None => continue,
            };
            for name in names {
                directories.extend(self.take_lower_child(directory, &name));
            }
        }
    }

    /// Takes a name away unless it, or something below it, is the present layer's; a directory that
    /// stays is answered, for what is in it.
    fn take_lower_child(&mut self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let child = self.tree.child(directory, name)?;
        let is_directory = self.tree.node(child).children().is_some();
        let stays = self.fresh.contains(&(directory, name.into()))
            || (is_directory && self.touched.contains(&child));
        if !stays {
            if let Content::Directory(children) = &mut self.tree.node_mut(directory).content {
                children.remove(name);
            }
            return None;
        }
        is_directory.then_some(child)
    }
}

enum Fault {
    Entry(EntryFault),
    Store(StoreError),
    TooMany,
}

impl From<EntryFault> for Fault {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

#[cfg(test)]
mod tests;
