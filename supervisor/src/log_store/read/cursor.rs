//! A place in one worker's files, from which its records are read in order, over the ends of files,
//! past damage, and on when more was written.

use std::io;
use std::path::{Path, PathBuf};

use iii_proto::ids::WorkerName;

use super::super::block::{BLOCK, Step, first_record, step};
use super::super::files;
use super::super::record::{Flaw, Record};
use super::file::{Head, LogFile};
use super::query::Query;

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A record.
    Record(Record),
    /// Older files were removed, to make room for new ones, before they were read.
    Outrun {
        /// Of this worker.
        worker: WorkerName,
    },
    /// Something between the records is none; at most 64 KiB were left out.
    Damaged {
        /// In which file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        flaw: Flaw,
    },
    /// A file of another version was left out.
    Foreign {
        /// Which.
        file: PathBuf,
    },
}

/// A place in one worker's files.
#[derive(Debug)]
pub(super) struct Cursor {
    worker: WorkerName,
    directory: PathBuf,
    query: Query,
    /// `None`: before the file behind number `number`.
    file: Option<LogFile>,
    number: u64,
    block: u64,
    at: usize,
    buffer: Vec<u8>,
    /// Wanted records that are still to be passed over.
    skip: usize,
    /// The damage here was told.
    told: bool,
}

impl Cursor {
    /// Before the first record that is wanted. Files that cannot be read now are met again by
    /// [`Self::next`].
    pub(super) fn new(directory: &Path, worker: WorkerName, query: Query) -> io::Result<Self> {
        let mut cursor = Self {
            directory: files::directory_of(directory, &worker),
            worker,
            query,
            file: None,
            number: 0,
            block: 0,
            at: 0,
            buffer: Vec::new(),
            skip: 0,
            told: false,
        };
        match cursor.query.last {
            Some(last) => cursor.seek_last(last)?,
            None => cursor.seek_since()?,
        }
        Ok(cursor)
    }

    pub(super) fn worker(&self) -> &WorkerName {
        &self.worker
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn seek_since(&mut self) -> io::Result<()> {
        let Some(since) = self.query.since_unix_ns else {
            return Ok(());
        };
        let numbers = files::numbers(&self.directory)?;
        for number in &numbers {
            let Some(file) = LogFile::open(&self.directory, *number)? else {
                continue;
            };
            // The newest is what grows.
            let reaches = numbers.last() == Some(number) || file.reaches(since)?;
            if reaches && file.head()? == Head::Ours {
                let block = file.first_since(since)?;
                return self.enter(file, block, 0);
            }
            self.number = *number;
        }
        Ok(())
    }

    fn seek_last(&mut self, last: usize) -> io::Result<()> {
        let mut left = last;
        let mut buffer = Vec::new();
        let mut oldest = None;
        let numbers = files::numbers(&self.directory)?;
        for number in numbers.iter().rev() {
            let Some(file) = LogFile::open(&self.directory, *number)? else {
                continue;
            };
            if file.head()? != Head::Ours {
                continue;
            }
            // The newest is what grows.
            let newest = numbers.last() == Some(number);
            let from = match self.query.since_unix_ns {
                Some(since) if newest || file.reaches(since)? => file.first_since(since)?,
                Some(_) => continue,
                None => 0,
            };
            for block in (from..file.blocks()?).rev() {
                let count = file.count(block, &self.query, &mut buffer)?;
                if count >= left {
                    return self.enter(file, block, count - left);
                }
                left -= count;
            }
            oldest = Some((file, from));
        }
        match oldest {
            Some((file, from)) => self.enter(file, from, 0),
            None => Ok(()),
        }
    }

    fn enter(&mut self, file: LogFile, block: u64, skip: usize) -> io::Result<()> {
        self.number = file.number;
        self.file = Some(file);
        self.skip = skip;
        self.go_to(block)
    }

    fn go_to(&mut self, block: u64) -> io::Result<()> {
        self.block = block;
        self.at = first_record(block);
        self.told = false;
        self.buffer.clear();
        self.read_on().map(drop)
    }

    /// Reads this block again from here on: whether something else is there than before. A writer
    /// that takes a file up writes over what an unclean end has torn.
    fn read_on(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let before = self.buffer.split_off(self.at.min(self.buffer.len()));
        file.read_on(self.block, &mut self.buffer)?;
        let now = self.buffer.get(self.at..).unwrap_or(&[]);
        Ok(now != before)
    }

    /// The next record that is wanted, or what is to be told; `None`: nothing for now.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let Some(file) = &self.file else {
                match self.next_file()? {
                    Some(Next::Entered) => continue,
                    Some(Next::Tell(found)) => return Ok(Some(found)),
                    None => return Ok(None),
                }
            };
            match step(&self.buffer, self.at) {
                Step::Record(view) => {
                    self.at += view.length();
                    if !self.query.wants(&view) {
                        continue;
                    }
                    if self.skip > 0 {
                        self.skip -= 1;
                        continue;
                    }
                    return Ok(Some(Found::Record(view.record(&self.worker))));
                }
                Step::Over => self.go_to(self.block + 1)?,
                Step::Unfinished => {
                    if self.read_on()? {
                        continue;
                    }
                    if !self.is_left()? {
                        return Ok(None);
                    }
                    // A new file is begun only when all is said in the one before.
                    if self.read_on()? {
                        continue;
                    }
                    let torn = self.at < self.buffer.len();
                    let found = torn.then(|| {
                        self.damage(Flaw::Short {
                            have: self.buffer.len() - self.at,
                            need: BLOCK - self.at,
                        })
                    });
                    self.file = None;
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Step::Damaged(flaw) => {
                    if !std::mem::replace(&mut self.told, true) {
                        return Ok(Some(self.damage(flaw)));
                    }
                    let ends_here = file.blocks()? <= self.block + 1;
                    if ends_here && self.read_on()? {
                        self.told = false;
                    } else if !ends_here {
                        self.go_to(self.block + 1)?;
                    } else if self.is_left()? {
                        self.file = None;
                    } else {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn damage(&self, flaw: Flaw) -> Found {
        Found::Damaged {
            file: files::file(&self.directory, self.number),
            offset: self.block * BLOCK as u64 + self.at as u64,
            flaw,
        }
    }

    /// The file behind the current one.
    fn following(&self) -> io::Result<Option<u64>> {
        let numbers = files::numbers(&self.directory)?;
        Ok(numbers.into_iter().find(|number| *number > self.number))
    }

    /// Whether the writer has left this file for another.
    fn is_left(&self) -> io::Result<bool> {
        Ok(self.following()?.is_some())
    }

    fn next_file(&mut self) -> io::Result<Option<Next>> {
        let Some(number) = self.following()? else {
            return Ok(None);
        };
        let Some(file) = LogFile::open(&self.directory, number)? else {
            // Removed between the two looks; there are newer ones.
            return Ok(Some(Next::Entered));
        };
        match file.head()? {
            Head::Ours => {}
            Head::Unfinished if self.is_last(number)? => return Ok(None),
            Head::Unfinished | Head::Foreign => {
                self.number = number;
                let file = files::file(&self.directory, number);
                return Ok(Some(Next::Tell(Found::Foreign { file })));
            }
        }
        let outrun = self.number > 0 && number > self.number.saturating_add(1);
        self.enter(file, 0, 0)?;
        Ok(Some(if outrun {
            let worker = self.worker.clone();
            Next::Tell(Found::Outrun { worker })
        } else {
            Next::Entered
        }))
    }

    fn is_last(&self, number: u64) -> io::Result<bool> {
        Ok(files::numbers(&self.directory)?.last() == Some(&number))
    }
}

enum Next {
    /// There is something to be read.
    Entered,
    /// There is something to be told first.
    Tell(Found),
}
