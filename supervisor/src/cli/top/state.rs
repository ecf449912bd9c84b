//! What `iii-super top` shows, and what becomes of it: pure, so that each key and each answer can be
//! tried without a terminal and without a supervisor.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use iii_actors::event::LogSource;
use iii_proto::ids::WorkerName;

use crate::cli::usage::{Measured, by_name, compare};
use crate::control::protocol::{Greeting, WorkerUsage};
use crate::usage::Usage;

/// Lines of a worker that are kept for scrolling back; `iii-super logs` has all.
const MOST_LINES: usize = 1000;
/// What a page of the log is, in lines: no screen is as low.
const PAGE: usize = 5;

/// What happens.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// The supervisor has answered.
    Sample {
        /// Who it is.
        greeting: Greeting,
        /// How its workers are.
        workers: Vec<WorkerUsage>,
        /// When, in milliseconds of the Unix epoch.
        at_unix_ms: u64,
    },
    /// It has not, and why.
    Lost(String),
    /// A worker wrote a line.
    Line(LogText),
    /// Lines of a worker that were not kept for us.
    Missed(WorkerName, u64),
    /// What came of an order.
    Told(Result<String, String>),
    /// A key was pressed.
    Key(Key),
}

/// A line of a worker's output, fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogText {
    pub(super) worker: WorkerName,
    pub(super) stream: LogSource,
    /// Of the day, as `12:04:31`.
    pub(super) time: String,
    pub(super) text: String,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    First,
    Last,
    LogUp,
    LogDown,
    Restart,
    StopOrStart,
    Expand,
    Help,
    Quit,
    Suspend,
    Redraw,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Quit,
    Suspend,
    /// Draw everything anew: something else may have written to the terminal.
    Redraw,
    Restart(WorkerName),
    Stop(WorkerName),
    Start(WorkerName),
    /// Tell what this worker writes, instead of what another does.
    Follow(WorkerName),
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) greeting: Option<Greeting>,
    pub(super) workers: Vec<Measured>,
    pub(super) selected: Option<WorkerName>,
    /// The parts of all workers are shown, not only those of the selected one.
    pub(super) expanded: bool,
    pub(super) help: bool,
    pub(super) colour: bool,
    pub(super) now_unix_ms: u64,
    /// Why nothing comes from the supervisor.
    pub(super) lost: Option<String>,
    /// What came of the last order; an error is one.
    pub(super) notice: Option<Result<String, String>>,
    pub(super) log: VecDeque<LogText>,
    /// Lines by which the log is scrolled back.
    pub(super) back: usize,
    /// Lines of the log that the last frame had room for: where the first one is at its top, there is
    /// nothing more to scroll to.
    pub(super) log_room: Cell<usize>,
    before: BTreeMap<WorkerName, Usage>,
    /// For [`Measured`] parts: how busy each process is.
    pub(super) busy: BTreeMap<u32, f64>,
}

impl State {
    /// Nothing is known yet.
    pub(super) fn new(colour: bool) -> Self {
        Self {
            colour,
            ..Self::default()
        }
    }

    /// Takes one input.
    pub(super) fn on(&mut self, input: Input) -> Vec<Order> {
        match input {
            Input::Sample {
                greeting,
                workers,
                at_unix_ms,
            } => self.sample(greeting, workers, at_unix_ms),
            Input::Lost(why) => {
                self.lost = Some(why);
                // What they use is not known any more; what is left on the screen would be a lie.
                self.workers.clear();
                self.before.clear();
                self.busy.clear();
                Vec::new()
            }
            Input::Line(line) => {
                if self.selected.as_ref() == Some(&line.worker) {
                    self.push(line);
                }
                Vec::new()
            }
            Input::Missed(worker, count) => {
                if self.selected.as_ref() == Some(&worker) {
                    let text = format!("… {count} lines were not shown");
                    self.push(LogText {
                        worker,
                        stream: LogSource::Console,
                        time: String::new(),
                        text,
                    });
                }
                Vec::new()
            }
            Input::Told(told) => {
                self.notice = Some(told);
                Vec::new()
            }
            Input::Key(key) => self.key(key),
        }
    }

    /// By how many lines the log can be scrolled back.
    pub(super) fn furthest(&self) -> usize {
        self.log.len().saturating_sub(self.log_room.get())
    }

    fn push(&mut self, line: LogText) {
        self.log.push_back(line);
        if self.log.len() > MOST_LINES {
            self.log.pop_front();
        }
        // Who reads what was, goes on reading it.
        if self.back > 0 {
            self.back = (self.back + 1).min(self.furthest());
        }
    }

    fn sample(
        &mut self,
        greeting: Greeting,
        workers: Vec<WorkerUsage>,
        at_unix_ms: u64,
    ) -> Vec<Order> {
        let successor = self
            .greeting
            .as_ref()
            .is_some_and(|g| g.pid != greeting.pid);
        let was_lost = self.lost.take().is_some();
        self.now_unix_ms = at_unix_ms;
        self.greeting = Some(greeting);
        self.busy = busy(&self.before, &workers);
        let next = by_name(&workers);
        self.workers = compare(&self.before, workers);
        self.before = next;
        let names: Vec<&WorkerName> = self.names().collect();
        let still = self.selected.as_ref().filter(|name| names.contains(name));
        if still.is_some() && !successor && !was_lost {
            return Vec::new();
        }
        let select = still.or(names.first().copied()).cloned();
        self.select(select)
    }

    fn names(&self) -> impl DoubleEndedIterator<Item = &WorkerName> + ExactSizeIterator {
        self.workers.iter().map(|w| &w.worker.worker.name)
    }

    /// The same with all workers alike, each with its parts.
    pub(super) fn whole(&self) -> Self {
        Self {
            expanded: true,
            selected: None,
            ..self.clone()
        }
    }

    /// The selected worker.
    pub(super) fn chosen(&self) -> Option<&Measured> {
        let selected = self.selected.as_ref()?;
        (self.workers.iter()).find(|w| w.worker.worker.name == *selected)
    }

    fn select(&mut self, name: Option<WorkerName>) -> Vec<Order> {
        self.log.clear();
        self.back = 0;
        self.selected = name.clone();
        name.map(Order::Follow).into_iter().collect()
    }

    /// Selects the worker at a place; the first and the last are the ends of the way.
    fn go(&mut self, to: impl FnOnce(usize) -> usize) -> Vec<Order> {
        let names: Vec<WorkerName> = self.names().cloned().collect();
        let Some(last) = names.len().checked_sub(1) else {
            return Vec::new();
        };
        let at = (self.selected.as_ref()).and_then(|s| names.iter().position(|name| name == s));
        let to = to(at.unwrap_or(0)).min(last);
        if at == Some(to) {
            return Vec::new();
        }
        self.select(names.into_iter().nth(to))
    }

    fn key(&mut self, key: Key) -> Vec<Order> {
        // A key that is pressed while help is shown takes help away, whatever else it does.
        let helped = std::mem::take(&mut self.help);
        match key {
            Key::Up => self.go(|at| at.saturating_sub(1)),
            Key::Down => self.go(|at| at + 1),
            Key::First => self.go(|_| 0),
            Key::Last => self.go(|_| usize::MAX),
            Key::LogUp => {
                self.back = (self.back + PAGE).min(self.furthest());
                Vec::new()
            }
            Key::LogDown => {
                self.back = self.back.saturating_sub(PAGE);
                Vec::new()
            }
            Key::Restart => self.order("restarting", Order::Restart),
            Key::StopOrStart => match self.chosen().map(|w| w.worker.worker.state.is_at_rest()) {
                Some(true) => self.order("starting", Order::Start),
                Some(false) => self.order("stopping", Order::Stop),
                None => Vec::new(),
            },
            Key::Expand => {
                self.expanded = !self.expanded;
                Vec::new()
            }
            Key::Help => {
                self.help = !helped;
                Vec::new()
            }
            // As in most programs: what was opened last is closed first.
            Key::Quit if helped => Vec::new(),
            Key::Quit => vec![Order::Quit],
            Key::Suspend => vec![Order::Suspend],
            Key::Redraw => vec![Order::Redraw],
        }
    }

    fn order(&mut self, doing: &str, order: fn(WorkerName) -> Order) -> Vec<Order> {
        let Some(worker) = self.chosen() else {
            return Vec::new();
        };
        let name = worker.worker.worker.name.clone();
        self.notice = Some(Ok(format!("{doing} {name} …")));
        vec![order(name)]
    }
}

/// How busy each process is, in percent of one CPU.
fn busy(before: &BTreeMap<WorkerName, Usage>, now: &[WorkerUsage]) -> BTreeMap<u32, f64> {
    let mut busy = BTreeMap::new();
    for worker in now {
        let Some(before) = before.get(&worker.worker.name) else {
            continue;
        };
        for part in &worker.usage.parts {
            let alone = Usage {
                parts: vec![part.clone()],
                ..worker.usage.clone()
            };
            if let (Some(pid), Some(percent)) = (part.pid, alone.cpu_percent_since(before)) {
                busy.insert(pid, percent);
            }
        }
    }
    busy
}
