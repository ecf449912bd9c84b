//! The part of a root that is made rather than mounted.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::erofs::{Attributes, BLOCK, Builder, ErofsError};

/// One directory, file or link of the skeleton.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkeletonEntry {
    /// Absolute in the guest, without `.`, `..` or a trailing slash.
    pub path: String,
    /// What is there.
    pub kind: EntryKind,
    /// To whom it belongs.
    pub owner: Owner,
}

impl SkeletonEntry {
    /// About the bytes that it takes of an image.
    fn room(&self) -> usize {
        /// An inode, and an entry in a directory.
        const NODE: usize = 128;
        let content = match &self.kind {
            EntryKind::Dir { .. } => 0,
            EntryKind::File { bytes, .. } => bytes.len().next_multiple_of(BLOCK),
            EntryKind::Symlink { target } => target.len(),
        };
        NODE + self.path.len() + content
    }
}

/// A user and a group of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Kinds of [`SkeletonEntry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir {
        /// Permission bits, the sticky bit included.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// As it is stored.
        target: String,
    },
}

/// Collects entries. The first entry of a path stays: what is generated is added before what is
/// copied.
#[derive(Debug, Default)]
pub(crate) struct Skeleton {
    entries: BTreeMap<String, (EntryKind, Owner)>,
}

impl Skeleton {
    pub(crate) fn dir(&mut self, path: &str, mode: u32) {
        self.add(path, EntryKind::Dir { mode }, Owner::default());
    }

    pub(crate) fn home(&mut self, path: &str, owner: Owner) {
        self.add(path, EntryKind::Dir { mode: 0o755 }, owner);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.add(
            path,
            EntryKind::File {
                mode,
                bytes: bytes.into(),
            },
            Owner::default(),
        );
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.add(
            path,
            EntryKind::Symlink {
                target: target.to_owned(),
            },
            Owner::default(),
        );
    }

    fn add(&mut self, path: &str, kind: EntryKind, owner: Owner) {
        self.entries.entry(path.to_owned()).or_insert((kind, owner));
    }

    /// Sorted by path, so that a directory comes before what it holds.
    pub(crate) fn finish(self) -> Vec<SkeletonEntry> {
        self.entries
            .into_iter()
            .map(|(path, (kind, owner))| SkeletonEntry { path, kind, owner })
            .collect()
    }
}

/// What is at `path` of a finished skeleton.
pub(crate) fn get<'a>(skeleton: &'a [SkeletonEntry], path: &str) -> Option<&'a EntryKind> {
    entry(skeleton, path).map(|entry| &entry.kind)
}

/// The entry at `path` of a finished skeleton.
pub fn entry<'a>(skeleton: &'a [SkeletonEntry], path: &str) -> Option<&'a SkeletonEntry> {
    skeleton
        .binary_search_by(|entry| entry.path.as_str().cmp(path))
        .ok()
        .and_then(|at| skeleton.get(at))
}

/// A whole skeleton as an EROFS image, which the guest mounts as it lies in its memory. As files of
/// an initramfs, its several hundred entries would cost every boot as much time as all else that
/// vm-init does before the workload's start.
pub fn image(skeleton: &[SkeletonEntry]) -> Result<Vec<u8>, ErofsError> {
    let mut builder = Builder::new();
    for entry in skeleton {
        let attributes = |mode: u32| Attributes {
            uid: entry.owner.uid,
            gid: entry.owner.gid,
            ..Attributes::of_root((mode & 0o7777) as u16)
        };
        match &entry.kind {
            EntryKind::Dir { mode } => builder.directory(&entry.path, attributes(*mode))?,
            EntryKind::File { mode, bytes } => {
                builder.file(&entry.path, attributes(*mode), bytes)?;
            }
            EntryKind::Symlink { target } => {
                builder.symlink(&entry.path, attributes(0o777), target.as_bytes())?;
            }
        }
    }
    let contents: usize = skeleton.iter().map(SkeletonEntry::room).sum();
    let mut image = Vec::with_capacity(contents);
    builder.write(&mut image)?;
    Ok(image)
}

/// SHA-256 of a whole skeleton, in hexadecimal: equal skeletons, and no others, share it.
pub fn digest(skeleton: &[SkeletonEntry]) -> String {
    let mut hasher = Sha256::new();
    // Each part goes in behind its length, so that no two skeletons run together.
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for entry in skeleton {
        part(entry.path.as_bytes());
        part(&entry.owner.uid.to_le_bytes());
        part(&entry.owner.gid.to_le_bytes());
        match &entry.kind {
            EntryKind::Dir { mode } => part(&[&b"d"[..], &mode.to_le_bytes()].concat()),
            EntryKind::File { mode, bytes } => {
                part(&[&b"f"[..], &mode.to_le_bytes()].concat());
                part(bytes);
            }
            EntryKind::Symlink { target } => {
                part(b"l");
                part(target.as_bytes());
            }
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_the_first_entry_stays() {
        let mut skeleton = Skeleton::default();
        skeleton.file("/etc/ssl/openssl.cnf", 0o644, "x");
        skeleton.dir("/etc/ssl", 0o755);
        skeleton.dir("/etc", 0o755);
        skeleton.file("/etc/ssl/openssl.cnf", 0o600, "second");
        let entries = skeleton.finish();
        let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/etc", "/etc/ssl", "/etc/ssl/openssl.cnf"]);
        assert_eq!(
            get(&entries, "/etc/ssl/openssl.cnf"),
            Some(&EntryKind::File {
                mode: 0o644,
                bytes: b"x".to_vec()
            })
        );
        assert_eq!(get(&entries, "/etc/s"), None);
    }

    #[test]
    fn the_digest_sees_every_part() {
        let with = |path: &str, kind: EntryKind| {
            digest(&[SkeletonEntry {
                path: path.to_owned(),
                kind,
                owner: Owner::default(),
            }])
        };
        let owned = digest(&[SkeletonEntry {
            path: "/a".to_owned(),
            kind: EntryKind::Dir { mode: 0o755 },
            owner: Owner { uid: 0, gid: 7 },
        }]);
        let file = |mode, bytes: &[u8]| EntryKind::File {
            mode,
            bytes: bytes.to_vec(),
        };
        let all = [
            digest(&[]),
            owned,
            with("/a", file(0o644, b"x")),
            with("/a", file(0o600, b"x")),
            with("/a", file(0o644, b"y")),
            with("/b", file(0o644, b"x")),
            with("/a", EntryKind::Dir { mode: 0o755 }),
            with(
                "/a",
                EntryKind::Symlink {
                    target: "x".to_owned(),
                },
            ),
        ];
        let distinct: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(with("/a", file(0o644, b"x")), all[2]);
    }
}
