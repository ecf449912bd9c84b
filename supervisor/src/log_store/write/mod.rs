//! The writer: one thread for all workers. It takes what waits of one worker after the other, writes
//! that at once, and only then lets the guest forget it. It holds nothing back: while it writes the
//! next batch grows, so batches are as large as the disk is slow, and idle means written.

mod shelf;
mod trouble;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use iii_actors::event::{EventBus, EventKind, LogLine, unix_ns};
use iii_actors::logs::{Batch, LogBus, LogStoreFeed};
use iii_actors::spec::LogSpec;
use iii_proto::ids::WorkerName;
use nix::errno::Errno;

use self::shelf::{Entry, Shelf};
use self::trouble::Trouble;
use super::files;

/// Keeps the workers' output in files.
#[derive(Debug)]
pub(crate) struct LogStore {
    logs: LogBus,
    limits: Arc<Mutex<BTreeMap<WorkerName, LogSpec>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LogStore {
    /// Begins to store below `directory` what is put on the bus.
    pub(crate) fn start(directory: PathBuf, logs: &LogBus, events: EventBus) -> io::Result<Self> {
        let limits = Arc::new(Mutex::new(BTreeMap::new()));
        let feed = logs
            .feed_store()
            .ok_or_else(|| io::Error::other("the output is stored already"))?;
        let mut writer = Writer {
            directory,
            limits: Arc::clone(&limits),
            shelves: BTreeMap::new(),
            trouble: Trouble::default(),
            events,
            buffer: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("iii-logs".into())
            .spawn(move || writer.run(&feed))?;
        Ok(Self {
            logs: logs.clone(),
            limits,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// How much of a worker's output is kept from now on.
    pub(crate) fn declare(&self, worker: &WorkerName, limits: LogSpec) {
        self.limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(worker.clone(), limits);
    }

    /// Writes what was put until now and ends.
    pub(crate) fn close(&self) {
        self.logs.end_store();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that stores the output panicked");
        }
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    directory: PathBuf,
    limits: Arc<Mutex<BTreeMap<WorkerName, LogSpec>>>,
    shelves: BTreeMap<WorkerName, Shelf>,
    trouble: Trouble,
    events: EventBus,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(&mut self, feed: &LogStoreFeed) {
        loop {
            let retry_at = self.trouble.waiting().map(|(_, at)| at).min();
            let wait = retry_at.map(|at| at.saturating_sub(self.events.now()));
            match feed.next_batch(wait) {
                Batch::Lines(lines) => {
                    let Some(worker) = lines.first().map(|line| line.worker.clone()) else {
                        continue;
                    };
                    self.store(&worker, &lines);
                    feed.stored(&worker, lines.len());
                }
                Batch::Nothing => {}
                Batch::End => break,
            }
            self.retry();
        }
        self.last_words();
    }

    fn store(&mut self, worker: &WorkerName, lines: &[Arc<LogLine>]) {
        if self.trouble.may_try(worker, self.events.now()) {
            self.write(worker, lines);
        } else {
            self.trouble.lose(worker, lines.len() as u64);
        }
    }

    /// Tells those whose lines were lost that they were, once that can be written.
    fn retry(&mut self) {
        let now = self.events.now();
        let due: Vec<WorkerName> = self
            .trouble
            .waiting()
            .filter(|(_, at)| *at <= now)
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in due {
            self.write(&worker, &[]);
        }
    }

    fn write(&mut self, worker: &WorkerName, lines: &[Arc<LogLine>]) {
        let lost = self.trouble.lost_of(worker);
        let mut entries = Vec::with_capacity(lines.len() + 1);
        if lost > 0 {
            entries.push(Entry::Lost {
                lines: lost,
                received_unix_ns: unix_ns(),
            });
        }
        entries.extend(lines.iter().cloned().map(Entry::Line));
        match self.append(worker, &entries) {
            Ok(()) => {
                if let Some(all) = self.trouble.wrote(worker) {
                    self.warn(over(&all));
                }
            }
            Err((written, error)) => {
                let head = entries.len() - lines.len();
                if written >= head {
                    self.trouble.wrote_in_part(worker);
                }
                let failed = lines.len() - written.saturating_sub(head);
                let now = self.events.now();
                if self.trouble.failed(worker, failed as u64, now) {
                    let path = files::directory_of(&self.directory, worker);
                    self.warn(format!(
                        "failed to write logs to {}: {error}; lines are counted and lost until \
                         that works again",
                        path.display()
                    ));
                }
            }
        }
    }

    fn append(&mut self, worker: &WorkerName, entries: &[Entry]) -> Result<(), (usize, io::Error)> {
        let limits = self
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(worker)
            .copied()
            .unwrap_or_default();
        let directory = files::directory_of(&self.directory, worker);
        let shelf = self
            .shelves
            .entry(worker.clone())
            .or_insert_with(|| Shelf::new(directory, limits));
        shelf.set_limits(limits);
        let result = shelf.append(entries, &mut self.buffer);
        match result {
            Err((written, error)) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
                // Descriptors of those that do not write just now are not worth a line.
                self.shelves.values_mut().for_each(Shelf::close);
                let Some(shelf) = self.shelves.get_mut(worker) else {
                    return Err((written, error));
                };
                shelf
                    .append(&entries[written..], &mut self.buffer)
                    .map_err(|(more, error)| (written + more, error))
            }
            result => result,
        }
    }

    fn last_words(&mut self) {
        let lost: Vec<WorkerName> = self.trouble.waiting().map(|(w, _)| w.clone()).collect();
        for worker in lost {
            self.write(&worker, &[]);
        }
        for (worker, _) in self.trouble.waiting() {
            let lines = self.trouble.lost_of(worker);
            tracing::warn!(%worker, lines, "lines were lost: they could not be written");
        }
    }

    fn warn(&self, message: String) {
        self.events.emit(None, None, EventKind::Warning { message });
    }
}

/// `logs are written again; lost meanwhile: 17 lines of a, 1 of b`.
fn over(lost: &BTreeMap<WorkerName, u64>) -> String {
    let mut message = String::from("logs are written again; lost meanwhile: ");
    for (n, (worker, lines)) in lost.iter().filter(|(_, lines)| **lines > 0).enumerate() {
        let (comma, what) = match (n, lines) {
            (0, 1) => ("", " line"),
            (0, _) => ("", " lines"),
            _ => (", ", ""),
        };
        // Writing into a text cannot fail.
        write!(message, "{comma}{lines}{what} of {worker}").unwrap_or(());
    }
    message
}
