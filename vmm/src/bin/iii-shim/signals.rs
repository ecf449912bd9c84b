//! Signals, taken as data.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

/// Signals that are passed on to the program.
const FORWARDED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Blocks every signal and reads them from a descriptor instead. Blocked signals reach the PID 1 of
/// a pid namespace too, whose unblocked ones with default action the kernel throws away.
pub(crate) fn capture() -> io::Result<SignalFd> {
    SigSet::all().thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&SigSet::all(), flags)?)
}

/// Sends a signal to a child that is not waited for yet, so that the number is still its own.
pub(crate) fn send(child: Pid, signal: Signal) {
    // The one error left is ESRCH for a process group without members: nobody to signal.
    kill(child, signal).unwrap_or_default();
}

/// What [`wait`] has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// A child has changed its state.
    pub(crate) child: bool,
    /// To be passed on.
    pub(crate) forward: Vec<Signal>,
    /// The other end of the lifeline is closed.
    pub(crate) hang_up: bool,
}

/// Waits for signals, and for the lifeline's end if there is one.
pub(crate) fn wait(signals: &SignalFd, lifeline: Option<BorrowedFd<'_>>) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    if let Some(lifeline) = lifeline {
        // A hang-up is reported whether it was asked for or not; nothing else is of interest.
        fds.push(PollFd::from_borrowed_fd(lifeline, PollFlags::empty()));
    }
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    seen.hang_up = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    while let Some(info) = signals.read_signal()? {
        match i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|n| Signal::try_from(n).ok())
        {
            Some(Signal::SIGCHLD) => seen.child = true,
            Some(signal) if FORWARDED.contains(&signal) => seen.forward.push(signal),
            // Job control and real-time signals mean nothing to a shim.
            _ => {}
        }
    }
    Ok(seen)
}
