//! Calls that the libraries do not offer, since nobody should make them.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};

/// Our own copy of an inherited descriptor.
pub(crate) fn inherited(number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: it was inherited under this number, and nothing in this program closes it.
    nix::unistd::dup(unsafe { BorrowedFd::borrow_raw(number) })
}

pub(crate) fn fork() -> nix::Result<nix::unistd::ForkResult> {
    // SAFETY: this program has one thread; the child ends by `_exit` at once.
    unsafe { nix::unistd::fork() }
}

pub(crate) fn exit() -> ! {
    // SAFETY: touches no memory and does not return.
    unsafe { libc::_exit(0) }
}

/// `clone3` with no flag: what a newer C library makes a process with.
pub(crate) fn clone3() -> i64 {
    let arguments = [0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: the kernel reads `struct clone_args` of 64 bytes from `arguments`. The child, a
    // copy as fork makes it, ends at once.
    unsafe {
        let made = libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        );
        if made == 0 {
            libc::_exit(0);
        }
        made
    }
}

/// Becomes another process' tracer, without stopping it; ends with this process.
pub(crate) fn seize(pid: i32) -> i64 {
    // SAFETY: no memory of ours is touched.
    unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) }
}

/// Locks so many bytes of memory.
pub(crate) fn lock_memory(bytes: usize) -> std::io::Result<()> {
    let memory = vec![1u8; bytes];
    // SAFETY: the range is that of `memory`, which outlives the call; its end unlocks it.
    match unsafe { libc::mlock(memory.as_ptr().cast(), memory.len()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
