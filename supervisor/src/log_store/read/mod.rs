//! Reading what is stored, whether or not a supervisor runs: [`StoredLogs`]. Nothing is locked and
//! nothing is changed; a writer beside it is only ever further.

mod cursor;
mod file;
mod merge;
mod query;
mod watch;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iii_proto::ids::WorkerName;

pub use self::cursor::Found;
pub use self::query::Query;
pub use self::watch::Wake;

use self::cursor::Cursor;
use self::merge::Merge;
use self::watch::Watch;
use super::files;

/// Output that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read logs in {path}: {source}")]
pub struct ReadLogsError {
    path: PathBuf,
    source: io::Error,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ReadLogsError {
    let path = path.to_owned();
    move |source| ReadLogsError { path, source }
}

/// The output that a supervisor has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLogs {
    directory: PathBuf,
}

impl StoredLogs {
    /// What the supervisors with this state directory have stored, running or not.
    pub fn of_state_dir(state_dir: &Path) -> Self {
        Self {
            directory: super::directory_in(state_dir),
        }
    }

    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Workers of which something is stored, by name.
    pub fn workers(&self) -> Result<Vec<WorkerName>, ReadLogsError> {
        files::workers(&self.directory).map_err(failed(&self.directory))
    }

    /// Reads what is there of these workers.
    pub fn read(&self, workers: &[WorkerName], query: &Query) -> Result<Reading, ReadLogsError> {
        let mut reading = Reading {
            directory: self.directory.clone(),
            query: query.clone(),
            merge: Merge::default(),
        };
        for worker in workers {
            reading.add(worker, query.clone())?;
        }
        Ok(reading)
    }

    /// Reads what is there, and what is to come: of these workers, or of all if none is named,
    /// those included of which nothing is stored yet.
    pub fn follow(
        &self,
        workers: &[WorkerName],
        query: &Query,
    ) -> Result<Following, ReadLogsError> {
        let mut following = Following {
            reading: self.read(&[], query)?,
            names: workers.to_vec(),
            watch: Watch::new().map_err(failed(&self.directory))?,
        };
        following.look(query)?;
        Ok(following)
    }
}

/// Records of several workers, in the order in which they were received.
#[derive(Debug)]
pub struct Reading {
    directory: PathBuf,
    query: Query,
    merge: Merge,
}

impl Reading {
    fn add(&mut self, worker: &WorkerName, query: Query) -> Result<(), ReadLogsError> {
        let cursor = Cursor::new(&self.directory, worker.clone(), query);
        let directory = files::directory_of(&self.directory, worker);
        self.merge.add(cursor.map_err(failed(&directory))?);
        Ok(())
    }

    /// The next record that is wanted, or what is to be told about the files; `None`: that was all
    /// for now.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that goes on after its end is none"
    )]
    pub fn next(&mut self) -> Result<Option<Found>, ReadLogsError> {
        self.merge
            .next()
            .map_err(|(index, source)| failed(self.merge.cursor(index).directory())(source))
    }
}

/// As [`Reading`], and then what is written from then on.
#[derive(Debug)]
pub struct Following {
    reading: Reading,
    names: Vec<WorkerName>,
    watch: Watch,
}

impl Following {
    /// The next record that is wanted, or what is to be told about the files; `None`: nothing for
    /// now, [`Self::wait`] says when to ask again.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that goes on after its end is none"
    )]
    pub fn next(&mut self) -> Result<Option<Found>, ReadLogsError> {
        self.reading.next()
    }

    /// Blocks until more may be there, whoever reads what is written to `out` has gone, or the time
    /// is over.
    pub fn wait(
        &mut self,
        out: Option<BorrowedFd<'_>>,
        time: Option<Duration>,
    ) -> Result<Wake, ReadLogsError> {
        let wake = self.watch.wait(out, time);
        let wake = wake.map_err(failed(&self.reading.directory))?;
        // Of those that are new here nothing was seen, so nothing of them is passed over.
        let query = Query {
            last: None,
            ..self.reading.query.clone()
        };
        self.look(&query)?;
        Ok(wake)
    }

    /// Watches what is there by now. Watched first and then read, so that nothing is missed.
    fn look(&mut self, query: &Query) -> Result<(), ReadLogsError> {
        let directory = self.reading.directory.clone();
        self.watch
            .entries_of(&directory)
            .map_err(failed(&directory))?;
        let there = files::workers(&directory).map_err(failed(&directory))?;
        for worker in there {
            let wanted = self.names.is_empty() || self.names.contains(&worker);
            if !wanted || self.reading.merge.has(&worker) {
                continue;
            }
            let own = files::directory_of(&directory, &worker);
            if self.watch.files_of(&own).map_err(failed(&own))? {
                self.reading.add(&worker, query.clone())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
