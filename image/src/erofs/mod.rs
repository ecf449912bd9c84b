//! A writer of EROFS images (Documentation/filesystems/erofs.rst of the kernel): a read-only file
//! system in one file, which a guest mounts as it lies there, whatever number of files is in it.
//!
//! * [`Builder`] takes directories, files and links by their paths, and writes the image;
//! * [`Tree`] is what is written: nodes and their names; one that large files come to one after
//!   the other, such as an image's layers, is [`write()`]n behind them;
//! * `layout` decides where in the image each of them lies;
//! * `format` knows the bytes of superblock, inodes, attributes and directories;
//! * [`read`] looks into an image.
//!
//! Written: format version 1 with blocks of 4 KiB; compact inodes, and extended ones for what they
//! cannot hold; the end of a file beside its inode where it fits; directories as sorted blocks;
//! extended attributes beside their inode. Not written: compression, shared attributes, checksum.
//!
//! Equal input makes equal bytes.

mod builder;
mod format;
mod layout;
pub mod read;
pub mod tree;
mod write;

use std::io;

pub use builder::Builder;
pub use format::BLOCK;
pub use tree::{Content, Device, Node, NodeId, Tree, XattrFault, Xattrs};
pub use write::{Contents, StoredBlocks, SuperblockBytes, Written, end_beside_inode, write};

/// Where the superblock lies.
pub const SUPERBLOCK_AT: u64 = format::SUPERBLOCK_AT as u64;

/// Longest name of a directory entry.
pub(crate) const NAME_MAX: usize = 255;
/// The kernel's limit on a link's target, its terminating NUL included.
pub(crate) const PATH_MAX: usize = 4096;

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
    /// More than the format's 32-bit numbers count.
    #[error(
        "failed to write the image: it has more than {} blocks or files",
        u32::MAX
    )]
    TooLarge,
    /// The output fails.
    #[error("failed to write the image: {0}")]
    Write(#[from] io::Error),
}
