//! The initramfs: a cpio archive in the "newc" format (initramfs buffer format of the kernel's
//! documentation), uncompressed, since the guest would spend longer on inflating than on copying.
//!
//! The kernel unpacks any number of archives laid end to end, later entries replacing earlier
//! ones. So a boot medium is a base segment, which is the same for every boot of a worker, and a
//! per-boot segment that holds the [`GuestSpec`].

use std::collections::HashSet;

use iii_proto::GUEST_SPEC_PATH;
use iii_proto::codec::{CodecError, encode_spec};
use iii_proto::guest::GuestSpec;

const MAGIC: &[u8; 6] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const ALIGNMENT: usize = 4;
/// The kernel's limit on a path (PATH_MAX) includes the terminating NUL.
const PATH_MAX: usize = 4096;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;

/// What cannot be put into an initramfs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitramfsError {
    /// Not absolute, or with `.`, `..`, an empty component or a NUL in it.
    #[error(
        "failed to add {path:?} to the initramfs: an absolute path without `.`, `..`, `//` or NUL is wanted"
    )]
    Path {
        /// As it was given.
        path: String,
    },
    /// The format has eight hexadecimal digits for a size.
    #[error(
        "failed to add {path:?} to the initramfs: {size} bytes are more than the format can hold"
    )]
    TooLarge {
        /// Whose.
        path: String,
        /// Bytes.
        size: usize,
    },
    /// A symbolic link that points nowhere.
    #[error(
        "failed to add the link {path:?} to the initramfs: its target {target:?} is empty, too long or has a NUL"
    )]
    Target {
        /// Of the link.
        path: String,
        /// As it was given.
        target: String,
    },
}

/// Writes one segment. Directories that lead to an entry are made (0755) unless they were added
/// before it. Everything belongs to root, has the epoch as its time and a link count of one, so
/// that equal input makes equal bytes.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    out: Vec<u8>,
    directories: HashSet<String>,
    next_inode: u32,
}

impl Initramfs {
    /// An empty segment.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty segment with room for this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            out: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }

    /// The first program that the kernel starts.
    pub fn init(&mut self, bytes: &[u8]) -> Result<&mut Self, InitramfsError> {
        self.file("/init", 0o755, bytes)
    }

    /// A directory. One that exists already gets the mode.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self, InitramfsError> {
        let name = checked(path)?;
        self.parents(name);
        self.directories.insert(name.to_owned());
        self.entry(name, TYPE_DIRECTORY | (mode & 0o7777), &[]);
        Ok(self)
    }

    /// A regular file.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        bytes: &[u8],
    ) -> Result<&mut Self, InitramfsError> {
        let name = checked(path)?;
        if u32::try_from(bytes.len()).is_err() {
            return Err(InitramfsError::TooLarge {
                path: path.to_owned(),
                size: bytes.len(),
            });
        }
        self.parents(name);
        self.entry(name, TYPE_REGULAR | (mode & 0o7777), bytes);
        Ok(self)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, InitramfsError> {
        let name = checked(path)?;
        if target.is_empty() || target.len() >= PATH_MAX || target.contains('\0') {
            return Err(InitramfsError::Target {
                path: path.to_owned(),
                target: target.to_owned(),
            });
        }
        self.parents(name);
        self.entry(name, TYPE_SYMLINK | 0o777, target.as_bytes());
        Ok(self)
    }

    /// Ends the segment. Its length is a multiple of four, as the kernel wants of what another
    /// segment follows.
    pub fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.header(TRAILER, 0, 0, 0);
        self.out
    }

    fn parents(&mut self, name: &str) {
        for (slash, _) in name.match_indices('/') {
            let parent = &name[..slash];
            if self.directories.insert(parent.to_owned()) {
                self.entry(parent, TYPE_DIRECTORY | 0o755, &[]);
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.next_inode += 1;
        let size = u32::try_from(data.len()).expect("checked by the callers");
        self.header(name, self.next_inode, mode, size);
        self.out.extend_from_slice(data);
        self.pad();
    }

    fn header(&mut self, name: &str, inode: u32, mode: u32, size: u32) {
        let name_size = u32::try_from(name.len() + 1).expect("shorter than PATH_MAX");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.out.extend_from_slice(MAGIC);
        for field in fields {
            push_hex(&mut self.out, field);
        }
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.out
            .resize(self.out.len().next_multiple_of(ALIGNMENT), 0);
    }
}

fn push_hex(out: &mut Vec<u8>, value: u32) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        (0..8)
            .rev()
            .map(|nibble| DIGITS[((value >> (nibble * 4)) & 0xf) as usize]),
    );
}

/// The path without its leading slash.
fn checked(path: &str) -> Result<&str, InitramfsError> {
    let refuse = || InitramfsError::Path {
        path: path.to_owned(),
    };
    let name = path.strip_prefix('/').ok_or_else(refuse)?;
    let sound = name.len() < PATH_MAX
        && !name.contains('\0')
        && name != TRAILER
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if sound { Ok(name) } else { Err(refuse()) }
}

/// The segment of one boot: what vm-init is told to become, readable by root alone, since it holds
/// the workload's environment.
pub fn boot_segment(spec: &GuestSpec) -> Result<Vec<u8>, CodecError> {
    let encoded = encode_spec(spec)?;
    let mut segment = Initramfs::new();
    segment.parents(GUEST_SPEC_PATH.trim_start_matches('/'));
    segment.entry(
        GUEST_SPEC_PATH.trim_start_matches('/'),
        TYPE_REGULAR | 0o400,
        &encoded,
    );
    Ok(segment.finish())
}

/// Lays `segments` end to end in an anonymous memory file and seals it: neither size nor content
/// can change any more, whoever holds the descriptor.
#[cfg(target_os = "linux")]
pub fn sealed(segments: &[&[u8]]) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::fs::File;
    use std::io::{Seek as _, Write as _};

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"iii-initramfs", flags)?;
    let mut file = File::from(fd);
    for segment in segments {
        file.write_all(segment)?;
    }
    file.rewind()?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut segment = Initramfs::new();
        segment
            .file("/a/b", 0o400, b"hello")
            .expect("sound")
            .symlink("/c", "a/b")
            .expect("sound");
        let expected = concat!(
            // a: a directory that was not asked for
            "070701",
            "00000001",
            "000041ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "a\0",
            // a/b: 5 bytes of content, padded to 8
            "070701",
            "00000002",
            "00008100",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "a/b\0\0\0",
            "hello\0\0\0",
            // c -> a/b
            "070701",
            "00000003",
            "0000a1ff",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000003",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "c\0",
            "a/b\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0\0\0\0",
        );
        let bytes = segment.finish();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for path in [
            "",
            "a",
            "/",
            "//a",
            "/a/",
            "/a//b",
            "/.",
            "/../a",
            "/a/../b",
            "/a/./b",
            "/a\0b",
            "/TRAILER!!!",
        ] {
            let mut segment = Initramfs::new();
            assert!(segment.dir(path, 0o755).is_err(), "{path:?}");
            assert!(segment.file(path, 0o644, b"").is_err(), "{path:?}");
            assert!(segment.symlink(path, "x").is_err(), "{path:?}");
            assert!(segment.out.is_empty());
        }
        assert!(
            Initramfs::new()
                .dir(&format!("/{}", "a/".repeat(2047)), 0o755)
                .is_err()
        );
        assert!(Initramfs::new().symlink("/a", "").is_err());
        assert!(Initramfs::new().symlink("/a", "b\0").is_err());
    }

    #[test]
    fn a_declared_directory_is_written_once_and_keeps_its_mode() {
        let mut segment = Initramfs::new();
        segment
            .dir("/tmp", 0o1777)
            .expect("sound")
            .file("/tmp/x", 0o644, b"")
            .expect("sound");
        let text = String::from_utf8(segment.finish()).expect("ascii");
        assert_eq!(text.matches("000043ff").count(), 1);
        assert_eq!(text.matches("tmp\0").count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_sealed_file_holds_both_segments_and_refuses_a_write() {
        use std::fs::File;
        use std::io::{Read as _, Seek as _, Write as _};

        let mut base = Initramfs::new();
        base.init(b"#!").expect("sound");
        let (base, boot) = (base.finish(), Initramfs::new().finish());
        let mut file = File::from(sealed(&[&base, &boot]).expect("memory"));
        let mut read = Vec::new();
        file.read_to_end(&mut read).expect("readable");
        assert_eq!(read, [base, boot].concat());
        file.rewind().expect("seekable");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }
}
