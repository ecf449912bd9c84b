//! `iii-super logs`: what workers wrote, from the files in which it is kept.

use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::time::Duration;

use iii_actors::event::{LogSource, unix_ns};
use iii_firmware::home::IiiHome;
use iii_proto::ids::WorkerName;

use super::arguments::{Colour, LogsArguments};
use super::project;
use super::say::say;
use super::since::PointInTime;
use super::{FAILED, OK, REFUSED};
use crate::log_store::{Following, Found, Query, ReadLogsError, Reading, Record, StoredLogs, Wake};
use crate::output::screen::Screen;
use crate::output::{human, json, stamp};
use crate::workers_file::{WorkersFile, did_you_mean};

/// Text that is written with one call while more is there.
const BATCH: usize = 64 * 1024;

/// Why nothing more is shown.
enum Stop {
    /// Nobody reads.
    ReaderGone,
    Output(io::Error),
    Logs(ReadLogsError),
}

impl From<ReadLogsError> for Stop {
    fn from(error: ReadLogsError) -> Self {
        Self::Logs(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Output(error),
        }
    }
}

pub(super) fn run(args: &LogsArguments, colour: &Colour) -> u8 {
    let state = match IiiHome::from_env().map(|home| project::kept_state_dir(&home, &args.file)) {
        Ok(Ok(directory)) => directory,
        Ok(Err(error)) => {
            say(&error);
            return REFUSED;
        }
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let stored = StoredLogs::of_state_dir(&state);
    let there = match stored.workers() {
        Ok(there) => there,
        Err(error) => {
            say(&error);
            return FAILED;
        }
    };
    let known = known(args, &there);
    let Some(names) = select(args, &known) else {
        return REFUSED;
    };
    if there.is_empty() && !args.follow {
        say(
            "no output is kept of this project: none of its workers has run yet, or written anything",
        );
        return OK;
    }
    let format = if args.json {
        Format::Json
    } else {
        let stamp = if args.timestamps {
            stamp::date_and_time
        } else {
            stamp::time_of_day
        };
        let looks = known.iter().map(|name| (name, false));
        Format::Human(Screen::new(looks, colour.of_stdout(), false), stamp)
    };
    let query = query(args);
    let mut out = Printer {
        format,
        out: io::stdout().lock(),
        text: String::new(),
    };
    let shown = if args.follow {
        stored
            .follow(&names, &query)
            .map_err(Stop::from)
            .and_then(|following| follow(following, query.until_unix_ns, &mut out))
    } else {
        let names = if names.is_empty() { there } else { names };
        stored
            .read(&names, &query)
            .map_err(Stop::from)
            .and_then(|reading| show(reading, &mut out))
    };
    match shown {
        Ok(()) | Err(Stop::ReaderGone) => OK,
        Err(Stop::Output(error)) => {
            say(format_args!("failed to write to stdout: {error}"));
            FAILED
        }
        Err(Stop::Logs(error)) => {
            say(&error);
            FAILED
        }
    }
}

/// The workers of the file, in its order, and those of which something is kept. A file that has
/// faults just now is no reason not to show what was written.
fn known(args: &LogsArguments, there: &[WorkerName]) -> Vec<WorkerName> {
    let mut known: Vec<WorkerName> = match WorkersFile::load(&args.file) {
        Ok(file) => file.workers.into_iter().map(|worker| worker.name).collect(),
        Err(error) => {
            tracing::debug!(%error, "the workers file cannot be read");
            Vec::new()
        }
    };
    for name in there {
        if !known.contains(name) {
            known.push(name.clone());
        }
    }
    known
}

/// The workers that were named; `None` if one is unknown, which was said.
fn select(args: &LogsArguments, known: &[WorkerName]) -> Option<Vec<WorkerName>> {
    let mut names = Vec::new();
    let mut sound = true;
    for name in &args.names {
        match known.iter().find(|known| known.as_str() == name) {
            Some(found) => names.push(found.clone()),
            None => {
                sound = false;
                let known = || known.iter().map(WorkerName::as_str);
                let hint = match did_you_mean(name, known()) {
                    Some(meant) => format!(", did you mean {meant:?}?"),
                    None => format!(
                        "\n    there are: {}",
                        known().collect::<Vec<_>>().join(", ")
                    ),
                };
                say(format_args!(
                    "failed to select worker {name:?}: {} has none of that name, and no output of \
                     one is kept{hint}",
                    args.file.display()
                ));
            }
        }
    }
    sound.then_some(names)
}

fn query(args: &LogsArguments) -> Query {
    let ns = |time: PointInTime| time.unix_ms().saturating_mul(1_000_000);
    Query {
        since_unix_ns: args.since.map(ns),
        until_unix_ns: args.until.map(ns),
        sources: args.stream.iter().copied().map(LogSource::from).collect(),
        boot: args.boot.clone(),
        last: args.last,
    }
}

fn show(mut reading: Reading, out: &mut Printer) -> Result<(), Stop> {
    while let Some(found) = reading.next()? {
        out.print(found)?;
    }
    out.flush()
}

fn follow(mut following: Following, until: Option<u64>, out: &mut Printer) -> Result<(), Stop> {
    loop {
        while let Some(found) = following.next()? {
            out.print(found)?;
        }
        out.flush()?;
        let left = until.map(|until| until.saturating_sub(unix_ns()));
        if left == Some(0) {
            return Ok(());
        }
        let left = left.map(Duration::from_nanos);
        match following.wait(Some(io::stdout().as_fd()), left)? {
            Wake::ReaderGone => return Ok(()),
            // The time is looked at again.
            Wake::Written | Wake::Timeout => {}
        }
    }
}

enum Format {
    Human(Screen, fn(u64) -> String),
    Json,
}

struct Printer {
    format: Format,
    out: io::StdoutLock<'static>,
    text: String,
}

impl Printer {
    fn print(&mut self, found: Found) -> Result<(), Stop> {
        match found {
            Found::Record(record) => {
                self.text += &match (&self.format, &record) {
                    (Format::Human(screen, stamp), Record::Line(line)) => {
                        human::log(line, screen, &stamp(line.received_unix_ns))
                    }
                    (
                        Format::Human(screen, stamp),
                        Record::Lost {
                            worker,
                            received_unix_ns,
                            lines,
                        },
                    ) => human::lost(worker, *lines, screen, &stamp(*received_unix_ns)),
                    (Format::Json, Record::Line(line)) => {
                        json::log(line).map_err(io::Error::from)?
                    }
                    (
                        Format::Json,
                        Record::Lost {
                            worker,
                            received_unix_ns,
                            lines,
                        },
                    ) => json::lost(worker, *lines, *received_unix_ns).map_err(io::Error::from)?,
                };
                self.text.push('\n');
                if self.text.len() >= BATCH {
                    self.flush()?;
                }
            }
            Found::Outrun { worker } => say(format_args!(
                "some of what {worker} wrote is not shown: it was removed to make room before it \
                 could be read (`logs` in the workers file says how much is kept)"
            )),
            Found::Damaged { file, offset, flaw } => say(format_args!(
                "{} is damaged at byte {offset} ({flaw}): some lines are not shown",
                file.display()
            )),
            Found::Foreign { file } => say(format_args!(
                "{} was written by another version of iii-super and is not shown",
                file.display()
            )),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.out.write_all(self.text.as_bytes())?;
        self.out.flush()?;
        self.text.clear();
        Ok(())
    }
}
