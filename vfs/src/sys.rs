//! The few system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal};

/// The descriptors that the parent left open for this process, each of which can be taken once.
#[derive(Debug, Default)]
pub struct Inherited {
    taken: HashSet<RawFd>,
}

impl Inherited {
    /// Nothing taken yet. Make only one, at the start of the process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a descriptor that the command line or the configuration names.
    pub fn take(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        if fd <= 2 {
            return Err(io::Error::other(format!(
                "{fd} is a standard stream or no descriptor"
            )));
        }
        if !self.taken.insert(fd) {
            return Err(io::Error::other(format!("descriptor {fd} is named twice")));
        }
        // SAFETY: `fd` is not -1 (checked above), and the borrow ends before anything can close
        // it. A number that is not open makes fcntl fail with EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the descriptor is open (fcntl succeeded) and has no other owner: the process
        // takes its inherited descriptors before it opens any of its own, which is upheld by
        // `process::run`, and `taken` gives each number away once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A descriptor of our own for one that is lent for the length of a call.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: `fd` is not -1, and the caller (a callback that fuse-backend-rs lends the
    // descriptor of a file that it holds) keeps it open until we return.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Ignores a signal.
pub(crate) fn ignore(signal: Signal) -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }?;
    Ok(())
}

/// `struct file_handle` with room for the largest handle (MAX_HANDLE_SZ).
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// Whether files below `directory` can be held by file handle: its file system gives handles and
/// this process may open them.
pub(crate) fn opens_by_handle(directory: &Path) -> bool {
    let Ok(file) = std::fs::File::open(directory) else {
        return false;
    };
    let mut handle = FileHandle {
        bytes: 128,
        kind: 0,
        handle: [0; 128],
    };
    let mut mount = 0;
    // SAFETY: the pointer is to a `file_handle` whose `handle_bytes` says truly how much room
    // follows it; the empty path is NUL-terminated; both outlive the call.
    let named = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if named < 0 {
        return false;
    }
    // SAFETY: as above; the handle is what the kernel has just filled in.
    let fd = unsafe {
        libc::open_by_handle_at(
            file.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_it_is_open() {
        let fd = OwnedFd::from(std::fs::File::open("/").unwrap()).into_raw_fd();
        let mut inherited = Inherited::new();
        let taken = inherited.take(fd).unwrap();
        assert_eq!(taken.as_raw_fd(), fd);
        assert!(inherited.take(fd).is_err());
        assert!(inherited.take(1).is_err());
        assert!(inherited.take(-1).is_err());
        assert!(inherited.take(1_000_000).is_err());
    }
}
