//! Why a VM is not entered. Its text is the last line on standard error, which the supervisor shows.

use std::io;
use std::path::PathBuf;

use iii_proto::codec::CodecError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KrunError {
    /// The launch description cannot be had.
    #[error("failed to read the launch description from descriptor {fd}: {source}")]
    Read { fd: i32, source: io::Error },
    /// It is longer than any that iii-super writes.
    #[error("failed to read the launch description: it is longer than {limit} bytes")]
    TooLong { limit: usize },
    /// It is something else, or of another version.
    #[error(
        "failed to read the launch description: {0}; iii-krun and iii-super must be of one build"
    )]
    Decode(#[from] CodecError),
    /// It asks for what no VM can have.
    #[error("failed to launch worker {worker}: {reason}")]
    Invalid { worker: String, reason: String },
    /// A descriptor that it names is not there.
    #[error("failed to take over descriptor {fd} ({what}): {source}")]
    Descriptor {
        fd: i32,
        what: String,
        source: io::Error,
    },
    /// The kernel cannot be read.
    #[error(
        "failed to read the guest kernel {}: {source}; `iii-super firmware fetch` fetches it anew",
        path.display()
    )]
    Kernel { path: PathBuf, source: io::Error },
    /// The kernel is something else.
    #[error(
        "failed to boot {}: it is no kernel that libkrun takes ({expected}); `iii-super firmware \
         fetch` fetches it anew",
        path.display()
    )]
    NotAKernel {
        path: PathBuf,
        expected: &'static str,
    },
    /// libkrun was built without something that every VM needs.
    #[error(
        "failed to use libkrun: it was built without {feature}; build it with BLK=1 NET=1, or \
         build iii-krun without the feature system-libkrun"
    )]
    Feature { feature: &'static str },
    /// libkrun refuses a call.
    #[error("failed to {action}: {call} answered {source}")]
    Call {
        action: String,
        call: &'static str,
        source: io::Error,
    },
}
