//! The wire format: a little-endian `u32` length, then a bincode 2 payload of that length.
//!
//! This is the only module that names bincode, so that its successor changes one file. Both the
//! length prefix and every allocation while decoding are bounded; a peer that lies about a length
//! gets [`CodecError::TooLong`], not our memory.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Longest payload of any frame on any port. A guest that claims a longer one is cut off: without
/// this bound it could make the host buffer four gigabytes.
pub const MAX_FRAME: usize = 128 * 1024;

/// Longest encoded `GuestSpec`; it comes from the host, and holds the workload's environment.
pub const MAX_SPEC: usize = 4 * 1024 * 1024;

/// Why bytes are not a message, or a message does not fit.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The prefix or the value exceeds the bound in force.
    #[error("failed to accept frame: {length} bytes, the limit is {limit}")]
    TooLong {
        /// What was claimed or encoded, in bytes.
        length: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// The payload is not an encoded value of the expected type.
    #[error("failed to decode frame: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// The value cannot be encoded.
    #[error("failed to encode frame: {0}")]
    Unencodable(#[from] bincode::error::EncodeError),
    /// Bytes are left over behind the value: the two ends disagree about the type.
    #[error("failed to decode frame: {0} bytes left over")]
    Trailing(usize),
}

/// Types that can be sent.
pub trait Wire: bincode::Encode + bincode::Decode<()> {}
impl<T: bincode::Encode + bincode::Decode<()>> Wire for T {}

fn config<const LIMIT: usize>() -> Configuration<LittleEndian, Fixint, Limit<LIMIT>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>()
}

/// Encodes a value without a prefix, for a file or a sealed descriptor.
pub fn encode_spec<T: Wire>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::encode_to_vec(value, config::<MAX_SPEC>())?;
    if bytes.len() > MAX_SPEC {
        return Err(CodecError::TooLong {
            length: bytes.len(),
            limit: MAX_SPEC,
        });
    }
    Ok(bytes)
}

/// Decodes what [`encode_spec`] made.
pub fn decode_spec<T: Wire>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_SPEC {
        return Err(CodecError::TooLong {
            length: bytes.len(),
            limit: MAX_SPEC,
        });
    }
    exact(
        bincode::decode_from_slice(bytes, config::<MAX_SPEC>())?,
        bytes.len(),
    )
}

/// Encodes one frame: prefix and payload.
pub fn encode_frame<T: Wire>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; PREFIX];
    bincode::encode_into_std_write(value, &mut frame, config::<MAX_FRAME>())?;
    let length = frame.len() - PREFIX;
    if length > MAX_FRAME {
        return Err(CodecError::TooLong {
            length,
            limit: MAX_FRAME,
        });
    }
    // MAX_FRAME is far below u32::MAX, so the cast keeps the value.
    frame[..PREFIX].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

fn exact<T>((value, used): (T, usize), length: usize) -> Result<T, CodecError> {
    if used != length {
        return Err(CodecError::Trailing(length - used));
    }
    Ok(value)
}

/// Cuts a byte stream into frames. Feed it whatever a read returned; it holds at most one
/// incomplete frame, so at most [`MAX_FRAME`] bytes and what the last read added.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// An empty reader.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes of one read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` while one is incomplete. After an error the stream has no
    /// recoverable boundary: the caller closes it.
    // The name follows what it does; an Iterator cannot return Result<Option>.
    #[allow(clippy::should_implement_trait)]
    pub fn next<T: Wire>(&mut self) -> Result<Option<T>, CodecError> {
        let rest = &self.buffer[self.start..];
        let Some(prefix) = rest.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(CodecError::TooLong {
                length,
                limit: MAX_FRAME,
            });
        }
        let Some(payload) = rest.get(PREFIX..PREFIX + length) else {
            return Ok(None);
        };
        let value = exact(
            bincode::decode_from_slice(payload, config::<MAX_FRAME>())?,
            length,
        )?;
        self.start += PREFIX + length;
        Ok(Some(value))
    }

    /// Bytes that are buffered and belong to no frame returned so far.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes_of_a_frame() {
        let frame = encode_frame(&(7u16, String::from("ab"))).unwrap();
        assert_eq!(
            frame,
            [12, 0, 0, 0, 7, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']
        );
    }

    #[test]
    fn a_claimed_length_beyond_the_bound_is_refused_before_it_is_buffered() {
        let mut reader = FrameReader::new();
        reader.feed(&u32::MAX.to_le_bytes());
        assert!(matches!(
            reader.next::<u8>(),
            Err(CodecError::TooLong { .. })
        ));
    }

    #[test]
    fn a_lying_inner_length_does_not_allocate() {
        // A string that claims 2^60 bytes inside a frame of 8.
        let mut frame = 8u32.to_le_bytes().to_vec();
        frame.extend((1u64 << 60).to_le_bytes());
        let mut reader = FrameReader::new();
        reader.feed(&frame);
        assert!(reader.next::<String>().is_err());
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut frame = encode_frame(&1u8).unwrap();
        frame.push(9);
        frame[0] = 2;
        let mut reader = FrameReader::new();
        reader.feed(&frame);
        assert!(matches!(reader.next::<u8>(), Err(CodecError::Trailing(1))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(values in prop::collection::vec(".{0,40}", 0..20), cut in 1usize..9) {
            let bytes: Vec<u8> =
                values.iter().flat_map(|v| encode_frame(v).unwrap()).collect();
            let mut reader = FrameReader::new();
            let mut seen: Vec<String> = Vec::new();
            for chunk in bytes.chunks(cut) {
                reader.feed(chunk);
                while let Some(v) = reader.next().unwrap() {
                    seen.push(v);
                }
            }
            prop_assert_eq!(seen, values);
            prop_assert_eq!(reader.pending(), 0);
        }
    }
}
