//! The guest's files: host directories served over vhost-user-fs.
//!
//! * [`launch`]: for the supervisor: the descriptors and arguments of one `iii-vfs` process.
//! * [`process`]: the life of that process; [`hardening`], [`landlock`](mod@landlock) and
//!   [`seccomp`]: what it gives up before it serves.
//! * [`device`]: one vhost-user-fs device per export, two queues, two threads.
//! * [`export`]: one directory behind the rules (read-only, ownership, names, set-id bits, device
//!   nodes, extended attributes), around fuse-backend-rs' PassthroughFs; [`checks`] and
//!   [`ownership`] hold the rules as pure functions, [`budget`] counts what the guest holds.
//!
//! May depend on: `iii-proto`, fuse-backend-rs and the rust-vmm crates. Must never be in it:
//! actors, async runtimes, anything about VMMs beyond the connected stream they are given.
#![deny(unsafe_code)]

pub mod budget;
pub mod checks;
pub mod device;
pub mod events;
pub mod export;
pub mod hardening;
pub mod landlock;
pub mod launch;
pub mod ownership;
pub mod process;
pub mod seccomp;
pub mod sys;
