//! The bytes of one record, little-endian:
//!
//! ```text
//!  0  u32  CRC-32 (IEEE 802.3) of everything behind it
//!  4  u16  length of the text, at most 16 KiB
//!  6  u8   0 stdout, 1 stderr, 2 console, 255 lines that were lost
//!  7  u8   bit 0: a newline ended the line
//!  8  u64  when it was received, by the host's clock, nanoseconds since the Unix epoch
//! 16  u64  when it was written, by the guest's clock; of lost lines, how many
//! 24  u64  boot id
//! 32  i32  process id in the guest
//! 36       the text
//! ```
//!
//! [`View`] is what was checked, [`Record`] what it means. What a record holds was written by a
//! guest, and the file may have been damaged: whatever the bytes, reading them ends in one or the
//! other of [`View`] and [`Flaw`].

use iii_actors::event::{LogLine, LogSource};
use iii_actors::lines::MAX_LINE;
use iii_proto::ids::{BootId, GuestPid, WorkerName};

/// Bytes before the text.
pub(super) const HEAD: usize = 36;
/// Longest record.
pub(super) const LONGEST: usize = HEAD + MAX_LINE;

const CHECKED_FROM: usize = 4;
const LOST: u8 = 255;
const COMPLETE: u8 = 1;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// They end before the record does.
    #[error("{have} bytes of {need}")]
    Short {
        /// How many there are.
        have: usize,
        /// How many there must be.
        need: usize,
    },
    /// The text would be longer than any.
    #[error("a text of {0} bytes")]
    TooLong(usize),
    /// They are not what was written.
    #[error("the checksum does not fit")]
    Checksum,
    /// Nothing is known of such a kind.
    #[error("a record of kind {0}")]
    Kind(u8),
    /// Nothing is known of such flags.
    #[error("flags {0:#04x}")]
    Flags(u8),
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A line.
    Line(LogLine),
    /// Lines of this worker were not kept: the disk did not take them.
    Lost {
        /// Whose.
        worker: WorkerName,
        /// When that was over, by the host's clock, nanoseconds since the Unix epoch.
        received_unix_ns: u64,
        /// How many.
        lines: u64,
    },
}

impl Record {
    /// Whose it is.
    pub fn worker(&self) -> &WorkerName {
        match self {
            Self::Line(line) => &line.worker,
            Self::Lost { worker, .. } => worker,
        }
    }

    /// When it was received, by the host's clock, nanoseconds since the Unix epoch.
    pub fn received_unix_ns(&self) -> u64 {
        match self {
            Self::Line(line) => line.received_unix_ns,
            Self::Lost {
                received_unix_ns, ..
            } => *received_unix_ns,
        }
    }
}

/// What of a record is in its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Line(LogSource),
    Lost,
}

/// The bytes of a record that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    bytes: &'a [u8],
    kind: Kind,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl<'a> View<'a> {
    /// The record that `bytes` begin with.
    pub fn check(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let short = |need| Flaw::Short {
            have: bytes.len(),
            need,
        };
        let head = bytes.first_chunk::<HEAD>().ok_or_else(|| short(HEAD))?;
        let text = usize::from(u16::from_le_bytes(field(head, 4)));
        if text > MAX_LINE {
            return Err(Flaw::TooLong(text));
        }
        let bytes = bytes.get(..HEAD + text).ok_or_else(|| short(HEAD + text))?;
        if u32::from_le_bytes(field(bytes, 0)) != crc32fast::hash(&bytes[CHECKED_FROM..]) {
            return Err(Flaw::Checksum);
        }
        let kind = match bytes[6] {
            0 => Kind::Line(LogSource::Stdout),
            1 => Kind::Line(LogSource::Stderr),
            2 => Kind::Line(LogSource::Console),
            LOST => Kind::Lost,
            other => return Err(Flaw::Kind(other)),
        };
        if bytes[7] & !COMPLETE != 0 {
            return Err(Flaw::Flags(bytes[7]));
        }
        Ok(Self { bytes, kind })
    }

    /// How many bytes it takes.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn received_unix_ns(&self) -> u64 {
        u64::from_le_bytes(field(self.bytes, 8))
    }

    pub(super) fn boot(&self) -> BootId {
        BootId::from_random(u64::from_le_bytes(field(self.bytes, 24)))
    }

    /// What it says of this worker, whose file it is in.
    pub fn record(&self, worker: &WorkerName) -> Record {
        let worker = worker.clone();
        let received_unix_ns = self.received_unix_ns();
        let second = u64::from_le_bytes(field(self.bytes, 16));
        match self.kind {
            Kind::Line(stream) => Record::Line(LogLine {
                worker,
                boot: self.boot(),
                pid: GuestPid(i32::from_le_bytes(field(self.bytes, 32))),
                stream,
                time_unix_ns: second,
                received_unix_ns,
                text: self.bytes[HEAD..].to_vec(),
                complete: self.bytes[7] & COMPLETE != 0,
            }),
            Kind::Lost => Record::Lost {
                worker,
                received_unix_ns,
                lines: second,
            },
        }
    }
}

/// How many bytes a line takes; of one that is longer than any, what is kept of it.
pub(super) fn length_of(line: &LogLine) -> usize {
    HEAD + line.text.len().min(MAX_LINE)
}

/// Appends a line's record, received then.
pub(super) fn encode_line(line: &LogLine, received_unix_ns: u64, out: &mut Vec<u8>) {
    // A line is cut at that length where it is made.
    let text = &line.text[..line.text.len().min(MAX_LINE)];
    let kind = match line.stream {
        LogSource::Stdout => 0,
        LogSource::Stderr => 1,
        LogSource::Console => 2,
    };
    let start = begin(out, kind, u8::from(line.complete), text.len());
    out.extend_from_slice(&received_unix_ns.to_le_bytes());
    out.extend_from_slice(&line.time_unix_ns.to_le_bytes());
    out.extend_from_slice(&line.boot.bits().to_le_bytes());
    out.extend_from_slice(&line.pid.0.to_le_bytes());
    out.extend_from_slice(text);
    seal(out, start);
}

/// Appends the record of so many lost lines.
pub(super) fn encode_lost(lines: u64, received_unix_ns: u64, out: &mut Vec<u8>) {
    let start = begin(out, LOST, 0, 0);
    out.extend_from_slice(&received_unix_ns.to_le_bytes());
    out.extend_from_slice(&lines.to_le_bytes());
    out.resize(start + HEAD, 0);
    seal(out, start);
}

fn begin(out: &mut Vec<u8>, kind: u8, flags: u8, text: usize) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; CHECKED_FROM]);
    // At most MAX_LINE, which fits.
    out.extend_from_slice(&(text as u16).to_le_bytes());
    out.extend_from_slice(&[kind, flags]);
    start
}

fn seal(out: &mut [u8], start: usize) {
    let checksum = crc32fast::hash(&out[start + CHECKED_FROM..]);
    out[start..start + CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::testing::{line, worker};
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: [u8; 38] = [
        0x41, 0xba, 0x04, 0x31, // checksum
        2, 0, // length
        1, 1, // stderr, complete
        0x15, 0xcd, 0x5b, 0x07, 0, 0, 0, 0, // received
        0xb1, 0x68, 0xde, 0x3a, 0, 0, 0, 0, // written
        8, 7, 6, 5, 4, 3, 2, 1, // boot
        0xfe, 0xff, 0xff, 0xff, // pid
        b'h', 0xff,
    ];

    fn golden() -> LogLine {
        LogLine {
            worker: worker("a"),
            boot: BootId::from_random(0x0102_0304_0506_0708),
            pid: GuestPid(-2),
            stream: LogSource::Stderr,
            time_unix_ns: 987_654_321,
            received_unix_ns: 123_456_789,
            text: b"h\xff".to_vec(),
            complete: true,
        }
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        encode_line(&golden(), 123_456_789, &mut bytes);
        assert_eq!(bytes, GOLDEN, "{bytes:02x?}");
        let view = View::check(&GOLDEN).unwrap();
        assert_eq!(view.record(&worker("a")), Record::Line(golden()));

        let mut bytes = Vec::new();
        encode_lost(7, 9, &mut bytes);
        let mut expected = vec![0; HEAD];
        expected[..4].copy_from_slice(&bytes[..4]);
        (expected[6], expected[8], expected[16]) = (255, 9, 7);
        assert_eq!(bytes, expected);
        let lost = Record::Lost {
            worker: worker("a"),
            received_unix_ns: 9,
            lines: 7,
        };
        assert_eq!(View::check(&bytes).unwrap().record(&worker("a")), lost);
    }

    #[test]
    fn every_flaw_is_named() {
        let flawed = |change: &dyn Fn(&mut Vec<u8>), seal_again: bool| {
            let mut bytes = GOLDEN.to_vec();
            change(&mut bytes);
            if seal_again {
                seal(&mut bytes, 0);
            }
            View::check(&bytes).map(|_| ()).unwrap_err()
        };
        let short = |have, need| Flaw::Short { have, need };
        assert_eq!(flawed(&|b| b.truncate(35), false), short(35, 36));
        assert_eq!(flawed(&|b| b.truncate(37), false), short(37, 38));
        assert_eq!(flawed(&|b| b[5] = 0xff, false), Flaw::TooLong(0xff02));
        assert_eq!(flawed(&|b| b[37] ^= 1, false), Flaw::Checksum);
        assert_eq!(flawed(&|b| b[6] = 3, true), Flaw::Kind(3));
        assert_eq!(flawed(&|b| b[7] = 3, true), Flaw::Flags(3));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            text in prop::collection::vec(any::<u8>(), 0..300),
            times in any::<(u64, u64)>(),
            (boot, pid, complete) in any::<(u64, i32, bool)>(),
            stream in prop::sample::select(
                &[LogSource::Stdout, LogSource::Stderr, LogSource::Console][..],
            ),
            behind in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let line = LogLine {
                worker: worker("w"),
                boot: BootId::from_random(boot),
                pid: GuestPid(pid),
                stream,
                time_unix_ns: times.0,
                received_unix_ns: times.1,
                text,
                complete,
            };
            let mut bytes = Vec::new();
            encode_line(&line, times.1, &mut bytes);
            prop_assert_eq!(bytes.len(), length_of(&line));
            bytes.extend(behind);
            let view = View::check(&bytes).unwrap();
            prop_assert_eq!(view.record(&worker("w")), Record::Line(line));
        }

        #[test]
        fn one_changed_bit_is_noticed(at in 0usize..38, bit in 0u8..8) {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(View::check(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(view) = View::check(&bytes) {
                view.record(&worker("w"));
            }
        }
    }

    #[test]
    fn a_line_longer_than_any_is_cut_and_not_refused() {
        let mut long = line("w", "");
        long.text = vec![b'x'; MAX_LINE + 1];
        let mut bytes = Vec::new();
        encode_line(&long, 0, &mut bytes);
        assert_eq!(bytes.len(), LONGEST);
        assert!(View::check(&bytes).is_ok());
    }
}
