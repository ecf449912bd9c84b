//! Whether hardware virtualisation is believed in, as a table. Pure: who asks does what comes back.
//!
//! The facts of a host may deceive: a device that opens and a CPU that shows the extension, and every
//! guest dies. So a guest that dies under acceleration before it has said anything is a doubt, and
//! its worker's next VM runs in software. If that one speaks, the doubt was right, and nothing is
//! accelerated any more. If it dies too, the fault is the worker's own, and acceleration stays. A
//! guest that speaks under acceleration ends all doubt.

use std::collections::{BTreeMap, BTreeSet};

use iii_proto::ids::WorkerName;

use crate::host::Acceleration;

#[derive(Debug, Default)]
pub(crate) struct Trust {
    proof: Proof,
    /// Workers whose VM died under acceleration and who are tried in software, and how it died.
    doubts: BTreeMap<WorkerName, String>,
    /// Workers whose VMs die in software too.
    own_faults: BTreeSet<WorkerName>,
    warned: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Proof {
    /// No guest has spoken under acceleration yet, and none has shown that it is false.
    #[default]
    None,
    /// One has spoken.
    Real,
    /// One died and its successor in software spoke.
    False,
}

/// What becomes of a VM that died early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// A failure like any other.
    Counts,
    /// To be tried in software; `first` of all, so the user is to be warned.
    TryInSoftware { first: bool },
}

impl Trust {
    /// How this worker's next VM is run.
    pub(crate) fn next(&self, worker: &WorkerName) -> Acceleration {
        match self.proof {
            Proof::Real => Acceleration::Kvm,
            Proof::False => Acceleration::Tcg,
            Proof::None if self.doubts.contains_key(worker) => Acceleration::Tcg,
            Proof::None => Acceleration::Kvm,
        }
    }

    /// A guest has spoken. The cause of the doubt that this has proven right, if it is the first.
    pub(crate) fn spoke(&mut self, worker: &WorkerName, under: Acceleration) -> Option<String> {
        match (self.proof, under) {
            (Proof::None, Acceleration::Kvm) => {
                self.proof = Proof::Real;
                None
            }
            (Proof::None, Acceleration::Tcg) => {
                let cause = self.doubts.remove(worker)?;
                self.proof = Proof::False;
                Some(cause)
            }
            (Proof::Real | Proof::False, _) => None,
        }
    }

    /// A VM has died and its guest had not said anything.
    pub(crate) fn died(&mut self, worker: &WorkerName, under: Acceleration, cause: &str) -> Death {
        match (self.proof, under) {
            (Proof::Real, _) => Death::Counts,
            // It was launched before that was known.
            (Proof::False, Acceleration::Kvm) => Death::TryInSoftware { first: false },
            (Proof::False, Acceleration::Tcg) => Death::Counts,
            (Proof::None, Acceleration::Tcg) => {
                if self.doubts.remove(worker).is_some() {
                    self.own_faults.insert(worker.clone());
                }
                Death::Counts
            }
            (Proof::None, Acceleration::Kvm) if self.own_faults.contains(worker) => Death::Counts,
            (Proof::None, Acceleration::Kvm) => {
                self.doubts.insert(worker.clone(), cause.to_owned());
                let first = !std::mem::replace(&mut self.warned, true);
                Death::TryInSoftware { first }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Acceleration::{Kvm, Tcg};
    use proptest::prelude::*;

    fn named(name: &str) -> WorkerName {
        WorkerName::new(name).unwrap()
    }

    const FIRST: Death = Death::TryInSoftware { first: true };
    const AGAIN: Death = Death::TryInSoftware { first: false };

    #[test]
    fn a_guest_that_speaks_ends_all_doubt() {
        let (a, b) = (named("a"), named("b"));
        let mut trust = Trust::default();
        assert_eq!(trust.next(&a), Kvm);
        assert_eq!(trust.spoke(&a, Kvm), None);
        assert_eq!(trust.died(&b, Kvm, "dead"), Death::Counts);
        assert_eq!(trust.next(&b), Kvm);
    }

    #[test]
    fn a_doubt_that_is_right_is_told_once_and_ends_acceleration_for_all() {
        let (a, b, c) = (named("a"), named("b"), named("c"));
        let mut trust = Trust::default();
        assert_eq!(trust.died(&a, Kvm, "a is dead"), FIRST);
        assert_eq!(trust.next(&a), Tcg);
        // Whoever has not failed yet is still tried.
        assert_eq!(trust.next(&b), Kvm);
        assert_eq!(trust.died(&b, Kvm, "b is dead"), AGAIN);
        assert_eq!(trust.spoke(&a, Tcg).as_deref(), Some("a is dead"));
        assert_eq!(trust.spoke(&b, Tcg), None);
        // Launched before it was known.
        assert_eq!(trust.died(&c, Kvm, "c is dead"), AGAIN);
        assert_eq!(trust.next(&c), Tcg);
        assert_eq!(trust.died(&c, Tcg, "c is dead again"), Death::Counts);
    }

    #[test]
    fn a_worker_that_dies_in_software_too_is_at_fault_itself() {
        let (a, b) = (named("a"), named("b"));
        let mut trust = Trust::default();
        assert_eq!(trust.died(&a, Kvm, "dead"), FIRST);
        assert_eq!(trust.died(&a, Tcg, "dead"), Death::Counts);
        assert_eq!(trust.next(&a), Kvm);
        assert_eq!(trust.died(&a, Kvm, "dead"), Death::Counts);
        // Which says nothing about another; but one warning is enough.
        assert_eq!(trust.died(&b, Kvm, "b is dead"), AGAIN);
        assert_eq!(trust.spoke(&b, Tcg).as_deref(), Some("b is dead"));
        assert_eq!(trust.next(&a), Tcg);
    }

    #[test]
    fn a_guest_that_was_in_software_from_the_start_proves_nothing() {
        let a = named("a");
        let mut trust = Trust::default();
        assert_eq!(trust.spoke(&a, Tcg), None);
        assert_eq!(trust.died(&a, Tcg, "dead"), Death::Counts);
        assert_eq!(trust.next(&a), Kvm);
    }

    proptest! {
        /// Whatever happens: no worker is tried in software twice in a row for one doubt, the user is
        /// warned at most once, and what is proven stays proven.
        #[test]
        fn doubts_end(steps in prop::collection::vec((0..3u8, any::<bool>()), 0..60)) {
            let names = [named("a"), named("b"), named("c")];
            let mut trust = Trust::default();
            let (mut warnings, mut proofs) = (0, 0);
            let mut retries = [0; 3];
            for (who, speaks) in steps {
                let worker = &names[usize::from(who)];
                let under = trust.next(worker);
                let proof = trust.proof;
                if speaks {
                    proofs += u32::from(trust.spoke(worker, under).is_some());
                } else if let Death::TryInSoftware { first } = trust.died(worker, under, "dead") {
                    prop_assert_eq!(under, Kvm);
                    prop_assert_eq!(trust.next(worker), Tcg);
                    warnings += u32::from(first);
                    retries[usize::from(who)] += 1;
                }
                if proof != Proof::None {
                    prop_assert_eq!(trust.proof, proof);
                }
            }
            prop_assert!(warnings <= 1 && proofs <= 1);
            prop_assert!(retries.iter().all(|n| *n <= 1), "{:?}", retries);
        }
    }
}
