//! The file that an image's layers become.
//!
//! Block 0 is the superblock's. Whole blocks of files follow as they come out of the layers; the
//! ends that will lie beside inodes are kept in a file of their own until then; the tree is written
//! behind it all. So memory holds names and numbers, and never a file's content.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::merge::{LayerError, Merge, Sink, StoreError};
use crate::erofs::{
    BLOCK, Content, Contents, ErofsError, SUPERBLOCK_AT, StoredBlocks, Tree, Xattrs,
    end_beside_inode, write,
};

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// Why the file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The tree.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// The disk.
    #[error("failed to write the image: {0}; is the disk full?")]
    Write(io::Error),
}

/// An image that is being made.
#[derive(Debug)]
pub struct Assembly {
    merge: Merge<StoredFile>,
    store: Store,
}

/// What was made.
#[derive(Debug)]
pub struct Finished {
    /// Bytes of the file.
    pub size: u64,
    /// Extended attributes that a guest is not shown.
    pub left_out: u64,
}

/// Where a file's content was put.
#[derive(Clone, Copy, Debug)]
pub struct StoredFile {
    size: u64,
    first: u32,
    /// Bytes of the end that are not in blocks of the image.
    end: u16,
    /// Where they are among the ends.
    end_at: u64,
}

#[derive(Debug)]
struct Store {
    image: BufWriter<File>,
    next: u32,
    ends: BufWriter<File>,
    ends_length: u64,
    buffer: Vec<u8>,
}

impl Assembly {
    /// Makes the image in `image`, an empty file; what is needed meanwhile is kept in `scratch`
    /// without a name.
    pub fn new(image: File, scratch: &Path) -> Result<Self, AssemblyError> {
        let ends = tempfile::tempfile_in(scratch).map_err(AssemblyError::Write)?;
        let mut image = BufWriter::with_capacity(BUFFER, image);
        image.write_all(&[0; BLOCK]).map_err(AssemblyError::Write)?;
        Ok(Self {
            merge: Merge::default(),
            store: Store {
                image,
                next: 1,
                ends: BufWriter::with_capacity(BUFFER, ends),
                ends_length: 0,
                buffer: vec![0; BUFFER],
            },
        })
    }

    /// Puts a layer, an uncompressed archive, on top of those that were added. Its stream comes
    /// back at its end.
    pub fn layer<R: Read>(&mut self, stream: R) -> Result<R, LayerError> {
        self.merge.layer(stream, &mut self.store)
    }

    /// Writes what is left and makes sure that it is on the disk.
    pub fn finish(self) -> Result<Finished, AssemblyError> {
        let left_out = self.merge.left_out();
        let tree = self.merge.into_tree();
        let Store {
            mut image,
            next,
            ends,
            ..
        } = self.store;
        let unwritten = |error: io::IntoInnerError<_>| AssemblyError::Write(error.into_error());
        let ends = Ends(ends.into_inner().map_err(unwritten)?);
        let written = write(&tree, &ends, next, &mut image)?;
        image.flush().map_err(AssemblyError::Write)?;
        let image = image
            .into_inner()
            .map_err(|error| AssemblyError::Write(error.into_error()))?;
        give_back_replaced(&tree, &image);
        image
            .write_all_at(&written.superblock, SUPERBLOCK_AT)
            .and_then(|()| image.sync_all())
            .map_err(AssemblyError::Write)?;
        Ok(Finished {
            size: u64::from(written.blocks) * BLOCK as u64,
            left_out,
        })
    }
}

/// Frees the blocks of files that upper layers replaced or took away, where the disk's file system
/// can: they cost space, nothing else.
fn give_back_replaced(tree: &Tree<StoredFile>, image: &File) {
    let mut reachable = vec![false; tree.len()];
    let mut pending = vec![crate::erofs::NodeId::ROOT];
    while let Some(id) = pending.pop() {
        reachable[id.index()] = true;
        let children = tree.node(id).children().into_iter().flatten();
        pending.extend(children.map(|(_, child)| *child));
    }
    for (id, node) in tree.nodes() {
        let Content::File(file) = &node.content else {
            continue;
        };
        let blocks = (file.size - u64::from(file.end)).div_ceil(BLOCK as u64);
        if reachable[id.index()] || blocks == 0 {
            continue;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Both are within a file that was written.
        let (from, length) = (u64::from(file.first) * BLOCK as u64, blocks * BLOCK as u64);
        if let Err(error) = fallocate(image, flags, from.cast_signed(), length.cast_signed()) {
            tracing::debug!(%error, "replaced files keep their blocks");
            return;
        }
    }
}

impl Sink for Store {
    type File = StoredFile;

    fn store(
        &mut self,
        content: &mut dyn Read,
        size: u64,
        xattrs: &Xattrs,
    ) -> Result<StoredFile, StoreError> {
        let end = end_beside_inode(size, xattrs);
        let body = size - end as u64;
        let first = self.next;
        let blocks = u32::try_from(body.div_ceil(BLOCK as u64)).ok();
        // The format's own end; MAX_CONTENT is far below it.
        self.next = blocks
            .and_then(|blocks| first.checked_add(blocks))
            .ok_or_else(|| StoreError::Write(io::ErrorKind::FileTooLarge.into()))?;
        copy(content, body, &mut self.image, &mut self.buffer)?;
        let rest = body.next_multiple_of(BLOCK as u64) - body;
        self.image
            .write_all(&[0; BLOCK][..rest as usize])
            .map_err(StoreError::Write)?;
        let end_at = self.ends_length;
        copy(content, end as u64, &mut self.ends, &mut self.buffer)?;
        self.ends_length += end as u64;
        Ok(StoredFile {
            size,
            first,
            // Less than a block.
            end: end as u16,
            end_at,
        })
    }
}

fn copy(
    content: &mut dyn Read,
    length: u64,
    out: &mut impl Write,
    buffer: &mut [u8],
) -> Result<(), StoreError> {
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let piece = &mut buffer[..most];
        content.read_exact(piece).map_err(StoreError::Read)?;
        out.write_all(piece).map_err(StoreError::Write)?;
        left -= most as u64;
    }
    Ok(())
}

/// The ends of files.
struct Ends(File);

impl Contents<StoredFile> for Ends {
    fn size(&self, file: &StoredFile) -> u64 {
        file.size
    }

    fn stored(&self, file: &StoredFile) -> Option<StoredBlocks> {
        Some(StoredBlocks {
            first: file.first,
            end: usize::from(file.end),
        })
    }

    fn copy(
        &self,
        file: &StoredFile,
        from: u64,
        length: u64,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut end = vec![0; length as usize];
        let within = from - (file.size - u64::from(file.end));
        self.0.read_exact_at(&mut end, file.end_at + within)?;
        out.write_all(&end)
    }
}
