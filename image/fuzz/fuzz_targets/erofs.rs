//! Images that a disk has changed: `cargo +nightly fuzz run erofs`.
#![no_main]

use iii_image::erofs::read::{Image, Lookup};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    for path in ["/", "/etc/passwd", "/a/../b"] {
        if let Ok(Lookup::Found(inode)) = image.lookup(path.as_bytes()) {
            drop(image.content(&inode, 4096));
            drop(image.entries(&inode));
            drop(image.xattrs(&inode));
        }
    }
});
