//! What the host and the guest both speak.
//!
//! * [`guest`]: the [`GuestSpec`](guest::GuestSpec) that tells `vm-init` what to become;
//! * [`control`]: messages on the control port; [`log`]: frames on the log port; [`exec`]: sessions
//!   on the exec port, and their flow control;
//! * [`vfs`]: what the supervisor and the helper `iii-vfs` say to each other;
//! * [`shim`]: what the supervisor and the helper `iii-shim` say to each other; [`krun`]: what the
//!   launcher `iii-krun` is told;
//! * [`codec`]: the only place that knows the wire format (bincode behind a length prefix);
//! * [`restart`]: the restart policy and its tracker, used by vm-init for the workload, by the
//!   supervisor for the VM and by the supervision tree for actors.
//!
//! May depend on: nothing of the project. Must never be in it: I/O, clocks, randomness, threads.
//! Time and entropy are arguments.
//!
//! Everything that arrives from a guest is decoded under a length bound ([`codec::MAX_FRAME`]) and
//! can fail, but never panics.
#![deny(unsafe_code)]

pub mod codec;
pub mod control;
pub mod exec;
pub mod guest;
pub mod ids;
pub mod krun;
pub mod log;
pub mod restart;
pub mod shim;
pub mod vfs;

/// Version of everything on the control, log and exec ports. `Hello` carries it; a host refuses a
/// guest of another version, since init and supervisor are built together.
pub const PROTOCOL_VERSION: u32 = 5;

/// Name of the virtio-serial port that carries [`control`] frames.
pub const CONTROL_PORT: &str = "iii.control";
/// Name of the virtio-serial port that carries [`log`] frames.
pub const LOG_PORT: &str = "iii.log";
/// Name of the virtio-serial port that carries multiplexed exec sessions.
pub const EXEC_PORT: &str = "iii.exec";

/// The word of the kernel's command line that names the device of each port as
/// `name:device,name:device`, such as `iii.control:vport0p1`. The kernel hands words that it does
/// not know to its first process, in the environment.
pub const PORTS_VARIABLE: &str = "III_PORTS";

/// Where the boot medium (initramfs or boot export) holds the encoded [`guest::GuestSpec`].
pub const GUEST_SPEC_PATH: &str = "/iii/spec";
/// Where the boot medium holds the generated part of the root (`/etc` and friends): an EROFS image,
/// the lowest layer of the root's overlay.
pub const SKELETON_PATH: &str = "/iii/skeleton";

/// The text by which a helper binary is recognised without being run. A helper holds it as
/// `#[used] static MARKER: &str = iii_proto::helper_marker!("iii-shim");`, and prints what is
/// behind the first colon for `--version`.
#[macro_export]
macro_rules! helper_marker {
    ($name:literal) => {
        concat!("iii-helper:", $name, ":", env!("CARGO_PKG_VERSION"), ";")
    };
}
