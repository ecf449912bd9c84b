//! Trees by paths, for files that are in memory.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::tree::{Content, Node, NodeId, Tree};
use super::write::{Contents, StoredBlocks, write};
use super::{Attributes, BLOCK, ErofsError, NAME_MAX, PATH_MAX};

/// Collects what is to be in an image. Directories that lead to an entry are made (root's, 0755)
/// and may be added after it. Files are borrowed: a large one may be a mapping, and is copied once,
/// into the output.
#[derive(Debug)]
pub struct Builder<'a> {
    tree: Tree<&'a [u8]>,
    /// Directories that were not asked for by themselves.
    implied: BTreeSet<NodeId>,
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
            tree: Tree::new(Attributes::of_root(0o755)),
            implied: BTreeSet::new(),
        }
    }

    /// Adds a directory; `/` sets the root's own attributes.
    pub fn directory(&mut self, path: &str, attributes: Attributes) -> Result<(), ErofsError> {
        if path == "/" {
            self.tree.node_mut(NodeId::ROOT).attributes = attributes;
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        match self.tree.child(parent, name.as_bytes()) {
            Some(found) if self.implied.remove(&found) => {
                self.tree.node_mut(found).attributes = attributes;
                Ok(())
            }
            Some(_) => Err(conflict(path, "it was added before")),
            None => self
                .insert(parent, name, Node::directory(attributes))
                .map(drop),
        }
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
        self.add(path, attributes, Content::Symlink(target.into()))
    }

    fn add(
        &mut self,
        path: &str,
        attributes: Attributes,
        content: Content<&'a [u8]>,
    ) -> Result<(), ErofsError> {
        let (parent, name) = self.parent(path)?;
        if self.tree.child(parent, name.as_bytes()).is_some() {
            return Err(conflict(path, "it was added before"));
        }
        self.insert(parent, name, Node::new(attributes, content))
            .map(drop)
    }

    /// The directory that is to hold `path`, made if it is missing, and the last name.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(NodeId, &'p str), ErofsError> {
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
        let (leading, last) = match relative.rsplit_once('/') {
            Some((leading, last)) => (Some(leading), last),
            None => (None, relative),
        };
        let mut directory = NodeId::ROOT;
        for name in leading.iter().flat_map(|leading| leading.split('/')) {
            directory = match self.tree.child(directory, name.as_bytes()) {
                Some(found) => found,
                None => {
                    let made = Node::directory(Attributes::of_root(0o755));
                    let made = self.insert(directory, name, made)?;
                    self.implied.insert(made);
                    made
                }
            };
            if self.tree.node(directory).children().is_none() {
                return Err(conflict(path, "what leads to it is no directory"));
            }
        }
        Ok((directory, last))
    }

    fn insert(
        &mut self,
        parent: NodeId,
        name: &str,
        node: Node<&'a [u8]>,
    ) -> Result<NodeId, ErofsError> {
        let id = self.tree.add(node).ok_or(ErofsError::TooLarge)?;
        self.tree.link(parent, name.as_bytes(), id);
        Ok(id)
    }

    /// Writes the image; its length in bytes, a multiple of 4096.
    pub fn write(&self, out: &mut impl Write) -> Result<u64, ErofsError> {
        let written = write(&self.tree, &InMemory, 0, out)?;
        Ok(u64::from(written.blocks) * BLOCK as u64)
    }
}

fn conflict(path: &str, reason: &'static str) -> ErofsError {
    ErofsError::Conflict {
        path: path.to_owned(),
        reason,
    }
}

struct InMemory;

impl Contents<&[u8]> for InMemory {
    fn size(&self, file: &&[u8]) -> u64 {
        file.len() as u64
    }

    fn stored(&self, _: &&[u8]) -> Option<StoredBlocks> {
        None
    }

    fn copy(&self, file: &&[u8], from: u64, length: u64, out: &mut dyn Write) -> io::Result<()> {
        // Both are of the file's own size.
        let (from, length) = (from as usize, length as usize);
        out.write_all(&file[from..from + length])
    }
}
