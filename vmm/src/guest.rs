//! The architectures that guests have.

use std::fmt;

/// What a guest's programs are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuestArch {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl GuestArch {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The host's own, the only one that it can run by hardware. `None` on a host on which no guest
    /// is at home.
    pub fn of_host() -> Option<Self> {
        Self::named(std::env::consts::ARCH)
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.name() == name)
    }

    /// As in [`std::env::consts::ARCH`].
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for GuestArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
