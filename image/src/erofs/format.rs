//! The bytes of superblock, inodes, attributes and directories, all little-endian
//! (`fs/erofs/erofs_fs.h`).

use super::tree::Xattrs;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// Inodes begin at multiples of this, and are numbered by it.
pub(super) const SLOT: usize = 32;
pub(super) const COMPACT_INODE: usize = 32;
pub(super) const EXTENDED_INODE: usize = 64;

pub(super) const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK: usize = 128;
/// The first inode may lie here.
pub(super) const INODES_FROM: usize = SUPERBLOCK_AT + SUPERBLOCK;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// Extended inodes hold the time of the last change (`EROFS_FEATURE_COMPAT_MTIME`).
const COMPAT_MTIME: u32 = 2;

/// `datalayout` of an inode: blocks of its own alone, or with the end beside the inode.
pub(super) const FLAT_PLAIN: u16 = 0;
pub(super) const FLAT_INLINE: u16 = 2;

/// Bytes before extended attributes (`struct erofs_xattr_ibody_header`).
const XATTR_HEADER: usize = 12;

/// Bytes of a directory entry without its name.
pub(super) const ENTRY: usize = 12;

/// Appends or places numbers of the format.
struct Bytes<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Bytes<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
    }

    fn u8(&mut self, value: u8) {
        self.put([value]);
    }

    fn u16(&mut self, value: u16) {
        self.put(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(value.to_le_bytes());
    }
}

/// `struct erofs_super_block`. Every compact inode is of the epoch.
pub(super) struct Superblock {
    pub(super) root: u64,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// Block from which inodes are numbered.
    pub(super) metadata: u32,
}

impl Superblock {
    pub(super) fn put(&self, out: &mut [u8; SUPERBLOCK]) {
        let mut out = Bytes { out, at: 0 };
        out.u32(MAGIC);
        out.u32(0); // checksum: none
        out.u32(COMPAT_MTIME);
        out.u8(BLOCK_BITS);
        out.u8(0); // extension slots
        // The layout puts the root into the first blocks.
        out.u16(self.root as u16);
        out.u64(self.inodes);
        out.u64(0); // time of compact inodes
        out.u32(0);
        out.u32(self.blocks);
        out.u32(self.metadata);
        // Shared attributes, UUID, name, incompatible features and all that follows are zero.
    }
}

/// Kinds of file that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Directory,
    CharacterDevice,
    BlockDevice,
    Fifo,
    Symlink,
}

impl Kind {
    pub(super) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharacterDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }

    /// `EROFS_FT_*`.
    fn in_directory(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharacterDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

/// `struct erofs_inode_compact` or `erofs_inode_extended`.
pub(super) struct Inode {
    pub(super) extended: bool,
    pub(super) inline: bool,
    /// Bytes of the extended attributes behind it.
    pub(super) xattrs: usize,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block of the content, or a device's number.
    pub(super) block: u32,
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u64,
}

impl Inode {
    pub(super) fn put(&self, out: &mut [u8]) {
        let mut out = Bytes { out, at: 0 };
        let layout = if self.inline { FLAT_INLINE } else { FLAT_PLAIN };
        out.u16(u16::from(self.extended) | layout << 1);
        // `i_xattr_icount`: below a block, so far below 16 bits.
        out.u16(match self.xattrs {
            0 => 0,
            size => ((size - XATTR_HEADER) / 4 + 1) as u16,
        });
        out.u16(self.mode);
        if self.extended {
            out.u16(0);
            out.u64(self.size);
            out.u32(self.block);
            out.u32(self.serial);
            out.u32(self.uid);
            out.u32(self.gid);
            out.u64(self.mtime);
            out.u32(0); // nanoseconds
            out.u32(self.links);
        } else {
            // What does not fit here has made the inode an extended one.
            out.u16(self.links as u16);
            out.u32(self.size as u32);
            out.u32(0);
            out.u32(self.block);
            out.u32(self.serial);
            out.u16(self.uid as u16);
            out.u16(self.gid as u16);
        }
    }
}

/// What lies behind an inode with extended attributes: none of them shared with other inodes.
pub(super) fn xattrs(xattrs: &Xattrs) -> Vec<u8> {
    if xattrs.size() == 0 {
        return Vec::new();
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for xattr in xattrs.all() {
        // Both lengths were checked when it was added.
        bytes.push(xattr.name.len() as u8);
        bytes.push(xattr.prefix);
        bytes.extend((xattr.value.len() as u16).to_le_bytes());
        bytes.extend(&xattr.name);
        bytes.extend(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// One entry of a directory.
pub(super) struct DirectoryEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) number: u64,
    pub(super) kind: Kind,
}

/// A directory's data: blocks of `struct erofs_dirent` with the names behind them. `entries` are in
/// the order of their names' bytes, which the kernel's search relies on.
pub(super) fn directory(entries: &[DirectoryEntry<'_>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let count = in_one_block(rest.iter().map(|entry| entry.name));
        let (block, more) = rest.split_at(count);
        let start = data.len();
        data.resize(start + count * ENTRY, 0);
        for (index, entry) in block.iter().enumerate() {
            let name_at = data.len() - start;
            let mut out = Bytes {
                out: &mut data[start + index * ENTRY..],
                at: 0,
            };
            out.u64(entry.number);
            // Below the size of a block.
            out.u16(name_at as u16);
            out.u8(entry.kind.in_directory());
            data.extend_from_slice(entry.name);
        }
        data.resize(start + end_of_block(data.len() - start, more.is_empty()), 0);
        rest = more;
    }
    data
}

/// The length of what [`directory`] makes of these names, sorted, with `.` and `..` among them.
pub(super) fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut names: Vec<&[u8]> = names.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    let mut size = 0;
    let mut rest = &names[..];
    while !rest.is_empty() {
        let (block, more) = rest.split_at(in_one_block(rest.iter().copied()));
        let used = block.iter().map(|name| ENTRY + name.len()).sum();
        size += end_of_block(used, more.is_empty()) as u64;
        rest = more;
    }
    size
}

/// How many of the first names share a block: at least one, since the longest name leaves room.
fn in_one_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut used = 0;
    names
        .take_while(|name| {
            used += ENTRY + name.len();
            used <= BLOCK
        })
        .count()
}

/// A block's length with what ends its last name: a NUL, or the end of the block. What follows the
/// last block in the image would be read as a part of the name otherwise.
fn end_of_block(used: usize, last: bool) -> usize {
    if last { (used + 1).min(BLOCK) } else { BLOCK }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], number: u64, kind: Kind) -> DirectoryEntry<'_> {
        DirectoryEntry { name, number, kind }
    }

    #[test]
    fn golden_bytes_of_a_directory() {
        let data = directory(&[
            entry(b".", 36, Kind::Directory),
            entry(b"..", 37, Kind::Directory),
            entry(b"ab", 0x0102, Kind::Symlink),
        ]);
        #[rustfmt::skip]
        let expected = [
            36, 0, 0, 0, 0, 0, 0, 0, 36, 0, 2, 0,
            37, 0, 0, 0, 0, 0, 0, 0, 37, 0, 2, 0,
            2, 1, 0, 0, 0, 0, 0, 0, 39, 0, 7, 0,
            b'.', b'.', b'.', b'a', b'b', 0,
        ];
        assert_eq!(data, expected);
    }

    #[test]
    fn golden_bytes_of_inodes() {
        let mut inode = Inode {
            extended: false,
            inline: true,
            xattrs: 0,
            mode: 0o100_644,
            links: 1,
            size: 0x0a0b,
            block: 7,
            serial: 3,
            uid: 1000,
            gid: 1001,
            mtime: 0,
        };
        let mut bytes = [0xff; 64];
        inode.put(&mut bytes);
        #[rustfmt::skip]
        let compact = [
            4, 0, 0, 0, 0xa4, 0x81, 1, 0, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 3, 0, 0, 0, 0xe8, 3, 0xe9, 3,
        ];
        assert_eq!(bytes[..28], compact);

        inode.extended = true;
        inode.inline = false;
        inode.xattrs = 28;
        inode.uid = 0x0001_0000;
        inode.mtime = 0x0102_0304;
        inode.put(&mut bytes);
        #[rustfmt::skip]
        let extended = [
            1, 0, 5, 0, 0xa4, 0x81, 0, 0, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0xe9, 3, 0, 0,
            4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(bytes[..48], extended);
    }

    #[test]
    fn golden_bytes_of_extended_attributes() {
        let mut set = Xattrs::default();
        set.set(b"security.capability", &[1, 2, 3]).unwrap();
        set.set(b"user.a", b"").unwrap();
        let bytes = xattrs(&set);
        assert_eq!(bytes.len(), set.size());
        assert_eq!(bytes[..12], [0; 12]);
        assert_eq!(
            bytes[12..32],
            *b"\x0a\x06\x03\0capability\x01\x02\x03\0\0\0"
        );
        assert_eq!(bytes[32..], *b"\x01\x01\0\0a\0\0\0");
    }

    #[test]
    fn a_directory_of_several_blocks_has_the_size_that_was_foretold() {
        let names: Vec<Vec<u8>> = (0..600)
            .map(|n| format!("{n:0>0$}", 1 + n % 200).into_bytes())
            .collect();
        for count in [0, 1, 2, 100, 233, 234, 235, 600] {
            let mut sorted: Vec<&[u8]> = names[..count].iter().map(|name| &name[..]).collect();
            let foretold = directory_size(sorted.iter().copied());
            sorted.extend([&b"."[..], b".."]);
            sorted.sort_unstable();
            let entries: Vec<_> = sorted
                .iter()
                .map(|name| entry(name, 1, Kind::Regular))
                .collect();
            assert_eq!(directory(&entries).len() as u64, foretold, "{count}");
        }
    }

    #[test]
    fn a_name_that_fills_its_block_needs_no_end() {
        assert_eq!(end_of_block(BLOCK, true), BLOCK);
        assert_eq!(end_of_block(BLOCK - 1, true), BLOCK);
        assert_eq!(end_of_block(10, true), 11);
        assert_eq!(end_of_block(10, false), BLOCK);
    }
}
