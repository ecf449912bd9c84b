//! Single keys on a terminal, without Enter.

use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Restart,
    Clear,
    Quit,
}

impl Key {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            b'r' | b'R' => Some(Self::Restart),
            b'c' | b'C' => Some(Self::Clear),
            // 4: Ctrl-D, which no longer is an end of input once single keys are read.
            b'q' | b'Q' | 4 => Some(Self::Quit),
            _ => None,
        }
    }
}

/// The terminal reads single keys and shows none, until this is dropped.
pub(super) struct Keys {
    before: Termios,
    pressed: mpsc::Receiver<Key>,
}

impl Keys {
    /// `None` where nobody presses keys: stdin or stdout is no terminal, or we are in the
    /// background of one.
    pub(super) fn read() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || !std::io::stdout().is_terminal() {
            return None;
        }
        let foreground = nix::unistd::tcgetpgrp(stdin.as_fd()).ok()?;
        if foreground != nix::unistd::getpgrp() {
            return None;
        }
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut single = before.clone();
        // Ctrl-C stays a signal.
        single
            .local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &single).ok()?;
        let (press, pressed) = mpsc::channel(16);
        // A thread of its own: a read of a terminal cannot be given up, and the program does not
        // wait for it when it ends.
        std::thread::spawn(move || {
            let mut byte = [0];
            while let Ok(1) = std::io::stdin().lock().read(&mut byte) {
                // Who leans on a key means it once; nobody listens after the end.
                if let Some(key) = Key::of(byte[0])
                    && let Err(mpsc::error::TrySendError::Closed(_)) = press.try_send(key)
                {
                    return;
                }
            }
        });
        Some(Self { before, pressed })
    }

    /// The next key that asks for something.
    pub(super) async fn next(keys: &mut Option<Self>) -> Key {
        if let Some(keys) = keys
            && let Some(key) = keys.pressed.recv().await
        {
            return key;
        }
        std::future::pending().await
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let stdin = std::io::stdin();
        if let Err(error) = tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &self.before) {
            tracing::debug!(%error, "failed to put the terminal back");
        }
    }
}
