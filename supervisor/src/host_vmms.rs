//! Which VMM this host's VMs are run by: collects what is known, has it decided
//! ([`iii_vmm::choice`]), and looks at what was chosen.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use iii_firmware::home::IiiHome;
use iii_vmm::choice::{self, AccelerationWish, Choice, Kind, Known, VmmWish};
use iii_vmm::guest::GuestArch;
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::host::{Acceleration, HostFacts};
use iii_vmm::krun::Krun;
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::verdict::{Refuted, Verdicts, host_boot_id};
use iii_vmm::vmm::{Vmm, VmmError};
use iii_vmm::vmms::{Candidate, OnRefuted, Vmms};

use crate::supervisor::VmmChoice;

impl From<VmmChoice> for VmmWish {
    fn from(choice: VmmChoice) -> Self {
        match choice {
            VmmChoice::Auto => Self::Auto,
            VmmChoice::Krun => Self::Krun,
            VmmChoice::Qemu => Self::Qemu,
        }
    }
}

/// What the decision rests on.
pub(crate) struct Host {
    pub(crate) facts: HostFacts,
    pub(crate) refuted: Option<Refuted>,
    verdicts: Verdicts,
    boot_id: Option<String>,
}

impl Host {
    pub(crate) fn look(home: &IiiHome) -> Self {
        let verdicts = Verdicts::in_directory(&home.cache_dir());
        let boot_id = host_boot_id();
        Self {
            facts: HostFacts::collect(),
            refuted: boot_id.as_deref().and_then(|id| verdicts.recall(id)),
            verdicts,
            boot_id,
        }
    }

    pub(crate) fn known(&self, krun: bool) -> Known<'_> {
        Known {
            facts: &self.facts,
            krun,
            refuted: self.refuted.as_ref(),
        }
    }

    /// Where it is remembered that this host's virtualisation is false.
    #[cfg(feature = "cli")]
    pub(crate) fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    fn remembers(&self, vmm: Kind) -> OnRefuted {
        let (verdicts, boot_id) = (self.verdicts.clone(), self.boot_id.clone());
        Box::new(move |cause| {
            let Some(boot_id) = boot_id.clone() else {
                return;
            };
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let refuted = Refuted {
                boot_id,
                vmm: vmm.to_string(),
                cause: cause.to_owned(),
                unix_seconds: since.map_or(0, |time| time.as_secs()),
            };
            if let Err(error) = verdicts.remember(refuted) {
                // Costs a VM's death at the next start.
                let path = verdicts.path().display();
                tracing::warn!(%path, %error, "failed to remember this host's virtualisation");
            }
        })
    }
}

/// libkrun, whose launcher is asked which it is.
pub(crate) fn krun(places: &HelperPlaces) -> Result<Candidate, VmmError> {
    Candidate::check(Arc::new(Krun::new(places.clone())))
}

/// QEMU, which remembers its version in this user's cache.
fn qemu(home: &IiiHome, acceleration: Acceleration) -> Result<Candidate, VmmError> {
    let qemu: Arc<dyn Vmm> = Arc::new(Qemu::new(QemuOptions {
        program: None,
        cache_directory: Some(home.cache_dir()),
        acceleration,
        guest: None,
    }));
    Candidate::check(qemu)
}

/// QEMU for guests of another architecture than the host's.
pub(crate) fn of_foreign_guests(home: &IiiHome, guest: GuestArch) -> Result<Candidate, VmmError> {
    Candidate::check(Arc::new(Qemu::new(QemuOptions {
        program: None,
        cache_directory: Some(home.cache_dir()),
        acceleration: Acceleration::Tcg,
        guest: Some(guest),
    })))
}

/// What runs the VMs of this host.
pub(crate) fn find(
    vmm: VmmChoice,
    wish: AccelerationWish,
    places: &HelperPlaces,
    home: &IiiHome,
) -> Result<Vmms, VmmError> {
    let host = Host::look(home);
    // Asked only where it could be used: that is a process.
    let krun = match choice::acceleration(wish, &host.known(false)).0 {
        Acceleration::Kvm => Some(krun(places)),
        Acceleration::Tcg => None,
    };
    let found = krun.as_ref().is_some_and(Result::is_ok);
    if let (VmmChoice::Auto, Some(Err(error))) = (vmm, &krun) {
        tracing::warn!(%error, "libkrun, the faster VMM, is not used");
    }
    let choice = choice::choose(vmm.into(), wish, &host.known(found))?;
    let Choice {
        vmm,
        acceleration,
        fallback,
        reason,
    } = choice;
    tracing::debug!(%vmm, %acceleration, fallback, %reason, "chose what runs the VMs");
    let on_refuted = host.remembers(vmm);
    let first = match (vmm, krun) {
        (Kind::Krun, Some(asked)) => asked?,
        (Kind::Krun, None) => self::krun(places)?,
        (Kind::Qemu, _) => qemu(home, acceleration)?,
    };
    if !fallback {
        return Ok(Vmms::only(first));
    }
    match qemu(home, Acceleration::Tcg) {
        Ok(software) => Ok(Vmms::with_fallback(first, software, on_refuted)),
        Err(error) => {
            tracing::warn!(%error, "no VM can be tried again in software");
            Ok(Vmms::only(first))
        }
    }
}

#[cfg(test)]
mod tests {
    use iii_firmware::platform::HOSTS;

    use super::*;

    #[test]
    fn each_host_of_the_table_has_the_vmms_that_run_on_it() {
        for host in HOSTS {
            let kinds = [Kind::Krun, Kind::Qemu]
                .into_iter()
                .filter(|kind| kind.runs_on(host.os, host.arch));
            let names: Vec<String> = kinds.map(|kind| kind.to_string()).collect();
            assert_eq!(host.vmms, names, "{}", host.platform);
        }
    }
}
