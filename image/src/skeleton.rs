//! The part of a root that is made rather than mounted.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// One directory, file or link of the skeleton. Everything belongs to root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkeletonEntry {
    /// Absolute in the guest, without `.`, `..` or a trailing slash.
    pub path: String,
    /// What is there.
    pub kind: EntryKind,
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
    entries: BTreeMap<String, EntryKind>,
}

impl Skeleton {
    pub(crate) fn dir(&mut self, path: &str, mode: u32) {
        self.add(path, EntryKind::Dir { mode });
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.add(
            path,
            EntryKind::File {
                mode,
                bytes: bytes.into(),
            },
        );
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.add(
            path,
            EntryKind::Symlink {
                target: target.to_owned(),
            },
        );
    }

    fn add(&mut self, path: &str, kind: EntryKind) {
        self.entries.entry(path.to_owned()).or_insert(kind);
    }

    /// Sorted by path, so that a directory comes before what it holds.
    pub(crate) fn finish(self) -> Vec<SkeletonEntry> {
        self.entries
            .into_iter()
            .map(|(path, kind)| SkeletonEntry { path, kind })
            .collect()
    }
}

/// The entry at `path` of a finished skeleton.
pub(crate) fn get<'a>(skeleton: &'a [SkeletonEntry], path: &str) -> Option<&'a EntryKind> {
    skeleton
        .binary_search_by(|entry| entry.path.as_str().cmp(path))
        .ok()
        .and_then(|at| skeleton.get(at))
        .map(|entry| &entry.kind)
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
            }])
        };
        let file = |mode, bytes: &[u8]| EntryKind::File {
            mode,
            bytes: bytes.to_vec(),
        };
        let all = [
            digest(&[]),
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
        assert_eq!(with("/a", file(0o644, b"x")), all[1]);
    }
}
