//! Every failure is repaired at the lowest level that can repair it, and no neighbour notices.

use std::time::Duration;

use iii_actors::spec::WorkerSpec;
use iii_integration::{Bench, PATIENCE, is, quick, shell};
use iii_proto::ids::{BootId, GuestPid};
use iii_proto::restart::{RestartLimit, RestartPolicy};
use iii_supervisor::{ActorKind, Event, EventKind, Fault};

/// Counts for as long as it lives.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo \"tick $i\"; sleep 1; done";

fn counter(name: &str) -> WorkerSpec {
    let mut spec = shell(name, COUNTER);
    spec.restart = quick();
    spec.vm_restart = quick();
    spec
}

/// A worker that must not notice what happens to another one.
struct Neighbour {
    boot: BootId,
    pid: GuestPid,
}

impl Neighbour {
    async fn settle(bench: &mut Bench) -> Self {
        let (boot, pid, _) = bench.ready(0, "neighbour").await;
        Self { boot, pid }
    }

    /// It goes on counting where it was, and nothing was told about it since `mark`.
    async fn is_untouched(&self, bench: &mut Bench, mark: usize) {
        let from = bench.lines.len();
        let (line, _) = bench.line_from(from, "neighbour", "tick ").await;
        let last = &bench.lines[bench.lines.len() - 1];
        assert_eq!(
            (last.boot, last.pid),
            (self.boot, self.pid),
            "another life: {line}"
        );
        let events: Vec<&Event> = bench
            .seen
            .iter()
            .skip(mark)
            .filter(|event| is(event, "neighbour"))
            .collect();
        assert!(events.is_empty(), "{events:?}");
    }
}

async fn hurt(bench: &Bench, worker: &str, fault: Fault) {
    let worker = iii_integration::worker_name(worker);
    bench
        .supervisor
        .inject(worker, fault)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_workload_is_restarted_inside_its_vm() {
    let mut spec = shell("crasher", "echo \"life $$\"; sleep 0.2; exit 3");
    spec.restart = quick();
    let mut bench = Bench::start(vec![spec]).await;
    let (boot, first, next) = bench.ready(0, "crasher").await;
    let (code, _) = bench
        .event(0, "exit of the workload", |event| match &event.kind {
            EventKind::WorkloadExited { pid, exit, .. } if *pid == first => Some(exit.clone()),
            _ => None,
        })
        .await;
    assert_eq!(code.to_string(), "exit code 3");
    let (again, second, _) = bench.ready(next, "crasher").await;
    assert_eq!(boot, again, "the VM stays up");
    assert!(second > first, "{second} follows {first}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_replaced_and_its_neighbour_goes_on() {
    let mut bench = Bench::start(vec![counter("victim"), counter("neighbour")]).await;
    let neighbour = Neighbour::settle(&mut bench).await;
    let (boot, _, _) = bench.ready(0, "victim").await;
    let mark = bench.mark();
    hurt(&bench, "victim", Fault::KillVmm).await;
    let (exit, next) = bench
        .event(mark, "crash of the VM", |event| match &event.kind {
            EventKind::VmCrashed { exit, .. } if event.boot == Some(boot) => exit.clone(),
            _ => None,
        })
        .await;
    assert!(exit.contains("KILL"), "{exit}");
    let (successor, _, _) = bench.ready(next, "victim").await;
    assert_ne!(boot, successor);
    neighbour.is_untouched(&mut bench, mark).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_any_actor_is_repaired_and_its_neighbour_goes_on() {
    let mut bench = Bench::start(vec![counter("victim"), counter("neighbour")]).await;
    let neighbour = Neighbour::settle(&mut bench).await;
    let (mut boot, _, _) = bench.ready(0, "victim").await;
    let cases = [
        (Fault::PanicActor(ActorKind::Dns), ActorKind::Dns, false),
        (
            Fault::PanicActor(ActorKind::NetPoll),
            ActorKind::NetPoll,
            false,
        ),
        (Fault::PanicNetworkLoop, ActorKind::NetPoll, false),
        (Fault::StallNetworkLoop, ActorKind::NetPoll, false),
        (Fault::PanicActor(ActorKind::Fs), ActorKind::Fs, true),
        (Fault::KillFileServer, ActorKind::Fs, true),
        (Fault::PanicActor(ActorKind::Vm), ActorKind::Vm, true),
    ];
    for (fault, actor, new_vm) in cases {
        let mark = bench.mark();
        hurt(&bench, "victim", fault).await;
        let (cause, next) = bench
            .event(
                mark,
                &format!("failure of {actor} by {fault:?}"),
                |event| match &event.kind {
                    EventKind::ActorFailed {
                        actor: a, cause, ..
                    } if *a == actor => Some(cause.clone()),
                    _ => None,
                },
            )
            .await;
        assert!(!cause.is_empty());
        if new_vm {
            let (successor, _, _) = bench.ready(next, "victim").await;
            assert_ne!(boot, successor, "{fault:?}");
            boot = successor;
        } else {
            bench
                .event(next, &format!("restart of {actor}"), |event| {
                    match event.kind {
                        EventKind::ActorRestarted { actor: a, .. } if a == actor => Some(()),
                        _ => None,
                    }
                })
                .await;
            let from = bench.lines.len();
            bench.line_from(from, "victim", "tick ").await;
            let last = &bench.lines[bench.lines.len() - 1];
            assert_eq!(last.boot, boot, "the VM stays up under {fault:?}");
        }
        neighbour.is_untouched(&mut bench, mark).await;
    }
    let mark = bench.mark();
    hurt(&bench, "victim", Fault::PanicWorkerSupervisor).await;
    let (successor, _, _) = bench.ready(mark, "victim").await;
    assert_ne!(boot, successor);
    neighbour.is_untouched(&mut bench, mark).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_panics_or_hangs_gets_a_new_vm_and_says_why() {
    // To panic, the guest fills its memory first; meanwhile it answers nothing.
    let mut panics = counter("panics");
    panics.heartbeat_timeout = PATIENCE;
    let mut hangs = counter("hangs");
    hangs.heartbeat_timeout = Duration::from_secs(6);
    let mut bench = Bench::start(vec![panics, hangs]).await;
    for (worker, fault, says) in [
        ("panics", Fault::GuestPanic, "Kernel panic"),
        ("hangs", Fault::GuestHang, "not answered a heartbeat"),
    ] {
        let (_, _, next) = bench.ready(0, worker).await;
        hurt(&bench, worker, fault).await;
        let (cause, after) = bench
            .event(next, &format!("crash by {fault:?}"), |event| {
                match &event.kind {
                    EventKind::VmCrashed { cause, .. } if is(event, worker) => Some(cause.clone()),
                    _ => None,
                }
            })
            .await;
        assert!(cause.contains(says), "{cause}\n{}", bench.story());
        bench.ready(after, worker).await;
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_escalate_from_workload_to_vm_to_worker_and_stop_there() {
    let once = RestartPolicy {
        limit: Some(RestartLimit {
            restarts: 1,
            window: Duration::from_secs(600),
        }),
        ..quick()
    };
    let mut hopeless = shell("hopeless", "echo again; exit 1");
    hopeless.restart = once.clone();
    hopeless.vm_restart = once.clone();
    let mut silent = shell("silent", "echo never");
    silent.boot_deadline = Duration::from_millis(1);
    silent.vm_restart = once;
    let mut bench = Bench::start(vec![hopeless, silent, counter("neighbour")]).await;
    let failed = |worker: &'static str| {
        move |event: &Event| match &event.kind {
            EventKind::WorkerFailed { reason } if is(event, worker) => Some(reason.clone()),
            _ => None,
        }
    };
    let (reason, _) = bench
        .event(0, "failure of hopeless", failed("hopeless"))
        .await;
    assert!(
        reason.contains("restart limit") && reason.contains("exit code 1"),
        "{reason}"
    );
    let starts = bench
        .lines
        .iter()
        .filter(|line| line.worker.as_str() == "hopeless")
        .count();
    assert_eq!(starts, 4, "two lives in each of two VMs");
    let (reason, _) = bench.event(0, "failure of silent", failed("silent")).await;
    assert!(reason.contains("no word from the guest"), "{reason}");
    let neighbour = Neighbour::settle(&mut bench).await;
    let mark = bench.mark();
    neighbour.is_untouched(&mut bench, mark).await;
    bench.stop().await;
}
