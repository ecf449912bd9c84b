//! Why a child could not be spawned.

use std::io;
use std::path::PathBuf;

use iii_proto::codec::CodecError;
use iii_proto::shim::{EXIT_NOT_UNDERSTOOD, ShimStage};

use crate::helpers::HelperError;

use super::handle::ChildExit;

/// Why a child could not be spawned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// `iii-shim` is missing or of another build.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The spawner's thread could not be started, or has ended with the process.
    #[error("failed to reach the spawner thread: {0}")]
    Thread(io::Error),
    /// [`super::Spawner::spawn`] was called from one of the spawner's own callbacks, where it would
    /// wait for itself.
    #[error(
        "failed to spawn {label}: a callback of the spawner cannot wait for it; use spawn_with"
    )]
    WouldDeadlock {
        /// The child's label.
        label: String,
    },
    /// The spec cannot be carried out.
    #[error("failed to spawn {label}: {reason}")]
    Invalid {
        /// The child's label.
        label: String,
        /// What is wrong with the spec.
        reason: String,
    },
    /// The request cannot be encoded.
    #[error("failed to encode the request for {label}: {source}")]
    Encode {
        /// The child's label.
        label: String,
        /// The cause.
        source: CodecError,
    },
    /// The shim could not be started or spoken to.
    #[error("failed to start the shim {shim} of {label}: {source}", shim = shim.display())]
    Shim {
        /// The child's label.
        label: String,
        /// The shim's path.
        shim: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The shim could not start the program.
    #[error("failed to {stage} {program}: {source}", program = program.display())]
    Start {
        /// The program's path.
        program: PathBuf,
        /// What was being done.
        stage: ShimStage,
        /// The cause.
        source: io::Error,
    },
    /// The shim ended before the program ran.
    #[error(
        "failed to spawn {label}: its shim ended with {exit} before the program was executed{}",
        remedy(*exit)
    )]
    ShimDied {
        /// The child's label.
        label: String,
        /// How the shim ended.
        exit: ChildExit,
    },
    /// The program was not executed in time; the attempt was killed.
    #[error("failed to spawn {label}: the program was not executed within {seconds} s")]
    TimedOut {
        /// The child's label.
        label: String,
        /// The bound.
        seconds: u64,
    },
}

fn remedy(exit: ChildExit) -> &'static str {
    match exit {
        ChildExit::Code(code) if code == i32::from(EXIT_NOT_UNDERSTOOD) => {
            "; iii-shim and this program are of different builds: install or build them together"
        }
        ChildExit::Code(_) | ChildExit::Signal(_) | ChildExit::Unknown => "",
    }
}

impl SpawnError {
    /// The kernel's error number, where the kernel refused something.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Start { source, .. } | Self::Shim { source, .. } | Self::Thread(source) => {
                source.raw_os_error()
            }
            Self::Helper(_)
            | Self::WouldDeadlock { .. }
            | Self::Invalid { .. }
            | Self::Encode { .. }
            | Self::ShimDied { .. }
            | Self::TimedOut { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_does_not_understand_is_told_with_what_to_do() {
        let of = |exit| {
            let label = "web/qemu".to_owned();
            SpawnError::ShimDied { label, exit }.to_string()
        };
        assert!(of(ChildExit::Code(64)).ends_with("install or build them together"));
        assert!(of(ChildExit::Code(1)).ends_with("before the program was executed"));
    }
}
