//! What registries and archives say: `cargo +nightly fuzz run documents`.
#![no_main]

use iii_image::oci::{Document, ImageConfig, Platform, Reference, manifest};
use iii_image::registry::challenge;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(Document::Index(all)) = Document::parse(bytes) {
        drop(manifest::choose(&all, &Platform::of_host()));
    }
    drop(ImageConfig::parse(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(challenge::parse(text));
        if let Ok(reference) = text.parse::<Reference>() {
            assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
            assert!(!reference.repository().contains(".."));
        }
    }
});
