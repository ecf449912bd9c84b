//! Files that travel inside an executable, compressed when it was built.

use std::fmt;
use std::io::{self, Read as _, Write};

use ruzstd::decoding::StreamingDecoder;

use crate::digest::{Digest, HashingWriter};

/// A file inside this executable.
#[derive(Clone, Copy)]
pub struct Embedded {
    /// Its name.
    pub name: &'static str,
    /// Of its content.
    pub sha256: Digest,
    /// Bytes of its content.
    pub size: u64,
    /// Its content as a zstd frame.
    pub packed: &'static [u8],
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("name", &self.name)
            .field("sha256", &self.sha256)
            .field("size", &self.size)
            .field("packed", &self.packed.len())
            .finish()
    }
}

impl Embedded {
    /// Writes the content, and refuses any that is not what was built in: an executable can be
    /// damaged on its way.
    pub fn unpack(&self, to: impl Write) -> io::Result<()> {
        let mut decoder =
            StreamingDecoder::new(self.packed).map_err(|error| self.damaged(&error))?;
        let mut writer = HashingWriter::new(to);
        // Not `io::copy`: what fails must be known apart from the reader's part and the writer's.
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = decoder
                .read(&mut buffer)
                .map_err(|error| self.damaged(&error))?;
            if read == 0 || writer.written() > self.size {
                break;
            }
            writer.write_all(&buffer[..read])?;
        }
        let written = writer.written();
        let found = writer.finish();
        if (written, found) != (self.size, self.sha256) {
            return Err(self.damaged(&format_args!("{written} bytes with SHA-256 {found}")));
        }
        Ok(())
    }

    fn damaged(&self, what: &dyn fmt::Display) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the {} in this executable is damaged ({what}); install it anew",
                self.name
            ),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// One with this content.
    pub(crate) fn embedded(name: &'static str, content: &[u8]) -> Embedded {
        let packed = compress_to_vec(content, CompressionLevel::Fastest);
        Embedded {
            name,
            sha256: Digest::of(content),
            size: content.len() as u64,
            packed: packed.leak(),
        }
    }

    #[test]
    fn content_comes_out_as_it_went_in() {
        for size in [0, 1, 300_000, 1 << 20] {
            let content: Vec<u8> = (0..size).map(|n: u32| (n / 7) as u8).collect();
            let mut out = Vec::new();
            embedded("file", &content)
                .unpack(&mut out)
                .expect("unpacks");
            assert_eq!(out, content);
        }
    }

    #[test]
    fn whatever_is_not_what_was_built_in_is_refused() {
        let sound = embedded("iii-shim", b"content");
        let wrong = [
            Embedded {
                sha256: Digest::of(b"other"),
                ..sound
            },
            Embedded { size: 6, ..sound },
            Embedded { size: 8, ..sound },
            Embedded {
                packed: &sound.packed[..4],
                ..sound
            },
            Embedded {
                packed: b"no frame",
                ..sound
            },
        ];
        for wrong in wrong {
            let error = wrong.unpack(io::sink()).expect_err("damaged").to_string();
            assert!(
                error.contains("the iii-shim in this executable is damaged"),
                "{error}"
            );
        }
    }

    /// A disk that is full.
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_fault_of_the_disk_is_not_taken_for_one_of_the_executable() {
        let error = embedded("file", b"content").unpack(Full);
        assert_eq!(error.expect_err("full").kind(), io::ErrorKind::StorageFull);
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_no_panic(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let content: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
            let sound = embedded("file", &content);
            let mut packed = sound.packed.to_vec();
            let at = at.index(packed.len());
            packed[at] ^= flip;
            let spoiled = Embedded { packed: packed.leak(), ..sound };
            let mut out = Vec::new();
            // Some bits of a frame mean nothing: then the content is right.
            prop_assert!(spoiled.unpack(&mut out).is_err() || out == content);
        }
    }
}
