//! The life of one exec session: a state machine of (state, event), without I/O. Time is an
//! argument; what is to be done comes back as [`Action`]s.
//!
//! ```text
//! Running ─MainEnded→ Clearing ─Cleared→ Draining ─Drained→ Over
//!     │                  ↑   └─(closed)─────────────────────↑
//!     └─Close, Kill → Closing
//! ```
//!
//! A session is over only when nothing of it runs any more and the client has its output, or has
//! gone: so the last word, `Exited`, says that nothing is left.

use std::time::Duration;

use iii_proto::restart::Exit;

/// Between SIGHUP and SIGKILL for a session whose client is gone.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// How long killed processes may take to vanish: one that hangs in a host file system cannot be
/// killed.
const CLEAR_TIME: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The main process ended.
    MainEnded {
        /// How.
        exit: Exit,
    },
    /// Nothing of the session runs.
    Cleared,
    /// All output is on its way to the client.
    Drained,
    /// The client is gone, or the guest ends.
    Close,
    /// The guest ends now.
    Kill,
    /// [`Lifecycle::deadline`] may have come.
    Timer,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGHUP, and SIGCONT for what is stopped, to the main process's group.
    Hangup,
    /// SIGKILL to all that is left.
    Kill,
    /// No input any more: the main process is gone.
    CloseInput,
    /// Nobody reads the output any more: give all streams up.
    CloseStreams,
    /// No process writes any more: read the output to its end, then say [`Event::Drained`].
    Seal,
    /// Release everything, then tell the host how the main process ended.
    Exited(Exit),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// The program runs.
    #[default]
    Running,
    /// The client is gone; the main process has not ended yet.
    Closing { kill_at: Option<Duration> },
    /// The main process ended; the rest is being waited for.
    Clearing {
        exit: Exit,
        /// While set, the rest has time to end by itself.
        kill_at: Option<Duration>,
        abandon_at: Duration,
        closed: bool,
    },
    /// Nothing runs; the client has not taken all output yet.
    Draining { exit: Exit },
    /// The last word was said.
    Over,
}

/// The life of one session, from the moment at which its process became its program.
#[derive(Debug, Default)]
pub struct Lifecycle {
    state: State,
}

impl Lifecycle {
    /// The main process has not been reaped: its pid is its own.
    pub fn has_main(&self) -> bool {
        match self.state {
            State::Running | State::Closing { .. } => true,
            State::Clearing { .. } | State::Draining { .. } | State::Over => false,
        }
    }

    /// [`Event::Cleared`] is awaited.
    pub fn clearing(&self) -> bool {
        match self.state {
            State::Clearing { .. } => true,
            State::Running | State::Closing { .. } | State::Draining { .. } | State::Over => false,
        }
    }

    /// [`Event::Drained`] is awaited.
    pub fn draining(&self) -> bool {
        match self.state {
            State::Draining { .. } => true,
            State::Running | State::Closing { .. } | State::Clearing { .. } | State::Over => false,
        }
    }

    /// The last word was said.
    pub fn over(&self) -> bool {
        match self.state {
            State::Over => true,
            State::Running
            | State::Closing { .. }
            | State::Clearing { .. }
            | State::Draining { .. } => false,
        }
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Closing { kill_at } => kill_at,
            State::Clearing {
                kill_at,
                abandon_at,
                ..
            } => Some(kill_at.unwrap_or(abandon_at)),
            State::Running | State::Draining { .. } | State::Over => None,
        }
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match state {
            State::Running => in_running(event, now, &mut out),
            State::Closing { kill_at } => in_closing(kill_at, event, now, &mut out),
            State::Clearing {
                exit,
                kill_at,
                abandon_at,
                closed,
            } => in_clearing(exit, kill_at, abandon_at, closed, event, now, &mut out),
            State::Draining { exit } => in_draining(exit, event, &mut out),
            State::Over => State::Over,
        };
        out
    }
}

fn in_running(event: Event, now: Duration, out: &mut Vec<Action>) -> State {
    match event {
        Event::MainEnded { exit } => {
            // What it leaves behind ends with it.
            out.push(Action::Kill);
            out.push(Action::CloseInput);
            State::Clearing {
                exit,
                kill_at: None,
                abandon_at: now + CLEAR_TIME,
                closed: false,
            }
        }
        Event::Close => {
            out.push(Action::Hangup);
            out.push(Action::CloseStreams);
            State::Closing {
                kill_at: Some(now + CLOSE_GRACE),
            }
        }
        Event::Kill => {
            out.push(Action::Kill);
            out.push(Action::CloseStreams);
            State::Closing { kill_at: None }
        }
        Event::Cleared | Event::Drained | Event::Timer => State::Running,
    }
}

fn in_closing(
    kill_at: Option<Duration>,
    event: Event,
    now: Duration,
    out: &mut Vec<Action>,
) -> State {
    match event {
        Event::MainEnded { exit } => State::Clearing {
            exit,
            kill_at,
            abandon_at: kill_at.unwrap_or(now) + CLEAR_TIME,
            closed: true,
        },
        Event::Timer => match kill_at {
            Some(at) if now >= at => {
                out.push(Action::Kill);
                State::Closing { kill_at: None }
            }
            Some(_) | None => State::Closing { kill_at },
        },
        Event::Kill => {
            out.push(Action::Kill);
            State::Closing { kill_at: None }
        }
        Event::Close | Event::Cleared | Event::Drained => State::Closing { kill_at },
    }
}

fn in_clearing(
    exit: Exit,
    kill_at: Option<Duration>,
    abandon_at: Duration,
    closed: bool,
    event: Event,
    now: Duration,
    out: &mut Vec<Action>,
) -> State {
    let same = |exit| State::Clearing {
        exit,
        kill_at,
        abandon_at,
        closed,
    };
    match event {
        Event::Cleared => cleared(exit, closed, out),
        Event::Timer => match kill_at {
            Some(at) if now >= at => {
                out.push(Action::Kill);
                State::Clearing {
                    exit,
                    kill_at: None,
                    abandon_at: now + CLEAR_TIME,
                    closed,
                }
            }
            None if now >= abandon_at => cleared(exit, closed, out),
            Some(_) | None => same(exit),
        },
        Event::Close => {
            out.push(Action::CloseStreams);
            State::Clearing {
                exit,
                kill_at,
                abandon_at,
                closed: true,
            }
        }
        Event::Kill => {
            out.push(Action::Kill);
            out.push(Action::CloseStreams);
            State::Clearing {
                exit,
                kill_at: None,
                abandon_at: now + CLEAR_TIME,
                closed: true,
            }
        }
        Event::MainEnded { .. } | Event::Drained => same(exit),
    }
}

fn in_draining(exit: Exit, event: Event, out: &mut Vec<Action>) -> State {
    match event {
        Event::Drained | Event::Close | Event::Kill => finish(exit, out),
        Event::MainEnded { .. } | Event::Cleared | Event::Timer => State::Draining { exit },
    }
}

fn cleared(exit: Exit, closed: bool, out: &mut Vec<Action>) -> State {
    if closed {
        return finish(exit, out);
    }
    out.push(Action::Seal);
    State::Draining { exit }
}

fn finish(exit: Exit, out: &mut Vec<Action>) -> State {
    out.push(Action::Exited(exit));
    State::Over
}

#[cfg(test)]
mod tests;
