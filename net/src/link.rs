//! The wire between VMM and loop: a datagram socket, one Ethernet frame per datagram.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use memmap2::{Advice, MmapMut};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use crate::error::NetError;
use crate::stats::LiveStats;
use crate::sys::{self, BATCH};

/// Ethernet header and the largest IP packet, rounded up.
const FRAME_CAPACITY: usize = 65536;
/// Frames kept for a link that takes no more; above it no connection sends and no frame is read.
const TRANSMIT_LIMIT: usize = 64;
/// Asked of the kernel for the socket's buffers, which cuts it to its own limit.
const SOCKET_BUFFER: usize = 4 << 20;

/// A pair of connected datagram sockets: the loop's end and the VMM's, both close-on-exec and
/// non-blocking, with large buffers.
pub fn link_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (host, guest) = socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    enlarge(&host);
    enlarge(&guest);
    Ok((host, guest))
}

/// Smaller buffers cost throughput only, so a refusal is no error.
fn enlarge(fd: &OwnedFd) {
    if setsockopt(fd, sockopt::SndBufForce, &SOCKET_BUFFER).is_err()
        && let Err(errno) = setsockopt(fd, sockopt::SndBuf, &SOCKET_BUFFER)
    {
        tracing::debug!(%errno, "the link keeps its default send buffer");
    }
    if setsockopt(fd, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err()
        && let Err(errno) = setsockopt(fd, sockopt::RcvBuf, &SOCKET_BUFFER)
    {
        tracing::debug!(%errno, "the link keeps its default receive buffer");
    }
}

/// The sockets (by inode) that have a loop. Duplicates of a descriptor share the inode, so a
/// second loop on the same queue is seen whatever descriptor it comes with.
static CLAIMED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// The right to be the only loop on a link.
#[derive(Debug)]
pub(crate) struct LinkClaim {
    inode: Mutex<Option<u64>>,
}

impl LinkClaim {
    pub(crate) fn new(fd: &OwnedFd) -> Result<Self, NetError> {
        let stat = nix::sys::stat::fstat(fd).map_err(NetError::errno("inspect the link"))?;
        let fresh = CLAIMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(stat.st_ino);
        if fresh {
            Ok(Self {
                inode: Mutex::new(Some(stat.st_ino)),
            })
        } else {
            Err(NetError::AlreadyRunning)
        }
    }

    /// Lets a successor start. Only the first call has an effect: by a second one the inode may be
    /// the successor's.
    pub(crate) fn release(&self) {
        let inode = self
            .inode
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(inode) = inode {
            CLAIMED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&inode);
        }
    }
}

impl Drop for LinkClaim {
    fn drop(&mut self) {
        self.release();
    }
}

/// Received frames, one batch at a time. Mapped and not from the heap, so that the host really has
/// its memory back when the guest is idle.
pub(crate) struct Receiver {
    buffers: Option<MmapMut>,
    lengths: [usize; BATCH],
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            buffers: None,
            lengths: [0; BATCH],
        }
    }

    /// Receives what is there, at most a batch.
    pub(crate) fn fill(&mut self, link: BorrowedFd<'_>) -> io::Result<usize> {
        let buffers = match &mut self.buffers {
            Some(buffers) => buffers,
            none => none.insert(map_buffers()?),
        };
        let frames = buffers.chunks_exact_mut(FRAME_CAPACITY);
        sys::receive_batch(link, frames, &mut self.lengths)
    }

    /// Frame `index` of the last batch; empty if it was larger than any frame may be.
    pub(crate) fn frame(&self, index: usize) -> &[u8] {
        let begin = index * FRAME_CAPACITY;
        self.buffers
            .as_ref()
            .map_or(&[], |buffers| &buffers[begin..begin + self.lengths[index]])
    }

    /// Memory that it has now.
    pub(crate) fn bytes(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.len())
    }

    /// Gives the memory back until the next batch.
    pub(crate) fn release(&mut self) {
        self.buffers = None;
        self.lengths = [0; BATCH];
    }
}

/// Most frames are small, and a page in 16 is enough for them: no huge page, please.
fn map_buffers() -> io::Result<MmapMut> {
    let buffers = MmapMut::map_anon(BATCH * FRAME_CAPACITY)?;
    // A kernel without huge pages refuses, which is as good.
    if let Err(error) = buffers.advise(Advice::NoHugePage) {
        tracing::trace!(%error, "this kernel knows no huge pages");
    }
    Ok(buffers)
}

/// A frame in a buffer that was used before: what is beyond `length` is old.
struct Frame {
    buffer: Vec<u8>,
    length: usize,
}

impl Frame {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Frames for the guest, in order, until the link takes them. None is lost while the link lives.
#[derive(Default)]
pub(crate) struct Transmitter {
    queue: VecDeque<Frame>,
    spare: Vec<Vec<u8>>,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing is left.
    Done,
    /// The link is full; it will become writable.
    Full,
    /// The kernel is out of memory; there will be no event, so try again soon.
    Retry,
}

impl Transmitter {
    /// Whether connections may add frames. Answers to received frames may be added regardless:
    /// there is at most one for each, and none is received while this is false.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < TRANSMIT_LIMIT
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A frame of `length` bytes, all of which `write` must write: before that, they are those of
    /// an older frame to the same guest.
    pub(crate) fn push<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.spare.pop().unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let result = write(&mut buffer[..length]);
        self.queue.push_back(Frame { buffer, length });
        result
    }

    /// Drops what waits: its guest is gone.
    pub(crate) fn clear(&mut self) {
        while let Some(frame) = self.queue.pop_front() {
            self.recycle(frame);
        }
    }

    pub(crate) fn flush(&mut self, link: &OwnedFd, stats: &LiveStats) -> io::Result<Flush> {
        while !self.queue.is_empty() {
            match sys::send_batch(link.as_fd(), self.queue.iter().map(Frame::bytes)) {
                Ok(sent) => {
                    for _ in 0..sent {
                        if let Some(frame) = self.queue.pop_front() {
                            stats.traffic.frames_out.add(1);
                            stats.traffic.bytes_out.add(frame.length as u64);
                            self.recycle(frame);
                        }
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Flush::Full),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS | libc::ENOMEM) => return Ok(Flush::Retry),
                    // The VMM's end is closed. A datagram socket has no end-of-file, so the loop
                    // waits to be told what that means.
                    Some(libc::ECONNREFUSED | libc::ENOTCONN | libc::ECONNRESET | libc::EPIPE) => {
                        stats.refused.link_down.add(self.queue.len() as u64);
                        self.clear();
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(Flush::Done)
    }

    /// Gives back what is not in use.
    pub(crate) fn release(&mut self) {
        self.spare = Vec::new();
        self.queue.shrink_to_fit();
    }

    fn recycle(&mut self, frame: Frame) {
        if self.spare.len() < TRANSMIT_LIMIT {
            self.spare.push(frame.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{MsgFlags, recv};

    use super::*;

    #[test]
    fn a_full_link_loses_nothing() {
        let (host, guest) = link_pair().unwrap();
        setsockopt(&host, sockopt::SndBuf, &(64 << 10)).unwrap();
        let stats = LiveStats::default();
        let mut transmitter = Transmitter::default();
        let mut sent = 0u32;
        let mut received = 0u32;
        let mut was_full = false;
        let mut buffer = vec![0; 65536];
        while received < 500 {
            while sent < 500 && transmitter.has_room() {
                // Lengths go up and down, so that old bytes in a buffer would show.
                let length = 4 + (sent as usize * 7919) % 20_000;
                transmitter.push(length, |frame| {
                    frame.fill(sent as u8);
                    frame[..4].copy_from_slice(&sent.to_be_bytes());
                });
                sent += 1;
            }
            was_full |= transmitter.flush(&host, &stats).unwrap() == Flush::Full;
            while let Ok(length) = recv(guest.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                assert_eq!(length, 4 + (received as usize * 7919) % 20_000);
                assert_eq!(buffer[..4], received.to_be_bytes());
                assert!(buffer[4..length].iter().all(|byte| *byte == received as u8));
                received += 1;
            }
        }
        assert!(was_full);
        assert_eq!(stats.traffic.frames_out.get(), 500);
    }

    #[test]
    fn a_receiver_that_gave_its_memory_back_receives_again() {
        let (host, guest) = link_pair().unwrap();
        let mut receiver = Receiver::new();
        for round in 0..3u8 {
            for length in [60, 65536, 1] {
                let frame = vec![round; length];
                nix::sys::socket::send(guest.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
            }
            assert_eq!(receiver.fill(host.as_fd()).unwrap(), 3);
            for (index, length) in [60, 65536, 1].into_iter().enumerate() {
                assert_eq!(receiver.frame(index), vec![round; length]);
            }
            receiver.release();
            assert!(receiver.buffers.is_none() && receiver.frame(1).is_empty());
        }
    }

    #[test]
    fn a_link_without_its_other_end_takes_no_frames() {
        let (host, guest) = link_pair().unwrap();
        drop(guest);
        let stats = LiveStats::default();
        let mut transmitter = Transmitter::default();
        transmitter.push(60, |frame| frame.fill(0));
        assert_eq!(transmitter.flush(&host, &stats).unwrap(), Flush::Done);
        assert_eq!(stats.refused.link_down.get(), 1);
    }
}
