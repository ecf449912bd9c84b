//! What the workload writes, on its way from its pipes to the log port: numbered, never dropped.
//!
//! Backpressure: while the log port's queue is full the pipes are not read, they fill, and the
//! workload's write blocks. Only a life that has ended is read out regardless, and then at most
//! what its pipes can hold.

use std::os::fd::OwnedFd;

use iii_proto::codec::CodecError;
use iii_proto::ids::GuestPid;
use iii_proto::log::{LogFrame, Stream};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::clock;
use crate::outbound::Outbound;

/// One frame is one write of at most 32 KiB, which is what the virtio-serial driver takes at once;
/// 64 bytes are more than a frame's head.
const READ_SIZE: usize = 32 * 1024 - 64;
/// Queued bytes above which the pipes are not read: a workload that floods its output would
/// otherwise make PID 1 grow beyond the guest's memory.
const HIGH_WATER: usize = 256 * 1024;
/// Reads per turn of the event loop, so that a flood does not keep heartbeats waiting.
const READS_PER_TURN: usize = 8;

#[derive(Debug)]
struct Pipe {
    fd: OwnedFd,
    stream: Stream,
    pid: GuestPid,
    readable: bool,
}

/// Numbers frames and remembers which of them the host has.
#[derive(Debug)]
pub struct Output {
    pipes: Vec<Pipe>,
    last_seq: u64,
    acked: u64,
    buffer: Vec<u8>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            pipes: Vec::with_capacity(2),
            last_seq: 0,
            acked: 0,
            buffer: vec![0; READ_SIZE],
        }
    }
}

impl Output {
    /// A new life writes to these pipes.
    pub fn open(&mut self, pid: GuestPid, stdout: OwnedFd, stderr: OwnedFd) {
        for (fd, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            self.pipes.push(Pipe {
                fd,
                stream,
                pid,
                readable: true,
            });
        }
    }

    /// epoll says that this stream has something.
    pub fn on_readable(&mut self, stream: Stream) {
        for pipe in self.pipes.iter_mut().filter(|p| p.stream == stream) {
            pipe.readable = true;
        }
    }

    /// The highest frame number given out.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The host has all frames up to `seq`.
    pub fn on_ack(&mut self, seq: u64) {
        self.acked = self.acked.max(seq.min(self.last_seq));
    }

    /// The host has every frame.
    pub fn all_acked(&self) -> bool {
        self.acked == self.last_seq
    }

    /// Something can be read and queued now.
    pub fn has_work(&self, queue: &Outbound) -> bool {
        queue.bytes() < HIGH_WATER && self.pipes.iter().any(|p| p.readable)
    }

    /// Moves output to the queue, as far as the queue has room and the turn allows.
    pub fn pump(&mut self, queue: &mut Outbound) -> Result<(), CodecError> {
        let mut reads = READS_PER_TURN;
        let mut index = 0;
        while index < self.pipes.len() {
            while reads > 0 && self.pipes[index].readable && queue.bytes() < HIGH_WATER {
                reads -= 1;
                if self.take(index, queue)?.is_none() {
                    break;
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// The life ended: takes what is left, says that nothing more comes, and closes the pipes.
    pub fn seal(&mut self, queue: &mut Outbound) -> Result<(), CodecError> {
        for index in 0..self.pipes.len() {
            // A process that left the life (a session of its own, outside a cgroup) may go on
            // writing: what the pipe can hold is all that the life itself can have left.
            let capacity = fcntl(&self.pipes[index].fd, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
            let mut left = usize::try_from(capacity).unwrap_or(0);
            while left > 0 {
                match self.take(index, queue)? {
                    Some(taken) => left = left.saturating_sub(taken),
                    None => break,
                }
            }
            let (pid, stream) = (self.pipes[index].pid, self.pipes[index].stream);
            self.push(pid, stream, Vec::new(), true, queue)?;
        }
        self.pipes.clear();
        Ok(())
    }

    /// One read; `None` when nothing is there (now, or ever).
    fn take(&mut self, index: usize, queue: &mut Outbound) -> Result<Option<usize>, CodecError> {
        let pipe = &mut self.pipes[index];
        match nix::unistd::read(&pipe.fd, &mut self.buffer) {
            Ok(count @ 1..) => {
                let (pid, stream) = (pipe.pid, pipe.stream);
                let bytes = self.buffer[..count].to_vec();
                self.push(pid, stream, bytes, false, queue)?;
                Ok(Some(count))
            }
            Err(Errno::EINTR) => Ok(Some(0)),
            // The end of a pipe's writers is not the end of the life: `seal` says that.
            Ok(0) | Err(_) => {
                pipe.readable = false;
                Ok(None)
            }
        }
    }

    fn push(
        &mut self,
        pid: GuestPid,
        stream: Stream,
        bytes: Vec<u8>,
        end: bool,
        queue: &mut Outbound,
    ) -> Result<(), CodecError> {
        self.last_seq += 1;
        queue.push(&LogFrame {
            seq: self.last_seq,
            pid,
            stream,
            time_unix_ns: clock::wall_ns(),
            bytes,
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::codec::FrameReader;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn frames(queue: &mut Outbound) -> Vec<LogFrame> {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut frames = FrameReader::new();
        let taken = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert!(queue.write_to(&writer).unwrap());
        drop(writer);
        frames.feed(&taken.join().unwrap());
        std::iter::from_fn(|| frames.next().unwrap()).collect()
    }

    fn pipes() -> (Output, std::fs::File, std::fs::File) {
        let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::default();
        output.open(GuestPid(7), out_read, err_read);
        (output, out_write.into(), err_write.into())
    }

    #[test]
    fn a_full_queue_leaves_the_pipes_unread() {
        let (mut output, mut stdout, _stderr) = pipes();
        let mut queue = Outbound::default();
        let mut written = 0;
        loop {
            match stdout.write(&[b'x'; 4096]) {
                Ok(n) => written += n,
                Err(_) if output.has_work(&queue) => output.pump(&mut queue).unwrap(),
                Err(_) => break,
            }
            output.on_readable(Stream::Stdout);
        }
        assert!(queue.bytes() >= HIGH_WATER && queue.bytes() < HIGH_WATER + 64 * 1024);
        let taken: usize = frames(&mut queue).iter().map(|f| f.bytes.len()).sum();
        // The rest waits in the pipe, nothing is lost.
        output.seal(&mut queue).unwrap();
        let rest: usize = frames(&mut queue).iter().map(|f| f.bytes.len()).sum();
        assert_eq!(taken + rest, written);
    }

    #[test]
    fn an_ended_life_is_read_out_beyond_the_bound_and_then_closed() {
        let (mut output, mut stdout, mut stderr) = pipes();
        let mut queue = Outbound::default();
        queue.push(&vec![0u8; 100_000]).unwrap();
        queue.push(&vec![0u8; 100_000]).unwrap();
        queue.push(&vec![0u8; 100_000]).unwrap();
        assert!(!output.has_work(&queue));
        stdout.write_all(b"last words").unwrap();
        stderr.write_all(b"oops").unwrap();
        output.seal(&mut queue).unwrap();
        let mut reader = FrameReader::new();
        let (mut end, start) = UnixStream::pair().unwrap();
        let bytes = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            end.read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert!(queue.write_to(&start).unwrap());
        drop(start);
        reader.feed(&bytes.join().unwrap());
        for _ in 0..3 {
            reader.next::<Vec<u8>>().unwrap().unwrap();
        }
        let seen: Vec<(u64, Stream, Vec<u8>, bool)> =
            std::iter::from_fn(|| reader.next::<LogFrame>().unwrap())
                .map(|f| (f.seq, f.stream, f.bytes, f.end))
                .collect();
        assert_eq!(
            seen,
            [
                (1, Stream::Stdout, b"last words".to_vec(), false),
                (2, Stream::Stdout, vec![], true),
                (3, Stream::Stderr, b"oops".to_vec(), false),
                (4, Stream::Stderr, vec![], true),
            ]
        );
        assert!(stdout.write_all(b"x").is_err(), "the pipe is closed");
        assert_eq!(output.last_seq(), 4);
        output.on_ack(3);
        assert!(!output.all_acked());
        output.on_ack(u64::MAX);
        assert!(output.all_acked());
    }
}
