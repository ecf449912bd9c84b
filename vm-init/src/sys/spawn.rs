//! Making the workload's process and those beside it: a child that borrows this process's memory until it executes its
//! program (vfork(2) in effect, on a stack of its own). A copy of the memory would be made only to
//! be thrown away, which is most of what a restart costs. This process waits meanwhile: what the
//! child could not do is known when the call returns.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::{CStringArray, Credentials, Scheduling, schedule_self};

/// Bytes for the child's few frames; each is a thin wrapper of a system call.
const STACK: usize = 64 * 1024;

/// Which of a child's steps failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ChildStep {
    Session = 1,
    Descriptors,
    Terminal,
    Scheduling,
    Limits,
    Credentials,
    Directory,
    Execute,
}

impl ChildStep {
    /// The inverse of `as u64`.
    fn from_number(number: u64) -> Option<Self> {
        [
            Self::Session,
            Self::Descriptors,
            Self::Terminal,
            Self::Scheduling,
            Self::Limits,
            Self::Credentials,
            Self::Directory,
            Self::Execute,
        ]
        .into_iter()
        .find(|step| *step as u64 == number)
    }
}

/// Why there is no process, or none that became the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepFailure {
    /// The kernel makes no process.
    Clone(Errno),
    /// It was made, and ended at this step; nothing is left of it.
    Step(ChildStep, Errno),
}

/// Everything a child needs before execve, prepared so that it allocates nothing.
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
    /// Born into this cgroup (CLONE_INTO_CGROUP).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) open_files: Option<u64>,
    /// Undo what PID 1 has for itself.
    pub(crate) reset_scheduling: bool,
}

/// What a child stands on. One at a time: the call that uses it returns when the child has left it.
pub(crate) struct ChildStack(Box<[MaybeUninit<u128>]>);

impl ChildStack {
    pub(crate) fn new() -> Self {
        // Not written to: only what a child uses of it takes memory.
        Self(Box::new_uninit_slice(STACK / size_of::<u128>()))
    }
}

struct Start<'a> {
    plan: &'a ChildPlan<'a>,
    parent: libc::pid_t,
    /// Zero, or the step in the upper half and the errno in the lower.
    failure: AtomicU64,
}

/// Makes the child and returns when it has become its program, or has failed to. It leads a session
/// and process group of its own. All signals must be blocked: the child would run this process's
/// handlers on its memory.
pub(crate) fn spawn(plan: &ChildPlan<'_>, stack: &mut ChildStack) -> Result<Pid, StepFailure> {
    let start = Start {
        plan,
        parent: Pid::this().as_raw(),
        failure: AtomicU64::new(0),
    };
    let argument = (&raw const start).cast_mut().cast::<c_void>();
    let bottom = stack.0.as_mut_ptr().cast::<c_void>();
    let pid = match plan.cgroup {
        Some(cgroup) => {
            let args = CloneArgs {
                flags: (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_INTO_CGROUP,
                exit_signal: libc::SIGCHLD as u64,
                stack: bottom as u64,
                stack_size: STACK as u64,
                cgroup: cgroup.as_raw_fd() as u64,
                ..CloneArgs::default()
            };
            // SAFETY: `args` is complete, and its stack is ours alone through `&mut`. CLONE_VFORK
            // keeps this process's only thread in the call until the child has executed or ended,
            // so that `start` and all it borrows outlive the child's use of them and nobody else
            // touches this memory. `child` may be entered with `argument`, see there.
            unsafe { clone3(&args, child, argument) }
        }
        None => {
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            // SAFETY: as above; the stack grows down from its end, which is aligned as `u128` is.
            let pid = unsafe { libc::clone(child, bottom.byte_add(STACK), flags, argument) };
            Errno::result(pid)
        }
    };
    let pid = pid.map_err(StepFailure::Clone)?;
    let failure = start.failure.load(Ordering::Relaxed);
    match ChildStep::from_number(failure >> 32) {
        Some(step) => {
            reap(pid);
            let errno = Errno::from_raw((failure & 0xffff_ffff) as i32);
            Err(StepFailure::Step(step, errno))
        }
        None => Ok(Pid::from_raw(pid)),
    }
}

/// Takes a child that has ended, so that nobody else has to know of it.
fn reap(pid: i32) {
    // SAFETY: a null status is allowed (waitpid(2)). It is this process's child, and on its way
    // through exit(2), which waits for nobody.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
        && Errno::last() == Errno::EINTR
    {}
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

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

/// clone3(2) with a stack, which a C function cannot call: the child would return through a frame
/// that its stack does not have. It calls `entry` instead, which must not return.
///
/// # Safety
/// `args` must describe a child whose memory accesses are sound beside this process's, with a stack
/// that nobody else uses, aligned to 16 bytes; `entry` must be sound to call with `argument` there.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: &CloneArgs,
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> nix::Result<i32> {
    let result: i64;
    // SAFETY: in the parent this is a system call, which clobbers rcx and r11 and returns in rax.
    // In the child, which has registers of its own, `call` goes to a function of the C ABI on an
    // aligned stack and does not come back. The rest is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    from_kernel(result)
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: &CloneArgs,
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> nix::Result<i32> {
    let result: i64;
    // SAFETY: as above; the kernel preserves every register but x0.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            in("x8") libc::SYS_clone3,
            inlateout("x0") args => result,
            in("x1") size_of::<CloneArgs>(),
        );
    }
    from_kernel(result)
}

fn from_kernel(result: i64) -> nix::Result<i32> {
    // A pid is at most 2^22, an errno at most 4095.
    let result = result as i32;
    if result < 0 {
        Err(Errno::from_raw(-result))
    } else {
        Ok(result)
    }
}

/// The child's way to execve; never returns. Called by the two clones above alone, with a `Start`.
/// Everything in it is a system call on memory that `Start` borrows. `errno` is shared with the
/// parent, which reads its own only after calls of its own.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` gives a `Start` that lives until it goes on, which is after this function.
    let start = unsafe { &*argument.cast::<Start<'_>>() };
    let plan = start.plan;
    let check = |result: c_int, step: ChildStep| {
        if result < 0 {
            fail(start, step);
        }
    };
    // SAFETY: all pointers come from the plan's live strings and slices, and the two arrays end
    // with a null pointer (CStringArray). Dispositions, mask, descriptors, limits, credentials and
    // directory are the child's own, since no CLONE flag shares them.
    unsafe {
        // In a VM everything ends with PID 1, and in its cgroup with the life. An ordinary process
        // has neither, and SIGKILL to it must not leave its workload behind.
        if plan.cgroup.is_none() {
            check(
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL),
                ChildStep::Session,
            );
            if libc::getppid() != start.parent {
                libc::_exit(127);
            }
        }
        check(libc::setsid(), ChildStep::Session);
        let mut set: libc::sigset_t = std::mem::zeroed();
        // Rust's runtime may have ignored it in this process, and ignored signals stay ignored over
        // execve. An all-zero action is the default one.
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, &action, std::ptr::null_mut());
        libc::sigemptyset(&mut set);
        check(
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()),
            ChildStep::Session,
        );
        libc::umask(0o022);
        // None of the three is below 3, since this process's own 0 to 2 are always open.
        for (from, to) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            check(libc::dup2(from.as_raw_fd(), to), ChildStep::Descriptors);
        }
        if plan.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0), ChildStep::Terminal);
        }
        if plan.reset_scheduling && schedule_self(Scheduling::Ordinary).is_err() {
            fail(start, ChildStep::Scheduling);
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
                ) as c_int,
                ChildStep::Credentials,
            );
            let (uid, gid) = (credentials.uid, credentials.gid);
            check(
                libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int,
                ChildStep::Credentials,
            );
            check(
                libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int,
                ChildStep::Credentials,
            );
        }
        check(libc::chdir(plan.cwd.as_ptr()), ChildStep::Directory);
        libc::execve(
            plan.path.as_ptr(),
            plan.argv.pointers.as_ptr(),
            plan.env.pointers.as_ptr(),
        );
    }
    fail(start, ChildStep::Execute)
}

/// Leaves word of the step and errno, and ends the child.
fn fail(start: &Start<'_>, step: ChildStep) -> ! {
    let failure = (step as u64) << 32 | u64::from(Errno::last_raw() as u32);
    start.failure.store(failure, Ordering::Relaxed);
    // SAFETY: _exit runs nothing of this process's, and does not return.
    unsafe { libc::_exit(127) }
}
