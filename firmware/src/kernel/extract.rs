//! Reads the kernel out of a libkrunfw file, without loading it: the file may be for another
//! architecture, and nothing of it needs to run.
//!
//! libkrunfw is one variable, `KERNEL_BUNDLE`, and functions that answer its address and size. The
//! build appends one NUL byte to the image, which is a whole number of pages.

use memchr::memmem;
use object::{Architecture, Object as _, ObjectSection as _, ObjectSymbol as _};

/// Guest pages; the bundled image is padded to them.
const PAGE: u64 = 4096;
/// An image smaller than this or larger than that is not a kernel; bounds what a wrong file costs.
const MIN_IMAGE: u64 = 1 << 20;
const MAX_IMAGE: u64 = 256 << 20;

/// No kernel could be taken out of the file.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an object file at all.
    #[error("failed to read libkrunfw as an ELF or Mach-O file: {0}")]
    Object(#[from] object::Error),
    /// Without the variable that holds the kernel.
    #[error(
        "failed to find the symbol KERNEL_BUNDLE in libkrunfw: it is not a libkrunfw with a bundled kernel"
    )]
    Symbol,
    /// The symbol's bounds make no sense.
    #[error(
        "failed to take the kernel out of libkrunfw: its {size} bytes at {address:#x} are not an image of whole pages in a data section"
    )]
    Bounds {
        /// Of the symbol.
        address: u64,
        /// Of the symbol.
        size: u64,
    },
    /// An architecture that no VMM here boots.
    #[error(
        "failed to use the kernel in libkrunfw: it is for {0:?}; x86-64 and 64-bit ARM are wanted"
    )]
    Architecture(Architecture),
    /// x86-64 without the note that says where a VMM enters.
    #[error(
        "failed to find the PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY) in the kernel: QEMU cannot boot it"
    )]
    PvhNote,
    /// 64-bit ARM without the header of its boot protocol.
    #[error("failed to find the arm64 image header in the kernel")]
    Arm64Header,
    /// Without `Linux version`.
    #[error("failed to find the release of the kernel in libkrunfw: its banner is missing")]
    Release,
}

/// A kernel image as libkrunfw holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extracted<'a> {
    pub(super) architecture: Architecture,
    pub(super) image: &'a [u8],
}

/// Finds the kernel in the bytes of a libkrunfw.
pub(super) fn extract(library: &[u8]) -> Result<Extracted<'_>, KernelError> {
    let file = object::File::parse(library)?;
    let symbol = file
        .dynamic_symbols()
        .chain(file.symbols())
        .find(|symbol| {
            // Mach-O prefixes an underscore.
            symbol.is_definition()
                && matches!(
                    symbol.name_bytes(),
                    Ok(b"KERNEL_BUNDLE" | b"_KERNEL_BUNDLE")
                )
        })
        .ok_or(KernelError::Symbol)?;
    let address = symbol.address();
    let section_index = symbol.section_index().ok_or(KernelError::Symbol)?;
    let section = file.section_by_index(section_index)?;
    let in_section = section
        .address()
        .checked_add(section.size())
        .and_then(|end| end.checked_sub(address))
        .unwrap_or(0);
    // Mach-O has no sizes of symbols; there the bundle is all that its section holds.
    let declared = if symbol.size() == 0 {
        in_section
    } else {
        symbol.size()
    };
    let bounds = || KernelError::Bounds {
        address,
        size: declared,
    };
    let size = declared / PAGE * PAGE;
    if declared > in_section || !(MIN_IMAGE..=MAX_IMAGE).contains(&size) {
        return Err(bounds());
    }
    let image = section.data_range(address, size)?.ok_or_else(bounds)?;
    Ok(Extracted {
        architecture: file.architecture(),
        image,
    })
}

/// `6.12.1` of the image's banner.
pub(super) fn release(image: &[u8]) -> Result<String, KernelError> {
    const BANNER: &[u8] = b"Linux version ";
    /// UTS names are at most this long.
    const MAX_RELEASE: usize = 64;
    memmem::find_iter(image, BANNER)
        .find_map(|at| {
            let rest = image.get(at + BANNER.len()..)?;
            let rest = &rest[..rest.len().min(MAX_RELEASE + 1)];
            let end = rest.iter().position(|byte| *byte == b' ')?;
            let text = std::str::from_utf8(&rest[..end]).ok()?;
            // The same words also open a format string in the image.
            text.starts_with(|first: char| first.is_ascii_digit())
                .then(|| text.to_owned())
        })
        .ok_or(KernelError::Release)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_libkrunfw_is_refused() {
        assert!(matches!(extract(b""), Err(KernelError::Object(_))));
        assert!(matches!(
            extract(b"#!/bin/sh\n"),
            Err(KernelError::Object(_))
        ));
        let own = std::fs::read(std::env::current_exe().expect("known")).expect("readable");
        assert!(matches!(extract(&own), Err(KernelError::Symbol)));
    }

    #[test]
    fn the_release_is_read_from_the_banner_and_not_from_a_format_string() {
        let image = b"..Linux version %s (%s)\0Linux version 6.12.113 (root@libkrunfw) (gcc\0";
        assert_eq!(release(image).expect("found"), "6.12.113");
        assert!(matches!(
            release(b"Linux version 6.12.113"),
            Err(KernelError::Release)
        ));
        assert!(matches!(release(b""), Err(KernelError::Release)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), elf: bool) {
            if elf && bytes.len() > 20 {
                bytes[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
            }
            prop_assert!(extract(&bytes).is_err());
        }
    }
}
