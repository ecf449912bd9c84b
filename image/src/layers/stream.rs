//! What a layer's blob holds: an archive, plain or compressed. It is recognised by its first bytes,
//! since registries and archives name it loosely.

use std::io::{self, BufRead as _, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

const BUFFER: usize = 128 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A layer's archive.
pub struct LayerStream<'a> {
    inner: Box<dyn Read + 'a>,
    hasher: Sha256,
    left: u64,
}

impl std::fmt::Debug for LayerStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerStream").finish_non_exhaustive()
    }
}

impl<'a> LayerStream<'a> {
    /// The archive in `blob`, of which more than `most` bytes are an error.
    pub fn open(blob: impl Read + 'a, most: u64) -> io::Result<Self> {
        let mut blob = BufReader::with_capacity(BUFFER, blob);
        let start = blob.fill_buf()?;
        let inner: Box<dyn Read + 'a> = if start.starts_with(&GZIP) {
            Box::new(MultiGzDecoder::new(blob))
        } else if is_zstd(start) {
            Box::new(Zstd::Between(blob))
        } else {
            Box::new(blob)
        };
        Ok(Self {
            inner,
            hasher: Sha256::new(),
            left: most,
        })
    }

    /// The digest of what was read.
    pub fn digest(self) -> Digest {
        Digest::of_hash(self.hasher)
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        // A zip bomb; see `limits`.
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the layer unpacks to more than any real one of its size",
            )
        })?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Whether a file that begins like this is compressed in a way that is known.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || is_zstd(start)
}

fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&ZSTD) || start.first_chunk().is_some_and(is_skippable)
}

/// The magic number of a frame that readers pass over.
fn is_skippable(magic: &[u8; 4]) -> bool {
    magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18]
}

/// What a frame is read from: its magic number was looked at.
type Framed<R> = Chain<Cursor<[u8; 4]>, R>;

/// Frames one after the other: writers that compress in parallel, or for random access, make many.
/// The decoder bounds the window that a frame may ask memory for.
enum Zstd<R: Read> {
    Between(R),
    Frame(Box<StreamingDecoder<Framed<R>, FrameDecoder>>),
    Ended,
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Self::Ended) {
                Self::Ended => return Ok(0),
                Self::Between(input) => *self = Self::after_frame(input)?,
                Self::Frame(mut frame) => {
                    let n = frame.read(buffer)?;
                    if n > 0 {
                        *self = Self::Frame(frame);
                        return Ok(n);
                    }
                    let (_, input) = frame.into_inner().into_inner();
                    *self = Self::Between(input);
                }
            }
        }
    }
}

impl<R: Read> Zstd<R> {
    fn after_frame(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        if input.read(&mut magic[..1])? == 0 {
            return Ok(Self::Ended);
        }
        input.read_exact(&mut magic[1..])?;
        if is_skippable(&magic) {
            let mut length = [0; 4];
            input.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            let skipped = io::copy(&mut (&mut input).take(length), &mut io::sink())?;
            return if skipped == length {
                Ok(Self::Between(input))
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        let framed = Cursor::new(magic).chain(input);
        match StreamingDecoder::new(framed) {
            Ok(frame) => Ok(Self::Frame(Box::new(frame))),
            Err(error) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                error.to_string(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn opened(blob: &[u8], most: u64) -> io::Result<(Vec<u8>, Digest)> {
        let mut stream = LayerStream::open(blob, most)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok((bytes, stream.digest()))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    }

    #[test]
    fn all_forms_give_the_same_bytes_and_digest() {
        let text = b"an archive ".repeat(50_000);
        let (first, second) = text.split_at(123_456);
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
        for blob in [
            text.clone(),
            gzip(&text),
            [gzip(first), gzip(second)].concat(),
            zstd(&text),
            [zstd(first), skippable.clone(), zstd(second)].concat(),
            [skippable.clone(), zstd(&text), skippable.clone()].concat(),
        ] {
            let (bytes, digest) = opened(&blob, 1 << 20).unwrap();
            assert!(bytes == text);
            assert_eq!(digest, Digest::of(&text));
        }
        assert_eq!(opened(b"", 1).unwrap().0, b"");
    }

    #[test]
    fn a_bomb_is_cut_off() {
        let bomb = vec![0; 4 << 20];
        for blob in [gzip(&bomb), zstd(&bomb), bomb.clone()] {
            assert_eq!(opened(&blob, 4 << 20).unwrap().0.len(), 4 << 20);
            let error = opened(&blob, (4 << 20) - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
    }

    #[test]
    fn what_breaks_off_or_is_damaged_is_an_error() {
        let text = b"an archive ".repeat(50_000);
        for blob in [gzip(&text), zstd(&text)] {
            for cut in [5, blob.len() / 2, blob.len() - 1] {
                assert!(opened(&blob[..cut], 1 << 20).is_err(), "{cut}");
            }
        }
        // 2^41 bytes of window.
        let greedy = [&ZSTD[..], &[0x00, 0xf8], &[0x01, 0, 0]].concat();
        assert!(opened(&greedy, 1 << 20).is_err());
        let cut = [0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1];
        assert!(opened(&cut, 1 << 20).is_err());
    }
}
