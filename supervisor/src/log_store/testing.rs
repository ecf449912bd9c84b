//! Lines to be stored, and what is stored, for the tests beside this.

use std::path::Path;

use iii_actors::event::{LogLine, LogSource};
use iii_proto::ids::{BootId, GuestPid, WorkerName};

use super::files;
use super::read::{Found, Query, StoredLogs};
use super::record::Record;

pub(super) fn worker(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

pub(super) fn line(name: &str, text: &str) -> LogLine {
    LogLine {
        worker: worker(name),
        boot: BootId::from_random(1),
        pid: GuestPid(2),
        stream: LogSource::Stdout,
        time_unix_ns: 0,
        received_unix_ns: 1,
        text: text.into(),
        complete: true,
    }
}

/// All records below a directory of stored output, which have no fault.
pub(super) fn read_all(directory: &Path) -> Vec<Record> {
    query(directory, &Query::default())
}

pub(super) fn query(directory: &Path, query: &Query) -> Vec<Record> {
    let workers = files::workers(directory).unwrap();
    let mut reading = StoredLogs::at(directory).read(&workers, query).unwrap();
    let mut records = Vec::new();
    while let Some(found) = reading.next().unwrap() {
        match found {
            Found::Record(record) => records.push(record),
            Found::Foreign { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    records
}

pub(super) fn text(record: &Record) -> String {
    match record {
        Record::Line(line) => String::from_utf8_lossy(&line.text).into_owned(),
        Record::Lost { lines, .. } => format!("lost {lines}"),
    }
}

pub(super) fn texts(directory: &Path) -> Vec<String> {
    read_all(directory).iter().map(text).collect()
}
