//! Root filesystems: what a worker's guest sees as its `/`.
//!
//! The host's own toolchain:
//! * [`HostRoot`] is `/usr` as a read-only export, and a [`skeleton`] of generated and copied files
//!   around it, which travels in the boot medium;
//! * [`command`] finds out, before a VM is started, what a worker's command will be in the guest.
//!   Nothing of the host but `/usr` and the listed parts of `/etc` gets into a guest: no user names,
//!   no `/home`, `/root` or `/var`, no private keys, nothing that is not world-readable.
//!
//! OCI images, from what others say to a file that a VM gets as a disk:
//! * [`oci`] knows names, digests and documents; [`registry`] asks for them; [`pull`] gets what is
//!   missing, [`import`] takes it from files; [`store`] keeps it;
//! * [`mod@tar`] and [`layers`] read archives and merge them, [`erofs`] writes and reads the result;
//! * [`image_root`] is an image on this host, and how it wants to be run.
//!
//! May depend on: `iii-proto`. Must never be in it: kernels and boot media (`iii-firmware`),
//! anything that serves files to a guest (`iii-vfs`), an async runtime, and any way from a byte of
//! an image to a name on the host's file system.
#![deny(unsafe_code)]

pub mod command;
pub mod erofs;
mod etc;
mod generated;
pub mod host_root;
pub mod image_root;
pub mod import;
pub mod layers;
pub mod oci;
mod paths;
pub mod progress;
pub mod pull;
pub mod registry;
pub mod skeleton;
pub mod store;
pub mod tar;
#[cfg(test)]
mod testing;

pub use command::{CommandError, CommandLookup, MountView, ResolvedCommand};
pub use image_root::Image;
pub use import::Importer;
pub use progress::Progress;
pub use pull::{PullError, PullPolicy, Puller};
pub use store::ImageStore;

pub use host_root::{HostRoot, HostRootError, RootExport};
pub use skeleton::{EntryKind, Owner, SkeletonEntry};
