//! Ctrl-C and its relatives, each of which asks the run to end; and SIGHUP, which may ask it to read
//! its file again.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// One press of Ctrl-C can arrive twice: from the terminal, which sends it to all programs in the
/// foreground, and from a program above us that passes on what it got (npm, timeout, a service
/// manager). Within this time it counts as the same press.
const SAME_PRESS: Duration = Duration::from_millis(300);

/// The signals that end a run, unless they were ignored when the program was started (`nohup`, or
/// `&` in a shell without job control): then they stay ignored.
pub(super) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
    last: Option<Instant>,
    /// SIGHUP asks to read the file again.
    reloads: bool,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The end; the name of the signal.
    End(&'static str),
    /// To read the file again.
    Reload,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    pub(super) fn install() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let open = |kind: SignalKind| {
            if ignored(&status, kind.as_raw_value()) {
                return Ok(None);
            }
            signal(kind).map(Some)
        };
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hang_up: open(SignalKind::hangup())?,
            last: None,
            reloads: false,
        })
    }

    /// The same; without a terminal, SIGHUP asks to read the file again. With one it says that the
    /// terminal was closed, and who sent it cannot be told.
    pub(super) fn install_reloading() -> io::Result<Self> {
        Ok(Self {
            reloads: !has_terminal(),
            ..Self::install()?
        })
    }

    /// What the next one asks for.
    pub(super) async fn asked(&mut self) -> Asked {
        loop {
            let asked = self.any().await;
            if asked == Asked::Reload {
                return asked;
            }
            let echo = self.last.is_some_and(|last| last.elapsed() < SAME_PRESS);
            if !echo {
                self.last = Some(Instant::now());
                return asked;
            }
        }
    }

    /// The name of the next one that asks for the end and is not an echo of the last.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            match self.asked().await {
                Asked::End(name) => return name,
                Asked::Reload => {}
            }
        }
    }

    async fn any(&mut self) -> Asked {
        async fn of(signal: &mut Option<Signal>) {
            if let Some(signal) = signal
                && signal.recv().await.is_some()
            {
                return;
            }
            // No handler, or no more can come.
            std::future::pending().await
        }
        tokio::select! {
            () = of(&mut self.interrupt) => Asked::End("Ctrl-C"),
            () = of(&mut self.terminate) => Asked::End("SIGTERM"),
            () = of(&mut self.hang_up) => match self.reloads {
                true => Asked::Reload,
                false => Asked::End("SIGHUP"),
            },
        }
    }
}

/// Whether this process has a terminal that can end it.
fn has_terminal() -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOCTTY | O_NONBLOCK)
        .open("/dev/tty");
    opened.is_ok()
}

/// Whether `/proc/self/status` says that a signal is ignored: proc_pid_status(5), SigIgn.
fn ignored(status: &str, signal: i32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_counts_from_signal_one() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tffffffffffffffff\n";
        assert!(ignored(status, 1));
        assert!(ignored(status, 13));
        assert!(!ignored(status, 2));
        assert!(!ignored("", 1));
    }
}
