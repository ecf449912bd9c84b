//! From a tree to the bytes of an image.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};

use super::ErofsError;
use super::format::{
    self, BLOCK, DirectoryEntry, INODES_FROM, Inode, Kind, SUPERBLOCK_AT, Superblock,
};
use super::layout::{Layout, Place, Planned, Stored, inline_end, inode_size};
use super::tree::{Content, Device, Node, NodeId, Tree};

/// Where the bytes of regular files are.
pub trait Contents<F> {
    /// Bytes of the file.
    fn size(&self, file: &F) -> u64;
    /// Which of its blocks are in the image already; `None`: none.
    fn stored(&self, file: &F) -> Option<StoredBlocks>;
    /// Copies the bytes from `from` on; of a stored file only its end is asked for.
    fn copy(&self, file: &F, from: u64, length: u64, out: &mut dyn Write) -> io::Result<()>;
}

/// Blocks of a file that were written before the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlocks {
    /// The first of them.
    pub first: u32,
    /// Bytes of the file's end that are not among them: as many as [`end_beside_inode`] said.
    pub end: usize,
}

/// How many bytes of a file's end will be stored beside its inode, and not in blocks, if its node
/// has these extended attributes.
pub fn end_beside_inode(size: u64, xattrs: &super::tree::Xattrs) -> usize {
    inline_end(inode_size(true) + xattrs.size(), size)
}

/// The superblock, which belongs to byte `SUPERBLOCK_AT` of the image.
pub type SuperblockBytes = [u8; INODES_FROM - SUPERBLOCK_AT];

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Blocks of the whole image.
    pub blocks: u32,
    /// To be written at byte 1024 of the image, unless the tree began at block 0.
    pub superblock: SuperblockBytes,
}

/// Files in the order of the image, each once.
struct Order<'a, F> {
    files: Vec<(NodeId, &'a Node<F>)>,
    /// By node.
    index: HashMap<NodeId, usize>,
    /// By index: how many names lead to it.
    names: Vec<u32>,
    /// By index, of directories: the one that holds it.
    parents: Vec<usize>,
}

impl<'a, F> Order<'a, F> {
    /// A directory before what it holds, and that together. Not by recursion: an image may nest
    /// its directories deeper than any stack.
    fn of(tree: &'a Tree<F>) -> Self {
        let mut order = Self {
            files: Vec::new(),
            index: HashMap::new(),
            names: Vec::new(),
            parents: Vec::new(),
        };
        order.add(NodeId::ROOT, tree.node(NodeId::ROOT), 0);
        let mut pending = vec![0];
        while let Some(directory) = pending.pop() {
            let children = order.files[directory].1.children().into_iter().flatten();
            let below = pending.len();
            for (_, child) in children {
                if let Some(known) = order.index.get(child) {
                    order.names[*known] += 1;
                    continue;
                }
                let node = tree.node(*child);
                let index = order.add(*child, node, directory);
                if node.children().is_some() {
                    pending.push(index);
                }
            }
            pending[below..].reverse();
        }
        order
    }

    fn add(&mut self, id: NodeId, node: &'a Node<F>, parent: usize) -> usize {
        let index = self.files.len();
        self.files.push((id, node));
        self.index.insert(id, index);
        self.names.push(1);
        self.parents.push(parent);
        index
    }
}

struct Writer<'a, F, C> {
    order: Order<'a, F>,
    contents: &'a C,
    places: Vec<Place>,
}

/// Writes a tree from block `first` of an image on. What lies before are blocks that `contents`
/// says are stored; with `first` 0 there are none, and the superblock is written too.
pub fn write<F, C: Contents<F>>(
    tree: &Tree<F>,
    contents: &C,
    first: u32,
    out: &mut impl Write,
) -> Result<Written, ErofsError> {
    let order = Order::of(tree);
    let mut writer = Writer {
        order,
        contents,
        places: Vec::new(),
    };
    let planned: Vec<Planned> = (0..writer.order.files.len())
        .map(|index| writer.plan(index))
        .collect();
    let layout = Layout::of(&planned, first).ok_or(ErofsError::TooLarge)?;
    writer.places = layout.places;
    let mut superblock = [0; INODES_FROM - SUPERBLOCK_AT];
    Superblock {
        root: writer.places[0].number(),
        inodes: writer.places.len() as u64,
        blocks: layout.blocks,
        metadata: first,
    }
    .put(&mut superblock);
    let mut out = Counted { out, written: 0 };
    if first == 0 {
        out.pad_to(SUPERBLOCK_AT)?;
        out.write_all(&superblock)?;
    }
    writer.metadata(&mut out)?;
    out.pad_to(layout.metadata_blocks as usize * BLOCK)?;
    writer.blocks(&mut out)?;
    Ok(Written {
        blocks: layout.blocks,
        superblock,
    })
}

impl<F, C: Contents<F>> Writer<'_, F, C> {
    fn node(&self, index: usize) -> &Node<F> {
        self.order.files[index].1
    }

    fn plan(&self, index: usize) -> Planned {
        let node = self.node(index);
        let stored = match &node.content {
            Content::File(file) => self.contents.stored(file),
            _ => None,
        };
        Planned {
            size: self.size(node),
            extended: self.needs_extended(index),
            xattrs: node.xattrs.size(),
            stored: stored.map(|blocks| Stored {
                first_block: blocks.first,
                inline: blocks.end,
            }),
        }
    }

    /// Inodes with what lies beside them, in the order of their places.
    fn metadata<W: Write>(&self, out: &mut Counted<'_, W>) -> Result<(), ErofsError> {
        let mut sorted: Vec<usize> = (0..self.places.len()).collect();
        sorted.sort_unstable_by_key(|index| self.places[*index].offset());
        for index in sorted {
            let (node, place) = (self.node(index), &self.places[index]);
            out.pad_to(place.offset())?;
            let mut bytes = [0; format::EXTENDED_INODE];
            self.inode(index).put(&mut bytes);
            out.write_all(&bytes[..inode_size(place.extended)])?;
            out.write_all(&format::xattrs(&node.xattrs))?;
            if place.inline > 0 {
                let from = self.size(node) - place.inline as u64;
                self.copy(index, from, place.inline as u64, out)?;
            }
        }
        Ok(())
    }

    /// The blocks of what is not stored yet.
    fn blocks<W: Write>(&self, out: &mut Counted<'_, W>) -> Result<(), ErofsError> {
        for (index, place) in self.places.iter().enumerate() {
            if place.data_blocks > 0 {
                let body = self.size(self.node(index)) - place.inline as u64;
                self.copy(index, 0, body, out)?;
                out.pad_to(out.written.next_multiple_of(BLOCK))?;
            }
        }
        Ok(())
    }

    fn copy<W: Write>(
        &self,
        index: usize,
        from: u64,
        length: u64,
        out: &mut Counted<'_, W>,
    ) -> Result<(), ErofsError> {
        let node = self.node(index);
        let bytes: Cow<'_, [u8]> = match &node.content {
            Content::File(file) => {
                let before = out.written;
                self.contents.copy(file, from, length, out)?;
                if (out.written - before) as u64 != length {
                    return Err(ErofsError::Write(io::ErrorKind::UnexpectedEof.into()));
                }
                return Ok(());
            }
            Content::Symlink(target) => (&**target).into(),
            Content::Directory(_) => self.directory(index).into(),
            Content::CharacterDevice(_) | Content::BlockDevice(_) | Content::Fifo => {
                return Ok(());
            }
        };
        // Both are of memory.
        let (from, length) = (from as usize, length as usize);
        Ok(out.write_all(&bytes[from..from + length])?)
    }

    fn directory(&self, index: usize) -> Vec<u8> {
        let entry = |name, index: usize| DirectoryEntry {
            name,
            number: self.places[index].number(),
            kind: kind(self.node(index)),
        };
        let mut entries = vec![
            entry(&b"."[..], index),
            entry(b"..", self.order.parents[index]),
        ];
        let children = self.node(index).children().into_iter().flatten();
        entries.extend(children.map(|(name, child)| entry(&**name, self.order.index[child])));
        // A name may come before the two.
        entries.sort_unstable_by_key(|entry| entry.name);
        format::directory(&entries)
    }

    fn inode(&self, index: usize) -> Inode {
        let (node, place) = (self.node(index), &self.places[index]);
        Inode {
            extended: place.extended,
            inline: place.inline > 0,
            xattrs: node.xattrs.size(),
            mode: kind(node).mode_bits() | permissions(node),
            links: self.links(index),
            size: self.size(node),
            block: match node.content {
                Content::CharacterDevice(device) | Content::BlockDevice(device) => number(device),
                _ => place.first_block,
            },
            // Shown where 32 bits must do; the kernel's own number is the place.
            serial: index as u32 + 1,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
        }
    }

    fn links(&self, index: usize) -> u32 {
        match self.node(index).children() {
            None => self.order.names[index],
            Some(children) => {
                let below = children.values().filter(|child| {
                    let index = self.order.index[child];
                    self.node(index).children().is_some()
                });
                2 + below.count() as u32
            }
        }
    }

    fn needs_extended(&self, index: usize) -> bool {
        let node = self.node(index);
        // A stored file's end was cut for the larger form.
        let stored = match &node.content {
            Content::File(file) => self.contents.stored(file).is_some(),
            _ => false,
        };
        let fits = |number: u32| u16::try_from(number).is_ok();
        let super::Attributes {
            uid, gid, mtime, ..
        } = node.attributes;
        // The time of a compact inode is the superblock's, which is the epoch.
        !(fits(uid) && fits(gid) && mtime == 0 && fits(self.links(index)))
            || u32::try_from(self.size(node)).is_err()
            || stored
    }

    fn size(&self, node: &Node<F>) -> u64 {
        match &node.content {
            Content::File(file) => self.contents.size(file),
            Content::Symlink(target) => target.len() as u64,
            Content::Directory(children) => {
                format::directory_size(children.keys().map(|name| &**name))
            }
            Content::CharacterDevice(_) | Content::BlockDevice(_) | Content::Fifo => 0,
        }
    }
}

fn kind<F>(node: &Node<F>) -> Kind {
    match node.content {
        Content::Directory(_) => Kind::Directory,
        Content::File(_) => Kind::Regular,
        Content::Symlink(_) => Kind::Symlink,
        Content::CharacterDevice(_) => Kind::CharacterDevice,
        Content::BlockDevice(_) => Kind::BlockDevice,
        Content::Fifo => Kind::Fifo,
    }
}

fn permissions<F>(node: &Node<F>) -> u16 {
    match node.content {
        Content::Symlink(_) => 0o777,
        _ => node.attributes.mode & 0o7777,
    }
}

/// As Linux encodes it (`new_encode_dev`).
fn number(device: Device) -> u32 {
    let Device { major, minor } = device;
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

/// Counts what goes through.
struct Counted<'a, W> {
    out: &'a mut W,
    written: usize,
}

impl<W: Write> Counted<'_, W> {
    fn pad_to(&mut self, end: usize) -> io::Result<()> {
        while self.written < end {
            let most = (end - self.written).min(BLOCK);
            self.write_all(&[0; BLOCK][..most])?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
