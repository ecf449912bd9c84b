//! How the rest of the program sees a running loop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use nix::sys::epoll::Epoll;
use nix::sys::eventfd::EventFd;

use crate::dns::{DnsReply, DnsSink, DnsToken};
use crate::link::LinkClaim;
use crate::stats::{LiveStats, NetStats, StatsReader};
use crate::watch::{self, Progress, Watched};

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
    pub(crate) stats: Arc<LiveStats>,
    pub(crate) ticks: AtomicU64,
    pub(crate) busy: AtomicBool,
    pub(crate) abandoned: AtomicBool,
    /// The thread is at its end.
    pub(crate) ended: AtomicBool,
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

    pub(crate) fn progress(&self, pending: bool) -> Progress {
        Progress {
            ticks: self.ticks.load(Ordering::SeqCst),
            busy: self.busy.load(Ordering::SeqCst),
            pending,
        }
    }
}

impl DnsSink for Shared {
    fn deliver(&self, token: DnsToken, reply: DnsReply) {
        self.command(Command::DnsReply(token, reply));
    }
}

/// A running loop. Dropped, it tells the loop to end but does not wait.
pub struct NetHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) claim: Arc<LinkClaim>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) exit: Receiver<LoopExit>,
    /// What `exit` has told.
    pub(crate) ended: OnceLock<LoopExit>,
    #[expect(dead_code, reason = "it acts by its drop")]
    pub(crate) watched: Option<Watched>,
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

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        let pending = watch::pending(std::iter::once(&*self.shared));
        self.shared
            .progress(pending.is_ok_and(|pending| pending == [true]))
    }

    /// Its counters.
    pub fn stats(&self) -> NetStats {
        self.shared.stats.snapshot()
    }

    /// Its counters, for one who reads them now and then, also after the loop's end.
    pub fn stats_reader(&self) -> StatsReader {
        StatsReader(Arc::clone(&self.shared.stats))
    }
}

impl Drop for NetHandle {
    fn drop(&mut self) {
        self.shared.command(Command::Stop);
    }
}
