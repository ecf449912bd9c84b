//! This end's terminal while a command of a guest has it.

use std::io;
use std::os::fd::AsFd as _;

use iii_proto::exec::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size of a terminal that does not know its own.
const UNKNOWN: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

/// The terminal passes on every key as it is. The drop puts it back as it was: at the end, at an
/// error, and while a panic unwinds.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin().as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }

    /// Once more, after a shell has stopped us and let us go on.
    pub(super) fn again(&self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        set(&raw);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        set(&self.before);
    }
}

/// A terminal that has gone needs nothing to be set.
fn set(modes: &Termios) {
    if let Err(error) = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, modes) {
        tracing::debug!(%error, "failed to set the terminal's modes");
    }
}

/// The size of the terminal at standard input.
pub(super) fn size() -> TerminalSize {
    match tcgetwinsize(io::stdin().as_fd()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        Ok(_) | Err(_) => UNKNOWN,
    }
}
