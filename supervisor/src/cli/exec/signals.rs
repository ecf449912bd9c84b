//! Signals that this program gets while a command runs are the command's.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is passed on, by its Linux number.
const PASSED_ON: [SignalKind; 5] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// Signals from their installation on.
#[derive(Debug)]
pub(super) struct Signals {
    passed_on: [Signal; 5],
    hang_up: Signal,
    window: Signal,
    resumed: Signal,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// A signal for the command.
    Signal(i32),
    /// Our terminal has gone.
    HangUp,
    /// Our terminal has another size.
    Resize,
    /// We were stopped and go on.
    Resumed,
}

/// SIGCONT, which tokio has no name for.
const SIGCONT: i32 = nix::libc::SIGCONT;

impl Signals {
    pub(super) fn install() -> io::Result<Self> {
        let [a, b, c, d, e] = PASSED_ON;
        Ok(Self {
            passed_on: [signal(a)?, signal(b)?, signal(c)?, signal(d)?, signal(e)?],
            hang_up: signal(SignalKind::hangup())?,
            window: signal(SignalKind::window_change())?,
            resumed: signal(SignalKind::from_raw(SIGCONT))?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Happened {
        let [interrupt, terminate, quit, user1, user2] = &mut self.passed_on;
        let number = |index: usize| Happened::Signal(PASSED_ON[index].as_raw_value());
        tokio::select! {
            _ = interrupt.recv() => number(0),
            _ = terminate.recv() => number(1),
            _ = quit.recv() => number(2),
            _ = user1.recv() => number(3),
            _ = user2.recv() => number(4),
            _ = self.hang_up.recv() => Happened::HangUp,
            _ = self.window.recv() => Happened::Resize,
            _ = self.resumed.recv() => Happened::Resumed,
        }
    }
}
