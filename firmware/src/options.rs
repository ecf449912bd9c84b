//! Where to look for firmware.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::embedded::Embedded;
use crate::home::{HomeError, IiiHome};

/// Names a libkrunfw; nothing else is looked at then.
pub const LIBKRUNFW_PATH: &str = "III_LIBKRUNFW_PATH";
/// The SHA-256 of one more libkrunfw that is accepted: the user's own decision to trust exactly
/// that file, from whichever source it comes.
pub const LIBKRUNFW_SHA256: &str = "III_LIBKRUNFW_SHA256";
/// Names a vm-init that is used instead of the embedded one.
pub const INIT_PATH: &str = "III_INIT_PATH";

/// Where to look for firmware, and what to accept.
#[derive(Clone, Debug)]
pub struct FirmwareOptions {
    /// The user's cache.
    pub home: IiiHome,
    /// [`LIBKRUNFW_PATH`].
    pub library: Option<PathBuf>,
    /// The libkrunfw inside this executable, if it has one.
    pub embedded: Option<Embedded>,
    /// [`LIBKRUNFW_SHA256`].
    pub trusted: Option<Digest>,
    /// [`INIT_PATH`].
    pub init: Option<PathBuf>,
    /// Directories of the system's libraries.
    pub system_dirs: Vec<PathBuf>,
    /// Whether the network may be used.
    pub download: bool,
    /// As in [`std::env::consts::OS`].
    pub os: String,
    /// As in [`std::env::consts::ARCH`].
    pub arch: String,
}

/// The environment holds something unusable.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No place for the cache.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// [`LIBKRUNFW_SHA256`] is no digest.
    #[error("failed to read {LIBKRUNFW_SHA256}: {0}")]
    Digest(#[from] DigestError),
}

impl FirmwareOptions {
    /// This host, and what the process's environment says.
    pub fn from_env() -> Result<Self, OptionsError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// The same for guests of another architecture than the host's. Its libkrunfw is kept apart, and
    /// the variables have names that end with it, as `III_INIT_PATH_AARCH64`. There is no built-in
    /// vm-init for it: where none is named, [`Self::init`] is for the caller to find.
    pub fn for_guests(&self, arch: &str) -> Result<Self, OptionsError> {
        self.for_guests_by(arch, |name| std::env::var_os(name))
    }

    /// As [`Self::for_guests`] with the environment as an argument.
    pub fn for_guests_by(
        &self,
        arch: &str,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, OptionsError> {
        if arch == self.arch {
            return Ok(self.clone());
        }
        let env = |name: &str| {
            env(&of_architecture(name, arch)).filter(|value: &OsString| !value.is_empty())
        };
        Ok(Self {
            library: env(LIBKRUNFW_PATH).map(PathBuf::from),
            trusted: digest(&env)?,
            init: env(INIT_PATH).map(PathBuf::from),
            // The system's is for the host itself.
            system_dirs: Vec::new(),
            arch: arch.to_owned(),
            ..self.clone()
        })
    }

    /// Whether guests have the architecture of the host.
    pub fn is_for_host(&self) -> bool {
        self.arch == std::env::consts::ARCH
    }

    /// Where libkrunfw is kept: the files of all architectures have the same name.
    pub fn library_dir(&self) -> PathBuf {
        let directory = self.home.lib_dir();
        match self.is_for_host() {
            true => directory,
            false => directory.join(&self.arch),
        }
    }

    /// The name of one of these variables.
    pub(crate) fn variable(&self, name: &str) -> String {
        match self.is_for_host() {
            true => name.to_owned(),
            false => of_architecture(name, &self.arch),
        }
    }

    /// As [`Self::from_env`] with the environment as an argument. Empty variables are as if unset.
    pub fn from_lookup(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, OptionsError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let mut options = Self::new(IiiHome::from_lookup(env)?);
        options.library = env(LIBKRUNFW_PATH).map(PathBuf::from);
        options.init = env(INIT_PATH).map(PathBuf::from);
        options.trusted = digest(&env)?;
        Ok(options)
    }

    /// This host, without overrides.
    pub fn new(home: IiiHome) -> Self {
        Self {
            home,
            library: None,
            embedded: None,
            trusted: None,
            init: None,
            system_dirs: SYSTEM_DIRS.iter().map(PathBuf::from).collect(),
            download: true,
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }
}

fn digest(env: &impl Fn(&str) -> Option<OsString>) -> Result<Option<Digest>, DigestError> {
    env(LIBKRUNFW_SHA256)
        .map(|text| text.to_string_lossy().parse())
        .transpose()
}

/// `III_INIT_PATH_AARCH64`.
fn of_architecture(variable: &str, arch: &str) -> String {
    format!("{variable}_{}", arch.to_ascii_uppercase())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const SYSTEM_DIRS: &[&str] = &[
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib",
];
#[cfg(all(target_os = "linux", not(target_arch = "x86_64")))]
const SYSTEM_DIRS: &[&str] = &[
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/lib64",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
];
#[cfg(not(target_os = "linux"))]
const SYSTEM_DIRS: &[&str] = &["/opt/homebrew/lib", "/usr/local/lib"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_once_and_whole() {
        let sha256 = "ab".repeat(32);
        let options = FirmwareOptions::from_lookup(|name| {
            Some(OsString::from(match name {
                "HOME" => "/home/ada",
                LIBKRUNFW_PATH => "/opt/libkrunfw.so",
                LIBKRUNFW_SHA256 => &sha256,
                INIT_PATH => "",
                _ => return None,
            }))
        })
        .expect("sound");
        assert_eq!(options.library, Some(PathBuf::from("/opt/libkrunfw.so")));
        assert_eq!(
            options.trusted.map(|digest| digest.to_string()),
            Some(sha256)
        );
        assert_eq!(options.init, None);

        let of_another = options
            .for_guests_by("s390x", |name| {
                Some(OsString::from(match name {
                    "III_LIBKRUNFW_PATH_S390X" => "/opt/s390x.so",
                    "III_INIT_PATH_S390X" => "/opt/init",
                    _ => return None,
                }))
            })
            .expect("sound");
        assert_eq!(of_another.library, Some(PathBuf::from("/opt/s390x.so")));
        assert_eq!(of_another.init, Some(PathBuf::from("/opt/init")));
        assert_eq!((of_another.trusted, &*of_another.arch), (None, "s390x"));
        assert_eq!(
            of_another.library_dir(),
            PathBuf::from("/home/ada/.iii/lib/s390x")
        );
        assert_eq!(of_another.variable(INIT_PATH), "III_INIT_PATH_S390X");
        assert_eq!(options.library_dir(), PathBuf::from("/home/ada/.iii/lib"));
        assert_eq!(options.variable(INIT_PATH), INIT_PATH);

        let refused = FirmwareOptions::from_lookup(|name| match name {
            "HOME" => Some("/home/ada".into()),
            LIBKRUNFW_SHA256 => Some("latest".into()),
            _ => None,
        });
        assert!(
            refused
                .expect_err("no digest")
                .to_string()
                .contains(LIBKRUNFW_SHA256)
        );
    }
}
