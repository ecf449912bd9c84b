//! The VMM of a supervisor, and the way back to software: [`Vmms`] says what each VM is run by, and
//! hears how it went.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iii_proto::ids::WorkerName;

use crate::host::Acceleration;
use crate::trust::{Death, Trust};
use crate::vmm::{Vmm, VmmError, VmmInfo};

/// A VMM that has been looked at.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Runs VMs.
    pub vmm: Arc<dyn Vmm>,
    /// What [`Vmm::check`] said.
    pub info: VmmInfo,
}

impl Candidate {
    /// Looks at a VMM.
    ///
    /// # Errors
    /// What [`Vmm::check`] says.
    pub fn check(vmm: Arc<dyn Vmm>) -> Result<Self, VmmError> {
        let info = vmm.check()?;
        Ok(Self { vmm, info })
    }
}

/// Told, with the cause, when a VM has shown that this host's virtualisation is not real.
pub type OnRefuted = Box<dyn Fn(&str) + Send + Sync>;

/// What a supervisor's VMs are run by.
pub struct Vmms {
    first: Candidate,
    fallback: Option<(Candidate, OnRefuted)>,
    trust: Mutex<Trust>,
}

impl fmt::Debug for Vmms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmms")
            .field("first", &self.first)
            .field("fallback", &self.fallback.as_ref().map(|(c, _)| c))
            .field("trust", &self.trust)
            .finish()
    }
}

/// A VM that died early is to be started again in software, at once and without being counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// For the user, the first time.
    pub warning: Option<String>,
}

impl Vmms {
    /// One, whatever happens.
    pub fn only(candidate: Candidate) -> Self {
        Self {
            first: candidate,
            fallback: None,
            trust: Mutex::default(),
        }
    }

    /// One that accelerates, and one in software for when that turns out to be false.
    pub fn with_fallback(first: Candidate, software: Candidate, on_refuted: OnRefuted) -> Self {
        Self {
            first,
            fallback: Some((software, on_refuted)),
            trust: Mutex::default(),
        }
    }

    fn trust(&self) -> MutexGuard<'_, Trust> {
        // The table is consistent between its calls.
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next VM of this worker is run by.
    pub fn for_next(&self, worker: &WorkerName) -> Candidate {
        let Some((software, _)) = &self.fallback else {
            return self.first.clone();
        };
        match self.trust().next(worker) {
            Acceleration::Kvm => self.first.clone(),
            Acceleration::Tcg => software.clone(),
        }
    }

    /// The guest of a VM that ran under `used` has said its first word.
    pub fn spoke(&self, worker: &WorkerName, used: &VmmInfo) {
        let Some((_, on_refuted)) = &self.fallback else {
            return;
        };
        let refuted = self.trust().spoke(worker, used.acceleration);
        if let Some(cause) = refuted {
            tracing::info!(%worker, %cause, "hardware virtualisation of this host is not real");
            on_refuted(&cause);
        }
    }

    /// A VM that ran under `used` has died, or was killed at its deadline, before its guest had said
    /// anything. `None`: that is a failure like any other.
    pub fn died_early(&self, worker: &WorkerName, used: &VmmInfo, cause: &str) -> Option<Retry> {
        let (software, _) = self.fallback.as_ref()?;
        match self.trust().died(worker, used.acceleration, cause) {
            Death::Counts => None,
            Death::TryInSoftware { first } => Some(Retry {
                warning: first.then(|| warning(used, &software.info, cause)),
            }),
        }
    }
}

fn warning(used: &VmmInfo, software: &VmmInfo, cause: &str) -> String {
    format!(
        "the VM died under hardware virtualisation ({} with {}) before its guest said anything: \
         {cause}. It is tried again in software ({} with {}), which is slower; if the guest speaks \
         there, this host's virtualisation is not used again before its next boot",
        used.name, used.acceleration, software.name, software.acceleration
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ChildSpec;
    use crate::vmm::{Version, VmLaunch};
    use std::path::PathBuf;

    #[derive(Debug)]
    struct Named(&'static str, Acceleration);

    impl Vmm for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn check(&self) -> Result<VmmInfo, VmmError> {
            Ok(VmmInfo {
                name: self.0,
                path: PathBuf::from("/vmm"),
                version: Version(1, 0, 0),
                acceleration: self.1,
            })
        }

        fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError> {
            Ok(ChildSpec::new("/vmm", launch.worker.as_str()))
        }
    }

    fn candidate(name: &'static str, acceleration: Acceleration) -> Candidate {
        Candidate::check(Arc::new(Named(name, acceleration))).unwrap()
    }

    #[test]
    fn the_user_is_warned_once_and_the_refutation_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let vmms = Vmms::with_fallback(
            candidate("krun", Acceleration::Kvm),
            candidate("qemu", Acceleration::Tcg),
            Box::new(move |cause| telling.lock().unwrap().push(cause.to_owned())),
        );
        let (a, b) = (WorkerName::new("a").unwrap(), WorkerName::new("b").unwrap());
        let (for_a, for_b) = (vmms.for_next(&a).info, vmms.for_next(&b).info);
        assert_eq!((for_a.name, for_b.name), ("krun", "krun"));
        let retry = vmms.died_early(&a, &for_a, "it fell over").unwrap();
        let warning = retry.warning.unwrap();
        for part in ["krun with kvm", "it fell over", "qemu with tcg"] {
            assert!(warning.contains(part), "{warning}");
        }
        let second = vmms.died_early(&b, &for_b, "it too");
        assert_eq!(second, Some(Retry { warning: None }));
        let for_a = vmms.for_next(&a).info;
        assert_eq!(for_a.name, "qemu");
        vmms.spoke(&a, &for_a);
        vmms.spoke(&b, &vmms.for_next(&b).info);
        assert_eq!(*told.lock().unwrap(), ["it fell over"]);
    }

    #[test]
    fn without_a_fallback_every_death_counts() {
        let vmms = Vmms::only(candidate("krun", Acceleration::Kvm));
        let a = WorkerName::new("a").unwrap();
        let used = vmms.for_next(&a).info;
        assert_eq!(vmms.died_early(&a, &used, "dead"), None);
        assert_eq!(vmms.for_next(&a).info.name, "krun");
        vmms.spoke(&a, &used);
    }
}
