//! How the rest of the program sees a running loop.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::Epoll;
use nix::sys::eventfd::EventFd;

use crate::dns::{DnsReply, DnsSink, DnsToken};
use crate::link::LinkClaim;
use crate::stats::{LiveStats, NetStats};

/// Told to the loop over its channel; the eventfd wakes it.
#[derive(Debug)]
pub(crate) enum Command {
    Stop,
    VmGone,
    VmStarted,
    DnsReply(DnsToken, DnsReply),
    Fault(Fault),
}

/// Faults that a test injects into a running loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The thread panics.
    Panic,
    /// The thread lives but does nothing any more, and hears no command.
    Stall,
}

/// How a loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoopExit {
    /// It was told to.
    Stopped,
    /// A system call failed that it cannot do without.
    Failed(String),
    /// Its thread panicked.
    Panicked(String),
}

/// What loop and handle share.
pub(crate) struct Shared {
    pub(crate) stats: LiveStats,
    pub(crate) ticks: AtomicU64,
    pub(crate) busy: AtomicBool,
    pub(crate) abandoned: AtomicBool,
    pub(crate) epoll: Epoll,
    pub(crate) wake: EventFd,
    pub(crate) commands: Sender<Command>,
}

impl Shared {
    pub(crate) fn command(&self, command: Command) {
        // A loop that has ended hears nothing, and its exit has been told.
        if self.commands.send(command).is_ok() {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        match self.wake.write(1) {
            // A full counter is readable, which is all that matters.
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(errno) => tracing::warn!(%errno, "failed to wake the network loop"),
        }
    }
}

impl DnsSink for Shared {
    fn deliver(&self, token: DnsToken, reply: DnsReply) {
        self.command(Command::DnsReply(token, reply));
    }
}

/// What a watchdog needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds of the loop so far.
    pub ticks: u64,
    /// The loop is within a round.
    pub busy: bool,
    /// Frames, host sockets or commands are ready and wait for the loop.
    pub pending: bool,
}

/// A running loop. Dropped, it tells the loop to end but does not wait.
pub struct NetHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) claim: Arc<LinkClaim>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) exit: Receiver<LoopExit>,
    /// What `exit` has told.
    pub(crate) ended: OnceLock<LoopExit>,
}

impl NetHandle {
    /// The VM has ended: every host socket of its connections is closed now, so that no peer sees
    /// a half-open connection beside the successor's. The loop goes on and serves the next VM on
    /// the same link; published ports wait until its first frame or [`Self::vm_started`].
    pub fn vm_gone(&self) {
        self.shared.command(Command::VmGone);
    }

    /// A VM runs on the link (again).
    pub fn vm_started(&self) {
        self.shared.command(Command::VmStarted);
    }

    /// Answers a question whose [`crate::DnsReplier`] was turned into its token.
    pub fn dns_reply(&self, token: DnsToken, reply: DnsReply) {
        self.shared.command(Command::DnsReply(token, reply));
    }

    /// Tells the loop to end: frames that have arrived are still processed, then all host sockets
    /// are closed.
    pub fn stop(&self) {
        self.shared.command(Command::Stop);
    }

    /// Injects a fault.
    pub fn inject(&self, fault: Fault) {
        self.shared.command(Command::Fault(fault));
    }

    /// Waits for the loop's end, at most `limit`. `None`: it still runs, see [`Self::abandon`].
    pub fn join(&self, limit: Duration) -> Option<LoopExit> {
        if let Some(exit) = self.ended.get() {
            return Some(exit.clone());
        }
        let exit = self.exit.recv_timeout(limit).ok()?;
        let exit = self.ended.get_or_init(|| exit).clone();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The thread has sent its exit as its last act; a panic of its callback is its own.
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the exit callback of a network loop panicked");
        }
        Some(exit)
    }

    /// Gives up a loop that does not end: a successor may start on the link. The thread ends as
    /// soon as it looks up again, without touching the link.
    pub fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            thread.thread().unpark();
        }
        self.claim.release();
    }

    /// For a watchdog, see [`Watchdog`].
    pub fn progress(&self) -> Progress {
        let mut fds = [PollFd::new(self.shared.epoll.0.as_fd(), PollFlags::POLLIN)];
        Progress {
            ticks: self.shared.ticks.load(Ordering::SeqCst),
            busy: self.shared.busy.load(Ordering::SeqCst),
            pending: poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0),
        }
    }

    /// Wakes the loop for a round without work.
    pub fn nudge(&self) {
        self.shared.wake();
    }

    /// Its counters.
    pub fn stats(&self) -> NetStats {
        self.shared.stats.snapshot()
    }
}

impl Drop for NetHandle {
    fn drop(&mut self) {
        self.shared.command(Command::Stop);
    }
}

/// A loop's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It makes progress, or has nothing to do.
    Healthy,
    /// It had something to do and made no round for the watchdog's whole limit.
    Stalled,
}

/// Notices a loop that does not make progress. Observe regularly, several times per limit.
#[derive(Clone, Debug)]
pub struct Watchdog {
    limit: Duration,
    owed: Option<(u64, Instant)>,
    nudged: Option<Instant>,
}

impl Watchdog {
    /// A loop may take up to `limit` for a round.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            owed: None,
            nudged: None,
        }
    }

    /// Looks at the loop. A loop that is idle is nudged now and then, so that it shows whether it
    /// still turns before the guest needs it; not each time, since a thousand idle workers should
    /// cost next to nothing.
    pub fn observe(&mut self, now: Instant, handle: &NetHandle) -> Health {
        let progress = handle.progress();
        let health = self.judge(now, progress);
        if !progress.pending && !progress.busy && self.nudge_is_due(now) {
            handle.nudge();
        }
        health
    }

    fn nudge_is_due(&mut self, now: Instant) -> bool {
        let due = self
            .nudged
            .is_none_or(|at| now.saturating_duration_since(at) >= self.limit * 4);
        if due {
            self.nudged = Some(now);
        }
        due
    }

    /// The judgement alone.
    pub fn judge(&mut self, now: Instant, progress: Progress) -> Health {
        if !progress.pending && !progress.busy {
            self.owed = None;
            return Health::Healthy;
        }
        match self.owed {
            Some((ticks, since)) if ticks == progress.ticks => {
                if now.saturating_duration_since(since) >= self.limit {
                    Health::Stalled
                } else {
                    Health::Healthy
                }
            }
            Some(_) | None => {
                self.owed = Some((progress.ticks, now));
                Health::Healthy
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_loop_is_nudged_once_in_four_limits() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(3));
        let due: Vec<u64> = (0..30)
            .filter(|s| watchdog.nudge_is_due(start + Duration::from_secs(*s)))
            .collect();
        assert_eq!(due, [0, 12, 24]);
    }

    fn progress(ticks: u64, busy: bool, pending: bool) -> Progress {
        Progress {
            ticks,
            busy,
            pending,
        }
    }

    #[test]
    fn only_work_without_rounds_is_a_stall() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watchdog = Watchdog::new(Duration::from_secs(10));
        assert_eq!(
            watchdog.judge(at(0), progress(1, false, false)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(60), progress(1, false, false)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(61), progress(1, false, true)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(70), progress(1, false, true)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(71), progress(2, false, true)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(80), progress(2, true, false)),
            Health::Healthy
        );
        assert_eq!(
            watchdog.judge(at(81), progress(2, true, false)),
            Health::Stalled
        );
        assert_eq!(
            watchdog.judge(at(82), progress(3, false, false)),
            Health::Healthy
        );
    }
}
