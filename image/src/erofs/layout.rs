//! Where in an image each inode and its data lie.
//!
//! The metadata blocks come first: the superblock's, then inodes with what is stored beside them.
//! The blocks of larger files follow in the order of their inodes. Where blocks of files were
//! stored before, the metadata lie behind those, and the superblock is alone in block 0.

use std::collections::BTreeMap;

use super::format::{BLOCK, COMPACT_INODE, EXTENDED_INODE, INODES_FROM, SLOT};

/// Where one file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Block of the inode.
    block: u32,
    /// Bytes from the start of that block.
    within: usize,
    /// The larger form of inode.
    pub(super) extended: bool,
    /// Bytes of the file's end that lie behind the inode.
    pub(super) inline: usize,
    /// First of the file's own blocks.
    pub(super) first_block: u32,
    /// How many of them are to be written.
    pub(super) data_blocks: u32,
}

/// What decides where a file lies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planned {
    pub(super) size: u64,
    /// The larger form of inode.
    pub(super) extended: bool,
    /// Bytes of extended attributes.
    pub(super) xattrs: usize,
    /// What is in the image already.
    pub(super) stored: Option<Stored>,
}

/// Where a stored file's blocks are, and how much of its end is not among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) first_block: u32,
    pub(super) inline: usize,
}

impl Place {
    /// Bytes from the start of the metadata.
    pub(super) fn offset(&self) -> usize {
        self.block as usize * BLOCK + self.within
    }

    /// The inode's number: its place, counted in slots.
    pub(super) fn number(&self) -> u64 {
        (self.offset() / SLOT) as u64
    }
}

/// Bytes of a file's end that lie behind an inode of so many bytes, its attributes included. The
/// kernel wants them within one block with the inode's slot.
pub(super) fn inline_end(inode: usize, size: u64) -> usize {
    let tail = (size % BLOCK as u64) as usize;
    if inode + tail <= BLOCK { tail } else { 0 }
}

pub(super) fn inode_size(extended: bool) -> usize {
    if extended {
        EXTENDED_INODE
    } else {
        COMPACT_INODE
    }
}

/// The places of all files of an image.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) places: Vec<Place>,
    pub(super) metadata_blocks: u32,
    /// Of the whole image.
    pub(super) blocks: u32,
}

impl Layout {
    /// Metadata from block `first` on; the root comes first, since the superblock has 16 bits for
    /// its number. `None`: more blocks than 32 bits count.
    pub(super) fn of(files: &[Planned], first: u32) -> Option<Self> {
        let mut metadata = Metadata::new(first == 0);
        let mut places = Vec::with_capacity(files.len());
        for file in files {
            let inode = inode_size(file.extended) + file.xattrs;
            let (inline, first_block, data_blocks) = match file.stored {
                Some(stored) => (stored.inline, stored.first_block, 0),
                None => {
                    let inline = inline_end(inode, file.size);
                    let own = (file.size - inline as u64).div_ceil(BLOCK as u64);
                    (inline, 0, u32::try_from(own).ok()?)
                }
            };
            let (block, within) = metadata.allocate(inode + inline)?;
            places.push(Place {
                block,
                within,
                extended: file.extended,
                inline,
                first_block,
                data_blocks,
            });
        }
        let metadata_blocks = metadata.blocks;
        let mut blocks = first.checked_add(metadata_blocks)?;
        for place in &mut places {
            if place.data_blocks > 0 {
                place.first_block = blocks;
                blocks = blocks.checked_add(place.data_blocks)?;
            }
        }
        Some(Self {
            places,
            metadata_blocks,
            blocks,
        })
    }
}

/// Fills blocks by best fit: inodes with their ends are of very different lengths.
#[derive(Debug)]
struct Metadata {
    blocks: u32,
    /// Blocks with room, by the bytes that are left at their ends.
    room: BTreeMap<usize, Vec<u32>>,
}

impl Metadata {
    /// With the superblock's block, which has room behind it, or without.
    fn new(with_superblock: bool) -> Self {
        if with_superblock {
            Self {
                blocks: 1,
                room: BTreeMap::from([(BLOCK - INODES_FROM, vec![0])]),
            }
        } else {
            Self {
                blocks: 0,
                room: BTreeMap::new(),
            }
        }
    }

    fn allocate(&mut self, length: usize) -> Option<(u32, usize)> {
        let (block, room) = match self.take(length) {
            Some(found) => found,
            None => {
                let block = self.blocks;
                self.blocks = block.checked_add(1)?;
                (block, BLOCK)
            }
        };
        let left = room - length.next_multiple_of(SLOT).min(room);
        if left > 0 {
            self.room.entry(left).or_default().push(block);
        }
        Some((block, BLOCK - room))
    }

    fn take(&mut self, length: usize) -> Option<(u32, usize)> {
        let (room, blocks) = self.room.range_mut(length..).next()?;
        let room = *room;
        let block = blocks.pop();
        if blocks.is_empty() {
            self.room.remove(&room);
        }
        Some((block?, room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(files: &[(u64, bool)]) -> Option<Layout> {
        let planned: Vec<Planned> = files
            .iter()
            .map(|(size, extended)| Planned {
                size: *size,
                extended: *extended,
                ..Planned::default()
            })
            .collect();
        Layout::of(&planned, 0)
    }

    #[test]
    fn metadata_behind_stored_blocks_are_numbered_from_their_own_start() {
        let stored = |first_block, inline| Planned {
            size: 4096 + inline as u64,
            extended: true,
            stored: Some(Stored {
                first_block,
                inline,
            }),
            ..Planned::default()
        };
        let root = Planned {
            size: 40,
            extended: true,
            xattrs: 28,
            stored: None,
        };
        let layout = Layout::of(&[root, stored(1, 0), stored(2, 10)], 3).unwrap();
        let places: Vec<_> = layout
            .places
            .iter()
            .map(|p| (p.number(), p.inline, p.first_block, p.data_blocks))
            .collect();
        // 64 + 28 + 40 bytes are 5 slots.
        assert_eq!(places, [(0, 40, 0, 0), (5, 0, 1, 0), (7, 10, 2, 0)]);
        assert_eq!((layout.metadata_blocks, layout.blocks), (1, 4));
    }

    #[test]
    fn a_small_file_lies_beside_its_inode_and_a_large_ones_end_too() {
        let layout = of(&[(27, false), (5, false), (2 * 4096 + 10, false)]).unwrap();
        let places: Vec<_> = layout
            .places
            .iter()
            .map(|p| (p.number(), p.inline, p.first_block, p.data_blocks))
            .collect();
        // The superblock ends at slot 36.
        assert_eq!(places, [(36, 27, 0, 0), (38, 5, 0, 0), (40, 10, 1, 2)]);
        assert_eq!((layout.metadata_blocks, layout.blocks), (1, 3));
    }

    #[test]
    fn an_end_that_fits_no_block_beside_its_inode_gets_one_of_its_own() {
        let layout = of(&[(4064, false), (4065, false), (4064, true)]).unwrap();
        let inline: Vec<_> = layout
            .places
            .iter()
            .map(|p| (p.inline, p.data_blocks))
            .collect();
        assert_eq!(inline, [(4064, 0), (0, 1), (0, 1)]);
    }

    #[test]
    fn more_blocks_than_the_format_counts_are_refused() {
        assert!(of(&[(u64::from(u32::MAX) * 4096, false)]).is_none());
        assert!(of(&[(u64::MAX, true)]).is_none());
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_nothing_crosses_a_block(
            files in prop::collection::vec((0u64..20_000, any::<bool>()), 1..200),
        ) {
            let layout = of(&files).unwrap();
            prop_assert!(layout.places[0].number() <= u64::from(u16::MAX));
            let mut used: Vec<(usize, usize)> = vec![(0, INODES_FROM)];
            for (place, (size, _)) in layout.places.iter().zip(&files) {
                let length = inode_size(place.extended) + place.inline;
                prop_assert_eq!(place.offset() % SLOT, 0);
                prop_assert!(place.within + length <= BLOCK);
                used.push((place.offset(), place.offset() + length));
                let first = place.first_block as usize * BLOCK;
                let own = place.data_blocks as usize * BLOCK;
                prop_assert_eq!((*size as usize - place.inline).next_multiple_of(BLOCK), own);
                if own > 0 {
                    prop_assert!(place.first_block >= layout.metadata_blocks);
                    used.push((first, first + own));
                }
            }
            used.sort_unstable();
            prop_assert!(used.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert!(used.last().unwrap().1 <= layout.blocks as usize * BLOCK);
        }
    }
}
