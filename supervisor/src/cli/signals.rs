//! Ctrl-C and its relatives: each asks the run to end.

use std::io;
use std::time::{Duration, Instant};

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
        })
    }

    /// The name of the next one that is not an echo of the last.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            let name = self.any().await;
            let echo = self.last.is_some_and(|last| last.elapsed() < SAME_PRESS);
            if !echo {
                self.last = Some(Instant::now());
                return name;
            }
        }
    }

    async fn any(&mut self) -> &'static str {
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
            () = of(&mut self.interrupt) => "Ctrl-C",
            () = of(&mut self.terminate) => "SIGTERM",
            () = of(&mut self.hang_up) => "SIGHUP",
        }
    }
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
