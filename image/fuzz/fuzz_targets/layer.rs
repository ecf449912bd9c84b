//! Layers of an image, compressed or not, merged as they come: `cargo +nightly fuzz run layer`.
#![no_main]

use iii_image::erofs::Xattrs;
use iii_image::layers::merge::{Merge, Sink, StoreError};
use iii_image::layers::stream::LayerStream;

/// Passes over what files hold.
struct Nowhere;

impl Sink for Nowhere {
    type File = u64;

    fn store(
        &mut self,
        content: &mut dyn std::io::Read,
        size: u64,
        _: &Xattrs,
    ) -> Result<u64, StoreError> {
        std::io::copy(content, &mut std::io::sink()).map_err(StoreError::Read)?;
        Ok(size)
    }
}

libfuzzer_sys::fuzz_target!(|layers: (&[u8], &[u8])| {
    let mut merge = Merge::default();
    for layer in [layers.0, layers.1] {
        if let Ok(stream) = LayerStream::open(layer, 1 << 20) {
            drop(merge.layer(stream, &mut Nowhere));
        }
    }
    // Every name is one that a file can have, and every directory has one name.
    let tree = merge.into_tree();
    let mut pending = vec![iii_image::erofs::NodeId::ROOT];
    let mut seen = std::collections::HashSet::new();
    while let Some(id) = pending.pop() {
        for (name, child) in tree.node(id).children().into_iter().flatten() {
            assert!(!matches!(&**name, b"" | b"." | b"..") && !name.contains(&b'/'));
            if tree.node(*child).children().is_some() {
                assert!(seen.insert(*child));
                pending.push(*child);
            }
        }
    }
});
