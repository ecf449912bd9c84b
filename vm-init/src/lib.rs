//! PID 1 of the guest, as a library with a small `main`.
//!
//! * [`supervision`]: the pure core, a state machine of (state, event) with time as an argument;
//!   [`health`] and [`clock`] are its pure parts.
//! * [`event_loop`]: one thread, one epoll loop over signals, a timer, the virtio-serial ports and
//!   the workload's pipes; it feeds the core and does what the core orders. [`launch`],
//!   [`confinement`], [`output`], [`outbound`] and [`probe`] are its hands. [`exec`] runs commands
//!   beside the workload in the same loop.
//! * [`boot`]: from the kernel's `/init` to a prepared workload: mounts, root overlay, network,
//!   users, cgroup.
//! * [`pid1`] is the guest's entry; [`plain`] runs the same supervision as an ordinary process.
//!
//! May depend on: `iii-proto`. Must never be in it: threads, async runtimes, anything that reads
//! the host's files or that needs glibc's dynamic parts (`getpwnam`, NSS, `dlopen`), since the
//! binary is linked statically.
#![deny(unsafe_code)]

pub mod announce;
pub mod boot;
mod cgroup;
pub mod clock;
pub mod confinement;
pub mod event_loop;
pub mod exec;
pub mod health;
pub mod kernel_log;
pub mod launch;
mod memory;
pub mod outbound;
pub mod output;
pub mod pid1;
pub mod plain;
pub mod probe;
pub mod program;
pub mod supervision;
mod sys;
mod text;

pub use sys::Credentials;

/// Name and version, found in the binary by whoever embeds or ships it.
#[used]
pub static MARKER: &[u8] = concat!("iii-vm-init/", env!("CARGO_PKG_VERSION"), "\0").as_bytes();

/// `uname -r`.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |errno| format!("unknown ({errno})"),
        |name| name.release().to_string_lossy().into_owned(),
    )
}
