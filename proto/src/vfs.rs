//! What the supervisor and the helper `iii-vfs` say to each other: a configuration in a sealed
//! descriptor at start, then events from the helper on a stream socket.

use std::path::PathBuf;

use bincode::{Decode, Encode};

/// What one `iii-vfs` process serves.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VfsConfig {
    /// The worker's name, for logs.
    pub worker: String,
    /// One device each.
    pub exports: Vec<VfsExport>,
}

/// One host directory shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VfsExport {
    /// The virtio-fs tag that the guest mounts.
    pub tag: String,
    /// The host directory, absolute.
    pub path: PathBuf,
    /// Every change answers EROFS.
    pub read_only: bool,
    /// The uid and gid as which the server's own files appear in the guest (the workload's).
    pub guest_uid: u32,
    /// See `guest_uid`.
    pub guest_gid: u32,
    /// The inherited descriptor of a listening vhost-user socket; exactly one connection is
    /// accepted on it.
    pub listener_fd: i32,
    /// The guest may cache without asking again: for trees that do not change under it (`/usr`).
    pub immutable: bool,
    /// The guest asks for every name and attribute each time: what the host changes is seen at once.
    /// Otherwise, unless it is immutable, within a second.
    pub live: bool,
}

/// From `iii-vfs` to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum VfsEvent {
    /// All exports listen; the VMM may be started.
    Serving {
        /// RLIMIT_NOFILE in force.
        descriptor_limit: u64,
    },
    /// The guest knows so many inodes that it should drop its caches.
    InodePressure {
        /// Inodes that the guest holds, all exports together.
        inodes: u64,
        /// The hard cap.
        cap: u64,
    },
    /// The hard cap was reached: the guest got ENFILE.
    InodesExhausted {
        /// How often since the start.
        refused: u64,
    },
    /// Hostile or broken requests were refused; logged once per kind, counted here.
    Refused {
        /// What kind, a fixed word.
        kind: String,
        /// How often since the start.
        count: u64,
    },
    /// The server cannot go on and ends.
    Fatal {
        /// The cause, for the user.
        message: String,
    },
}
