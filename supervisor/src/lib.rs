//! What users and embedding programs touch: the workers file, the supervisor, the program
//! `iii-super`.
//!
//! * [`workers_file`]: `iii.workers.yaml`, checked whole, every fault with its place;
//!
//! May depend on everything below it: `actors`, `vmm`, `net`, `vfs`, `firmware`, `image`, `proto`.
//! Must never be in it: how a VM, a network or a file system works; an actix type in the public
//! API; code that runs in the guest.
#![deny(unsafe_code)]

pub mod workers_file;
