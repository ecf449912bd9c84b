//! Cuts a workload's output, which comes in chunks, into lines.

use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::{LogFrame, Stream};

use crate::event::LogLine;

/// Longest line that is kept whole; a longer one is handed on in pieces. Stops a workload that
/// never writes a newline from growing the host's memory.
pub const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Partial {
    pid: Option<GuestPid>,
    /// The frame that it begins in.
    seq: u64,
    time_unix_ns: u64,
    text: Vec<u8>,
}

/// Holds at most one incomplete line per stream.
#[derive(Debug)]
pub struct LineCutter {
    worker: WorkerName,
    boot: BootId,
    received_unix_ns: u64,
    partial: [Partial; 2],
}

impl LineCutter {
    /// For the output of one boot.
    pub fn new(worker: WorkerName, boot: BootId) -> Self {
        Self {
            worker,
            boot,
            received_unix_ns: 0,
            partial: Default::default(),
        }
    }

    /// The lines that this frame, received then, completes.
    pub fn cut(&mut self, frame: LogFrame, received_unix_ns: u64) -> Vec<LogLine> {
        self.received_unix_ns = received_unix_ns;
        let mut lines = Vec::new();
        // Another life of the workload does not go on with its predecessor's line.
        if self
            .slot(frame.stream)
            .pid
            .is_some_and(|pid| pid != frame.pid)
        {
            lines.extend(self.take(frame.stream, false));
        }
        for piece in frame.bytes.split_inclusive(|&b| b == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let slot = self.slot(frame.stream);
            if slot.pid.is_none() {
                slot.pid = Some(frame.pid);
                slot.seq = frame.seq;
                slot.time_unix_ns = frame.time_unix_ns;
            }
            let mut rest = text;
            while self.slot(frame.stream).text.len() + rest.len() > MAX_LINE {
                let slot = self.slot(frame.stream);
                let (head, tail) = rest.split_at(MAX_LINE - slot.text.len());
                slot.text.extend_from_slice(head);
                rest = tail;
                lines.extend(self.take(frame.stream, false));
                let slot = self.slot(frame.stream);
                slot.pid = Some(frame.pid);
                slot.seq = frame.seq;
                slot.time_unix_ns = frame.time_unix_ns;
            }
            self.slot(frame.stream).text.extend_from_slice(rest);
            if complete {
                lines.extend(self.take(frame.stream, true));
            }
        }
        if frame.end {
            lines.extend(self.take_rest(frame.stream));
        }
        lines
    }

    /// The first frame of which a byte is held here, in a line that is not complete.
    pub fn holds_from(&self) -> Option<u64> {
        let held = self.partial.iter().filter(|slot| !slot.text.is_empty());
        held.map(|slot| slot.seq).min()
    }

    /// What is left when the VM is gone.
    pub fn rest(&mut self) -> Vec<LogLine> {
        [Stream::Stdout, Stream::Stderr]
            .into_iter()
            .filter_map(|s| self.take_rest(s))
            .collect()
    }

    fn slot(&mut self, stream: Stream) -> &mut Partial {
        match stream {
            Stream::Stdout => &mut self.partial[0],
            Stream::Stderr => &mut self.partial[1],
        }
    }

    fn take_rest(&mut self, stream: Stream) -> Option<LogLine> {
        if self.slot(stream).text.is_empty() {
            *self.slot(stream) = Partial::default();
            return None;
        }
        self.take(stream, false)
    }

    fn take(&mut self, stream: Stream, complete: bool) -> Option<LogLine> {
        let partial = std::mem::take(self.slot(stream));
        Some(LogLine {
            worker: self.worker.clone(),
            boot: self.boot,
            pid: partial.pid?,
            stream: stream.into(),
            time_unix_ns: partial.time_unix_ns,
            received_unix_ns: self.received_unix_ns,
            text: partial.text,
            complete,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(seq: u64, pid: i32, bytes: &[u8], end: bool) -> LogFrame {
        LogFrame {
            seq,
            pid: GuestPid(pid),
            stream: Stream::Stdout,
            time_unix_ns: seq,
            bytes: bytes.to_vec(),
            end,
        }
    }

    fn cutter() -> LineCutter {
        LineCutter::new(WorkerName::new("w").unwrap(), BootId::from_random(1))
    }

    fn texts(lines: &[LogLine]) -> Vec<(String, bool)> {
        lines
            .iter()
            .map(|l| (String::from_utf8_lossy(&l.text).into_owned(), l.complete))
            .collect()
    }

    #[test]
    fn lines_are_joined_across_frames() {
        let mut c = cutter();
        assert!(c.cut(frame(1, 2, b"he", false), 10).is_empty());
        let lines = c.cut(frame(2, 2, b"llo\n\nwor", false), 20);
        assert_eq!(
            texts(&lines),
            [("hello".into(), true), (String::new(), true)]
        );
        assert_eq!(
            lines[0].time_unix_ns, 1,
            "a line's time is that of its first byte"
        );
        assert_eq!(
            lines[0].received_unix_ns, 20,
            "it is received with its last"
        );
        assert_eq!(c.holds_from(), Some(2));
        c.cut(frame(3, 2, b"ld", false), 30);
        assert_eq!(c.holds_from(), Some(2), "its head is still held");
        assert_eq!(texts(&c.rest()), [("world".into(), false)]);
        assert_eq!(c.holds_from(), None);
        assert!(c.rest().is_empty());
    }

    #[test]
    fn another_life_does_not_continue_its_predecessors_line() {
        let mut c = cutter();
        c.cut(frame(1, 2, b"last words", false), 10);
        let lines = c.cut(frame(2, 3, b"first\n", false), 20);
        assert_eq!(
            texts(&lines),
            [("last words".into(), false), ("first".into(), true)]
        );
        assert_eq!(lines[0].pid, GuestPid(2));
    }

    #[test]
    fn the_end_of_a_stream_gives_its_last_words() {
        let mut c = cutter();
        assert_eq!(
            texts(&c.cut(frame(1, 2, b"a\nb", true), 10)),
            [("a".into(), true), ("b".into(), false)]
        );
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_and_no_line_is_too_long(
            // Runs of x with a newline behind, cut into chunks of one size.
            runs in prop::collection::vec((0usize..40_000, any::<bool>()), 0..6),
            size in 1000usize..30_000,
        ) {
            let mut bytes = Vec::new();
            for (length, newline) in runs {
                bytes.resize(bytes.len() + length, b'x');
                if newline {
                    bytes.push(b'\n');
                }
            }
            let mut c = cutter();
            let mut lines = Vec::new();
            for (i, chunk) in bytes.chunks(size).enumerate() {
                lines.extend(c.cut(frame(i as u64, 2, chunk, false), 0));
            }
            lines.extend(c.rest());
            let mut joined = Vec::new();
            for line in &lines {
                prop_assert!(line.text.len() <= MAX_LINE);
                joined.extend_from_slice(&line.text);
                if line.complete {
                    joined.push(b'\n');
                }
            }
            prop_assert!(joined == bytes);
        }
    }
}
