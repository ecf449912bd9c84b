//! The table of hosts. It uses nothing of the crate, since a build script includes it too.

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

/// What is known of iii-super on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Workers run there, as the tests show.
    Proven,
    /// All that it needs is written, and nobody has run it.
    Unproven,
    /// Its firmware is known, and parts of iii-super are missing.
    Planned,
}

/// What a host of one operating system and architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// As in `std::env::consts::OS`.
    pub os: &'static str,
    /// As in `std::env::consts::ARCH`.
    pub arch: &'static str,
    /// The pair.
    pub platform: Platform,
    /// The VMMs that can run there, the fastest first.
    pub vmms: &'static [&'static str],
    /// The file of its libkrunfw.
    pub library: &'static str,
    /// The file of the guest's kernel, taken out of that.
    pub kernel: &'static str,
    /// The programs that iii-super starts there. A self-contained build holds them.
    pub helpers: &'static [&'static str],
    /// What is known of it.
    pub standing: Standing,
}

/// Every host that is supported or will be; no other is.
pub const HOSTS: [Host; 3] = [
    Host {
        os: "linux",
        arch: "x86_64",
        platform: Platform::LinuxX86_64,
        vmms: &["krun", "qemu"],
        library: "libkrunfw.so.5.6.1",
        kernel: "vmlinux",
        helpers: &["iii-shim", "iii-vfs", "iii-krun"],
        standing: Standing::Proven,
    },
    // Its guests have been run, in software on x86-64; the host has not.
    Host {
        os: "linux",
        arch: "aarch64",
        platform: Platform::LinuxAarch64,
        vmms: &["krun", "qemu"],
        library: "libkrunfw.so.5.6.1",
        kernel: "Image",
        helpers: &["iii-shim", "iii-vfs", "iii-krun"],
        standing: Standing::Unproven,
    },
    // iii-shim stands on calls that Linux alone has, and iii-vfs serves QEMU, which is for Linux here.
    Host {
        os: "macos",
        arch: "aarch64",
        platform: Platform::MacosAarch64,
        vmms: &["krun"],
        library: "libkrunfw.5.dylib",
        kernel: "Image",
        helpers: &["iii-krun"],
        standing: Standing::Planned,
    },
];

/// The row of a host, if it has one.
pub fn row(os: &str, arch: &str) -> Option<&'static Host> {
    HOSTS.iter().find(|host| host.os == os && host.arch == arch)
}
