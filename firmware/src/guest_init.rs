//! vm-init, the guest's first program.
//!
//! For guests of the host's architecture it is embedded by the build script, or named by the user
//! with `III_INIT_PATH`; for others it is a file of its own, [`file_name`]. One from a file is
//! checked before a VM is started with it, since a guest whose init cannot run says no more than
//! that its kernel panicked: it must be a static Linux program for this architecture, and hold the
//! text `iii-vm-init/` and this crate's version. vm-init has that text in a `#[used]` static.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use memchr::memmem;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _};

use crate::options::{FirmwareOptions, INIT_PATH};
use crate::platform::Platform;

/// What stands before the version in a vm-init.
pub const INIT_MARKER: &str = "iii-vm-init/";
/// The version that host and guest must share.
pub const INIT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The file of a vm-init for guests of another architecture than the host's.
pub fn file_name(arch: &str) -> String {
    format!("vm-init-{arch}")
}

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
    #[error("failed to read vm-init at {} ({variable}): {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What names it.
        variable: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The named file is something else.
    #[error("failed to use {} ({variable}) as vm-init: {reason}; {remedy}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What names it.
        variable: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Guests of this architecture need one, and none is named or found.
    #[error(
        "failed to find a vm-init for {arch} guests: there is no file {file} beside this program, \
         and {variable} names none; in a checkout, `scripts/guest-init {arch}` builds it"
    )]
    Missing {
        /// Of the guests.
        arch: String,
        /// Its name.
        file: String,
        /// What could name one.
        variable: String,
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

    /// What these options say: the file that they name, checked, or else the one that was built
    /// with this crate.
    pub fn find(options: &FirmwareOptions) -> Result<Self, InitError> {
        match &options.init {
            Some(path) => Self::from_file(path, options),
            None if options.is_for_host() => Ok(Self::embedded()),
            // Of a pair that is not supported at all, that is to be told.
            None if Platform::lookup(&options.os, &options.arch).is_err() => Ok(Self::embedded()),
            None => Err(InitError::Missing {
                arch: options.arch.clone(),
                file: file_name(&options.arch),
                variable: options.variable(INIT_PATH),
            }),
        }
    }

    fn from_file(path: &Path, options: &FirmwareOptions) -> Result<Self, InitError> {
        let variable = options.variable(INIT_PATH);
        let bytes = std::fs::read(path).map_err(|source| InitError::Read {
            path: path.to_owned(),
            variable: variable.clone(),
            source,
        })?;
        check(&bytes, &options.arch).map_err(|reason| InitError::Unfit {
            path: path.to_owned(),
            reason,
            remedy: match options.is_for_host() {
                true => format!("unset {variable} to use the built-in one"),
                false => format!(
                    "in a checkout, `scripts/guest-init {}` builds it anew",
                    options.arch
                ),
            },
            variable,
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

/// Of a name as in [`std::env::consts::ARCH`].
fn architecture(name: &str) -> Architecture {
    match name {
        "aarch64" => Architecture::Aarch64,
        "x86_64" => Architecture::X86_64,
        _ => Architecture::Unknown,
    }
}

fn check(bytes: &[u8], arch: &str) -> Result<(), String> {
    let file = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|error| format!("it is not a 64-bit ELF program ({error})"))?;
    if file.architecture() != architecture(arch) {
        return Err(format!(
            "it is for {:?}, and the guest is {arch}",
            file.architecture(),
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
    use crate::home::IiiHome;

    const HOST: &str = std::env::consts::ARCH;

    fn options() -> FirmwareOptions {
        FirmwareOptions::new(IiiHome::at("/home/ada/.iii").expect("absolute"))
    }

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
        check(GuestInit::embedded().bytes(), HOST).expect("fit");
    }

    #[test]
    fn version_and_kind_of_a_named_one_are_checked() {
        check(&program_with(&format!("{INIT_MARKER}{INIT_VERSION}")), HOST).expect("fit");
        let refused =
            check(&program_with("iii-vm-init/0.0.1-old"), HOST).expect_err("another version");
        assert!(
            refused.contains("0.0.1-old") && refused.contains(INIT_VERSION),
            "{refused}"
        );
        let refused = check(&program_with(""), HOST).expect_err("no marker");
        assert!(refused.contains(INIT_MARKER), "{refused}");
        let refused = check(b"#!/bin/sh\n", HOST).expect_err("a script");
        assert!(refused.contains("ELF"), "{refused}");
        let mut other = program_with("");
        other[18] ^= 0xff;
        let refused = check(&other, HOST).expect_err("another architecture");
        assert!(refused.contains("guest is"), "{refused}");
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let own = std::fs::read(std::env::current_exe().expect("known")).expect("readable");
        let refused = check(&own, HOST).expect_err("needs a loader");
        assert!(refused.contains("dynamically linked"), "{refused}");
    }

    #[test]
    fn the_file_is_named_in_the_error() {
        let named = |path: &Path| FirmwareOptions {
            init: Some(path.to_owned()),
            ..options()
        };
        let missing = GuestInit::find(&named(Path::new("/no/such/init"))).expect_err("missing");
        assert!(missing.to_string().contains("/no/such/init"), "{missing}");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("init");
        std::fs::write(&path, program_with(&format!("{INIT_MARKER}{INIT_VERSION}")))
            .expect("written");
        assert_eq!(
            GuestInit::find(&named(&path)).expect("fit").path(),
            Some(&*path)
        );
    }

    #[test]
    fn guests_of_another_architecture_have_one_of_their_own_or_none() {
        let other = match HOST {
            "aarch64" => "x86_64",
            _ => "aarch64",
        };
        let none = |_: &str| None;
        let mut options = options().for_guests_by(other, none).expect("sound");
        let missing = GuestInit::find(&options)
            .expect_err("none is built in")
            .to_string();
        let variable = options.variable(INIT_PATH);
        for part in [&file_name(other), &variable, "scripts/guest-init"] {
            assert!(missing.contains(part), "{part}: {missing}");
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("init");
        std::fs::write(&path, EMBEDDED).expect("written");
        options.init = Some(path);
        let unfit = GuestInit::find(&options)
            .expect_err("it is the host's")
            .to_string();
        assert!(
            unfit.contains(other) && unfit.contains(&variable),
            "{unfit}"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(check(&bytes, HOST).is_err());
        }
    }
}
