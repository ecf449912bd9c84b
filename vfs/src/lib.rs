//! The guest's files: host directories served over vhost-user-fs.
//!
//! * [`launch`]: for the supervisor: the descriptors and arguments of one `iii-vfs` process.
//!
//! May depend on: `iii-proto`, fuse-backend-rs and the rust-vmm crates. Must never be in it:
//! actors, async runtimes, anything about VMMs beyond the connected stream they are given.
#![deny(unsafe_code)]

pub mod launch;
