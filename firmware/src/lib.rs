//! What a VM boots from: the guest kernel, its first program, the archive that carries both.
//!
//! * [`Firmware::locate`] finds libkrunfw (`III_LIBKRUNFW_PATH`, embedded, `~/.iii/lib`, the
//!   system's library directories, download), accepts it by SHA-256 only ([`known`]), and keeps
//!   its kernel in the form that a VMM boots; [`FirmwareStatus::of`] says what is where;
//! * [`GuestInit`] is vm-init, embedded by this crate's build script or named by `III_INIT_PATH`;
//!   guests of another architecture than the host's have files of their own
//!   ([`FirmwareOptions::for_guests`]);
//! * [`initramfs`] writes the boot medium; [`home`] is `~/.iii`, or what `III_HOME` names;
//! * [`Embedded`] is a file that travels inside an executable, [`Programs`] are such files laid where
//!   they can be executed; [`platform`] says what each host has.
//!
//! May depend on: `iii-proto`. Must never be in it: anything that starts a VM, root filesystems
//! (`iii-image`), an async runtime: every call blocks, and a caller with an event loop makes it
//! from a blocking thread. A start with a warm cache costs a few file-system calls.
#![deny(unsafe_code)]

pub mod digest;
mod download;
mod embedded;
pub mod guest_init;
pub mod home;
pub mod initramfs;
mod install;
mod kernel;
pub mod known;
mod locate;
pub mod options;
pub mod platform;
mod programs;
pub mod progress;
mod verified;

pub use download::{DownloadError, FetchError};
pub use embedded::Embedded;
pub use guest_init::{GuestInit, INIT_MARKER, INIT_VERSION, InitError};
pub use install::InstallError;
pub use kernel::{Kernel, KernelError, KernelFormat};
pub use locate::{Finding, Firmware, FirmwareError, FirmwareStatus, Look, Source};
pub use options::FirmwareOptions;
pub use programs::{ProgramError, Programs};
pub use progress::Progress;
