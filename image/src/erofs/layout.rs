//! Where in an image each inode and its data lie.
//!
//! The metadata blocks come first: the superblock's, then inodes with what is stored beside them.
//! The blocks of larger files follow in the order of their inodes.

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
    /// How many they are.
    pub(super) data_blocks: u32,
}

impl Place {
    /// Bytes from the start of the image.
    pub(super) fn offset(&self) -> usize {
        self.block as usize * BLOCK + self.within
    }

    /// The inode's number: its place, counted in slots.
    pub(super) fn number(&self) -> u64 {
        (self.offset() / SLOT) as u64
    }

    pub(super) fn inode_size(&self) -> usize {
        inode_size(self.extended)
    }
}

fn inode_size(extended: bool) -> usize {
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
    pub(super) blocks: u32,
}

impl Layout {
    /// From each file's size and whether its inode is an extended one; the root comes first, since
    /// the superblock has 16 bits for its number. `None`: more blocks than 32 bits count.
    pub(super) fn of(files: &[(u64, bool)]) -> Option<Self> {
        let mut metadata = Metadata::new();
        let mut places = Vec::with_capacity(files.len());
        for (size, extended) in files {
            let inode = inode_size(*extended);
            let tail = (size % BLOCK as u64) as usize;
            // The kernel wants the inode's slot and what is behind it within one block.
            let inline = if inode + tail <= BLOCK { tail } else { 0 };
            let own = (size - inline as u64).div_ceil(BLOCK as u64);
            let (block, within) = metadata.allocate(inode + inline)?;
            places.push(Place {
                block,
                within,
                extended: *extended,
                inline,
                first_block: 0,
                data_blocks: u32::try_from(own).ok()?,
            });
        }
        let metadata_blocks = metadata.blocks;
        let mut blocks = metadata_blocks;
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
    /// The superblock's block, which has room behind it.
    fn new() -> Self {
        Self {
            blocks: 1,
            room: BTreeMap::from([(BLOCK - INODES_FROM, vec![0])]),
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

    #[test]
    fn a_small_file_lies_beside_its_inode_and_a_large_ones_end_too() {
        let layout = Layout::of(&[(27, false), (5, false), (2 * 4096 + 10, false)]).unwrap();
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
        let layout = Layout::of(&[(4064, false), (4065, false), (4064, true)]).unwrap();
        let inline: Vec<_> = layout
            .places
            .iter()
            .map(|p| (p.inline, p.data_blocks))
            .collect();
        assert_eq!(inline, [(4064, 0), (0, 1), (0, 1)]);
    }

    #[test]
    fn more_blocks_than_the_format_counts_are_refused() {
        assert!(Layout::of(&[(u64::from(u32::MAX) * 4096, false)]).is_none());
        assert!(Layout::of(&[(u64::MAX, true)]).is_none());
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_nothing_crosses_a_block(
            files in prop::collection::vec((0u64..20_000, any::<bool>()), 1..200),
        ) {
            let layout = Layout::of(&files).unwrap();
            prop_assert!(layout.places[0].number() <= u64::from(u16::MAX));
            let mut used: Vec<(usize, usize)> = vec![(0, INODES_FROM)];
            for (place, (size, _)) in layout.places.iter().zip(&files) {
                let length = place.inode_size() + place.inline;
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
