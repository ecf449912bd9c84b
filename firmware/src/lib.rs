//! What a VM boots from: the guest kernel, its first program, the archive that carries both.
//!
//! * [`Firmware::locate`] finds libkrunfw (override, embedded, cache, system, download), accepts
//!   it by SHA-256 only, and keeps its kernel in the form that each VMM boots;
//! * [`GuestInit`] is vm-init, embedded by this crate's build script or named by the user;
//! * [`initramfs`] writes the boot medium.
//!
//! May depend on: `iii-proto`. Must never be in it: anything that starts a VM, root filesystems
//! (`iii-image`), an async runtime: every call blocks, and a caller with an event loop makes it
//! from a blocking thread. A start with a warm cache costs a few file-system calls.
#![deny(unsafe_code)]

pub mod digest;
pub mod home;
pub mod initramfs;
pub mod known;
pub mod platform;
pub mod progress;
