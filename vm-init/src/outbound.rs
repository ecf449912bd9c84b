//! Frames on their way to a port that takes them when it can.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use iii_proto::codec::{CodecError, Wire, encode_frame};
use nix::errno::Errno;

/// A queue of encoded frames before a non-blocking descriptor. It has no bound of its own: who
/// fills it asks [`Self::bytes`] before reading more of what would fill it further.
#[derive(Debug, Default)]
pub struct Outbound {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of the first frame that are written already.
    offset: usize,
    bytes: usize,
}

impl Outbound {
    /// Queues a message.
    pub fn push<T: Wire>(&mut self, message: &T) -> Result<(), CodecError> {
        let frame = encode_frame(message)?;
        self.bytes += frame.len();
        self.frames.push_back(frame);
        Ok(())
    }

    /// Bytes that are queued and not written.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes until the queue is empty (true) or the descriptor takes no more (false).
    pub fn write_to(&mut self, fd: impl AsFd) -> nix::Result<bool> {
        while let Some(frame) = self.frames.front() {
            match nix::unistd::write(&fd, &frame[self.offset..]) {
                Ok(written) => {
                    self.bytes -= written;
                    self.offset += written;
                    if self.offset == frame.len() {
                        self.frames.pop_front();
                        self.offset = 0;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::codec::FrameReader;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_arrive_whole_and_in_order_over_a_peer_that_reads_slowly() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut out = Outbound::default();
        for n in 0..200u32 {
            out.push(&(n, vec![n as u8; 10_000])).unwrap();
        }
        assert!(!out.write_to(&writer).unwrap());
        let mut frames = FrameReader::new();
        let mut seen = 0u32;
        let mut buffer = [0; 7_777];
        while seen < 200 {
            let n = reader.read(&mut buffer).unwrap();
            frames.feed(&buffer[..n]);
            while let Some((number, bytes)) = frames.next::<(u32, Vec<u8>)>().unwrap() {
                assert_eq!(number, seen);
                assert_eq!(bytes, vec![seen as u8; 10_000]);
                seen += 1;
            }
            out.write_to(&writer).unwrap();
        }
        assert!(out.is_empty());
        assert_eq!(out.bytes(), 0);
    }
}
