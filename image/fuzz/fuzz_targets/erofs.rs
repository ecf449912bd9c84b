//! Images that a disk has changed: a sound one with some of its bytes replaced, each change three
//! bytes of input (where, and what). Anything else would fail at the magic number.
#![no_main]

use std::sync::OnceLock;

use iii_image::erofs::read::{Image, Lookup};
use iii_image::erofs::{Attributes, Builder};

fn sound() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let attributes = || Attributes::of_root(0o644);
        let mut builder = Builder::new();
        let large = vec![7; 9000];
        for (path, content) in [("/etc/passwd", &b"root:x:0:0::/:/bin/sh\n"[..]), ("/large", &large)] {
            builder.file(path, attributes(), content).unwrap();
        }
        builder.symlink("/a", attributes(), b"../etc").unwrap();
        builder.symlink("/circle", attributes(), b"circle").unwrap();
        let mut image = Vec::new();
        builder.write(&mut image).unwrap();
        image
    })
}

libfuzzer_sys::fuzz_target!(|changes: &[u8]| {
    let mut bytes = sound().to_vec();
    for change in changes.chunks_exact(3) {
        // The superblock and the metadata behind it are what is read by.
        let at = 1024 + usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = change[2];
        }
    }
    let Ok(image) = Image::open(&bytes[..]) else {
        return;
    };
    for path in ["/", "/etc/passwd", "/large", "/a/passwd", "/a/../b", "/circle"] {
        if let Ok(Lookup::Found(inode)) = image.lookup(path.as_bytes()) {
            drop(image.content(&inode, 16384));
            drop(image.entries(&inode));
            drop(image.xattrs(&inode));
        }
    }
});
