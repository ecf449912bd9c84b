//! One worker's files, as they are written: appended to, rotated, and after an unclean end taken up
//! where their last whole record ends.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iii_actors::event::LogLine;
use iii_actors::spec::LogSpec;

use super::super::block::{BLOCK, FILE_HEAD, Step, first_record, pad, read_block, step};
use super::super::files;
use super::super::record::{HEAD, encode_line, encode_lost, length_of};

/// A host clock that was set back by more than this begins a new file; by less, it stands still
/// until it has caught up. Within a file times never go back, which is how they are found.
const STEP_BACK: u64 = Duration::from_secs(10).as_nanos() as u64;

/// What is appended.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Line(Arc<LogLine>),
    Lost { lines: u64, received_unix_ns: u64 },
}

impl Entry {
    fn received_unix_ns(&self) -> u64 {
        match self {
            Self::Line(line) => line.received_unix_ns,
            Self::Lost {
                received_unix_ns, ..
            } => *received_unix_ns,
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Line(line) => length_of(line),
            Self::Lost { .. } => HEAD,
        }
    }

    fn encode(&self, received_unix_ns: u64, out: &mut Vec<u8>) {
        match self {
            Self::Line(line) => encode_line(line, received_unix_ns, out),
            Self::Lost { lines, .. } => encode_lost(*lines, received_unix_ns, out),
        }
    }
}

/// One worker's files.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    limits: LogSpec,
    open: Option<Open>,
}

/// The file that is appended to.
#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
    /// Up to here it is good. What is behind is the rest of a write that failed.
    length: u64,
    /// Of its last record.
    last_unix_ns: u64,
}

impl Shelf {
    pub(super) fn new(directory: PathBuf, limits: LogSpec) -> Self {
        Self {
            directory,
            limits,
            open: None,
        }
    }

    pub(super) fn set_limits(&mut self, limits: LogSpec) {
        self.limits = limits;
    }

    /// Gives the descriptor back until the next write.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Appends these entries, with one write per file. On an error, how many of them are written.
    pub(super) fn append(
        &mut self,
        entries: &[Entry],
        buffer: &mut Vec<u8>,
    ) -> Result<(), (usize, io::Error)> {
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let written = entries.len() - rest.len();
            let max_size = self.limits.max_size;
            let open = self
                .file_for(first.received_unix_ns(), first.length())
                .map_err(|error| (written, error))?;
            buffer.clear();
            if open.length == 0 {
                buffer.extend_from_slice(&FILE_HEAD);
            }
            let mut last = open.last_unix_ns;
            while let Some(entry) = rest.first() {
                let end = open.length + buffer.len() as u64;
                let full = end > FILE_HEAD.len() as u64 && after(end, entry.length()) > max_size;
                if full || is_step_back(entry.received_unix_ns(), last) {
                    break;
                }
                last = last.max(entry.received_unix_ns());
                pad(end, entry.length(), buffer);
                entry.encode(last, buffer);
                rest = &rest[1..];
            }
            open.write(buffer, last).map_err(|error| (written, error))?;
        }
        Ok(())
    }

    /// The file to which a record of this length, received then, is appended.
    fn file_for(&mut self, received: u64, length: usize) -> io::Result<&mut Open> {
        let open = match self.open.take() {
            Some(open) if open.is_in_place()? => Some(open),
            Some(_) | None => Open::take_up(&self.directory)?,
        };
        let open = match open {
            Some(open) if !open.is_over(received, length, self.limits.max_size) => open,
            Some(over) => self.rotate(over.number)?,
            None => self.rotate(
                files::numbers(&self.directory)?
                    .last()
                    .copied()
                    .unwrap_or(0),
            )?,
        };
        Ok(self.open.insert(open))
    }

    /// A new file behind number `last`. The oldest go first: they may be what keeps a disk full.
    fn rotate(&self, last: u64) -> io::Result<Open> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let numbers = files::numbers(&self.directory)?;
        let keep = usize::try_from(self.limits.max_files.saturating_sub(1)).unwrap_or(usize::MAX);
        for number in &numbers[..numbers.len().saturating_sub(keep)] {
            std::fs::remove_file(files::file(&self.directory, *number))?;
        }
        let number = last.saturating_add(1);
        Ok(Open {
            file: OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(files::file(&self.directory, number))?,
            number,
            length: 0,
            last_unix_ns: 0,
        })
    }
}

fn is_step_back(received: u64, last: u64) -> bool {
    received.saturating_add(STEP_BACK) < last
}

/// Where a file ends behind a record that is appended at `end`.
fn after(end: u64, length: usize) -> u64 {
    let at = end % BLOCK as u64;
    let padding = if at + length as u64 > BLOCK as u64 {
        BLOCK as u64 - at
    } else {
        0
    };
    end + padding + length as u64
}

impl Open {
    /// The newest file of a directory, if it can be gone on with. What is behind its last whole
    /// record was torn by an unclean end, and was never told to be stored.
    fn take_up(directory: &Path) -> io::Result<Option<Self>> {
        let Some(number) = files::numbers(directory)?.last().copied() else {
            return Ok(None);
        };
        let path = files::file(directory, number);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let there = file.metadata()?.len();
        let mut head = [0; FILE_HEAD.len()];
        let begun = file.read_at(&mut head, 0)?;
        if begun < FILE_HEAD.len() {
            // Its first write was torn.
            file.set_len(0)?;
            return Ok(Some(Self {
                file,
                number,
                length: 0,
                last_unix_ns: 0,
            }));
        }
        if head != FILE_HEAD {
            // Of another version: it is left as it is.
            return Ok(None);
        }
        let (length, last_unix_ns) = good_length(&file, there)?;
        if length < there {
            tracing::info!(
                ?directory,
                number,
                length,
                there,
                "the end of a log was torn"
            );
            file.set_len(length)?;
        }
        Ok(Some(Self {
            file,
            number,
            length,
            last_unix_ns,
        }))
    }

    /// Nobody has removed it or cut it short under our hands.
    fn is_in_place(&self) -> io::Result<bool> {
        let now = self.file.metadata()?;
        Ok(now.nlink() > 0 && now.len() >= self.length)
    }

    /// A record of this length, received then, belongs into the next file.
    fn is_over(&self, received: u64, length: usize, max_size: u64) -> bool {
        let full = self.length > 0 && after(self.length, length) > max_size;
        full || is_step_back(received, self.last_unix_ns)
    }

    fn write(&mut self, bytes: &[u8], last_unix_ns: u64) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(bytes, self.length) {
            // Readers see no torn record; and it may be the last room of a full disk.
            if let Err(error) = self.file.set_len(self.length) {
                tracing::warn!(%error, "failed to take back a write that failed");
            }
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.last_unix_ns = last_unix_ns;
        Ok(())
    }
}

/// How far a file is good, and the time of its last record.
fn good_length(file: &File, there: u64) -> io::Result<(u64, u64)> {
    let mut index = there.saturating_sub(1) / BLOCK as u64;
    let mut block = vec![0; BLOCK];
    loop {
        let start = index * BLOCK as u64;
        let read = read_block(file, start, &mut block)?;
        let mut at = first_record(index);
        let mut last = None;
        while let Step::Record(view) = step(&block[..read], at) {
            at += view.length();
            last = Some(view.received_unix_ns());
        }
        // A block without a record is what a torn write has left.
        if index == 0 || last.is_some() {
            return Ok((start + at as u64, last.unwrap_or(0)));
        }
        index -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::record::Record;
    use super::super::super::testing::{line, read_all, texts, worker};
    use super::*;
    use proptest::prelude::*;

    fn limits(max_size: u64, max_files: u32) -> LogSpec {
        LogSpec {
            max_size,
            max_files,
        }
    }

    fn shelf(directory: &Path, limits: LogSpec) -> Shelf {
        Shelf::new(directory.join("w"), limits)
    }

    fn at(text: &str, received: u64) -> Entry {
        let mut line = line("w", text);
        line.received_unix_ns = received;
        Entry::Line(Arc::new(line))
    }

    fn put(shelf: &mut Shelf, entries: &[Entry]) {
        shelf.append(entries, &mut Vec::new()).unwrap();
    }

    fn sizes(directory: &Path) -> Vec<u64> {
        let directory = directory.join("w");
        let numbers = files::numbers(&directory).unwrap();
        let size = |n: &u64| {
            std::fs::metadata(files::file(&directory, *n))
                .unwrap()
                .len()
        };
        numbers.iter().map(size).collect()
    }

    #[test]
    fn the_oldest_file_goes_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), limits(BLOCK as u64, 3));
        let texts: Vec<String> = (0..300).map(|n| format!("{n:>1000}")).collect();
        let entries: Vec<Entry> = texts.iter().map(|t| at(t, 1)).collect();
        // As one batch and one by one.
        put(&mut shelf, &entries[..200]);
        for entry in &entries[200..] {
            put(&mut shelf, std::slice::from_ref(entry));
        }
        let sizes = sizes(dir.path());
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= BLOCK as u64), "{sizes:?}");
        let seen = super::super::super::testing::texts(dir.path());
        assert!(seen.len() > 2 * 60 && seen[..] == texts[texts.len() - seen.len()..]);
    }

    #[test]
    fn a_successor_goes_on_behind_the_last_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        for cut in [1, 36, 37, 40] {
            let mut first = shelf(dir.path(), limits(1 << 20, 3));
            put(&mut first, &[at("one", 5), at("two", 6)]);
            let path = files::file(&dir.path().join("w"), 1);
            let length = std::fs::metadata(&path).unwrap().len();
            let torn = OpenOptions::new().write(true).open(&path).unwrap();
            torn.set_len(length - cut).unwrap();
            // Within ten seconds the clock stands still rather than going back.
            put(
                &mut shelf(dir.path(), limits(1 << 20, 3)),
                &[at("three", 4)],
            );
            let expected: &[&str] = match cut {
                40.. => &["three"],
                _ => &["one", "three"],
            };
            assert_eq!(texts(dir.path()), expected, "{cut}");
            assert_eq!(sizes(dir.path()).len(), 1);
            std::fs::remove_dir_all(dir.path().join("w")).unwrap();
        }
    }

    #[test]
    fn what_is_left_of_a_first_write_is_begun_anew_and_other_versions_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("w");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(files::file(&own, 1), &FILE_HEAD[..7]).unwrap();
        put(&mut shelf(dir.path(), limits(1 << 20, 3)), &[at("one", 1)]);
        assert_eq!(texts(dir.path()), ["one"]);
        std::fs::write(
            files::file(&own, 1),
            b"iii-logs\x02\0\0\0\0\0\x01\0 and more",
        )
        .unwrap();
        put(&mut shelf(dir.path(), limits(1 << 20, 3)), &[at("two", 1)]);
        assert_eq!(texts(dir.path()), ["two"]);
        assert_eq!(sizes(dir.path()).len(), 2);
    }

    #[test]
    fn a_clock_that_is_set_back_far_begins_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), limits(1 << 20, 9));
        let hour = Duration::from_secs(3600).as_nanos() as u64;
        put(
            &mut shelf,
            &[at("1", hour), at("2", hour - 1), at("3", 7), at("4", 8)],
        );
        put(&mut shelf, &[at("5", hour), at("6", 9)]);
        assert_eq!(texts(dir.path()), ["1", "2", "3", "4", "5", "6"]);
        assert_eq!(sizes(dir.path()).len(), 3);
        let times: Vec<u64> = read_all(dir.path())
            .iter()
            .map(Record::received_unix_ns)
            .collect();
        assert_eq!(times, [hour, hour, 7, 8, hour, 9]);
    }

    #[test]
    fn a_file_that_is_removed_or_cut_short_meanwhile_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), limits(1 << 20, 3));
        put(&mut shelf, &[at("one", 1)]);
        std::fs::remove_dir_all(dir.path().join("w")).unwrap();
        put(&mut shelf, &[at("two", 1)]);
        assert_eq!(texts(dir.path()), ["two"]);
        let path = files::file(&dir.path().join("w"), 1);
        std::fs::write(path, "").unwrap();
        put(&mut shelf, &[at("three", 1)]);
        assert_eq!(texts(dir.path()), ["three"]);
    }

    #[test]
    fn lost_lines_are_a_record_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), limits(1 << 20, 3));
        let lost = Entry::Lost {
            lines: 9,
            received_unix_ns: 2,
        };
        put(&mut shelf, &[at("one", 1), lost]);
        let last = read_all(dir.path()).pop().unwrap();
        let expected = Record::Lost {
            worker: worker("w"),
            received_unix_ns: 2,
            lines: 9,
        };
        assert_eq!(last, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_batches_and_the_restarts_the_newest_lines_are_there_in_order(
            batches in prop::collection::vec(
                (prop::collection::vec(0usize..=16 * 1024, 1..12), any::<bool>()),
                1..12,
            ),
            max_size in BLOCK as u64..4 * BLOCK as u64,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let limits = limits(max_size, 3);
            let mut shelf = shelf(dir.path(), limits);
            let mut put_texts = Vec::new();
            for (lengths, restart) in batches {
                let entries: Vec<Entry> = lengths
                    .iter()
                    .map(|length| {
                        let text = format!("{:>1$}", put_texts.len(), length);
                        put_texts.push(text.clone());
                        at(&text, 1)
                    })
                    .collect();
                shelf.append(&entries, &mut Vec::new()).unwrap();
                if restart {
                    shelf = self::shelf(dir.path(), limits);
                }
            }
            let seen = texts(dir.path());
            prop_assert!(seen[..] == put_texts[put_texts.len() - seen.len()..]);
            let sizes = sizes(dir.path());
            prop_assert!(sizes.len() <= 3);
            prop_assert!(sizes.iter().all(|size| *size <= max_size));
            // Rotation takes no more than it must: what is kept fills all files but one.
            prop_assert!(seen.len() == put_texts.len() || sizes.len() == 3);
        }
    }
}
