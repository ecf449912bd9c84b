//! The Linux calls that have no safe wrapper, each behind a safe function.
#![allow(unsafe_code)]

pub(crate) mod terminal;

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

pub(crate) mod interface;
mod spawn;

pub(crate) use spawn::{ChildPlan, ChildStack, ChildStep, StepFailure, spawn};

/// Slews the wall clock by this many microseconds (adjtime(3)).
pub(crate) fn slew_clock(microseconds: i64) -> nix::Result<()> {
    let delta = libc::timeval {
        tv_sec: microseconds.div_euclid(1_000_000),
        tv_usec: microseconds.rem_euclid(1_000_000),
    };
    // SAFETY: `delta` is a valid timeval for the length of the call, and a null second argument is
    // allowed (adjtime(3)).
    Errno::result(unsafe { libc::adjtime(&delta, std::ptr::null_mut()) }).map(drop)
}

/// Mixes `seed` into the kernel's entropy pool and credits it (random(4), RNDADDENTROPY).
pub(crate) fn credit_entropy(random: &OwnedFd, seed: &[u8; 32]) -> nix::Result<()> {
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: i32,
        buf_size: i32,
        buf: [u8; 32],
    }
    /// `_IOW('R', 3, int[2])`.
    const RNDADDENTROPY: u32 = 0x4008_5203;
    let info = RandPoolInfo {
        entropy_count: 256,
        buf_size: 32,
        buf: *seed,
    };
    // SAFETY: RNDADDENTROPY reads a `struct rand_pool_info` and `buf_size` bytes behind it; `info`
    // has that layout and holds that many bytes, and lives through the call.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const info) })
        .map(drop)
}

/// Makes the mounted ext4 file system of `directory` this many blocks large (ext4's online resize).
pub(crate) fn resize_ext4(directory: &OwnedFd, blocks: u64) -> nix::Result<()> {
    /// `_IOW('f', 16, __u64)`.
    const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;
    // SAFETY: EXT4_IOC_RESIZE_FS reads a u64, which lives through the call; on a directory of
    // another file system it is ENOTTY.
    Errno::result(unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            EXT4_IOC_RESIZE_FS as _,
            &raw const blocks,
        )
    })
    .map(drop)
}

/// How a process is scheduled (sched(7)).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheduling {
    /// PID 1's: the next to run, but not in the middle of another's time slice (SCHED_BATCH at the
    /// highest nice value).
    Supervisor,
    /// As the kernel starts its first process: SCHED_OTHER, nice 0.
    Ordinary,
}

/// Schedules the calling process so. Makes one system call and touches no memory but its own stack.
pub(crate) fn schedule_self(scheduling: Scheduling) -> nix::Result<()> {
    /// `struct sched_attr`, version 0 (sched_setattr(2)).
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let (policy, nice) = match scheduling {
        Scheduling::Supervisor => (libc::SCHED_BATCH, -20),
        Scheduling::Ordinary => (libc::SCHED_OTHER, 0),
    };
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: policy as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: 0,
        deadline: 0,
        period: 0,
    };
    // SAFETY: sched_setattr(2) reads a `struct sched_attr` of the size that it names, which lives
    // through the call; 0 is the calling process.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(result).map(drop)
}

/// Sends any signal number, real-time ones included. Refuses the pids with which kill(2) means
/// something else than one process or one group.
pub(crate) fn kill(pid: i32, group: bool, signal: i32) -> nix::Result<()> {
    if pid <= 1 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: kill takes plain numbers.
    Errno::result(unsafe { libc::kill(if group { -pid } else { pid }, signal) }).map(drop)
}

/// Reaps one ended child, if there is one: its pid and raw wait status.
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is valid for a write for the length of the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Takes over a descriptor that this process inherited under a number it was told.
pub(crate) fn inherited_descriptor(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: F_SETFD takes plain numbers; a number that names no descriptor is EBADF.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, as the call above proved. The caller (`plain`, once per
    // number and before it opens anything else) is the only one to take it over.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Strings as execve(2) takes them: pointers to them, then a null pointer.
pub(crate) struct CStringArray {
    // Keeps alive what `pointers` points to; CString's buffer does not move with it.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self {
            _strings: strings,
            pointers,
        }
    }
}

/// As whom a child runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id, real, effective and saved.
    pub uid: u32,
    /// Group id, likewise.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Has a child do what may take the kernel long, or for ever: it holds none of our descriptors
/// meanwhile.
pub(crate) fn in_child(work: impl FnOnce()) -> nix::Result<Pid> {
    // SAFETY: this process has a single thread, so no lock is held by another in the child's copy
    // of it, and the child may run any code; it ends without going back.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: close_range takes plain numbers; nothing in the child uses a descriptor above 2
        // after this that it has not opened itself. `_exit` runs no destructors of the parent's.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: see above.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    Ok(Pid::from_raw(pid))
}

/// Has a child write `text` to the file at `path`: for writes that take the kernel long.
pub(crate) fn write_in_child(path: &CStr, text: &[u8]) -> nix::Result<Pid> {
    // SAFETY: this process has one thread, so that no lock is held in the child's copy of memory;
    // the child makes three system calls on memory that lives in that copy, and ends.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: see above.
        unsafe {
            let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            let written = libc::write(file, text.as_ptr().cast(), text.len());
            libc::_exit(i32::from(written < 0));
        }
    }
    Ok(Pid::from_raw(pid))
}
