//! Images, read back by a reader that shares no code with the writer, and judged by erofs-utils.
// Every function here is test code.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use iii_image::erofs::{Attributes, Builder, ErofsError};
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

type Tree = BTreeMap<String, (Attributes, Content)>;

fn write(tree: &Tree) -> Vec<u8> {
    let mut builder = Builder::new();
    for (path, (attributes, content)) in tree {
        match content {
            Content::Directory => builder.directory(path, *attributes).unwrap(),
            Content::File(bytes) => builder.file(path, *attributes, bytes).unwrap(),
            Content::Symlink(target) => builder.symlink(path, *attributes, target).unwrap(),
        }
    }
    let mut image = Vec::new();
    let length = builder.write(&mut image).unwrap();
    assert_eq!(image.len() as u64, length);
    assert_eq!(image.len() % 4096, 0);
    image
}

/// Reads as Linux does (`fs/erofs`), following the format's description and not the writer.
struct Reader<'a>(&'a [u8]);

struct Inode {
    mode: u32,
    links: u32,
    attributes: Attributes,
    data: Vec<u8>,
}

impl Reader<'_> {
    fn number<const N: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[at..at + N]);
        u64::from_le_bytes(bytes)
    }

    fn root(&self) -> u64 {
        assert_eq!(self.number::<4>(1024), 0xe0f5_e1e2, "magic");
        assert_eq!(self.0[1024 + 12], 12, "blocks of 4 KiB");
        assert_eq!(self.number::<4>(1024 + 36) * 4096, self.0.len() as u64);
        assert_eq!(self.number::<4>(1024 + 40), 0, "metadata from block 0");
        assert_eq!(self.number::<4>(1024 + 80), 0, "no incompatible feature");
        self.number::<2>(1024 + 14)
    }

    fn inode(&self, number: u64) -> Inode {
        let at = number as usize * 32;
        let format = self.number::<2>(at);
        let extended = format & 1 == 1;
        let length = if extended { 64 } else { 32 };
        assert!(at % 4096 + length <= 4096, "an inode crosses blocks");
        let mode = self.number::<2>(at + 4) as u32;
        let block = self.number::<4>(at + 16) as usize;
        let (size, links, uid, gid, mtime) = if extended {
            (
                self.number::<8>(at + 8),
                self.number::<4>(at + 44),
                self.number::<4>(at + 24),
                self.number::<4>(at + 28),
                self.number::<8>(at + 32),
            )
        } else {
            (
                self.number::<4>(at + 8),
                self.number::<2>(at + 6),
                self.number::<2>(at + 24),
                self.number::<2>(at + 26),
                self.number::<8>(1024 + 24),
            )
        };
        let size = size as usize;
        let data = match format >> 1 {
            0 => self.0[block * 4096..][..size].to_vec(),
            2 => {
                let tail = size % 4096;
                let body = size - tail;
                let behind = at + length;
                assert!(behind % 4096 + tail <= 4096, "an end crosses blocks");
                [&self.0[block * 4096..][..body], &self.0[behind..][..tail]].concat()
            }
            other => panic!("data layout {other}"),
        };
        Inode {
            mode,
            links: links as u32,
            attributes: Attributes {
                mode: (mode & 0o7777) as u16,
                uid: uid as u32,
                gid: gid as u32,
                mtime,
            },
            data,
        }
    }

    /// Names with inode number and kind, in their order.
    fn entries(&self, directory: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut all = Vec::new();
        for block in directory.chunks(4096) {
            let offset =
                |n: usize| usize::from(u16::from_le_bytes([block[n * 12 + 8], block[n * 12 + 9]]));
            let count = offset(0) / 12;
            for n in 0..count {
                let end = if n + 1 < count {
                    offset(n + 1)
                } else {
                    block.len()
                };
                let name = &block[offset(n)..end];
                let name = name.split(|byte| *byte == 0).next().unwrap();
                let number = u64::from_le_bytes(block[n * 12..][..8].try_into().unwrap());
                all.push((name.to_vec(), number, block[n * 12 + 10]));
            }
        }
        all
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let root = self.root();
        self.walk(root, root, "", &mut tree);
        tree
    }

    fn walk(&self, number: u64, parent: u64, path: &str, tree: &mut Tree) {
        let inode = self.inode(number);
        assert_eq!(inode.mode & 0o170_000, 0o040_000);
        let entries = self.entries(&inode.data);
        assert!(
            entries.windows(2).all(|pair| pair[0].0 < pair[1].0),
            "sorted"
        );
        let mut directories = 0;
        for (name, child, kind) in entries {
            match &name[..] {
                b"." => assert_eq!((child, kind), (number, 2)),
                b".." => assert_eq!((child, kind), (parent, 2)),
                name => {
                    let path = format!("{path}/{}", std::str::from_utf8(name).unwrap());
                    let found = self.inode(child);
                    let content = match (found.mode & 0o170_000, kind) {
                        (0o040_000, 2) => {
                            directories += 1;
                            self.walk(child, number, &path, tree);
                            Content::Directory
                        }
                        (0o100_000, 1) => Content::File(found.data),
                        (0o120_000, 7) => Content::Symlink(found.data),
                        other => panic!("{path} is {other:?}"),
                    };
                    tree.insert(path, (found.attributes, content));
                }
            }
        }
        assert_eq!(inode.links, 2 + directories);
    }
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let id = prop_oneof![Just(0u32), 0u32..70_000, Just(u32::MAX)];
    (
        0u16..0o10000,
        id.clone(),
        id,
        prop_oneof![Just(0u64), any::<u64>()],
    )
        .prop_map(|(mode, uid, gid, mtime)| Attributes {
            mode,
            uid,
            gid,
            mtime,
        })
}

/// Sizes around the borders between inline ends, whole blocks and blocks of their own.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        0usize..200,
        4000usize..4200,
        8150usize..8230,
        0usize..40_000,
    ];
    (size, any::<u8>()).prop_map(|(size, seed)| {
        (0..size)
            .map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed))
            .collect()
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c!-]{1,3}".prop_filter("no dots alone", |name| name != "." && name != ".."),
        "[ -.0-~]{1,40}".prop_filter("no dots alone", |name| name != "." && name != ".."),
        "é{1,127}",
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        bytes().prop_map(Content::File),
        "[a-z/.]{1,300}".prop_map(|target| Content::Symlink(target.into_bytes())),
        "[a-z/.]{4000,4095}".prop_map(|target| Content::Symlink(target.into_bytes())),
        Just(Content::Directory),
    ];
    let below = prop::collection::vec(name(), 1..4);
    prop::collection::vec((below, attributes(), leaf), 0..60).prop_map(|files| {
        let mut tree = Tree::new();
        for (names, attributes, content) in files {
            let path = format!("/{}", names.join("/"));
            let leads = |path: &str| {
                path.match_indices('/')
                    .skip(1)
                    .map(|(at, _)| path[..at].to_owned())
                    .collect::<Vec<_>>()
            };
            let below = format!("{path}/");
            let fits = leads(&path)
                .iter()
                .all(|dir| tree.get(dir).is_none_or(|(_, c)| *c == Content::Directory))
                && !tree.contains_key(&path)
                && (content == Content::Directory || !tree.keys().any(|k| k.starts_with(&below)));
            if !fits {
                continue;
            }
            for dir in leads(&path) {
                tree.entry(dir)
                    .or_insert((Attributes::of_root(0o755), Content::Directory));
            }
            let attributes = match content {
                Content::Symlink(_) => Attributes {
                    mode: 0o777,
                    ..attributes
                },
                Content::Directory | Content::File(_) => attributes,
            };
            tree.insert(path, (attributes, content));
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read_back(tree in tree()) {
        let image = write(&tree);
        prop_assert_eq!(Reader(&image).tree(), tree.clone());
        prop_assert_eq!(write(&tree), image, "equal input makes equal bytes");
    }
}

fn of_root(mode: u16, content: Content) -> (Attributes, Content) {
    (Attributes::of_root(mode), content)
}

/// Every kind and border, and a directory of many blocks.
fn everything() -> Tree {
    let mut tree = Tree::new();
    tree.insert("/many".into(), of_root(0o755, Content::Directory));
    for n in 0..2_000 {
        let path = format!("/many/{n:0>0$}", 4 + n % 60);
        tree.insert(path, of_root(0o644, Content::File(vec![b'x'; n % 97])));
    }
    tree.insert("/sizes".into(), of_root(0o1777, Content::Directory));
    for size in [
        0, 1, 4063, 4064, 4065, 4095, 4096, 4097, 8160, 8161, 300_000,
    ] {
        let bytes = (0..size).map(|n| (n * 7 % 251) as u8).collect();
        tree.insert(
            format!("/sizes/{size}"),
            of_root(0o600, Content::File(bytes)),
        );
    }
    tree.insert("/links".into(), of_root(0o755, Content::Directory));
    for length in [1, 60, 4063, 4064, 4065, 4095] {
        let target = vec![b'a'; length];
        tree.insert(
            format!("/links/{length}"),
            of_root(0o777, Content::Symlink(target)),
        );
    }
    let owner = |uid, gid, mtime| Attributes {
        mode: 0o4755,
        uid,
        gid,
        mtime,
    };
    for (name, attributes) in [
        ("/compact", owner(1000, 65_535, 0)),
        ("/extended", owner(65_536, 100_000, 0)),
        ("/dated", owner(0, 0, 1_700_000_000)),
    ] {
        tree.insert(name.into(), (attributes, Content::File(b"owned".to_vec())));
    }
    tree
}

#[test]
fn every_border_is_read_back() {
    let tree = everything();
    assert_eq!(Reader(&write(&tree)).tree(), tree);
}

/// erofs-utils is among the packages that `make test` installs.
fn tool(name: &str) -> Command {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("no {name}: apt-get install erofs-utils")))
}

#[test]
fn fsck_finds_no_fault_and_extracts_what_was_written() {
    let tree = everything();
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let out = directory.path().join("out");
    std::fs::write(&image, write(&tree)).unwrap();
    let result = tool("fsck.erofs")
        .arg("-d3")
        .arg(format!("--extract={}", out.display()))
        .args(["--no-preserve-owner", "--preserve-perms"])
        .arg(&image)
        .output()
        .unwrap();
    let complained = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{complained}");
    for (path, (attributes, content)) in &tree {
        let path = out.join(path.trim_start_matches('/'));
        let found = std::fs::symlink_metadata(&path).unwrap();
        match content {
            Content::Directory => assert!(found.is_dir(), "{path:?}"),
            Content::File(bytes) => {
                assert_eq!(&std::fs::read(&path).unwrap(), bytes, "{path:?}");
                // Without root, extraction leaves the set-id bits out.
                let bits = found.permissions().mode() & 0o777;
                assert_eq!(bits, u32::from(attributes.mode) & 0o777, "{path:?}");
                assert_eq!(found.mtime(), attributes.mtime as i64, "{path:?}");
            }
            Content::Symlink(target) => {
                let found = std::fs::read_link(&path).unwrap();
                assert_eq!(
                    found.as_os_str().as_encoded_bytes(),
                    &target[..],
                    "{path:?}"
                );
            }
        }
    }
}

#[test]
fn what_no_image_can_hold_is_refused() {
    let root = Attributes::of_root(0o644);
    for path in [
        "",
        "a",
        "//a",
        "/a/",
        "/a//b",
        "/.",
        "/a/../b",
        "/a\0",
        &format!("/{}", "n".repeat(256)),
    ] {
        let mut builder = Builder::new();
        let error = builder.file(path, root, b"").unwrap_err();
        assert!(
            matches!(error, ErofsError::Path { .. }),
            "{path:?}: {error}"
        );
    }
    let mut builder = Builder::new();
    builder.file("/a/b", root, b"x").unwrap();
    // A directory that was only implied can be described later, once.
    builder.directory("/a", Attributes::of_root(0o700)).unwrap();
    let twice = builder.directory("/a", Attributes::of_root(0o700));
    assert!(matches!(twice, Err(ErofsError::Conflict { .. })));
    for result in [
        builder.file("/a/b", root, b"y"),
        builder.file("/a", root, b"y"),
        builder.file("/a/b/c", root, b"y"),
        builder.directory("/a/b", root),
    ] {
        assert!(matches!(result, Err(ErofsError::Conflict { .. })));
    }
    for target in [&b""[..], b"a\0b", &[b'a'; 4096]] {
        let result = builder.symlink("/l", root, target);
        assert!(matches!(result, Err(ErofsError::Target { .. })));
    }
}

#[test]
fn golden_bytes() {
    let mut tree = Tree::new();
    tree.insert(
        "/a".into(),
        of_root(0o644, Content::File(b"hello".to_vec())),
    );
    tree.insert("/b".into(), of_root(0o777, Content::Symlink(b"a".to_vec())));
    let image = write(&tree);
    assert_eq!(image.len(), 4096);
    let hex = |from: usize, to: usize| {
        image[from..to]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert!(image[..1024].iter().all(|byte| *byte == 0));
    // magic, checksum, compatible features, block bits, slots, root, inodes, time, blocks
    assert_eq!(
        hex(1024, 1064),
        "e2e1f5e0000000000200000\
         00c0024000300000000000000000000000000000000000000\
         01000000"
            .replace(' ', "")
    );
    assert!(image[1064..1152].iter().all(|byte| *byte == 0));
    // The root: compact, its entries behind it.
    assert_eq!(
        hex(1152, 1184),
        "04000000ed4102003600000000000000000000000100000000000000\
         00000000"
    );
    assert_eq!(
        hex(1184, 1184 + 54),
        "240000000000000030000200\
         240000000000000031000200\
         270000000000000033000100\
         290000000000000034000700\
         2e2e2e616200"
    );
    // The file with its five bytes, then the link.
    assert_eq!(hex(39 * 32, 39 * 32 + 8), "04000000a4810100");
    assert_eq!(&image[40 * 32..40 * 32 + 5], b"hello");
    assert_eq!(hex(41 * 32, 41 * 32 + 8), "04000000ffa10100");
    assert_eq!(image[42 * 32], b'a');
}
