//! recvmmsg(2) and sendmmsg(2): a batch of frames for one system call.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most messages in one call.
pub(crate) const BATCH: usize = 32;

/// Receives up to [`BATCH`] datagrams, one into each of `buffers`; `lengths` says how long each
/// is, 0 for one that did not fit.
pub(crate) fn receive_batch<'a>(
    fd: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    lengths: &mut [usize; BATCH],
) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: iovec is plain data for which zero is a value (null pointer, no length).
    let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: mmsghdr is plain data for which zero is a value (no name, no vectors, no control).
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    for buffer in buffers.take(BATCH) {
        vectors[count] = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        headers[count].msg_hdr.msg_iov = &raw mut vectors[count];
        headers[count].msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: `headers` and the `vectors` that it points to are alive and do not move during the
    // call; each vector names one whole buffer, borrowed mutably and apart from the others by this
    // function's caller ('a outlives it). The kernel writes within them only. `count` is at most
    // the length of `headers`.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (length, header) in lengths.iter_mut().zip(&headers[..received]) {
        *length = if header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0 {
            header.msg_len as usize
        } else {
            0
        };
    }
    Ok(received)
}

/// Sends up to [`BATCH`] datagrams and returns how many the kernel took.
pub(crate) fn send_batch<'a>(
    fd: BorrowedFd<'_>,
    frames: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    // SAFETY: as in `receive_batch`.
    let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as in `receive_batch`.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    let mut count = 0;
    for frame in frames.take(BATCH) {
        vectors[count] = libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        };
        headers[count].msg_hdr.msg_iov = &raw mut vectors[count];
        headers[count].msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: `headers` and `vectors` live through the call, and so do the frames ('a outlives
    // it); the kernel only reads from the vectors of a send.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
