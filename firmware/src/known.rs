//! The libkrunfw builds that are trusted, by SHA-256.
//!
//! Nothing else is: whatever the source, a file whose digest is not here is refused unless the
//! user vouches for exactly that digest (`III_LIBKRUNFW_SHA256`). A build script includes this file
//! too, so it uses nothing of the crate.

/// One trusted build and where it can be fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownLibrary {
    /// As in `std::env::consts::OS`.
    pub os: &'static str,
    /// As in `std::env::consts::ARCH`.
    pub arch: &'static str,
    /// libkrunfw's own version.
    pub version: &'static str,
    /// Name under which it is kept.
    pub file_name: &'static str,
    /// Name by which libkrun loads it: a symbolic link to `file_name`, where they differ.
    pub link_name: Option<&'static str>,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Release asset of the microsandbox project on GitHub.
    pub release_url: &'static str,
    /// The Python wheel that carries the same bytes.
    pub wheel: KnownWheel,
}

/// A wheel of the package `microsandbox` on the Python index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownWheel {
    /// Requirement for pip.
    pub requirement: &'static str,
    /// Platform tag for pip.
    pub platform: &'static str,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// Path of the library inside it.
    pub member: &'static str,
}

/// Every trusted build.
pub const KNOWN_LIBRARIES: [KnownLibrary; 3] = [
    KnownLibrary {
        os: "linux",
        arch: "x86_64",
        version: "5.6.1",
        file_name: "libkrunfw.so.5.6.1",
        link_name: Some("libkrunfw.so.5"),
        size: 21_628_880,
        sha256: "3854efcd3fe625528fa00207d97586d9790db8c436bb6881a43986604336d18e",
        release_url: "https://github.com/superradcompany/microsandbox/releases/download/v0.7.11/libkrunfw-linux-x86_64.so",
        wheel: KnownWheel {
            requirement: "microsandbox==0.7.11",
            platform: "manylinux_2_28_x86_64",
            size: 48_148_484,
            sha256: "65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0",
            member: "microsandbox/_bundled/lib/libkrunfw.so.5.6.1",
        },
    },
    KnownLibrary {
        os: "linux",
        arch: "aarch64",
        version: "5.6.1",
        file_name: "libkrunfw.so.5.6.1",
        link_name: Some("libkrunfw.so.5"),
        size: 24_971_248,
        sha256: "2cec662bc03134d426f312aa9d72bfbd19d876f6f39d36395cb4d34862194d4e",
        release_url: "https://github.com/superradcompany/microsandbox/releases/download/v0.7.11/libkrunfw-linux-aarch64.so",
        wheel: KnownWheel {
            requirement: "microsandbox==0.7.11",
            platform: "manylinux_2_28_aarch64",
            size: 50_139_351,
            sha256: "f774a5ff6e61c5b88c42b3e058967c0b989c26d8a51c2b09f1e6a00be925b9c0",
            member: "microsandbox/_bundled/lib/libkrunfw.so.5.6.1",
        },
    },
    KnownLibrary {
        os: "macos",
        arch: "aarch64",
        version: "5.6.1",
        file_name: "libkrunfw.5.dylib",
        link_name: None,
        size: 24_933_536,
        sha256: "0fa7e81fdd3f7440f3ba3993379c06bb071355b71c7778ec3373246e8c1a0e91",
        release_url: "https://github.com/superradcompany/microsandbox/releases/download/v0.7.11/libkrunfw-darwin-aarch64.dylib",
        wheel: KnownWheel {
            requirement: "microsandbox==0.7.11",
            platform: "macosx_11_0_arm64",
            size: 47_218_325,
            sha256: "a442c004080e7a45de5f5814ca92447a4f21534dd5b9c92105a0adf8cc0bc7c8",
            member: "microsandbox/_bundled/lib/libkrunfw.5.dylib",
        },
    },
];

/// The trusted build with this digest, of whatever platform.
pub fn by_digest(sha256: &str) -> Option<&'static KnownLibrary> {
    KNOWN_LIBRARIES.iter().find(|known| known.sha256 == sha256)
}

/// The trusted build for a host.
pub fn by_host(os: &str, arch: &str) -> Option<&'static KnownLibrary> {
    KNOWN_LIBRARIES
        .iter()
        .find(|known| known.os == os && known.arch == arch)
}
