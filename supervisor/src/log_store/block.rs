//! A file is cut into blocks of 64 KiB, and no record lies in two: every block begins with a
//! record, the first behind the file's head. So a reader can begin anywhere, go backwards by
//! blocks, and find its way again behind damage, and no text that a workload writes can pass for a
//! record. What is left of a block that the next record does not fit into is zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::record::{Flaw, HEAD, LONGEST, View};

/// Bytes of a block.
pub(super) const BLOCK: usize = 64 * 1024;

/// The file's head: what it is, of which version, and how large its blocks are.
pub(super) const FILE_HEAD: [u8; 16] = *b"iii-logs\x01\0\0\0\0\0\x01\0";

const _: () = assert!(FILE_HEAD.len() + LONGEST <= BLOCK);
const _: () = assert!(BLOCK == 0x1_0000);

/// What comes next in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A record; the next is behind it.
    Record(View<'a>),
    /// Nothing more in this block.
    Over,
    /// Nothing more yet: the block, as far as it is there, ends before a record does.
    Unfinished,
    /// Something that is no record; nothing behind it in this block can be trusted.
    Damaged(Flaw),
}

/// Where the first record of a block is.
pub(super) fn first_record(block: u64) -> usize {
    if block == 0 { FILE_HEAD.len() } else { 0 }
}

/// What is at `at` of a block, of which `bytes` are there so far.
pub fn step(bytes: &[u8], at: usize) -> Step<'_> {
    if at + HEAD > BLOCK {
        return Step::Over;
    }
    let rest = bytes.get(at..).unwrap_or(&[]);
    if let Some(head) = rest.first_chunk::<HEAD>()
        && *head == [0; HEAD]
    {
        return Step::Over;
    }
    match View::check(rest) {
        Ok(view) => Step::Record(view),
        // One that would reach into the next block was never written.
        Err(flaw @ Flaw::Short { need, .. }) if at + need > BLOCK => Step::Damaged(flaw),
        Err(Flaw::Short { .. }) => Step::Unfinished,
        Err(flaw @ (Flaw::TooLong(_) | Flaw::Checksum | Flaw::Kind(_) | Flaw::Flags(_))) => {
            Step::Damaged(flaw)
        }
    }
}

/// Reads what is there of the block that begins at `start`.
pub(super) fn read_block(file: &File, start: u64, block: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < block.len() {
        match file.read_at(&mut block[read..], start + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Fills a block up to its end with zeros if a record of this length, at `offset` of the file, would
/// not fit. Returns how many there were.
pub(super) fn pad(offset: u64, length: usize, out: &mut Vec<u8>) -> usize {
    // Below BLOCK, so the casts keep the value.
    let at = (offset % BLOCK as u64) as usize;
    if at + length <= BLOCK {
        return 0;
    }
    out.resize(out.len() + BLOCK - at, 0);
    BLOCK - at
}

#[cfg(test)]
mod tests {
    use super::super::record::encode_line;
    use super::super::testing::line;
    use super::*;
    use proptest::prelude::*;

    /// The texts of a file, as far as `length` bytes of it are there.
    fn texts(file: &[u8], length: usize) -> Vec<Vec<u8>> {
        let file = &file[..length.min(file.len())];
        let mut texts = Vec::new();
        for (index, block) in file.chunks(BLOCK).enumerate() {
            let mut at = first_record(index as u64);
            while let Step::Record(view) = step(block, at) {
                at += view.length();
                match view.record(&super::super::testing::worker("w")) {
                    super::super::Record::Line(line) => texts.push(line.text),
                    super::super::Record::Lost { .. } => unreachable!("none was written"),
                }
            }
        }
        texts
    }

    fn write(lengths: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut file = FILE_HEAD.to_vec();
        let mut texts = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            let mut line = line("w", "");
            // Text that looks like zeros, like heads and like anything else.
            line.text = (0..*length).map(|i| ((i * n) % 7) as u8).collect();
            let length = super::super::record::length_of(&line);
            pad(file.len() as u64, length, &mut file);
            encode_line(&line, 1, &mut file);
            texts.push(line.text);
        }
        (file, texts)
    }

    #[test]
    fn the_head_is_golden() {
        assert_eq!(&FILE_HEAD[..8], b"iii-logs");
        assert_eq!(FILE_HEAD[8..12], 1u32.to_le_bytes());
        assert_eq!(FILE_HEAD[12..], (BLOCK as u32).to_le_bytes());
    }

    proptest! {
        #[test]
        fn no_record_is_lost_and_none_crosses_a_block(
            lengths in prop::collection::vec(
                prop_oneof![0usize..200, 0usize..=16 * 1024],
                0..60,
            ),
        ) {
            let (file, expected) = write(&lengths);
            prop_assert_eq!(texts(&file, file.len()), expected);
        }

        #[test]
        fn a_torn_end_costs_the_torn_record_alone(
            lengths in prop::collection::vec(0usize..=16 * 1024, 1..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let (file, expected) = write(&lengths);
            let cut = cut.index(file.len());
            let seen = texts(&file, cut);
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            // Whatever is there as a whole is seen.
            let (mut there, mut end) = (0, FILE_HEAD.len());
            for text in &expected {
                let length = HEAD + text.len();
                end += pad(end as u64, length, &mut Vec::new()) + length;
                there += usize::from(end <= cut);
            }
            prop_assert_eq!(seen.len(), there);
        }

        #[test]
        fn damage_costs_the_rest_of_its_block_at_most(
            lengths in prop::collection::vec(0usize..=16 * 1024, 1..30),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let (mut file, expected) = write(&lengths);
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            let seen = texts(&file, file.len());
            let mut rest = &expected[..];
            for text in &seen {
                let Some(found) = rest.iter().position(|t| t == text) else {
                    return Err(TestCaseError::fail("a record that was never written"));
                };
                rest = &rest[found + 1..];
            }
            // 64 KiB hold at most so many of these.
            let most: usize = BLOCK / HEAD;
            prop_assert!(expected.len() - seen.len() <= most);
        }

        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            at in 0usize..70_000,
        ) {
            if let Step::Record(view) = step(&bytes, at) {
                prop_assert!(at + view.length() <= bytes.len());
            }
        }
    }
}
