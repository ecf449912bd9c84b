//! Layers become an image that erofs-utils finds no fault with, and that takes no memory for what
//! is in its files.
// Every function here is test code.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use iii_image::erofs::read::{FileKind, Image, Lookup};
use iii_image::layers::Assembly;
use tar::{Builder, EntryType, Header};

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(999);
    header.set_gid(70_000);
    header.set_mtime(1_700_000_000);
    header
}

fn file(layer: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = header(EntryType::Regular, content.len() as u64, 0o640);
    layer.append_data(&mut header, path, content).unwrap();
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 7 % 251) as u8).collect()
}

const SIZES: [usize; 13] = [
    0, 1, 4_031, 4_032, 4_033, 4_095, 4_096, 4_097, 8_127, 8_128, 8_129, 300_000, 3_000_000,
];

fn lower() -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for n in 0..3_000 {
        file(
            &mut layer,
            &format!("many/{n:0>0$}", 4 + n % 60),
            &content(n % 97),
        );
    }
    for size in SIZES {
        file(&mut layer, &format!("sizes/{size}"), &content(size));
        file(&mut layer, &format!("replaced/{size}"), &content(size));
    }
    let mut link = header(EntryType::Link, 0, 0);
    layer
        .append_link(&mut link, "sizes/linked", "sizes/8129")
        .unwrap();
    let mut long = header(EntryType::Symlink, 0, 0o777);
    layer
        .append_link(&mut long, "long", "t".repeat(4_000))
        .unwrap();
    layer.into_inner().unwrap()
}

fn upper() -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    file(&mut layer, ".wh.replaced", b"");
    for (name, kind) in [("null", EntryType::Char), ("disk", EntryType::Block)] {
        let mut header = header(kind, 0, 0o666);
        header.set_device_major(259).unwrap();
        header.set_device_minor(0x1_2345).unwrap();
        layer.append_data(&mut header, name, &b""[..]).unwrap();
    }
    let mut fifo = header(EntryType::Fifo, 0, 0o600);
    layer.append_data(&mut fifo, "fifo", &b""[..]).unwrap();
    for size in [10, 4_000, 5_000] {
        let note = content(100);
        layer
            .append_pax_extensions([("SCHILY.xattr.user.note", &note[..])])
            .unwrap();
        file(&mut layer, &format!("noted/{size}"), &content(size));
    }
    layer.into_inner().unwrap()
}

fn assembled(directory: &Path, layers: &[Vec<u8>]) -> std::path::PathBuf {
    let path = directory.join("image");
    let mut assembly = Assembly::new(File::create(&path).unwrap(), directory).unwrap();
    for layer in layers {
        assembly.layer(&layer[..]).unwrap();
    }
    let finished = assembly.finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), finished.size);
    path
}

/// erofs-utils is among the packages that `make test` installs.
fn fsck() -> Command {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .map(|dir| Path::new(dir).join("fsck.erofs"))
        .into_iter()
        .find(|path| path.exists());
    Command::new(found.expect("apt-get install erofs-utils"))
}

#[test]
fn fsck_finds_no_fault_and_extracts_what_the_layers_hold() {
    let directory = tempfile::tempdir().unwrap();
    let image = assembled(directory.path(), &[lower(), upper()]);
    let out = directory.path().join("out");
    let mut check = fsck();
    check.arg("-d3").arg(format!("--extract={}", out.display()));
    let as_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if as_root {
        check.args(["--preserve-owner", "--preserve-perms"]);
    } else {
        check.args(["--no-preserve-owner", "--preserve-perms"]);
    }
    let result = check.arg(&image).output().unwrap();
    let said = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{said}");
    for size in SIZES {
        let path = out.join(format!("sizes/{size}"));
        assert_eq!(std::fs::read(&path).unwrap(), content(size), "{size}");
        if as_root {
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!(
                (found.uid(), found.gid(), found.mtime()),
                (999, 70_000, 1_700_000_000)
            );
        }
    }
    assert_eq!(
        std::fs::read(out.join("sizes/linked")).unwrap(),
        content(8_129)
    );
    assert_eq!(
        std::fs::read(out.join("noted/5000")).unwrap(),
        content(5_000)
    );
    assert_eq!(std::fs::read_dir(out.join("many")).unwrap().count(), 3_000);
    assert!(!out.join("replaced").exists());
    if as_root {
        let found = std::fs::metadata(out.join("null")).unwrap();
        assert!(found.file_type().is_char_device());
        let (major, minor) = (
            nix::sys::stat::major(found.rdev()),
            nix::sys::stat::minor(found.rdev()),
        );
        assert_eq!((major, minor), (259, 0x1_2345));
    }
}

#[test]
fn it_is_read_back_and_equal_layers_make_equal_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = assembled(directory.path(), &[lower(), upper()]);
    let bytes = std::fs::read(&path).unwrap();
    let again = tempfile::tempdir().unwrap();
    let second = assembled(again.path(), &[lower(), upper()]);
    assert!(std::fs::read(second).unwrap() == bytes);
    let image = Image::open(&bytes[..]).unwrap();
    let found = |path: &str| match image.lookup(path.as_bytes()).unwrap() {
        Lookup::Found(inode) => inode,
        other => panic!("{path}: {other:?}"),
    };
    for size in SIZES {
        let inode = found(&format!("/sizes/{size}"));
        assert_eq!(inode.kind, FileKind::File);
        assert!(
            image.content(&inode, u64::MAX).unwrap() == content(size),
            "{size}"
        );
    }
    assert_eq!(found("/sizes/linked"), found("/sizes/8129"));
    assert_eq!(found("/sizes/linked").links, 2);
    let noted = found("/noted/4000");
    assert_eq!(image.content(&noted, u64::MAX).unwrap(), content(4_000));
    let attributes = image.xattrs(&noted).unwrap();
    assert_eq!(
        (&*attributes[0].name, &attributes[0].value),
        (&b"note"[..], &content(100))
    );
    // What an upper layer took away costs no disk, where its file system can give it back.
    let held = std::fs::metadata(&path).unwrap();
    let replaced: usize = SIZES.iter().sum();
    assert!(held.len() as usize > 2 * replaced);
    assert!((held.blocks() * 512) as usize <= held.len() as usize);
}

#[test]
fn a_damaged_image_is_an_error_and_never_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = assembled(directory.path(), &[upper()]);
    let whole = std::fs::read(path).unwrap();
    let paths = [
        "/noted/4000",
        "/null",
        "/fifo",
        "/noted/../noted/10",
        "/nothing",
    ];
    let look = |bytes: &[u8]| {
        let Ok(image) = Image::open(bytes) else {
            return;
        };
        for path in paths {
            if let Ok(Lookup::Found(inode)) = image.lookup(path.as_bytes()) {
                drop(image.content(&inode, 10_000));
                drop(image.entries(&inode));
                drop(image.xattrs(&inode));
            }
        }
    };
    look(b"");
    look(&whole[..whole.len() / 2]);
    let mut bytes = whole.clone();
    // Every byte of the superblock, and many of all else.
    for at in (1024..1152).chain((1152..whole.len()).step_by(3)) {
        for value in [0, 0xff, whole[at] ^ 0x10] {
            bytes[at] = value;
            look(&bytes);
        }
        bytes[at] = whole[at];
    }
}

/// The most memory that this process had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

#[test]
fn a_large_file_takes_no_memory() {
    const SIZE: u64 = 400 << 20;
    let directory = tempfile::tempdir().unwrap();
    let mut header = header(EntryType::Regular, SIZE, 0o644);
    header.set_path("large").unwrap();
    header.set_cksum();
    let layer = io::Cursor::new(header.as_bytes().to_vec())
        .chain(io::repeat(7).take(SIZE))
        .chain(io::repeat(0).take(1024));
    let path = directory.path().join("image");
    let mut assembly = Assembly::new(File::create(&path).unwrap(), directory.path()).unwrap();
    let before = peak();
    assembly.layer(layer).unwrap();
    let finished = assembly.finish().unwrap();
    assert!(finished.size > SIZE);
    let grown = peak() - before;
    // The other tests of this file run beside this one.
    assert!(grown < SIZE / 4, "{grown} bytes of memory");
}
