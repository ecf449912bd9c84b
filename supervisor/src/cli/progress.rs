//! Long work on stderr: a line per phase, and on a terminal the bytes that are done.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the count of bytes is written anew: more often is only flicker.
const REFRESH: Duration = Duration::from_millis(100);

/// Cursor to the first column, rest of the line cleared.
const CLEAR: &str = "\r\x1b[K";

/// Progress on this process's stderr.
#[derive(Debug)]
pub(super) struct StderrProgress {
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: String,
    last: Option<Instant>,
    /// The terminal's line holds a count that is to be cleared.
    dirty: bool,
}

impl StderrProgress {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            state: Mutex::default(),
        }
    }

    /// Clears an unfinished line, before something else is written.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.dirty) {
            write(CLEAR);
        }
    }
}

fn write(text: &str) {
    let mut err = io::stderr().lock();
    // If nobody reads stderr, there is nobody to tell.
    err.write_all(text.as_bytes())
        .and_then(|()| err.flush())
        .ok();
}

impl iii_firmware::Progress for StderrProgress {
    fn phase(&self, text: &str) {
        self.finish();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.phase = crate::output::escape::text(text);
        state.last = None;
        write(&format!("iii-super: {}\n", state.phase));
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        if !self.terminal {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| last.elapsed() < REFRESH) && Some(done) != total {
            return;
        }
        state.last = Some(Instant::now());
        state.dirty = true;
        write(&format!("{CLEAR}  {}", count(done, total)));
    }
}

impl iii_image::Progress for StderrProgress {
    fn phase(&self, text: &str) {
        iii_firmware::Progress::phase(self, text);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        iii_firmware::Progress::bytes(self, done, total);
    }
}

/// `12.3 of 21.6 MB (57 %)`.
fn count(done: u64, total: Option<u64>) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    match total {
        Some(total) if total > 0 => {
            let percent = (done as f64 / total as f64 * 100.0).min(100.0);
            format!("{:.1} of {:.1} MB ({percent:.0} %)", mb(done), mb(total))
        }
        _ => format!("{:.1} MB", mb(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        assert_eq!(
            count(12_300_000, Some(21_600_000)),
            "12.3 of 21.6 MB (57 %)"
        );
        assert_eq!(count(5, Some(0)), "0.0 MB");
        assert_eq!(count(1_500_000, None), "1.5 MB");
        assert_eq!(count(3, Some(2)), "0.0 of 0.0 MB (100 %)");
    }
}
