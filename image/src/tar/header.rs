//! A header's 512 bytes: a view whose checksum was found right, and its fields.

use std::fmt;

use super::RECORD;

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Its bytes do not have the sum that it names.
    Checksum,
    /// A field is no number of its range.
    Number(&'static str),
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum => f.write_str("its checksum is wrong; is this a tar archive?"),
            Self::Number(field) => write!(f, "its {field} is no number that a file can have"),
        }
    }
}

/// What a header is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The name of the next entry (GNU).
    LongName,
    /// The link's target of the next entry (GNU).
    LongLink,
    /// Records about the next entry (pax).
    Extended,
    /// Records about all that follow (pax).
    Global,
    /// A file.
    Entry(EntryKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    Sparse,
    Other,
}

/// A header with the right checksum.
#[derive(Debug)]
pub(super) struct Header([u8; RECORD]);

const CHECKSUM: std::ops::Range<usize> = 148..156;

impl Header {
    /// `None` for the end mark.
    pub(super) fn check(bytes: [u8; RECORD]) -> Result<Option<Self>, HeaderFault> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let said = octal(&bytes[CHECKSUM]).ok_or(HeaderFault::Checksum)?;
        let counted = |at: usize| {
            if CHECKSUM.contains(&at) {
                b' '
            } else {
                bytes[at]
            }
        };
        let sum: u64 = (0..RECORD).map(|at| u64::from(counted(at))).sum();
        // Some old writers summed signed bytes.
        let signed: i64 = (0..RECORD)
            .map(|at| i64::from(counted(at).cast_signed()))
            .sum();
        if said != sum && i64::try_from(said) != Ok(signed) {
            return Err(HeaderFault::Checksum);
        }
        Ok(Some(Self(bytes)))
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::Entry(match self.0[156] {
            b'L' => return Kind::LongName,
            b'K' => return Kind::LongLink,
            b'x' | b'X' => return Kind::Extended,
            b'g' => return Kind::Global,
            // 7: contiguous, which no file system of today distinguishes.
            0 | b'0' | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharacterDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => EntryKind::Sparse,
            _ => EntryKind::Other,
        })
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        // GNU's headers have other things in the prefix's place.
        let prefix: &[u8] = if &self.0[257..263] == b"ustar\0" {
            text(&self.0[345..500])
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link_path(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn size(&self) -> Result<u64, HeaderFault> {
        number(&self.0[124..136])
            // Half of the range: sums of it and of a padding do not overflow.
            .filter(|size| *size <= u64::MAX / 2)
            .ok_or(HeaderFault::Number("size"))
    }

    pub(super) fn mode(&self) -> Result<u16, HeaderFault> {
        let mode = number(&self.0[100..108]).ok_or(HeaderFault::Number("mode"))?;
        // Some writers add the bits of the type.
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, HeaderFault> {
        self.small(108..116, "user id")
    }

    pub(super) fn gid(&self) -> Result<u32, HeaderFault> {
        self.small(116..124, "group id")
    }

    pub(super) fn mtime(&self) -> Result<u64, HeaderFault> {
        let field = &self.0[136..148];
        // A negative number: before the epoch, which the image's format cannot tell.
        if field[0] == 0xff {
            return Ok(0);
        }
        number(field).ok_or(HeaderFault::Number("time"))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), HeaderFault> {
        let fault = HeaderFault::Number("device");
        // As Linux has them.
        let major = self.small(329..337, "device")?;
        let minor = self.small(337..345, "device")?;
        if major < 1 << 12 && minor < 1 << 20 {
            Ok((major, minor))
        } else {
            Err(fault)
        }
    }

    fn small(
        &self,
        range: std::ops::Range<usize>,
        field: &'static str,
    ) -> Result<u32, HeaderFault> {
        number(&self.0[range])
            .and_then(|number| number.try_into().ok())
            .ok_or(HeaderFault::Number(field))
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// Octal digits, or GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    match field.first() {
        Some(0x80) => field[1..].iter().try_fold(0u64, |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        }),
        Some(first) if *first & 0x80 != 0 => None,
        _ => octal(field),
    }
}

/// Blanks, octal digits, then blanks or NULs; a field without a digit is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let field = field.trim_ascii_start();
    let digits = field
        .iter()
        .take_while(|byte| (b'0'..=b'7').contains(byte))
        .count();
    let rest = &field[digits..];
    if !rest.is_empty() && rest[0] != 0 && rest[0] != b' ' {
        return None;
    }
    field[..digits].iter().try_fold(0u64, |sum, digit| {
        sum.checked_mul(8)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_notations() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o77_777_777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(b"9\0\0\0"), None);
        assert_eq!(number(b"12x\0"), None);
        assert_eq!(number(&[0xff; 8]), None);
        let mut large = [0xff; 12];
        large[0] = 0x80;
        assert_eq!(number(&large), None, "more than 64 bits");
    }

    #[test]
    fn a_sum_of_signed_bytes_is_taken_too() {
        let mut bytes = [0u8; RECORD];
        bytes[0] = 0xe9;
        let sum = |signed: bool| -> i64 {
            let first = if signed { 0xe9 - 256 } else { 0xe9 };
            first + 8 * i64::from(b' ')
        };
        for signed in [true, false] {
            bytes[148..156].copy_from_slice(format!("{:06o}\0 ", sum(signed)).as_bytes());
            // The sum is over blanks in its own place.
            assert!(Header::check(bytes).unwrap().is_some(), "{signed}");
        }
        bytes[148] = b'7';
        assert_eq!(Header::check(bytes).unwrap_err(), HeaderFault::Checksum);
    }
}
