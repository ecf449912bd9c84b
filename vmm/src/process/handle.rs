//! A spawned child, as others see it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iii_proto::restart::Exit;
use iii_proto::shim::{Isolation, ShimExit};
use nix::sys::signal::Signal;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildExit {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// It is gone, but its status was lost: something else in this process has waited for it.
    Unknown,
}

impl fmt::Display for ChildExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("an unknown status"),
        }
    }
}

impl From<ShimExit> for ChildExit {
    fn from(exit: ShimExit) -> Self {
        match exit {
            ShimExit::Code(code) => Self::Code(code),
            ShimExit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl From<ChildExit> for Exit {
    fn from(exit: ChildExit) -> Self {
        match exit {
            ChildExit::Code(code) => Self::Code { code },
            ChildExit::Signal(signal) => Self::Signal { signal },
            ChildExit::Unknown => Self::Fault {
                cause: "the process ended, its status was taken by another waiter".into(),
            },
        }
    }
}

/// What is shared between the handles and the spawner.
#[derive(Debug)]
pub(super) struct Shared {
    label: String,
    pid: i32,
    shim_pid: i32,
    isolation: Isolation,
    state: Mutex<State>,
    reaped: Condvar,
}

#[derive(Debug)]
struct State {
    /// pidfd of the program; given back when it is reaped, however many handles are left.
    program: Option<OwnedFd>,
    exit: Option<ChildExit>,
}

impl Shared {
    pub(super) fn new(
        label: String,
        pid: i32,
        shim_pid: i32,
        isolation: Isolation,
        program: OwnedFd,
    ) -> Self {
        Self {
            label,
            pid,
            shim_pid,
            isolation,
            state: Mutex::new(State {
                program: Some(program),
                exit: None,
            }),
            reaped: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and both fields are valid at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_reaped(&self, exit: ChildExit) {
        let mut state = self.state();
        state.program = None;
        state.exit = Some(exit);
        self.reaped.notify_all();
    }
}

/// A running or ended child.
///
/// Handles are cheap to clone and live wherever they are needed. Dropping one does nothing: the
/// child goes on until it ends, is killed, or the supervisor's process ends. Wrap a handle in
/// [`KillOnDrop`] where its owner's end must be the child's.
#[derive(Clone, Debug)]
pub struct ChildHandle(pub(super) Arc<Shared>);

impl ChildHandle {
    /// The label of its spec.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Process id of the program, as the supervisor's pid namespace has it. For people: to signal
    /// the child use [`Self::kill`], which cannot hit a stranger.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Process id of its shim.
    pub fn shim_pid(&self) -> i32 {
        self.0.shim_pid
    }

    /// What the kernel gave it of the namespaces that were wanted.
    pub fn isolation(&self) -> &Isolation {
        &self.0.isolation
    }

    /// Sends a signal to the program. A child that has ended already is no error.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        let state = self.0.state();
        let Some(program) = &state.program else {
            return Ok(());
        };
        let signal = rustix::process::Signal::from_named_raw(signal as i32)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        match rustix::process::pidfd_send_signal(program, signal) {
            // It has ended and is being reaped.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    /// Its exit, once nothing of it is left.
    pub fn exit(&self) -> Option<ChildExit> {
        self.0.state().exit
    }

    /// Nothing of it is left.
    pub fn is_reaped(&self) -> bool {
        self.exit().is_some()
    }

    /// Waits until nothing of the child is left, for at most `timeout`. Blocks the thread; must not
    /// be called from a callback of the spawner.
    pub fn wait_blocking(&self, timeout: Duration) -> Option<ChildExit> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state();
        loop {
            if state.exit.is_some() {
                return state.exit;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self
                .0
                .reaped
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Kills its child with SIGKILL when dropped, without waiting for the end.
#[derive(Debug)]
pub struct KillOnDrop(pub ChildHandle);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill(Signal::SIGKILL) {
            tracing::warn!(child = self.0.label(), %error, "failed to kill child");
        }
    }
}
