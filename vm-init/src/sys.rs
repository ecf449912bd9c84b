//! The Linux calls that have no safe wrapper, each behind a safe function.
#![allow(unsafe_code)]

pub(crate) mod terminal;

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

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

/// Sets this process's own nice value.
pub(crate) fn set_own_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: setpriority takes plain numbers; 0 is the calling process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Makes this process one that does not take the CPU from who wakes it (SCHED_BATCH, sched(7)).
/// Its children are ordinary ones.
pub(crate) fn set_own_batch() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    let policy = libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler reads a sched_param, which lives through the call; 0 is the
    // calling process.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
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

/// Signals the process group that the child `pid` leads, or is about to: between its fork and its
/// setsid(2) it leads none yet, and a signal to the group would be lost.
pub(crate) fn kill_group_of(pid: i32, signal: i32) -> nix::Result<()> {
    match kill(pid, true, signal) {
        Err(Errno::ESRCH) if is_child(pid) => kill(pid, false, signal),
        result => result,
    }
}

/// Whether `pid` is a child of ours that is not reaped yet, so that its number is no other's.
fn is_child(pid: i32) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid)), flags).is_ok()
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

/// Which of a child's steps failed; the number is what travels over the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ChildStep {
    Session = 1,
    Descriptors,
    Terminal,
    Priority,
    Limits,
    Credentials,
    Directory,
    Execute,
}

impl ChildStep {
    /// The inverse of `as u8`.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Session,
            Self::Descriptors,
            Self::Terminal,
            Self::Priority,
            Self::Limits,
            Self::Credentials,
            Self::Directory,
            Self::Execute,
        ]
        .into_iter()
        .find(|step| *step as u8 == byte)
    }
}

/// Everything a child needs between fork and execve, prepared so that it allocates nothing.
pub(crate) struct ChildPlan<'a> {
    pub(crate) path: &'a CStr,
    pub(crate) argv: &'a CStringArray,
    pub(crate) env: &'a CStringArray,
    pub(crate) cwd: &'a CStr,
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// The three are a terminal, which becomes the controlling one of the child's session.
    pub(crate) terminal: bool,
    /// Close-on-exec; one byte [`ChildStep`] and four bytes errno if a step fails.
    pub(crate) report: BorrowedFd<'a>,
    /// Born into this cgroup (clone3, CLONE_INTO_CGROUP).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) open_files: Option<u64>,
    /// Undo PID 1's own nice value and out-of-memory score.
    pub(crate) reset_priority: bool,
}

/// Makes the child. It leads a session and process group of its own.
pub(crate) fn spawn(plan: &ChildPlan<'_>) -> nix::Result<Pid> {
    let parent = Pid::this().as_raw();
    let pid = match plan.cgroup {
        Some(cgroup) => clone_into(cgroup)?,
        // SAFETY: this process has one thread, so the child's copy of memory is consistent; the
        // child runs `child` alone, which allocates nothing and ends in execve or _exit.
        None => Errno::result(unsafe { libc::fork() })?,
    };
    if pid == 0 {
        // SAFETY: this is the child of a single-threaded process; see `child`.
        unsafe { child(plan, parent) }
    }
    Ok(Pid::from_raw(pid))
}

fn clone_into(cgroup: BorrowedFd<'_>) -> nix::Result<i32> {
    /// `struct clone_args`, version 2 (Linux 5.7).
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the size given. Without CLONE_VM and a stack this is
    // fork(2): the child goes on with a copy of this single-threaded process's memory. glibc's
    // fork handlers are skipped, which is sound since the child only makes system calls.
    let pid = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            std::mem::size_of::<CloneArgs>(),
        )
    })?;
    // A pid fits: pid_max is at most 2^22.
    Ok(pid as i32)
}

/// The child's way to execve.
///
/// # Safety
/// To be called only right after a fork, in the child of a single-threaded process. Everything in
/// it is an async-signal-safe system call on memory that `plan` keeps alive.
unsafe fn child(plan: &ChildPlan<'_>, parent: libc::pid_t) -> ! {
    // SAFETY: see the function; all pointers come from `plan`'s live strings and slices, and the
    // two arrays end with a null pointer (CStringArray).
    unsafe {
        let check = |result: libc::c_int, step: ChildStep| {
            if result < 0 {
                fail(plan, step);
            }
        };
        // In a VM everything ends with PID 1, and in its cgroup with the life. An ordinary process
        // has neither, and SIGKILL to it must not leave its workload behind.
        if plan.cgroup.is_none() {
            check(
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL),
                ChildStep::Session,
            );
            if libc::getppid() != parent {
                libc::_exit(127);
            }
        }
        check(libc::setsid(), ChildStep::Session);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        check(
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()),
            ChildStep::Session,
        );
        // Rust's runtime ignores it in this process, and ignored signals stay ignored over execve.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::umask(0o022);
        // None of the three is below 3, since this process's own 0 to 2 are always open.
        for (from, to) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            check(libc::dup2(from.as_raw_fd(), to), ChildStep::Descriptors);
        }
        if plan.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0), ChildStep::Terminal);
        }
        if plan.reset_priority {
            check(
                libc::setpriority(libc::PRIO_PROCESS, 0, 0),
                ChildStep::Priority,
            );
            let score = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            check(score, ChildStep::Priority);
            check(
                libc::write(score, c"0".as_ptr().cast(), 1) as libc::c_int,
                ChildStep::Priority,
            );
        }
        if let Some(files) = plan.open_files {
            let limit = libc::rlimit {
                rlim_cur: files,
                rlim_max: files,
            };
            check(
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit),
                ChildStep::Limits,
            );
        }
        if let Some(credentials) = plan.credentials {
            // The raw calls: glibc's wrappers run code that broadcasts to other threads.
            check(
                libc::syscall(
                    libc::SYS_setgroups,
                    credentials.groups.len(),
                    credentials.groups.as_ptr(),
                ) as libc::c_int,
                ChildStep::Credentials,
            );
            let (uid, gid) = (credentials.uid, credentials.gid);
            check(
                libc::syscall(libc::SYS_setresgid, gid, gid, gid) as libc::c_int,
                ChildStep::Credentials,
            );
            check(
                libc::syscall(libc::SYS_setresuid, uid, uid, uid) as libc::c_int,
                ChildStep::Credentials,
            );
        }
        check(libc::chdir(plan.cwd.as_ptr()), ChildStep::Directory);
        libc::execve(
            plan.path.as_ptr(),
            plan.argv.pointers.as_ptr(),
            plan.env.pointers.as_ptr(),
        );
        fail(plan, ChildStep::Execute)
    }
}

/// Reports the step and errno, and ends the child.
///
/// # Safety
/// As [`child`].
unsafe fn fail(plan: &ChildPlan<'_>, step: ChildStep) -> ! {
    let errno = Errno::last_raw().to_le_bytes();
    let report = [step as u8, errno[0], errno[1], errno[2], errno[3]];
    // SAFETY: `report` is valid for its length; _exit does not return.
    unsafe {
        libc::write(
            plan.report.as_raw_fd(),
            report.as_ptr().cast(),
            report.len(),
        );
        libc::_exit(127)
    }
}

/// Has a child write `text` to the file at `path`: for writes that take the kernel long.
pub(crate) fn write_in_child(path: &CStr, text: &[u8]) -> nix::Result<Pid> {
    // SAFETY: as in `spawn`: the child of a single-threaded process makes three system calls on
    // memory that lives in its copy, and ends.
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
