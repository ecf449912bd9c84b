//! How lines look: columns, and a colour of its own for each worker.

use std::collections::BTreeMap;

use iii_proto::ids::WorkerName;

use super::escape::Colours;

/// Whose line it is when it is nobody's: the supervisor's.
const OURSELVES: &str = "iii";

/// Widest column for names; longer ones push their own lines to the right.
const MAX_WIDTH: usize = 24;

/// Foreground colours that are told apart on dark and light ground. Red is for failures.
const PALETTE: [u8; 10] = [36, 33, 32, 35, 34, 96, 93, 92, 95, 94];

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Of interest to those who look for it.
    Dim,
    Good,
    Warn,
    Bad,
}

impl Tone {
    fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// What stands between name and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// The workload wrote it.
    Output,
    /// It was on the guest's console.
    Console,
    /// iii-super says it.
    Event,
}

#[derive(Clone, Debug)]
struct Look {
    colour: u8,
    probed: bool,
}

/// The layout of all lines.
#[derive(Clone, Debug)]
pub struct Screen {
    colour: bool,
    verbose: bool,
    width: usize,
    workers: BTreeMap<WorkerName, Look>,
}

impl Screen {
    /// A layout for these workers, each with whether it has a probe: all of the file's, so that a
    /// worker has the same colour whichever of them run.
    pub fn new<'a>(
        workers: impl IntoIterator<Item = (&'a WorkerName, bool)>,
        colour: bool,
        verbose: bool,
    ) -> Self {
        let workers: BTreeMap<WorkerName, Look> = workers
            .into_iter()
            .enumerate()
            .map(|(n, (name, probed))| {
                let colour = PALETTE[n % PALETTE.len()];
                (name.clone(), Look { colour, probed })
            })
            .collect();
        let longest = workers.keys().map(|name| name.as_str().len()).max();
        let width = longest.unwrap_or(0).clamp(OURSELVES.len(), MAX_WIDTH);
        Self {
            colour,
            verbose,
            width,
            workers,
        }
    }

    /// Whether all that happens is shown, or only what a user asks about.
    pub(super) fn verbose(&self) -> bool {
        self.verbose
    }

    /// Whether the worker has a probe, so that being ready is more than being started.
    pub(super) fn probed(&self, worker: Option<&WorkerName>) -> bool {
        worker
            .and_then(|name| self.workers.get(name))
            .is_some_and(|look| look.probed)
    }

    /// What becomes of a workload's own colours.
    pub(super) fn colours(&self) -> Colours {
        if self.colour {
            Colours::Keep
        } else {
            Colours::Drop
        }
    }

    /// `text` in the tone's colour.
    pub(super) fn toned(&self, tone: Tone, text: &str) -> String {
        if !self.colour || tone == Tone::Plain {
            return text.to_owned();
        }
        format!("{}{text}\x1b[0m", tone.sgr())
    }

    /// `12:04:31 web    | `.
    pub(super) fn prefix(&self, worker: Option<&WorkerName>, mark: Mark, stamp: &str) -> String {
        let name = worker.map_or(OURSELVES, WorkerName::as_str);
        let width = self.width;
        let mark = match mark {
            Mark::Output => '|',
            Mark::Console => '#',
            Mark::Event => '*',
        };
        if !self.colour {
            return format!("{stamp} {name:width$} {mark} ");
        }
        let colour = worker
            .and_then(|name| self.workers.get(name))
            .map_or(0, |look| look.colour);
        format!("\x1b[2m{stamp}\x1b[0m \x1b[{colour}m{name:width$} {mark}\x1b[0m ")
    }
}
