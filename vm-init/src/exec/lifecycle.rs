//! The life of one exec session: a state machine of (state, event), without I/O. Time is an
//! argument; what is to be done comes back as [`Action`]s.
//!
//! ```text
//! Starting ─Executed→ Running ─MainEnded→ Clearing ─Cleared→ Draining ─Drained→ Over
//!     │                  │                   ↑   └─(closed)─────────────────────↑
//!     └─Close, Kill ─────┴→ Closing ─────────┘
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

/// What kept a process from becoming its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The session cannot be had as it was asked for.
    Setup(String),
    /// The program cannot be executed: a shell says why and ends with 126 or 127.
    Execute {
        /// The exit code.
        code: i32,
        /// What a shell would say.
        message: String,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process has become its program.
    Executed,
    /// The main process ended.
    MainEnded {
        /// How.
        exit: Exit,
        /// It had not become its program, and why.
        failure: Option<Failure>,
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
    /// Tell the host that the command runs.
    Opened,
    /// Say this on the command's standard error.
    Complain(String),
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
    /// Release everything, then tell the host that there was no session.
    Refused(String),
}

/// With which word the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Exited(Exit),
    Refused(String),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The process was made; whether it becomes its program is not known.
    Starting,
    /// The program runs.
    Running,
    /// The client is gone; the main process has not ended yet.
    Closing { kill_at: Option<Duration> },
    /// The main process ended; the rest is being waited for.
    Clearing {
        end: End,
        /// While set, the rest has time to end by itself.
        kill_at: Option<Duration>,
        abandon_at: Duration,
        closed: bool,
    },
    /// Nothing runs; the client has not taken all output yet.
    Draining { end: End },
    /// The last word was said.
    Over,
}

/// The life of one session, from the moment at which its process was made.
#[derive(Debug)]
pub struct Lifecycle {
    state: State,
    opened: bool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            state: State::Starting,
            opened: false,
        }
    }
}

impl Lifecycle {
    /// The main process has not been reaped: its pid is its own.
    pub fn has_main(&self) -> bool {
        match self.state {
            State::Starting | State::Running | State::Closing { .. } => true,
            State::Clearing { .. } | State::Draining { .. } | State::Over => false,
        }
    }

    /// [`Event::Cleared`] is awaited.
    pub fn clearing(&self) -> bool {
        match self.state {
            State::Clearing { .. } => true,
            State::Starting
            | State::Running
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Over => false,
        }
    }

    /// [`Event::Drained`] is awaited.
    pub fn draining(&self) -> bool {
        match self.state {
            State::Draining { .. } => true,
            State::Starting
            | State::Running
            | State::Closing { .. }
            | State::Clearing { .. }
            | State::Over => false,
        }
    }

    /// The last word was said.
    pub fn over(&self) -> bool {
        match self.state {
            State::Over => true,
            State::Starting
            | State::Running
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
            State::Starting | State::Running | State::Draining { .. } | State::Over => None,
        }
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match state {
            State::Starting => self.in_starting(event, now, &mut out),
            State::Running => self.in_running(event, now, &mut out),
            State::Closing { kill_at } => self.in_closing(kill_at, event, now, &mut out),
            State::Clearing {
                end,
                kill_at,
                abandon_at,
                closed,
            } => in_clearing(end, kill_at, abandon_at, closed, event, now, &mut out),
            State::Draining { end } => in_draining(end, event, &mut out),
            State::Over => State::Over,
        };
        out
    }

    fn in_starting(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) -> State {
        match event {
            Event::Executed => {
                self.open(out);
                State::Running
            }
            Event::MainEnded { exit, failure } => match failure {
                // It was killed on its way.
                None => {
                    self.open(out);
                    ended(End::Exited(exit), now, out)
                }
                Some(Failure::Execute { code, message }) => {
                    self.open(out);
                    out.push(Action::Complain(message));
                    ended(End::Exited(Exit::Code { code }), now, out)
                }
                Some(Failure::Setup(message)) => ended(End::Refused(message), now, out),
            },
            Event::Close => hang_up(now, out),
            Event::Kill => kill(out),
            Event::Cleared | Event::Drained | Event::Timer => State::Starting,
        }
    }

    fn in_running(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) -> State {
        match event {
            Event::MainEnded { exit, .. } => ended(End::Exited(exit), now, out),
            Event::Close => hang_up(now, out),
            Event::Kill => kill(out),
            Event::Executed | Event::Cleared | Event::Drained | Event::Timer => State::Running,
        }
    }

    fn in_closing(
        &mut self,
        kill_at: Option<Duration>,
        event: Event,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> State {
        match event {
            Event::Executed => {
                self.open(out);
                State::Closing { kill_at }
            }
            Event::MainEnded { exit, .. } => State::Clearing {
                end: if self.opened {
                    End::Exited(exit)
                } else {
                    End::Refused(String::from(
                        "the session was closed before its command ran",
                    ))
                },
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

    fn open(&mut self, out: &mut Vec<Action>) {
        if !self.opened {
            self.opened = true;
            out.push(Action::Opened);
        }
    }
}

fn in_clearing(
    end: End,
    kill_at: Option<Duration>,
    abandon_at: Duration,
    closed: bool,
    event: Event,
    now: Duration,
    out: &mut Vec<Action>,
) -> State {
    let same = |end| State::Clearing {
        end,
        kill_at,
        abandon_at,
        closed,
    };
    match event {
        Event::Cleared => cleared(end, closed, out),
        Event::Timer => match kill_at {
            Some(at) if now >= at => {
                out.push(Action::Kill);
                State::Clearing {
                    end,
                    kill_at: None,
                    abandon_at: now + CLEAR_TIME,
                    closed,
                }
            }
            None if now >= abandon_at => cleared(end, closed, out),
            Some(_) | None => same(end),
        },
        Event::Close => {
            out.push(Action::CloseStreams);
            State::Clearing {
                end,
                kill_at,
                abandon_at,
                closed: true,
            }
        }
        Event::Kill => {
            out.push(Action::Kill);
            out.push(Action::CloseStreams);
            State::Clearing {
                end,
                kill_at: None,
                abandon_at: now + CLEAR_TIME,
                closed: true,
            }
        }
        Event::Executed | Event::MainEnded { .. } | Event::Drained => same(end),
    }
}

fn in_draining(end: End, event: Event, out: &mut Vec<Action>) -> State {
    match event {
        Event::Drained | Event::Close | Event::Kill => finish(end, out),
        Event::Executed | Event::MainEnded { .. } | Event::Cleared | Event::Timer => {
            State::Draining { end }
        }
    }
}

/// The main process ended by itself: what it leaves behind ends with it.
fn ended(end: End, now: Duration, out: &mut Vec<Action>) -> State {
    out.push(Action::Kill);
    out.push(Action::CloseInput);
    State::Clearing {
        end,
        kill_at: None,
        abandon_at: now + CLEAR_TIME,
        closed: false,
    }
}

fn hang_up(now: Duration, out: &mut Vec<Action>) -> State {
    out.push(Action::Hangup);
    out.push(Action::CloseStreams);
    State::Closing {
        kill_at: Some(now + CLOSE_GRACE),
    }
}

fn kill(out: &mut Vec<Action>) -> State {
    out.push(Action::Kill);
    out.push(Action::CloseStreams);
    State::Closing { kill_at: None }
}

fn cleared(end: End, closed: bool, out: &mut Vec<Action>) -> State {
    if closed {
        return finish(end, out);
    }
    out.push(Action::Seal);
    State::Draining { end }
}

fn finish(end: End, out: &mut Vec<Action>) -> State {
    out.push(match end {
        End::Exited(exit) => Action::Exited(exit),
        End::Refused(message) => Action::Refused(message),
    });
    State::Over
}

#[cfg(test)]
mod tests;
