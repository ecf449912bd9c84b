//! The shim's only unsafe code. The shim has one thread from its start to its end: that is what
//! makes `fork` followed by ordinary code sound here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Creates a process.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has a single thread (nothing in this binary starts another), so that no
    // lock of the allocator or of the standard library can be held by a thread that is missing in
    // the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Fork::Child),
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}

/// Ends the process without running destructors, which belong to the process that was forked.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit touches no memory of ours and does not return.
    unsafe { libc::_exit(code) }
}

/// SIGKILL for us when the thread that has forked us ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// Marks a descriptor as not to be seen by an executed program.
pub(crate) fn keep_from_children(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?)
}

/// Gives up descriptor 0, which nobody else in this process uses.
pub(crate) fn close_stdin() {
    // SAFETY: the init owns its copy of the descriptor table; the only user of descriptor 0 in it
    // is the report to the supervisor, which has been sent. Nothing is opened afterwards that could
    // be mistaken for it: the init reads /proc files at most, through owners of their own.
    unsafe { libc::close(0) };
}

/// Default action for every signal: ignored ones are inherited through exec.
pub(crate) fn reset_signal_actions() -> io::Result<()> {
    // The kernel's `struct sigaction` with SIG_DFL, no flags and an empty mask is all zeros on every
    // architecture, and at most this long. libc's wrapper refuses the two signals that it keeps for
    // itself, which can be inherited as ignored like any other.
    let default = [0u64; 8];
    let mask_bytes = size_of::<u64>();
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel reads a sigaction from `default`, which outlives the call and is at
        // least as long, and writes nothing. The default action runs no code of this process.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                old,
                mask_bytes,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends this process by a signal, without a core dump: the core would be the shim's.
pub(crate) fn die_of(number: i32) -> ! {
    let ours = set_limit(libc::RLIMIT_CORE, 0, 0)
        .and_then(|()| nix::sys::prctl::set_dumpable(false).map_err(io::Error::from));
    if ours.is_ok()
        && let Ok(signal) = Signal::try_from(number)
    {
        let mut set = SigSet::empty();
        set.add(signal);
        // Its action is the default one since the start. Blocked it becomes pending, and is
        // delivered before the unblocking returns.
        nix::sys::signal::raise(signal)
            .and_then(|()| set.thread_unblock())
            .unwrap_or_default();
    }
    // As a shell reports it.
    exit(128 + number)
}

/// Sets a resource limit of this process.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is valid for the call, which only reads it; an unknown resource is EINVAL.
    match unsafe { libc::setrlimit(resource as _, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts each descriptor under its number, `/dev/null` under 0 to 2 where nothing else goes there,
/// and closes all others but `spare`, which is returned under whatever number it then has. Called
/// in the process that is about to execute the program, which owns its descriptor table alone.
pub(crate) fn place_descriptors(
    wanted: Vec<(OwnedFd, RawFd)>,
    spare: OwnedFd,
) -> Result<OwnedFd, (io::Error, OwnedFd)> {
    let highest = wanted
        .iter()
        .map(|(_, target)| *target)
        .max()
        .unwrap_or(0)
        .max(2);
    let clear = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, highest.saturating_add(1));
    let moved = match clear(&spare) {
        Ok(moved) => moved,
        Err(error) => return Err((error.into(), spare)),
    };
    drop(spare);
    let spare = moved;
    match place(wanted, &clear, spare.as_raw_fd()) {
        Ok(()) => Ok(spare),
        Err(error) => Err((error, spare)),
    }
}

fn place(
    wanted: Vec<(OwnedFd, RawFd)>,
    clear: &dyn Fn(&OwnedFd) -> rustix::io::Result<OwnedFd>,
    spare: RawFd,
) -> io::Result<()> {
    let mut moved = Vec::new();
    for (fd, target) in wanted {
        moved.push((clear(&fd)?, target));
    }
    let null = clear(
        &std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?
            .into(),
    )?;
    let mut keep = vec![0, 1, 2, spare];
    for standard in 0..=2 {
        duplicate(&null, standard)?;
    }
    for (fd, target) in &moved {
        duplicate(fd, *target)?;
        keep.push(*target);
    }
    drop((moved, null));
    close_others(keep)
}

fn duplicate(fd: &OwnedFd, target: RawFd) -> io::Result<()> {
    // SAFETY: what was open under `target` is closed, and must belong to nobody who goes on using
    // it: this process was forked to execute a program, all descriptors it still uses have been
    // moved above the highest target by `place_descriptors`, and it drops no owner of a lower
    // number before it executes or ends by `exit`, which runs no destructors.
    match unsafe { libc::dup2(fd.as_raw_fd(), target) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives a mount these attributes (`MOUNT_ATTR_*`) on top of its own, with all mounts below it if
/// `recursive` (mount_setattr(2)).
pub(crate) fn restrict_mount(
    directory: BorrowedFd<'_>,
    path: &str,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    /// The kernel's `struct mount_attr`.
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = MountAttributes {
        set: attributes,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let path = std::ffi::CString::new(path)?;
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path and attributes are valid for the call, which only reads them, the latter at the
    // length that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            size_of::<MountAttributes>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor that is not in `keep`.
fn close_others(mut keep: Vec<RawFd>) -> io::Result<()> {
    keep.sort_unstable();
    keep.dedup();
    let mut first = 0u32;
    for kept in keep {
        let Ok(kept) = u32::try_from(kept) else {
            continue;
        };
        if first < kept {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: as in `duplicate`: nobody in this process goes on using what is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Linux before 5.9.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd: &RawFd| u32::try_from(*fd).is_ok_and(|fd| (first..=last).contains(&fd)))
        .collect();
    for fd in open {
        // SAFETY: as above. The directory's own descriptor is closed already: EBADF is no harm.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
