//! Which fault hits which worker, in which order. Pure: the same seed makes the same plan.

use iii_supervisor::{ActorKind, Fault};

/// A way to hurt a worker, or the supervisor's own disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SIGKILL to the workload.
    KillWorkload,
    /// SIGKILL to the VMM.
    KillVmm,
    /// SIGSTOP to the VMM: the heartbeat must notice.
    StopVmm,
    /// The supervisor's end of the control port is closed.
    DropControlPort,
    /// The guest's kernel panics.
    GuestPanic,
    /// The guest's init spins.
    GuestHang,
    /// SIGKILL to iii-vfs.
    KillFileServer,
    /// DnsActor panics.
    PanicDns,
    /// NetPollActor panics.
    PanicNetPoll,
    /// FsActor panics.
    PanicFs,
    /// VmActor panics.
    PanicVm,
    /// The WorkerSupervisor panics.
    PanicWorkerSupervisor,
    /// The network loop's thread panics.
    PanicNetworkLoop,
    /// The network loop's thread does nothing any more.
    StallNetworkLoop,
    /// The state directory's disk is full for a while.
    FillDisk,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::KillWorkload,
        Self::KillVmm,
        Self::StopVmm,
        Self::DropControlPort,
        Self::GuestPanic,
        Self::GuestHang,
        Self::KillFileServer,
        Self::PanicDns,
        Self::PanicNetPoll,
        Self::PanicFs,
        Self::PanicVm,
        Self::PanicWorkerSupervisor,
        Self::PanicNetworkLoop,
        Self::StallNetworkLoop,
        Self::FillDisk,
    ];

    /// What the supervisor is asked to do; `None`: it is done from outside.
    pub fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::KillWorkload => Fault::KillWorkload,
            Self::KillVmm => Fault::KillVmm,
            Self::StopVmm => Fault::StopVmm,
            Self::DropControlPort => Fault::DropControlPort,
            Self::GuestPanic => Fault::GuestPanic,
            Self::GuestHang => Fault::GuestHang,
            Self::KillFileServer => Fault::KillFileServer,
            Self::PanicDns => Fault::PanicActor(ActorKind::Dns),
            Self::PanicNetPoll => Fault::PanicActor(ActorKind::NetPoll),
            Self::PanicFs => Fault::PanicActor(ActorKind::Fs),
            Self::PanicVm => Fault::PanicActor(ActorKind::Vm),
            Self::PanicWorkerSupervisor => Fault::PanicWorkerSupervisor,
            Self::PanicNetworkLoop => Fault::PanicNetworkLoop,
            Self::StallNetworkLoop => Fault::StallNetworkLoop,
            Self::FillDisk => return None,
        })
    }

    /// Who may be hurt so. Only an impatient worker notices a hang soon, and only a patient one
    /// waits until a guest has used up its memory to panic.
    pub fn victims(self) -> &'static [&'static str] {
        match self {
            Self::GuestPanic => &[PATIENT],
            Self::StopVmm | Self::GuestHang => &IMPATIENT,
            Self::KillWorkload
            | Self::KillVmm
            | Self::DropControlPort
            | Self::KillFileServer
            | Self::PanicDns
            | Self::PanicNetPoll
            | Self::PanicFs
            | Self::PanicVm
            | Self::PanicWorkerSupervisor
            | Self::PanicNetworkLoop
            | Self::StallNetworkLoop
            | Self::FillDisk => &VICTIMS,
        }
    }
}

/// Waits long for a heartbeat.
pub const PATIENT: &str = "patient";
/// Do not.
pub const IMPATIENT: [&str; 2] = ["hasty", "brisk"];
/// All that are hurt.
pub const VICTIMS: [&str; 3] = [PATIENT, "hasty", "brisk"];
/// Never hurt.
pub const NEIGHBOUR: &str = "neighbour";

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whom.
    pub victim: &'static str,
    /// How.
    pub kind: Kind,
}

/// `count` faults, or as many as there are kinds if that is more. The first of them are one of each
/// kind, and among all of them no kind is more than one ahead of another.
pub fn plan(seed: u64, count: usize) -> Vec<Step> {
    let mut random = SplitMix(seed);
    let mut steps = Vec::new();
    while steps.len() < count.max(Kind::ALL.len()) {
        let mut round = Kind::ALL;
        // Fisher and Yates.
        for at in (1..round.len()).rev() {
            round.swap(at, random.below(at + 1));
        }
        for kind in round {
            let victims = kind.victims();
            let victim = victims[random.below(victims.len())];
            steps.push(Step { victim, kind });
        }
    }
    steps.truncate(count.max(Kind::ALL.len()));
    steps
}

/// Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` - 1; the bias of the remainder is of no matter for so few.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(steps: &[Step], kind: Kind) -> usize {
        steps.iter().filter(|step| step.kind == kind).count()
    }

    #[test]
    fn a_seed_reproduces_its_plan_and_another_makes_another() {
        assert_eq!(plan(7, 200), plan(7, 200));
        assert_ne!(plan(7, 200), plan(8, 200));
        assert_eq!(plan(7, 40), plan(7, 200)[..40], "a shorter run is a prefix");
    }

    #[test]
    fn every_kind_comes_first_once_and_then_as_often_as_any_other() {
        for seed in 0..50 {
            let steps = plan(seed, 232);
            assert_eq!(steps.len(), 232);
            for kind in Kind::ALL {
                assert_eq!(count(&steps[..Kind::ALL.len()], kind), 1, "{kind:?}");
                assert!((15..=16).contains(&count(&steps, kind)), "{kind:?}");
            }
        }
        assert_eq!(plan(1, 0).len(), Kind::ALL.len(), "never less than a round");
    }

    #[test]
    fn everybody_is_hurt_but_the_neighbour() {
        let steps = plan(3, 200);
        for victim in VICTIMS {
            assert!(steps.iter().any(|step| step.victim == victim), "{victim}");
        }
        for step in steps {
            assert!(step.kind.victims().contains(&step.victim));
            assert_ne!(step.victim, NEIGHBOUR);
        }
    }
}
