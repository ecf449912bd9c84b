//! Which VMM a command line or the environment asks for.

use std::ffi::OsStr;

use clap::ValueEnum as _;

use super::arguments::Vmm;
use crate::VmmChoice;

/// Stands for `--vmm` where that is not given.
const VARIABLE: &str = "III_VMM";

/// `III_VMM` names no VMM.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read {VARIABLE}: {0:?} is neither auto, krun nor qemu")]
pub(super) struct UnknownVmm(String);

impl Vmm {
    /// As `--vmm` has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Krun => "krun",
            Self::Qemu => "qemu",
        }
    }
}

/// What is asked for: by the option, else by the environment.
pub(super) fn wished(option: Option<Vmm>) -> Result<VmmChoice, UnknownVmm> {
    wished_of(option, std::env::var_os(VARIABLE).as_deref())
}

fn wished_of(option: Option<Vmm>, variable: Option<&OsStr>) -> Result<VmmChoice, UnknownVmm> {
    let wish = match (option, variable.filter(|value| !value.is_empty())) {
        (Some(vmm), _) => vmm,
        (None, None) => Vmm::Auto,
        (None, Some(value)) => {
            let word = value.to_string_lossy();
            Vmm::from_str(&word, false).map_err(|_| UnknownVmm(word.into_owned()))?
        }
    };
    Ok(match wish {
        Vmm::Auto => VmmChoice::Auto,
        Vmm::Krun => VmmChoice::Krun,
        Vmm::Qemu => VmmChoice::Qemu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_outweighs_the_variable_and_both_the_default() {
        let of = |option, variable: &str| wished_of(option, Some(OsStr::new(variable)));
        assert_eq!(of(None, ""), Ok(VmmChoice::Auto));
        assert_eq!(wished_of(None, None), Ok(VmmChoice::Auto));
        for (vmm, choice) in [
            (Vmm::Auto, VmmChoice::Auto),
            (Vmm::Krun, VmmChoice::Krun),
            (Vmm::Qemu, VmmChoice::Qemu),
        ] {
            assert_eq!(of(None, vmm.word()), Ok(choice));
            assert_eq!(of(Some(vmm), "qemu"), Ok(choice));
            assert_eq!(of(Some(vmm), "wrong"), Ok(choice));
        }
        let error = of(None, "Qemu").unwrap_err().to_string();
        assert!(
            error.contains("III_VMM") && error.contains("Qemu"),
            "{error}"
        );
    }
}
