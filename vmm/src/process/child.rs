//! A child, as the spawner's thread holds it.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iii_proto::shim::Isolation;
use rustix::process::{Signal, pidfd_send_signal};

use super::error::SpawnError;
use super::handle::{ChildExit, ChildHandle, Shared};
use super::lifecycle::{StartFailure, State};
use super::spawner::{OnExit, OnStart};
use crate::cgroup::Leaf;

/// A caller of `Spawner::spawn` must not wait for ever, say for a program on a network file
/// system that hangs. The ordinary way takes milliseconds.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(20);

/// A child, from the start of its shim to the end of its last process.
pub(super) struct Child {
    pub(super) label: String,
    pub(super) program_path: PathBuf,
    pub(super) shim_path: PathBuf,
    pub(super) state: State,
    pub(super) deadline: Option<Instant>,
    pub(super) socket: Option<OwnedFd>,
    pub(super) shim_pid: i32,
    /// Of the program; known once it has started.
    pub(super) pid: i32,
    pub(super) shim: OwnedFd,
    pub(super) init: Option<OwnedFd>,
    pub(super) program: Option<OwnedFd>,
    pub(super) isolation: Isolation,
    pub(super) shared: Option<Arc<Shared>>,
    pub(super) on_start: Option<OnStart>,
    pub(super) on_exit: Option<OnExit>,
    /// Held, and so not removed, as long as anything of the child is in it.
    pub(super) _cgroup: Option<Arc<Leaf>>,
}

impl Child {
    pub(super) fn announce_start(&mut self) {
        let (Some(program), Some(on_start)) = (&self.program, self.on_start.take()) else {
            return;
        };
        match program.try_clone() {
            Ok(program) => {
                let shared = Arc::new(Shared::new(
                    self.label.clone(),
                    self.pid,
                    self.shim_pid,
                    std::mem::take(&mut self.isolation),
                    program,
                ));
                self.shared = Some(Arc::clone(&shared));
                deliver(&self.label, "on_start", || {
                    on_start(Ok(ChildHandle(shared)))
                });
            }
            Err(source) => {
                // Nobody will ever hold a handle to it, so it must not go on.
                self.kill([self.program.as_ref()]);
                self.on_exit = None;
                deliver(&self.label, "on_start", || {
                    on_start(Err(SpawnError::Shim {
                        label: self.label.clone(),
                        shim: self.shim_path.clone(),
                        source,
                    }));
                });
            }
        }
    }

    pub(super) fn announce_failure(&mut self, failure: StartFailure, exit: ChildExit) {
        let label = self.label.clone();
        let error = match failure {
            StartFailure::Reported { stage, errno } => SpawnError::Start {
                program: self.program_path.clone(),
                stage,
                source: io::Error::from_raw_os_error(errno),
            },
            StartFailure::TimedOut => SpawnError::TimedOut {
                label,
                seconds: START_DEADLINE.as_secs(),
            },
            StartFailure::ShimDied => SpawnError::ShimDied { label, exit },
        };
        if let Some(on_start) = self.on_start.take() {
            deliver(&self.label, "on_start", || on_start(Err(error)));
        }
    }

    pub(super) fn announce_exit(&mut self, exit: ChildExit) {
        if let Some(shared) = &self.shared {
            shared.set_reaped(exit);
        }
        if let Some(on_exit) = self.on_exit.take() {
            deliver(&self.label, "on_exit", || on_exit(exit));
        }
    }

    pub(super) fn kill<'a>(&self, pidfds: impl IntoIterator<Item = Option<&'a OwnedFd>>) {
        for pidfd in pidfds.into_iter().flatten() {
            if let Err(error) = kill(pidfd) {
                tracing::error!(child = self.label, %error, "failed to kill a child's process");
            }
        }
    }
}

/// Runs somebody else's callback: its panic must not end the thread on which every child depends.
pub(super) fn deliver(label: &str, name: &str, callback: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        tracing::error!(
            child = label,
            callback = name,
            "a callback of the spawner panicked"
        );
    }
}

/// SIGKILL; a process that has ended already is no error.
pub(super) fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}
