//! Frames on the log port: what the workload wrote, and when.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::ids::GuestPid;

/// Most bytes of output in one frame; a guest's larger read is cut.
pub const MAX_CHUNK: usize = 32 * 1024;

/// Which of the workload's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// A piece of output as it was read, not cut into lines.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LogFrame {
    /// Counts up from 1 within a boot. The host acknowledges it on the control port
    /// ([`crate::control::HostMessage::LogAck`]), since what a closed port had not read is lost.
    pub seq: u64,
    /// The main process of the workload's life that wrote it.
    pub pid: GuestPid,
    /// Which output.
    pub stream: Stream,
    /// Guest wall clock, nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// The bytes, at most [`MAX_CHUNK`].
    pub bytes: Vec<u8>,
    /// This life of the workload will write no more on this stream.
    pub end: bool,
}
