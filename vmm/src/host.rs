//! Whether this host's virtualisation is real.
//!
//! `/dev/kvm` alone proves nothing: on hosts with the module `kvm_pvm` it opens and creates VMs in
//! which every ordinary kernel dies. So the decision takes the CPU's own flags into account, and is
//! a pure function over facts that are collected apart from it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

/// How guest code is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// By the CPU, under KVM.
    Kvm,
    /// By QEMU's translator, in software.
    Tcg,
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The device by which KVM is used.
pub(crate) const KVM: &str = "/dev/kvm";

/// What opening `/dev/kvm` for reading and writing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevKvm {
    /// There is none.
    Absent,
    /// It is not ours to open.
    NoPermission,
    /// It opened.
    Opens,
    /// It is there and did not open for another reason.
    Broken,
}

/// The architectures that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// Any other.
    Other,
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The host's architecture.
    pub arch: Arch,
    /// `/dev/kvm`.
    pub dev_kvm: DevKvm,
    /// The CPU shows `vmx` or `svm` (x86 only).
    pub cpu_virtualisation: bool,
    /// The CPU shows `hypervisor`: this host is a virtual machine itself (x86 only).
    pub hypervisor: bool,
    /// The module `kvm_pvm` is loaded.
    pub kvm_pvm: bool,
}

impl HostFacts {
    /// Collects the facts of this host.
    pub fn collect() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => Arch::X86_64,
            "aarch64" => Arch::Aarch64,
            _ => Arch::Other,
        };
        let dev_kvm = match OpenOptions::new().read(true).write(true).open(KVM) {
            Ok(_) => DevKvm::Opens,
            Err(error) => match error.kind() {
                ErrorKind::NotFound => DevKvm::Absent,
                ErrorKind::PermissionDenied => DevKvm::NoPermission,
                _ => DevKvm::Broken,
            },
        };
        // An unreadable /proc counts as a CPU without the flags: TCG is slower, never wrong.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let shows = |wanted: &[&str]| cpu_flags(&cpuinfo).any(|flag| wanted.contains(&flag));
        Self {
            arch,
            dev_kvm,
            cpu_virtualisation: shows(&["vmx", "svm"]),
            hypervisor: shows(&["hypervisor"]),
            kvm_pvm: Path::new("/sys/module/kvm_pvm").exists(),
        }
    }
}

/// The flags of the first CPU in `/proc/cpuinfo`.
pub(crate) fn cpu_flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map_or("", |(_, flags)| flags)
        .split_whitespace()
}

/// A decision with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How guests are run.
    pub acceleration: Acceleration,
    /// Why, for people.
    pub reason: &'static str,
}

/// Decides from the facts. Hardware virtualisation is real where `/dev/kvm` opens and the CPU has
/// the extension that KVM drives.
pub fn virtualisation(facts: &HostFacts) -> Verdict {
    let (acceleration, reason) = match (facts.arch, facts.dev_kvm) {
        (Arch::Other, _) => (
            Acceleration::Tcg,
            "hardware virtualisation is not used on this architecture",
        ),
        // First, since nothing that can be done about /dev/kvm would help.
        (Arch::X86_64, DevKvm::Opens | DevKvm::NoPermission | DevKvm::Broken)
            if !facts.cpu_virtualisation && facts.kvm_pvm =>
        {
            (
                Acceleration::Tcg,
                "/dev/kvm belongs to kvm_pvm, which cannot run an ordinary guest kernel",
            )
        }
        (Arch::X86_64, _) if !facts.cpu_virtualisation => (
            Acceleration::Tcg,
            "the CPU shows neither vmx nor svm: it has no virtualisation, or it is off in the \
             firmware, or this is a virtual machine without nested virtualisation",
        ),
        (Arch::X86_64 | Arch::Aarch64, DevKvm::Absent) => (
            Acceleration::Tcg,
            "there is no /dev/kvm: the module kvm is not loaded, or this is a container without it",
        ),
        (Arch::X86_64 | Arch::Aarch64, DevKvm::NoPermission) => (
            Acceleration::Tcg,
            "/dev/kvm may not be opened by this user; add the user to the group kvm",
        ),
        (Arch::X86_64 | Arch::Aarch64, DevKvm::Broken) => {
            (Acceleration::Tcg, "/dev/kvm is there but does not open")
        }
        (Arch::X86_64, DevKvm::Opens) if facts.hypervisor => (
            Acceleration::Kvm,
            "/dev/kvm opens and the CPU has vmx or svm: nested virtualisation",
        ),
        (Arch::X86_64, DevKvm::Opens) => (
            Acceleration::Kvm,
            "/dev/kvm opens and the CPU has vmx or svm",
        ),
        (Arch::Aarch64, DevKvm::Opens) => (Acceleration::Kvm, "/dev/kvm opens"),
    };
    Verdict {
        acceleration,
        reason,
    }
}

/// A kind of host that is told apart from others.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is, for people.
    pub situation: &'static str,
    /// Facts of such a host.
    pub facts: HostFacts,
    /// How guests are run there.
    pub acceleration: Acceleration,
    /// VMs have been run on such a host by this project. Of the others the decision is tested, and
    /// nothing else.
    pub proven: bool,
}

const fn x86(dev_kvm: DevKvm, cpu_virtualisation: bool, hypervisor: bool) -> HostFacts {
    HostFacts {
        arch: Arch::X86_64,
        dev_kvm,
        cpu_virtualisation,
        hypervisor,
        kvm_pvm: false,
    }
}

const fn aarch64(dev_kvm: DevKvm) -> HostFacts {
    HostFacts {
        arch: Arch::Aarch64,
        ..x86(dev_kvm, false, false)
    }
}

/// The hosts that are told apart. `doctor` shows it, and so does docs/vmm.md.
pub const TABLE: &[Row] = &[
    Row {
        situation: "bare metal with KVM",
        facts: x86(DevKvm::Opens, true, false),
        acceleration: Acceleration::Kvm,
        proven: false,
    },
    Row {
        situation: "VM with nested KVM",
        facts: x86(DevKvm::Opens, true, true),
        acceleration: Acceleration::Kvm,
        proven: false,
    },
    Row {
        situation: "VM with kvm_pvm: /dev/kvm opens, guests die",
        facts: HostFacts {
            kvm_pvm: true,
            ..x86(DevKvm::Opens, false, true)
        },
        acceleration: Acceleration::Tcg,
        proven: true,
    },
    Row {
        situation: "VM without nested KVM, or KVM off in the firmware",
        facts: x86(DevKvm::Absent, false, true),
        acceleration: Acceleration::Tcg,
        proven: false,
    },
    Row {
        situation: "vmx or svm, but no /dev/kvm (a container)",
        facts: x86(DevKvm::Absent, true, false),
        acceleration: Acceleration::Tcg,
        proven: false,
    },
    Row {
        situation: "vmx or svm, no permission on /dev/kvm",
        facts: x86(DevKvm::NoPermission, true, false),
        acceleration: Acceleration::Tcg,
        proven: false,
    },
    Row {
        situation: "aarch64 with KVM",
        facts: aarch64(DevKvm::Opens),
        acceleration: Acceleration::Kvm,
        proven: false,
    },
    Row {
        situation: "aarch64 without KVM",
        facts: aarch64(DevKvm::Absent),
        acceleration: Acceleration::Tcg,
        proven: false,
    },
];

impl Row {
    /// Whether a host with these facts is of this kind: where the decision and its reason are the
    /// same.
    pub fn is_of(&self, facts: &HostFacts) -> bool {
        self.facts.arch == facts.arch && virtualisation(&self.facts) == virtualisation(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        use Acceleration::{Kvm, Tcg};
        use Arch::{Aarch64, Other, X86_64};
        use DevKvm::{Absent, Broken, NoPermission, Opens};
        // arch, /dev/kvm, vmx or svm, kvm_pvm, verdict, a word of the reason
        let table = [
            (X86_64, Opens, true, false, Kvm, "vmx or svm"),
            // kvm_pvm loaded beside real virtualisation: the CPU decides.
            (X86_64, Opens, true, true, Kvm, "vmx or svm"),
            (X86_64, Opens, false, true, Tcg, "kvm_pvm"),
            (X86_64, NoPermission, false, true, Tcg, "kvm_pvm"),
            (X86_64, Absent, false, true, Tcg, "neither"),
            (X86_64, Opens, false, false, Tcg, "neither"),
            (X86_64, NoPermission, false, false, Tcg, "neither"),
            (X86_64, Absent, false, false, Tcg, "neither"),
            (X86_64, NoPermission, true, false, Tcg, "group kvm"),
            (X86_64, Absent, true, false, Tcg, "no /dev/kvm"),
            (X86_64, Broken, true, false, Tcg, "does not open"),
            (Aarch64, Opens, false, false, Kvm, "opens"),
            (Aarch64, NoPermission, false, false, Tcg, "group kvm"),
            (Aarch64, Absent, false, false, Tcg, "no /dev/kvm"),
            (Other, Opens, false, false, Tcg, "architecture"),
        ];
        for (arch, dev_kvm, cpu_virtualisation, kvm_pvm, acceleration, word) in table {
            let facts = HostFacts {
                arch,
                dev_kvm,
                cpu_virtualisation,
                hypervisor: false,
                kvm_pvm,
            };
            let verdict = virtualisation(&facts);
            assert_eq!(verdict.acceleration, acceleration, "{facts:?}");
            assert!(verdict.reason.contains(word), "{facts:?}: {verdict:?}");
        }
    }

    #[test]
    fn every_row_is_decided_as_it_says_and_is_told_apart_from_the_others() {
        for row in TABLE {
            let verdict = virtualisation(&row.facts);
            assert_eq!(verdict.acceleration, row.acceleration, "{row:?}");
            let same: Vec<&str> = TABLE
                .iter()
                .filter(|other| other.is_of(&row.facts))
                .map(|other| other.situation)
                .collect();
            assert_eq!(same, [row.situation]);
        }
    }

    #[test]
    fn the_page_for_users_has_the_same_table() {
        let page = include_str!("../../docs/vmm.md");
        for row in TABLE {
            let proven = if row.proven { "proven" } else { "unproven" };
            let line = format!("| {} | {} | {proven} |", row.situation, row.acceleration);
            assert!(page.lines().any(|l| l == line), "{line}");
        }
    }

    #[test]
    fn no_row_claims_what_no_host_of_ours_can_run() {
        for row in TABLE.iter().filter(|row| row.proven) {
            assert_eq!(row.acceleration, Acceleration::Tcg, "{row:?}");
        }
    }

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        let info = "processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu vme nosvm\nbugs\t: svm\n";
        assert_eq!(cpu_flags(info).collect::<Vec<_>>(), ["fpu", "vme", "nosvm"]);
        assert_eq!(cpu_flags("").count(), 0);
    }
}
