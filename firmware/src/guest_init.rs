//! vm-init, the guest's first program.
//!
//! It is embedded by the build script, or named by the user with `III_INIT_PATH`. A named one is
//! checked before a VM is started with it, since a guest whose init cannot run says no more than
//! that its kernel panicked: it must be a static Linux program for this architecture, and hold the
//! text `iii-vm-init/` and this crate's version. vm-init has that text in a `#[used]` static.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use memchr::memmem;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _};

/// What stands before the version in a vm-init.
pub const INIT_MARKER: &str = "iii-vm-init/";
/// The version that host and guest must share.
pub const INIT_VERSION: &str = env!("CARGO_PKG_VERSION");

static EMBEDDED: &[u8] = include_bytes!(env!("III_FIRMWARE_INIT"));

/// The bytes of vm-init.
#[derive(Clone, Debug)]
pub struct GuestInit {
    bytes: Cow<'static, [u8]>,
    path: Option<PathBuf>,
}

/// A vm-init that no guest could use.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The named file cannot be read.
    #[error("failed to read vm-init at {} (III_INIT_PATH): {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The named file is something else.
    #[error("failed to use {} (III_INIT_PATH) as vm-init: {reason}; unset III_INIT_PATH to use the built-in one", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl GuestInit {
    /// The one that was built with this crate.
    pub fn embedded() -> Self {
        Self {
            bytes: Cow::Borrowed(EMBEDDED),
            path: None,
        }
    }

    /// The file at `path`, checked.
    pub fn from_file(path: &Path) -> Result<Self, InitError> {
        let bytes = std::fs::read(path).map_err(|source| InitError::Read {
            path: path.to_owned(),
            source,
        })?;
        check(&bytes).map_err(|reason| InitError::Unfit {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            bytes: Cow::Owned(bytes),
            path: Some(path.to_owned()),
        })
    }

    /// The program.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where it came from; `None` for the embedded one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

fn guest_architecture() -> Architecture {
    if cfg!(target_arch = "aarch64") {
        Architecture::Aarch64
    } else {
        Architecture::X86_64
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|error| format!("it is not a 64-bit ELF program ({error})"))?;
    if file.architecture() != guest_architecture() {
        return Err(format!(
            "it is for {:?}, and the guest is {:?}",
            file.architecture(),
            guest_architecture()
        ));
    }
    let endian = file.endian();
    if file
        .elf_program_headers()
        .iter()
        .any(|header| header.p_type(endian) == object::elf::PT_INTERP)
    {
        return Err("it is dynamically linked, and the guest has no loader yet \
                    (build it with `-C target-feature=+crt-static`)"
            .to_owned());
    }
    let versions: Vec<&str> = memmem::find_iter(bytes, INIT_MARKER)
        .filter_map(|at| version_at(&bytes[at + INIT_MARKER.len()..]))
        .collect();
    if versions.contains(&INIT_VERSION) {
        Ok(())
    } else if versions.is_empty() {
        Err(format!(
            "it does not hold the text `{INIT_MARKER}` that a vm-init holds"
        ))
    } else {
        Err(format!(
            "its version is {}, and {INIT_VERSION} is wanted",
            versions.join(" or ")
        ))
    }
}

/// The longest run of version characters that begins `bytes`.
fn version_at(bytes: &[u8]) -> Option<&str> {
    /// Longer than any version of ours; bounds what an error message quotes.
    const MAX: usize = 32;
    let end = bytes
        .iter()
        .take(MAX)
        .position(|byte| !byte.is_ascii_alphanumeric() && !b".-+".contains(byte))
        .unwrap_or(bytes.len().min(MAX));
    std::str::from_utf8(&bytes[..end])
        .ok()
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The embedded one, which is a fit program whatever its marker.
    fn program_with(marker: &str) -> Vec<u8> {
        let mut bytes = EMBEDDED.to_vec();
        while let Some(at) = memmem::find(&bytes, INIT_MARKER.as_bytes()) {
            bytes[at] = b'_';
        }
        bytes.extend_from_slice(marker.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_embedded_one_passes_its_own_check() {
        check(GuestInit::embedded().bytes()).expect("fit");
    }

    #[test]
    fn version_and_kind_of_a_named_one_are_checked() {
        check(&program_with(&format!("{INIT_MARKER}{INIT_VERSION}"))).expect("fit");
        let refused = check(&program_with("iii-vm-init/0.0.1-old")).expect_err("another version");
        assert!(
            refused.contains("0.0.1-old") && refused.contains(INIT_VERSION),
            "{refused}"
        );
        let refused = check(&program_with("")).expect_err("no marker");
        assert!(refused.contains(INIT_MARKER), "{refused}");
        let refused = check(b"#!/bin/sh\n").expect_err("a script");
        assert!(refused.contains("ELF"), "{refused}");
        let mut other = program_with("");
        other[18] ^= 0xff;
        let refused = check(&other).expect_err("another architecture");
        assert!(refused.contains("guest is"), "{refused}");
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let own = std::fs::read(std::env::current_exe().expect("known")).expect("readable");
        let refused = check(&own).expect_err("needs a loader");
        assert!(refused.contains("dynamically linked"), "{refused}");
    }

    #[test]
    fn the_file_is_named_in_the_error() {
        let missing = GuestInit::from_file(Path::new("/no/such/init")).expect_err("missing");
        assert!(missing.to_string().contains("/no/such/init"), "{missing}");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("init");
        std::fs::write(&path, program_with(&format!("{INIT_MARKER}{INIT_VERSION}")))
            .expect("written");
        assert_eq!(
            GuestInit::from_file(&path).expect("fit").path(),
            Some(&*path)
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(check(&bytes).is_err());
        }
    }
}
