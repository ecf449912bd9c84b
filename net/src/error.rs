//! What can go wrong when a loop is started.

use std::io;

/// Why a network loop could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Two loops on one descriptor would each get half of the frames.
    #[error(
        "failed to start the network loop: another loop runs on this link; stop or abandon it first"
    )]
    AlreadyRunning,
    /// The configuration cannot work.
    #[error("failed to start the network loop: {0}")]
    Config(String),
    /// A system call failed.
    #[error("failed to {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    pub(crate) fn errno(action: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::Io {
            action,
            source: io::Error::from(errno),
        }
    }
}
