//! libkrun's C API, as far as it is used, and the only unsafe code of the program.
//!
//! Both sources of libkrun have the same names and types, so one set of calls fits both. They differ
//! in which of the functions they declare `unsafe`.
#![allow(unsafe_code)]
#![allow(
    unused_unsafe,
    reason = "the built-in libkrun declares some of its calls safe"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

#[cfg(not(feature = "system-libkrun"))]
use krun as api;
#[cfg(feature = "system-libkrun")]
use krun_sys as api;

#[cfg(not(any(feature = "bundled-libkrun", feature = "system-libkrun")))]
compile_error!("iii-krun needs one of the features bundled-libkrun and system-libkrun");

/// Version of libkrun that was linked.
#[cfg(not(feature = "system-libkrun"))]
pub(crate) const VERSION: &str = "1.19.7";
#[cfg(feature = "system-libkrun")]
pub(crate) const VERSION: &str = env!("III_LIBKRUN_VERSION");

/// Where it came from.
pub(crate) const ORIGIN: &str = if cfg!(feature = "system-libkrun") {
    "of the system"
} else {
    "built in"
};

/// `KRUN_LOG_TARGET_DEFAULT`: standard error.
const LOG_TO_STDERR: i32 = -1;
/// `KRUN_LOG_LEVEL_WARN`.
const LOG_WARNINGS: u32 = 2;
/// `KRUN_LOG_STYLE_NEVER`.
const LOG_WITHOUT_COLOURS: u32 = 2;
/// `KRUN_LOG_OPTION_NO_ENV`.
const LOG_WITHOUT_ENVIRONMENT: u32 = 1;
/// `KRUN_KERNEL_FORMAT_ELF` and `_RAW`.
const KERNEL_FORMAT: u32 = if cfg!(target_arch = "aarch64") { 0 } else { 1 };
/// `KRUN_DISK_FORMAT_RAW`.
const DISK_RAW: u32 = 0;
/// `KRUN_SYNC_FULL`: a guest's flush reaches the host's disk.
const SYNC_FULL: u32 = 2;
/// No window for DAX: pages come over the queue.
const NO_WINDOW: u64 = 0;
/// Semantics of permissions: as Linux has them.
const LINUX_PERMISSIONS: u32 = 0;
/// VIRTIO_NET_F_GUEST_CSUM, _GUEST_TSO4 and _GUEST_TSO6 (virtio 1.1 §5.1.3). libkrun has no way to
/// tell a guest an MTU beyond 1500. Linux gives its receive queue buffers of 64 KiB if the host may
/// send segments as large, and only then do frames of our MTU fit. The features of the other
/// direction must stay off: libkrun drops the header in which a guest would leave us a checksum to
/// be filled in or a segment to be cut.
const LARGE_FRAMES: u32 = 1 << 1 | 1 << 7 | 1 << 8;

/// A call that libkrun has refused.
#[derive(Debug)]
pub(crate) struct CallError {
    pub(crate) call: &'static str,
    pub(crate) source: io::Error,
}

/// Zero or a positive number is success, a negative one an errno.
fn answer(call: &'static str, value: i32) -> Result<u32, CallError> {
    u32::try_from(value).map_err(|_| CallError {
        call,
        source: io::Error::from_raw_os_error(value.saturating_neg()),
    })
}

/// What libkrun can be built without.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Feature {
    /// `KRUN_FEATURE_NET`.
    Net = 0,
    /// `KRUN_FEATURE_BLK`.
    Blk = 1,
}

/// Whether this libkrun was built with it.
pub(crate) fn has_feature(feature: Feature) -> bool {
    // SAFETY: the call takes a number and touches no memory of ours.
    unsafe { api::krun_has_feature(feature as u64) == 1 }
}

/// Warnings and errors of libkrun go to standard error, whatever the environment says.
pub(crate) fn init_log() -> Result<(), CallError> {
    // SAFETY: the call takes numbers; no descriptor changes hands with LOG_TO_STDERR.
    let value = unsafe {
        api::krun_init_log(
            LOG_TO_STDERR,
            LOG_WARNINGS,
            LOG_WITHOUT_COLOURS,
            LOG_WITHOUT_ENVIRONMENT,
        )
    };
    answer("krun_init_log", value).map(drop)
}

/// A VM under construction.
#[derive(Debug)]
pub(crate) struct Context(u32);

// SAFETY of the calls below: every pointer is to a NUL-terminated string or to an array of the length
// that the API names, and lives until the call returns; libkrun copies what it keeps. A number that
// is no context of libkrun's is answered by an error. Descriptors are numbers to libkrun, which it
// duplicates or takes over; `machine` keeps its own open for as long as the process lives.
impl Context {
    pub(crate) fn create() -> Result<Self, CallError> {
        // SAFETY: the call takes nothing.
        answer("krun_create_ctx", unsafe { api::krun_create_ctx() }).map(Self)
    }

    pub(crate) fn set_vm_config(&self, cpus: u8, memory_mib: u32) -> Result<(), CallError> {
        // SAFETY: see above; numbers only.
        let value = unsafe { api::krun_set_vm_config(self.0, cpus, memory_mib) };
        answer("krun_set_vm_config", value).map(drop)
    }

    pub(crate) fn disable_implicit_init(&self) -> Result<(), CallError> {
        // SAFETY: see above; numbers only.
        let value = unsafe { api::krun_disable_implicit_init(self.0) };
        answer("krun_disable_implicit_init", value).map(drop)
    }

    pub(crate) fn disable_implicit_vsock(&self) -> Result<(), CallError> {
        // SAFETY: see above; numbers only.
        let value = unsafe { api::krun_disable_implicit_vsock(self.0) };
        answer("krun_disable_implicit_vsock", value).map(drop)
    }

    pub(crate) fn set_kernel(
        &self,
        kernel: &CStr,
        initramfs: &CStr,
        command_line: &CStr,
    ) -> Result<(), CallError> {
        // SAFETY: see above.
        let value = unsafe {
            api::krun_set_kernel(
                self.0,
                kernel.as_ptr(),
                KERNEL_FORMAT,
                initramfs.as_ptr(),
                command_line.as_ptr(),
            )
        };
        answer("krun_set_kernel", value).map(drop)
    }

    pub(crate) fn set_console_output(&self, path: &CStr) -> Result<(), CallError> {
        // SAFETY: see above.
        let value = unsafe { api::krun_set_console_output(self.0, path.as_ptr()) };
        answer("krun_set_console_output", value).map(drop)
    }

    /// A device that ports are added to; answers with its number.
    pub(crate) fn add_ports_device(&self) -> Result<u32, CallError> {
        // SAFETY: see above; numbers only.
        let value = unsafe { api::krun_add_virtio_console_multiport(self.0) };
        answer("krun_add_virtio_console_multiport", value)
    }

    pub(crate) fn add_port(&self, device: u32, name: &CStr, fd: RawFd) -> Result<(), CallError> {
        // SAFETY: see above; libkrun duplicates the descriptor for each direction.
        let value =
            unsafe { api::krun_add_console_port_inout(self.0, device, name.as_ptr(), fd, fd) };
        answer("krun_add_console_port_inout", value).map(drop)
    }

    pub(crate) fn add_export(
        &self,
        tag: &CStr,
        path: &CStr,
        read_only: bool,
    ) -> Result<(), CallError> {
        // SAFETY: see above.
        let value = unsafe {
            api::krun_add_virtiofs4(
                self.0,
                tag.as_ptr(),
                path.as_ptr(),
                NO_WINDOW,
                read_only,
                LINUX_PERMISSIONS,
            )
        };
        answer("krun_add_virtiofs4", value).map(drop)
    }

    pub(crate) fn add_disk(
        &self,
        serial: &CStr,
        path: &CStr,
        read_only: bool,
    ) -> Result<(), CallError> {
        let direct_io = false;
        // SAFETY: see above.
        let value = unsafe {
            api::krun_add_disk3(
                self.0,
                serial.as_ptr(),
                path.as_ptr(),
                DISK_RAW,
                read_only,
                direct_io,
                SYNC_FULL,
            )
        };
        answer("krun_add_disk3", value).map(drop)
    }

    pub(crate) fn add_datagram_network(
        &self,
        fd: RawFd,
        mut mac: [u8; 6],
    ) -> Result<(), CallError> {
        // SAFETY: see above; the address is an array of six bytes, as the API asks, and is not
        // changed. The null path says that the descriptor is meant.
        let value = unsafe {
            api::krun_add_net_unixgram(
                self.0,
                std::ptr::null(),
                fd,
                mac.as_mut_ptr(),
                LARGE_FRAMES,
                0,
            )
        };
        answer("krun_add_net_unixgram", value).map(drop)
    }

    pub(crate) fn add_stream_network(&self, fd: RawFd, mut mac: [u8; 6]) -> Result<(), CallError> {
        // SAFETY: as for datagrams.
        let value = unsafe {
            api::krun_add_net_unixstream(
                self.0,
                std::ptr::null(),
                fd,
                mac.as_mut_ptr(),
                LARGE_FRAMES,
                0,
            )
        };
        answer("krun_add_net_unixstream", value).map(drop)
    }

    /// Enters the VM; comes back only if that has failed.
    pub(crate) fn enter(self) -> CallError {
        const CALL: &str = "krun_start_enter";
        // SAFETY: see above; numbers only. libkrun ends the process by `_exit`, so nothing that
        // this process holds is dropped, and nothing needs to be.
        let value = unsafe { api::krun_start_enter(self.0) };
        match answer(CALL, value) {
            Err(error) => error,
            Ok(value) => CallError {
                call: CALL,
                source: io::Error::other(format!("{value} and came back")),
            },
        }
    }
}

/// How frames are told apart on a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketKind {
    Datagram,
    Stream,
}

/// What kind of socket a descriptor is.
pub(crate) fn socket_kind(fd: RawFd) -> io::Result<SocketKind> {
    let mut kind: libc::c_int = 0;
    let mut length = size_of_val(&kind) as libc::socklen_t;
    // SAFETY: both pointers are to variables of the types that SO_TYPE asks for; a number that is no
    // open socket is answered by an error.
    let failed = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    match kind {
        libc::SOCK_DGRAM => Ok(SocketKind::Datagram),
        libc::SOCK_STREAM => Ok(SocketKind::Stream),
        other => Err(io::Error::other(format!(
            "a socket of kind {other} carries no frames"
        ))),
    }
}

/// Takes over an inherited descriptor. `launch` names each number once, and this is the first that
/// the program does, so nothing else in it owns one.
pub(crate) fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and answers with an error for a number that is not open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen, and nobody else owns it, as is said above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
