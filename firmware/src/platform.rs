//! The hosts that are supported, as data.
//!
//! An operating system and an architecture that are each supported do not make a supported pair:
//! a host is looked up as a pair, and a pair that is not in the table is refused.

/// A host for which a libkrunfw is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// Linux on x86-64.
    LinuxX86_64,
    /// Linux on 64-bit ARM.
    LinuxAarch64,
    /// macOS on Apple silicon.
    MacosAarch64,
}

/// The whole allow-list: names as in [`std::env::consts`].
const SUPPORTED: [(&str, &str, Platform); 3] = [
    ("linux", "x86_64", Platform::LinuxX86_64),
    ("linux", "aarch64", Platform::LinuxAarch64),
    ("macos", "aarch64", Platform::MacosAarch64),
];

impl Platform {
    /// Looks a pair up in the allow-list.
    pub fn lookup(os: &str, arch: &str) -> Result<Self, PlatformError> {
        SUPPORTED
            .iter()
            .find(|(known_os, known_arch, _)| *known_os == os && *known_arch == arch)
            .map(|(_, _, platform)| *platform)
            .ok_or_else(|| PlatformError {
                os: os.to_owned(),
                arch: arch.to_owned(),
            })
    }

    /// The host that this program was built for.
    pub fn host() -> Result<Self, PlatformError> {
        Self::lookup(std::env::consts::OS, std::env::consts::ARCH)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (os, arch, _) = SUPPORTED
            .iter()
            .find(|(_, _, platform)| platform == self)
            .expect("every variant has a row, as the test says");
        write!(f, "{os} {arch}")
    }
}

/// The host is not in the allow-list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to find a pinned libkrunfw for {os} {arch}: supported are linux x86_64, linux aarch64 \
     and macos aarch64; if you have a libkrunfw for this host, name it with III_LIBKRUNFW_PATH and \
     its digest with III_LIBKRUNFW_SHA256"
)]
pub struct PlatformError {
    /// As in [`std::env::consts::OS`].
    pub os: String,
    /// As in [`std::env::consts::ARCH`].
    pub arch: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listed_pair_is_supported() {
        assert_eq!(
            Platform::lookup("linux", "x86_64"),
            Ok(Platform::LinuxX86_64)
        );
        assert_eq!(
            Platform::lookup("linux", "aarch64"),
            Ok(Platform::LinuxAarch64)
        );
        assert_eq!(
            Platform::lookup("macos", "aarch64"),
            Ok(Platform::MacosAarch64)
        );
    }

    #[test]
    fn a_pair_of_supported_halves_is_not_a_supported_pair() {
        for (os, arch) in [
            ("macos", "x86_64"),
            ("windows", "x86_64"),
            ("windows", "aarch64"),
            ("linux", "riscv64"),
            ("linux", "x86"),
            ("linux", "arm"),
            ("freebsd", "x86_64"),
            ("", ""),
        ] {
            let refused = Platform::lookup(os, arch).expect_err(os);
            assert!(
                refused.to_string().contains("III_LIBKRUNFW_PATH"),
                "{refused}"
            );
        }
    }

    #[test]
    fn every_variant_has_a_row() {
        for platform in [
            Platform::LinuxX86_64,
            Platform::LinuxAarch64,
            Platform::MacosAarch64,
        ] {
            let shown = platform.to_string();
            let (os, arch) = shown.split_once(' ').expect("two words");
            assert_eq!(Platform::lookup(os, arch), Ok(platform));
        }
    }
}
