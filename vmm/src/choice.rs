//! Which VMM runs the VMs of this host, and how: a pure function over what is known and wished.

use std::fmt;
use std::str::FromStr;

use crate::guest::GuestArch;
use crate::host::{Acceleration, Arch, HostFacts, virtualisation};
use crate::verdict::Refuted;
use crate::vmm::VmmError;
use crate::{krun, qemu};

/// Names the wished acceleration: `auto`, `kvm`, or `tcg`.
pub const ACCELERATION_VARIABLE: &str = "III_VMM_ACCEL";

/// Which VMM is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmmWish {
    /// The fastest that this host can really run.
    #[default]
    Auto,
    /// libkrun.
    Krun,
    /// QEMU.
    Qemu,
}

/// Whether guests are to be accelerated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelerationWish {
    /// Where the host's virtualisation is real.
    #[default]
    Auto,
    /// Try it, whatever the facts say and whatever is remembered. A VM that dies of it is still tried
    /// again in software.
    Kvm,
    /// Never.
    Tcg,
}

/// A value of [`ACCELERATION_VARIABLE`] that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read {ACCELERATION_VARIABLE}: {0:?} is neither auto, kvm nor tcg")]
pub struct UnknownAcceleration(String);

impl FromStr for AccelerationWish {
    type Err = UnknownAcceleration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(UnknownAcceleration(other.to_owned())),
        }
    }
}

impl AccelerationWish {
    /// What the environment wishes.
    ///
    /// # Errors
    /// The variable holds something else.
    pub fn from_env() -> Result<Self, UnknownAcceleration> {
        match std::env::var_os(ACCELERATION_VARIABLE) {
            None => Ok(Self::Auto),
            Some(value) => value.to_string_lossy().parse(),
        }
    }
}

/// A VMM by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// libkrun.
    Krun,
    /// QEMU.
    Qemu,
}

impl Kind {
    /// Whether it runs guests on hosts of this kind; names as in [`std::env::consts`].
    pub fn runs_on(self, os: &str, arch: &str) -> bool {
        match self {
            Self::Krun => {
                krun::ARCHITECTURES.contains(&arch)
                    && (os == "linux" || (os, arch) == ("macos", "aarch64"))
            }
            // Its file server and its sockets are Linux's.
            Self::Qemu => os == "linux" && GuestArch::ALL.iter().any(|guest| guest.name() == arch),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Krun => krun::NAME,
            Self::Qemu => qemu::NAME,
        })
    }
}

/// What is known of the host.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its facts.
    pub facts: &'a HostFacts,
    /// Whether libkrun's launcher can be used.
    pub krun: bool,
    /// A VM has shown in this boot of the host that its virtualisation is false.
    pub refuted: Option<&'a Refuted>,
}

/// What runs the VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The VMM.
    pub vmm: Kind,
    /// How it runs guests.
    pub acceleration: Acceleration,
    /// QEMU in software stands by for a VM that dies early.
    pub fallback: bool,
    /// Why, for people.
    pub reason: String,
}

/// Whether guests are accelerated, and why.
pub fn acceleration(wish: AccelerationWish, known: &Known<'_>) -> (Acceleration, String) {
    match (wish, known.refuted) {
        (AccelerationWish::Kvm, _) => (
            Acceleration::Kvm,
            format!("{ACCELERATION_VARIABLE} asks for it"),
        ),
        (AccelerationWish::Tcg, _) => (
            Acceleration::Tcg,
            format!("{ACCELERATION_VARIABLE} asks for software"),
        ),
        (AccelerationWish::Auto, Some(refuted)) => (
            Acceleration::Tcg,
            format!(
                "a VM has died of it since the host's last boot, under {}: {}",
                refuted.vmm, refuted.cause
            ),
        ),
        (AccelerationWish::Auto, None) => {
            let verdict = virtualisation(known.facts);
            (verdict.acceleration, verdict.reason.to_owned())
        }
    }
}

/// Chooses.
///
/// # Errors
/// libkrun is wished for where guests cannot be accelerated: it has no software to run them by.
pub fn choose(vmm: VmmWish, wish: AccelerationWish, known: &Known<'_>) -> Result<Choice, VmmError> {
    let (acceleration, reason) = acceleration(wish, known);
    let vmm = match (vmm, acceleration) {
        (VmmWish::Qemu, _) | (VmmWish::Auto, Acceleration::Tcg) => Kind::Qemu,
        (VmmWish::Auto, Acceleration::Kvm) if known.krun => Kind::Krun,
        (VmmWish::Auto, Acceleration::Kvm) => Kind::Qemu,
        (VmmWish::Krun, Acceleration::Kvm) => {
            return Ok(Choice {
                vmm: Kind::Krun,
                acceleration,
                // Who asks for libkrun does not want another.
                fallback: false,
                reason,
            });
        }
        (VmmWish::Krun, Acceleration::Tcg) => {
            return Err(VmmError::Acceleration {
                vmm: krun::NAME,
                reason,
            });
        }
    };
    let software = match known.facts.arch {
        Arch::X86_64 | Arch::Aarch64 => true,
        // No guest is at home there.
        Arch::Other => false,
    };
    Ok(Choice {
        vmm,
        acceleration,
        fallback: acceleration == Acceleration::Kvm && software,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TABLE;

    fn facts(situation: &str) -> HostFacts {
        TABLE
            .iter()
            .find(|row| row.situation.starts_with(situation))
            .unwrap_or_else(|| panic!("no row {situation}"))
            .facts
    }

    fn refuted() -> Refuted {
        Refuted {
            boot_id: "b".into(),
            vmm: "krun".into(),
            cause: "it fell over".into(),
            unix_seconds: 1,
        }
    }

    #[test]
    fn choices() {
        use Acceleration as A;
        use AccelerationWish as Accel;
        use VmmWish as V;
        let (real, arm, arm_alone, pvm) = (
            facts("bare metal with KVM"),
            facts("aarch64 with KVM"),
            facts("aarch64 without KVM"),
            facts("VM with kvm_pvm"),
        );
        let dead = refuted();
        let (yes, no) = (true, false);
        // facts, krun there, refuted, wishes; VMM, acceleration, fallback, a word of the reason
        let table = [
            (
                &real,
                yes,
                None,
                V::Auto,
                Accel::Auto,
                Kind::Krun,
                A::Kvm,
                yes,
                "vmx or svm",
            ),
            (
                &real,
                no,
                None,
                V::Auto,
                Accel::Auto,
                Kind::Qemu,
                A::Kvm,
                yes,
                "vmx or svm",
            ),
            (
                &real,
                yes,
                None,
                V::Qemu,
                Accel::Auto,
                Kind::Qemu,
                A::Kvm,
                yes,
                "vmx or svm",
            ),
            (
                &real,
                yes,
                None,
                V::Krun,
                Accel::Auto,
                Kind::Krun,
                A::Kvm,
                no,
                "vmx or svm",
            ),
            (
                &real,
                yes,
                None,
                V::Auto,
                Accel::Tcg,
                Kind::Qemu,
                A::Tcg,
                no,
                "III_VMM_ACCEL",
            ),
            (
                &real,
                yes,
                Some(&dead),
                V::Auto,
                Accel::Auto,
                Kind::Qemu,
                A::Tcg,
                no,
                "fell over",
            ),
            (
                &real,
                yes,
                Some(&dead),
                V::Auto,
                Accel::Kvm,
                Kind::Krun,
                A::Kvm,
                yes,
                "III_VMM_ACCEL",
            ),
            (
                &pvm,
                yes,
                None,
                V::Auto,
                Accel::Auto,
                Kind::Qemu,
                A::Tcg,
                no,
                "kvm_pvm",
            ),
            (
                &pvm,
                yes,
                None,
                V::Qemu,
                Accel::Kvm,
                Kind::Qemu,
                A::Kvm,
                yes,
                "III_VMM_ACCEL",
            ),
            (
                &pvm,
                yes,
                None,
                V::Krun,
                Accel::Kvm,
                Kind::Krun,
                A::Kvm,
                no,
                "III_VMM_ACCEL",
            ),
            (
                &arm,
                yes,
                None,
                V::Auto,
                Accel::Auto,
                Kind::Krun,
                A::Kvm,
                yes,
                "opens",
            ),
            (
                &arm_alone,
                yes,
                None,
                V::Auto,
                Accel::Auto,
                Kind::Qemu,
                A::Tcg,
                no,
                "no /dev/kvm",
            ),
        ];
        for (facts, krun, refuted, vmm, wish, kind, acceleration, fallback, word) in table {
            let known = Known {
                facts,
                krun,
                refuted,
            };
            let choice = choose(vmm, wish, &known).unwrap();
            let case = format!("{known:?} {vmm:?} {wish:?}: {choice:?}");
            assert_eq!(choice.vmm, kind, "{case}");
            assert_eq!(choice.acceleration, acceleration, "{case}");
            assert_eq!(choice.fallback, fallback, "{case}");
            assert!(choice.reason.contains(word), "{case}");
        }
    }

    #[test]
    fn libkrun_is_refused_where_it_cannot_run_and_the_reason_is_told() {
        let dead = refuted();
        for (facts, refuted, wish, word) in [
            (
                facts("VM with kvm_pvm"),
                None,
                AccelerationWish::Auto,
                "kvm_pvm",
            ),
            (
                facts("bare"),
                Some(&dead),
                AccelerationWish::Auto,
                "fell over",
            ),
            (facts("bare"), None, AccelerationWish::Tcg, "III_VMM_ACCEL"),
        ] {
            let known = Known {
                facts: &facts,
                krun: true,
                refuted,
            };
            let error = choose(VmmWish::Krun, wish, &known).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(error.contains("--vmm qemu"), "{error}");
        }
    }

    #[test]
    fn wishes_are_words() {
        assert_eq!("".parse(), Ok(AccelerationWish::Auto));
        assert_eq!("auto".parse(), Ok(AccelerationWish::Auto));
        assert_eq!("kvm".parse(), Ok(AccelerationWish::Kvm));
        assert_eq!("tcg".parse(), Ok(AccelerationWish::Tcg));
        let error = "KVM".parse::<AccelerationWish>().unwrap_err().to_string();
        assert!(
            error.contains("III_VMM_ACCEL") && error.contains("KVM"),
            "{error}"
        );
    }
}
