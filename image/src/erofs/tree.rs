//! The files of an image that is being made: nodes, and the names under which directories hold
//! them. One node may have several names.

use std::collections::BTreeMap;

use super::Attributes;

/// Most bytes that a node's extended attributes take in the image, beside an inode in its block.
const MAX_XATTRS: usize = 3072;
/// Bytes before the attributes (`struct erofs_xattr_ibody_header`).
const XATTR_HEADER: usize = 12;
/// Bytes of one attribute without name and value (`struct erofs_xattr_entry`).
const XATTR_ENTRY: usize = 4;

/// A node of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// The directory that everything is in.
    pub const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// All files of an image. `F` says where a regular file's bytes are.
#[derive(Debug)]
pub struct Tree<F> {
    nodes: Vec<Node<F>>,
}

/// A file of any kind.
#[derive(Debug)]
pub struct Node<F> {
    /// Its owner, mode and time.
    pub attributes: Attributes,
    /// Its extended attributes.
    pub xattrs: Xattrs,
    /// What it is.
    pub content: Content<F>,
}

/// Kinds of file.
#[derive(Debug)]
pub enum Content<F> {
    /// Names in the order of their bytes, as the format wants them.
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file.
    File(F),
    /// A symbolic link with its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its driver; 12 bits.
    pub major: u32,
    /// Which of the driver's; 20 bits.
    pub minor: u32,
}

/// Extended attributes that a guest's kernel can be shown: `user.*`, `security.*` and access lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<Xattr>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Xattr {
    /// `EROFS_XATTR_INDEX_*`: what the name begins with.
    pub(super) prefix: u8,
    /// The rest of the name.
    pub(super) name: Box<[u8]>,
    pub(super) value: Box<[u8]>,
}

/// An extended attribute that an image does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrFault {
    /// Of a name that is not kept.
    Name,
    /// Together with the node's others too large for the block of its inode.
    Size,
}

impl Xattrs {
    /// Adds an attribute of this whole name, in place of one that is there.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrFault> {
        let (prefix, rest) = split(name).ok_or(XattrFault::Name)?;
        let before = self.0.len();
        self.0
            .retain(|known| (known.prefix, &*known.name) != (prefix, rest));
        debug_assert!(before - self.0.len() <= 1);
        self.0.push(Xattr {
            prefix,
            name: rest.into(),
            value: value.into(),
        });
        if rest.len() <= usize::from(u8::MAX) && self.size() <= MAX_XATTRS {
            Ok(())
        } else {
            self.0.pop();
            Err(XattrFault::Size)
        }
    }

    pub(super) fn all(&self) -> &[Xattr] {
        &self.0
    }

    /// Bytes in the image.
    pub(super) fn size(&self) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let entry = |x: &Xattr| (XATTR_ENTRY + x.name.len() + x.value.len()).next_multiple_of(4);
        XATTR_HEADER + self.0.iter().map(entry).sum::<usize>()
    }
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    // `trusted.*` would let an image speak to the overlay that is mounted over it.
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    let kept = |prefix: &[u8], index| {
        let rest = name.strip_prefix(prefix)?;
        (!rest.is_empty() && !rest.contains(&0)).then_some((index, rest))
    };
    kept(b"user.", 1).or_else(|| kept(b"security.", 6))
}

impl<F> Tree<F> {
    /// An empty root.
    pub fn new(root: Attributes) -> Self {
        Self {
            nodes: vec![Node::directory(root)],
        }
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node<F> {
        // Ids come from `add` and nodes are never taken away.
        &self.nodes[id.index()]
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node<F> {
        &mut self.nodes[id.index()]
    }

    /// Adds a node that has no name yet; `None` if there are more than can be counted.
    pub fn add(&mut self, node: Node<F>) -> Option<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        self.nodes.push(node);
        Some(id)
    }

    /// What a directory holds under this name.
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(directory).children()?.get(name).copied()
    }

    /// Puts a node into a directory, in place of what has the name; false if that is no directory.
    pub fn link(&mut self, directory: NodeId, name: &[u8], node: NodeId) -> bool {
        match &mut self.node_mut(directory).content {
            Content::Directory(children) => {
                children.insert(name.into(), node);
                true
            }
            Content::File(_)
            | Content::Symlink(_)
            | Content::CharacterDevice(_)
            | Content::BlockDevice(_)
            | Content::Fifo => false,
        }
    }

    /// How many nodes there are, with those that no name leads to any more.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node<F>)> {
        (0..).map(NodeId).zip(&self.nodes)
    }
}

impl<F> Node<F> {
    /// A directory with nothing in it.
    pub fn directory(attributes: Attributes) -> Self {
        Self::new(attributes, Content::Directory(BTreeMap::new()))
    }

    /// Without extended attributes.
    pub fn new(attributes: Attributes, content: Content<F>) -> Self {
        Self {
            attributes,
            xattrs: Xattrs::default(),
            content,
        }
    }

    /// What it holds, if it is a directory.
    pub fn children(&self) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.content {
            Content::Directory(children) => Some(children),
            Content::File(_)
            | Content::Symlink(_)
            | Content::CharacterDevice(_)
            | Content::BlockDevice(_)
            | Content::Fifo => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_guest_may_be_shown_are_kept_and_others_refused() {
        let mut xattrs = Xattrs::default();
        for name in [
            &b"user.a"[..],
            b"security.capability",
            b"system.posix_acl_access",
        ] {
            assert_eq!(xattrs.set(name, b"v"), Ok(()), "{name:?}");
        }
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"trusted.overlay.redirect",
            b"system.nfs4_acl",
            b"user.",
            b"user.\0",
            b"",
            b"posix",
        ] {
            assert_eq!(xattrs.set(name, b"v"), Err(XattrFault::Name), "{name:?}");
        }
        assert_eq!(xattrs.all().len(), 3);
        // 12 + (4+1+1→8) + (4+10+1→16) + (4+0+1→8)
        assert_eq!(xattrs.size(), 44);
        assert_eq!(xattrs.set(b"user.a", b"other"), Ok(()));
        assert_eq!(xattrs.all().len(), 3);
    }

    #[test]
    fn attributes_that_fit_no_block_are_refused_and_leave_the_others() {
        let mut xattrs = Xattrs::default();
        xattrs.set(b"user.a", &[0; 3000]).unwrap();
        assert_eq!(xattrs.set(b"user.b", &[0; 100]), Err(XattrFault::Size));
        assert_eq!(
            xattrs.set(&[b"user.", &[b'n'; 256][..]].concat(), b""),
            Err(XattrFault::Size)
        );
        assert_eq!(xattrs.all().len(), 1);
    }
}
