//! The hosts that are supported, as data ([`HOSTS`]): which VMMs, which firmware, which helpers.
//!
//! An operating system and an architecture that are each supported do not make a supported pair:
//! a host is looked up as a pair, and a pair that is not in the table is refused.

mod table;

pub use table::{HOSTS, Host, Platform, Standing, row};

impl Platform {
    /// Looks a pair up in the table.
    pub fn lookup(os: &str, arch: &str) -> Result<Self, PlatformError> {
        row(os, arch)
            .map(|host| host.platform)
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
        let host = HOSTS
            .iter()
            .find(|host| host.platform == *self)
            .expect("every variant has a row, as the test says");
        write!(f, "{} {}", host.os, host.arch)
    }
}

/// The host is not in the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to find a pinned libkrunfw for {os} {arch}: supported are {}; if you have a libkrunfw \
     for this host, name it with III_LIBKRUNFW_PATH and its digest with III_LIBKRUNFW_SHA256",
    supported()
)]
pub struct PlatformError {
    /// As in [`std::env::consts::OS`].
    pub os: String,
    /// As in [`std::env::consts::ARCH`].
    pub arch: String,
}

fn supported() -> String {
    let names: Vec<String> = HOSTS
        .iter()
        .map(|host| format!("{} {}", host.os, host.arch))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelFormat;
    use crate::known;

    /// A test for each row, which says all of it once more, and that the firmware's own table has
    /// the same.
    macro_rules! hosts {
        ($($test:ident: $os:literal, $arch:literal => $platform:ident, vmms $vmms:expr,
            $library:literal, $kernel:ident, helpers $helpers:expr, $standing:ident;)*) => {
            $(#[test]
            fn $test() {
                let host = row($os, $arch).expect("in the table");
                assert_eq!(Platform::lookup($os, $arch), Ok(Platform::$platform));
                assert_eq!(Platform::$platform.to_string(), concat!($os, " ", $arch));
                assert_eq!(host.vmms, $vmms);
                assert_eq!(host.library, $library);
                let pinned = known::by_host($os, $arch).expect("a libkrunfw is pinned");
                assert_eq!(pinned.file_name, $library);
                assert_eq!(host.kernel, KernelFormat::$kernel.file_name());
                assert_eq!(host.helpers, $helpers);
                assert_eq!(host.standing, Standing::$standing);
            })*

            #[test]
            fn every_row_and_every_pinned_library_has_its_test() {
                let tested = [$(($os, $arch)),*];
                assert_eq!(HOSTS.map(|host| (host.os, host.arch)), tested);
                assert_eq!(known::KNOWN_LIBRARIES.map(|known| (known.os, known.arch)), tested);
            }
        };
    }

    hosts! {
        linux_x86_64: "linux", "x86_64" => LinuxX86_64, vmms ["krun", "qemu"],
            "libkrunfw.so.5.6.1", PvhElf, helpers ["iii-shim", "iii-vfs", "iii-krun"], Proven;
        linux_aarch64: "linux", "aarch64" => LinuxAarch64, vmms ["krun", "qemu"],
            "libkrunfw.so.5.6.1", Arm64Image, helpers ["iii-shim", "iii-vfs", "iii-krun"], Unproven;
        macos_aarch64: "macos", "aarch64" => MacosAarch64, vmms ["krun"],
            "libkrunfw.5.dylib", Arm64Image, helpers ["iii-krun"], Planned;
    }

    /// A test for each pair that is refused, though one half or both are supported elsewhere.
    macro_rules! refused {
        ($($test:ident: $os:literal, $arch:literal;)*) => {
            $(#[test]
            fn $test() {
                assert_eq!(row($os, $arch), None);
                let refused = Platform::lookup($os, $arch).expect_err("not in the table");
                let text = refused.to_string();
                for word in [$os, $arch, "linux aarch64", "III_LIBKRUNFW_PATH"] {
                    assert!(text.contains(word), "{text}");
                }
            })*
        };
    }

    refused! {
        no_macos_x86_64: "macos", "x86_64";
        no_windows_x86_64: "windows", "x86_64";
        no_windows_aarch64: "windows", "aarch64";
        no_linux_riscv64: "linux", "riscv64";
        no_linux_x86: "linux", "x86";
        no_linux_arm: "linux", "arm";
        no_freebsd_x86_64: "freebsd", "x86_64";
        no_freebsd_aarch64: "freebsd", "aarch64";
        nothing: "", "";
    }
}
