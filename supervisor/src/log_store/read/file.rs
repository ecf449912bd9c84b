//! One file, as readers see it.

use std::fs::File;
use std::io;
use std::path::Path;

use super::super::block::{BLOCK, FILE_HEAD, Step, first_record, read_block, step};
use super::super::files;
use super::super::record::LONGEST;
use super::query::Query;

/// What a file's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Ours,
    /// It is not written yet.
    Unfinished,
    /// Of another version, or something else.
    Foreign,
}

#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) number: u64,
    file: File,
}

impl LogFile {
    /// `None`: it was removed meanwhile.
    pub(super) fn open(directory: &Path, number: u64) -> io::Result<Option<Self>> {
        match File::open(files::file(directory, number)) {
            Ok(file) => Ok(Some(Self { number, file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn head(&self) -> io::Result<Head> {
        let mut head = [0; FILE_HEAD.len()];
        let read = read_block(&self.file, 0, &mut head)?;
        Ok(match head {
            FILE_HEAD => Head::Ours,
            _ if read < FILE_HEAD.len() => Head::Unfinished,
            _ => Head::Foreign,
        })
    }

    /// How many blocks there are, the last one maybe in part.
    pub(super) fn blocks(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().div_ceil(BLOCK as u64))
    }

    /// Appends to `buffer`, which holds the beginning of this block, what is there of the rest.
    /// Returns how much that was.
    pub(super) fn read_on(&self, block: u64, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let have = buffer.len();
        buffer.resize(BLOCK, 0);
        let start = block * BLOCK as u64 + have as u64;
        let read = read_block(&self.file, start, &mut buffer[have..]);
        buffer.truncate(have + read.as_ref().copied().unwrap_or(0));
        read
    }

    /// Of the records in a block that are wanted, how many there are.
    pub(super) fn count(
        &self,
        block: u64,
        query: &Query,
        buffer: &mut Vec<u8>,
    ) -> io::Result<usize> {
        buffer.clear();
        self.read_on(block, buffer)?;
        let mut at = first_record(block);
        let mut count = 0;
        while let Step::Record(view) = step(buffer, at) {
            at += view.length();
            count += usize::from(query.wants(&view));
        }
        Ok(count)
    }

    /// The first block in which something received at `since` or later can be.
    pub(super) fn first_since(&self, since: u64) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.blocks()?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_time(middle, high)? {
                Some((block, time)) if time < since => low = block + 1,
                Some(_) | None => high = middle,
            }
        }
        // The block before begins earlier, and may end later.
        Ok(low.saturating_sub(1))
    }

    /// When the first record of a block was received; of the next that has one, if its own is
    /// damaged, and which that is.
    fn first_time(&self, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
        let mut buffer = vec![0; FILE_HEAD.len() + LONGEST];
        for block in from..to {
            let read = read_block(&self.file, block * BLOCK as u64, &mut buffer)?;
            if let Step::Record(view) = step(&buffer[..read], first_record(block)) {
                return Ok(Some((block, view.received_unix_ns())));
            }
        }
        Ok(None)
    }

    /// Whether its last record was received at `since` or later.
    pub(super) fn reaches(&self, since: u64) -> io::Result<bool> {
        let mut buffer = Vec::new();
        for block in (0..self.blocks()?).rev() {
            buffer.clear();
            self.read_on(block, &mut buffer)?;
            let mut at = first_record(block);
            let mut last = None;
            while let Step::Record(view) = step(&buffer, at) {
                at += view.length();
                last = Some(view.received_unix_ns());
            }
            if let Some(last) = last {
                return Ok(last >= since);
            }
        }
        // Empty, and what comes will be later.
        Ok(true)
    }
}
