//! Injects the faults of a plan and proves each repair: that the fault hit, that its victim is
//! ready again, and that the neighbour has not noticed.

use std::time::{Duration, Instant};

use iii_actors::spec::{PublishSpec, WorkerSpec};
use iii_proto::ids::{BootId, GuestPid};
use iii_proto::restart::{Exit, RestartMode, RestartPolicy};
use iii_supervisor::{ActorKind, Event, EventKind, Scope, WorkerState};

use super::census::{self, Census};
use super::disk::SmallDisk;
use super::plan::{Kind, NEIGHBOUR, PATIENT, Step, VICTIMS};
use crate::{Bench, PATIENCE, is, quick, shell};

/// Without an answer for so long an impatient worker's guest counts as hung.
const HASTE: Duration = Duration::from_secs(6);
/// How long what has ended may take to be gone.
const GONE: Duration = Duration::from_secs(30);

/// What became of one fault.
#[derive(Clone, Copy, Debug)]
pub enum Repair {
    /// From the fault to a worker that is ready again.
    Ready(Duration),
    /// This host does not let it be injected.
    Skipped,
}

/// A supervisor with its victims and their neighbour.
pub struct Chaos {
    bench: Bench,
    disk: Option<SmallDisk>,
    neighbour: (Option<BootId>, Option<GuestPid>),
    baseline: Option<Census>,
}

/// Restarts at once and for ever.
fn for_ever(mode: RestartMode) -> RestartPolicy {
    RestartPolicy {
        mode,
        stop_codes: Vec::new(),
        ..quick()
    }
}

fn victim(name: &str) -> WorkerSpec {
    let mut spec = shell(name, "echo up; while true; do sleep 1; done");
    spec.restart = for_ever(RestartMode::OnFailure);
    spec.vm_restart = for_ever(RestartMode::OnFailure);
    spec.actor_restart = for_ever(RestartMode::Always);
    spec.supervisor_restart = for_ever(RestartMode::Always);
    // A listener is something to be lost.
    spec.ports.push(PublishSpec::loopback(0, 80));
    // The less there is the sooner it is used up, which is how a guest is made to panic.
    spec.resources.memory = 128 << 20;
    spec.boot_deadline = PATIENCE;
    spec.heartbeat_timeout = if name == PATIENT { PATIENCE } else { HASTE };
    spec
}

/// With the limits that everybody has.
fn neighbour() -> WorkerSpec {
    let ticks = "i=0; while true; do i=$((i+1)); echo \"tick $i\"; sleep 0.5; done";
    let mut spec = shell(NEIGHBOUR, ticks);
    spec.boot_deadline = PATIENCE;
    spec.heartbeat_timeout = PATIENCE;
    spec
}

impl Chaos {
    /// Starts everybody and waits until all are ready.
    pub async fn start() -> Self {
        let disk = SmallDisk::mount();
        let mut bench = match &disk {
            Some(disk) => Bench::keeping(&disk.path().join("state")).await,
            None => Bench::empty().await,
        };
        let mut specs: Vec<WorkerSpec> = VICTIMS.iter().map(|name| victim(name)).collect();
        specs.push(neighbour());
        bench.add(specs).await;
        for name in VICTIMS {
            bench.ready(0, name).await;
        }
        let (boot, pid, _) = bench.ready(0, NEIGHBOUR).await;
        Self {
            bench,
            disk,
            neighbour: (Some(boot), Some(pid)),
            baseline: None,
        }
    }

    /// Injects one fault and waits for its repair.
    ///
    /// # Panics
    /// If the fault did not hit, was not repaired, or was noticed by the neighbour.
    pub async fn step(&mut self, step: Step) -> Repair {
        self.settle(step.victim).await;
        let mark = self.bench.mark();
        let begun = Instant::now();
        match step.kind.fault() {
            Some(fault) => {
                let before = self.state_of(step.victim).await;
                self.bench.hurt(step.victim, fault).await;
                let from = self.hit(mark, step).await;
                self.repaired(from, step, before).await;
            }
            None if self.disk.is_none() => return Repair::Skipped,
            None => self.fill_disk(mark, step).await,
        }
        let took = begun.elapsed();
        self.untouched(mark).await;
        Repair::Ready(took)
    }

    /// From now on nothing may become more.
    pub async fn take_baseline(&mut self) {
        for name in VICTIMS {
            self.settle(name).await;
        }
        self.baseline = Some(apart(census::take).await);
    }

    /// What there is more of than at the baseline, all workers being ready as they were then.
    pub async fn surplus(&mut self) -> Vec<String> {
        for name in VICTIMS {
            self.settle(name).await;
        }
        let baseline = self.baseline.clone().unwrap_or_default();
        apart(move || census::surplus(&baseline, GONE)).await
    }

    /// Stops everybody in order.
    pub async fn stop(self) {
        let bench = self.bench.stop().await;
        drop(bench);
        drop(self.disk);
    }

    async fn settle(&mut self, worker: &str) {
        let status = self.bench.worker(worker).ready().await;
        let state = status.map(|status| status.state);
        assert_eq!(
            state,
            Ok(WorkerState::Ready),
            "{worker}: {}",
            self.bench.whole_story()
        );
    }

    async fn state_of(&self, worker: &str) -> (Option<BootId>, Option<GuestPid>) {
        let status = self.bench.worker(worker).status().await;
        let status = status.unwrap_or_else(|error| panic!("{error}"));
        (status.boot, status.workload)
    }

    /// The event that this fault and no other causes; the position behind it.
    async fn hit(&mut self, mark: usize, step: Step) -> usize {
        let what = format!("sign of {step:?}");
        let sign =
            |event: &Event| (is(event, step.victim) && shows(step.kind, event)).then_some(());
        self.bench.event(mark, &what, sign).await.1
    }

    async fn repaired(
        &mut self,
        from: usize,
        step: Step,
        before: (Option<BootId>, Option<GuestPid>),
    ) {
        let actor = match step.kind {
            Kind::PanicDns => Some(ActorKind::Dns),
            Kind::PanicNetPoll | Kind::PanicNetworkLoop | Kind::StallNetworkLoop => {
                Some(ActorKind::NetPoll)
            }
            Kind::KillWorkload
            | Kind::KillVmm
            | Kind::StopVmm
            | Kind::DropControlPort
            | Kind::GuestPanic
            | Kind::GuestHang
            | Kind::KillFileServer
            | Kind::PanicFs
            | Kind::PanicVm
            | Kind::PanicWorkerSupervisor
            | Kind::FillDisk => None,
        };
        if let Some(actor) = actor {
            let what = format!("restart of {actor} of {}", step.victim);
            let again = |event: &Event| match event.kind {
                EventKind::ActorRestarted { actor: a, .. } if is(event, step.victim) => {
                    (a == actor).then_some(())
                }
                _ => None,
            };
            self.bench.event(from, &what, again).await;
            let now = self.state_of(step.victim).await;
            assert_eq!(now, before, "{step:?}: the workload goes on");
            return;
        }
        let (boot, pid, _) = self.bench.ready(from, step.victim).await;
        if step.kind == Kind::KillWorkload {
            assert_eq!(Some(boot), before.0, "{step:?}: the VM stays up");
            assert_ne!(Some(pid), before.1, "{step:?}");
        } else {
            assert_ne!(Some(boot), before.0, "{step:?}: a new VM");
        }
    }

    /// A restart by request is what the supervisor has to remember meanwhile.
    async fn fill_disk(&mut self, mark: usize, step: Step) {
        let mut from = mark;
        for (full, says) in [(true, "restart counters are lost"), (false, "kept again")] {
            if let Some(disk) = &self.disk {
                if full {
                    disk.fill();
                } else {
                    disk.free();
                }
            }
            let (boot, _) = self.state_of(step.victim).await;
            let victim = self.bench.worker(step.victim);
            let asked = victim.restart(Scope::Workload).await;
            asked.unwrap_or_else(|error| panic!("{error}"));
            let warned = |event: &Event| match &event.kind {
                EventKind::Warning { message } => message.contains(says).then_some(()),
                _ => None,
            };
            let (_, next) = self.bench.event(from, says, warned).await;
            let (again, _, _) = self.bench.ready(from, step.victim).await;
            assert_eq!(Some(again), boot, "{step:?}: the VM stays up");
            from = next;
        }
    }

    /// The neighbour's process goes on, and nothing was told about it.
    async fn untouched(&mut self, mark: usize) {
        let from = self.bench.lines.len();
        self.bench.line_from(from, NEIGHBOUR, "tick ").await;
        let now = self.state_of(NEIGHBOUR).await;
        assert_eq!(now, self.neighbour, "{}", self.bench.whole_story());
        let told = self.bench.seen.iter().skip(mark);
        let told: Vec<&Event> = told.filter(|event| is(event, NEIGHBOUR)).collect();
        assert!(told.is_empty(), "{told:?}");
    }
}

/// On a thread for what blocks, which is itself counted each time.
async fn apart<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(look)
        .await
        .expect("counting does not panic")
}

/// Whether this is what a fault of this kind causes.
fn shows(kind: Kind, event: &Event) -> bool {
    let panicked = |actor: ActorKind| match &event.kind {
        EventKind::ActorFailed {
            actor: a, cause, ..
        } => *a == actor && cause.contains("it panicked"),
        _ => false,
    };
    let actor = |actor: ActorKind, says: &str| match &event.kind {
        EventKind::ActorFailed {
            actor: a, cause, ..
        } => *a == actor && cause.contains(says),
        _ => false,
    };
    let crashed = |says: &str| match &event.kind {
        EventKind::VmCrashed { cause, .. } => cause.contains(says),
        _ => false,
    };
    match kind {
        Kind::KillWorkload => matches!(
            event.kind,
            EventKind::WorkloadExited {
                exit: Exit::Signal { signal: 9 },
                ..
            }
        ),
        // A closed port tells no more than that; the VMM is killed for it.
        Kind::KillVmm | Kind::DropControlPort => match &event.kind {
            EventKind::VmCrashed { exit, .. } => {
                exit.as_ref().is_some_and(|exit| exit.contains("KILL"))
            }
            _ => false,
        },
        Kind::StopVmm | Kind::GuestHang => crashed("not answered a heartbeat"),
        Kind::GuestPanic => crashed("Kernel panic"),
        Kind::KillFileServer => actor(ActorKind::Fs, "iii-vfs ended"),
        Kind::PanicDns => panicked(ActorKind::Dns),
        Kind::PanicNetPoll => panicked(ActorKind::NetPoll),
        Kind::PanicFs => panicked(ActorKind::Fs),
        Kind::PanicVm => panicked(ActorKind::Vm),
        Kind::PanicWorkerSupervisor => {
            matches!(event.kind, EventKind::WorkerSupervisorFailed { .. })
        }
        Kind::PanicNetworkLoop => actor(ActorKind::NetPoll, "the network loop panicked"),
        Kind::StallNetworkLoop => actor(ActorKind::NetPoll, "no progress"),
        Kind::FillDisk => false,
    }
}
