//! Every row of the failure table on a real VM (docs/supervision.md, "What is repaired by whom"),
//! and what users ask of workers that run.
//!
//! | what fails | test |
//! | --- | --- |
//! | workload exits or crashes | `repair.rs: a_crashed_workload_is_restarted_inside_its_vm` |
//! | workload unhealthy | [`an_unhealthy_workload_is_restarted_in_its_vm`] |
//! | workload never ready | [`a_workload_that_is_never_ready_escalates_to_a_new_vm_and_then_fails`] |
//! | workload beyond its memory | [`a_workload_that_runs_out_of_memory_is_named_and_restarted_in_its_vm`] |
//! | workload complete | [`a_workload_that_is_not_to_be_restarted_is_done_with_its_exit`] |
//! | workload's limit | `repair.rs: limits_escalate_from_workload_to_vm_to_worker_and_stop_there` |
//! | no word within the boot deadline | the same |
//! | guest's kernel panics; guest hangs | `repair.rs: a_guest_that_panics_or_hangs_gets_a_new_vm_and_says_why` |
//! | guest is only busy | [`a_guest_whose_workload_takes_all_of_its_cpu_is_not_taken_for_hung`] |
//! | VMM killed | `repair.rs: a_killed_vmm_is_replaced_and_its_neighbour_goes_on` |
//! | VM's limit | [`a_vm_that_uses_up_its_limit_fails_its_worker_until_it_is_asked_for`] |
//! | network loop, resolver, file server, actors, WorkerSupervisor | `repair.rs: a_panic_in_any_actor_is_repaired_and_its_neighbour_goes_on` |
//! | supervisor killed | `cli.rs: a_killed_supervisor_leaves_nothing_and_the_next_run_starts`, [`what_a_dropped_supervisor_knew_outlives_it`] |
//!
//! Requests: [`each_scope_of_a_restart_restarts_that_and_counts_nothing`],
//! [`a_worker_is_stopped_and_started_again`], [`remove_frees_a_published_port_at_once`]. Order
//! between workers: [`workers_start_behind_their_dependencies_and_stop_before_them`],
//! [`a_lost_dependency_restarts_those_that_asked_for_it_and_nobody_else`].

use std::time::Duration;

use iii_actors::spec::{Dependency, PublishSpec, WorkerSpec};
use iii_integration::http::HttpConnection;
use iii_integration::{Bench, PATIENCE, is, quick, shell, worker_name};
use iii_proto::guest::{HealthCheck, Probe};
use iii_proto::ids::{BootId, GuestPid};
use iii_proto::restart::{Decision, Exit, RestartLimit, RestartMode, RestartPolicy};
use iii_supervisor::{
    Event, EventKind, Fault, Outcome, RequestError, Scope, Shutdown, WorkerState,
};

/// Says that it runs and goes on for as long as it is let.
const STAYS: &str = "echo up; while true; do sleep 1; done";

fn at_most(restarts: u32) -> RestartPolicy {
    RestartPolicy {
        limit: Some(RestartLimit {
            restarts,
            window: Duration::from_secs(3600),
        }),
        ..quick()
    }
}

/// A worker whose restarts wait for next to nothing, and whose guest may be as slow as a loaded
/// machine makes it.
fn worker(name: &str, script: &str) -> WorkerSpec {
    let mut spec = shell(name, script);
    spec.restart = quick();
    spec.vm_restart = quick();
    spec.boot_deadline = PATIENCE;
    spec.heartbeat_timeout = PATIENCE;
    spec.stop_grace = Duration::from_secs(1);
    spec
}

fn probed(script: &str, retries: u32, start_period: Duration) -> HealthCheck {
    HealthCheck {
        probe: Probe::Exec(["/bin/sh", "-c", script].map(String::from).to_vec()),
        interval_ms: 100,
        timeout_ms: 60_000,
        retries,
        start_period_ms: start_period.as_millis() as u64,
    }
}

/// Events about `worker`, from position `from` on.
fn about<'a>(bench: &'a Bench, from: usize, worker: &'a str) -> impl Iterator<Item = &'a Event> {
    let events = bench.seen.iter().skip(from);
    events.filter(move |event| is(event, worker))
}

fn unhealthy(bench: &Bench, worker: &str) -> usize {
    about(bench, 0, worker)
        .filter(|event| matches!(event.kind, EventKind::WorkloadUnhealthy { .. }))
        .count()
}

async fn exit(bench: &mut Bench, from: usize, worker: &str) -> (Exit, Decision, GuestPid, usize) {
    let ((exit, decision, pid), next) = bench
        .event(
            from,
            &format!("exit of {worker}'s workload"),
            |event| match &event.kind {
                EventKind::WorkloadExited {
                    exit,
                    decision,
                    pid,
                    ..
                } if is(event, worker) => Some((exit.clone(), decision.clone(), *pid)),
                _ => None,
            },
        )
        .await;
    (exit, decision, pid, next)
}

async fn failed(bench: &mut Bench, from: usize, worker: &str) -> (String, usize) {
    bench
        .event(
            from,
            &format!("failure of {worker}"),
            |event| match &event.kind {
                EventKind::WorkerFailed { reason } if is(event, worker) => Some(reason.clone()),
                _ => None,
            },
        )
        .await
}

/// Position of the first event of `worker` that is so.
fn position(bench: &Bench, worker: &str, what: &str, is_so: fn(&EventKind) -> bool) -> usize {
    bench
        .seen
        .iter()
        .position(|event| is(event, worker) && is_so(&event.kind))
        .unwrap_or_else(|| panic!("{worker}: no {what}; seen:\n{}", bench.story()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_workload_is_restarted_in_its_vm() {
    let mut spec = worker(
        "sick",
        "rm -f /tmp/seen; echo \"life $$\"; while true; do sleep 1; done",
    );
    // Each life is healthy at the first look and never again.
    let once = "test ! -e /tmp/seen && touch /tmp/seen";
    spec.health = Some(probed(once, 3, Duration::from_secs(60)));
    let mut bench = Bench::start(vec![spec]).await;
    let (boot, first, next) = bench.ready(0, "sick").await;
    let (detail, next) = bench
        .event(next, "sickness", |event| match &event.kind {
            EventKind::WorkloadUnhealthy { pid, detail } if *pid == first => Some(detail.clone()),
            _ => None,
        })
        .await;
    assert!(detail.contains("exit code 1"), "{detail}");
    let (exit, decision, pid, next) = exit(&mut bench, next, "sick").await;
    assert_eq!((exit, pid), (Exit::Unhealthy, first));
    assert!(
        matches!(decision, Decision::RestartAfter { .. }),
        "{decision:?}"
    );
    let (again, second, _) = bench.ready(next, "sick").await;
    assert_eq!(boot, again, "the VM stays up");
    assert!(second > first, "{second} follows {first}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_never_ready_escalates_to_a_new_vm_and_then_fails() {
    let mut spec = worker("hopeless", STAYS);
    spec.health = Some(probed("exit 7", 2, Duration::from_millis(300)));
    spec.restart = at_most(1);
    spec.vm_restart = at_most(1);
    let mut bench = Bench::start(vec![spec]).await;
    let (reason, _) = failed(&mut bench, 0, "hopeless").await;
    assert!(
        reason.contains("restart limit") && reason.contains("unhealthy"),
        "{reason}"
    );
    assert_eq!(
        unhealthy(&bench, "hopeless"),
        4,
        "two lives in each of two VMs: {}",
        bench.story()
    );
    let ready = |event: &&Event| matches!(event.kind, EventKind::WorkloadReady { .. });
    assert_eq!(about(&bench, 0, "hopeless").filter(ready).count(), 0);
    let status = bench.worker("hopeless").status().await.expect("it is kept");
    assert_eq!(
        (status.state, status.boots, status.vm_restarts),
        (WorkerState::Failed, 2, 1)
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_runs_out_of_memory_is_named_and_restarted_in_its_vm() {
    // The first life takes memory until there is none left.
    let hog = "import os, time\n\
               if os.path.exists('/tmp/again'):\n    print('again', flush=True)\n    time.sleep(1e6)\n\
               open('/tmp/again', 'w').close()\n\
               held = []\n\
               while True: held.append(b'x' * (4 << 20))\n";
    let mut spec = worker("hog", "");
    spec.command = ["/usr/bin/python3", "-c", hog].map(String::from).to_vec();
    let mut bench = Bench::start(vec![spec]).await;
    let (boot, first, next) = bench.ready(0, "hog").await;
    let (exit, _, pid, after) = exit(&mut bench, next, "hog").await;
    assert_eq!((exit, pid), (Exit::Signal { signal: 9 }, first));
    let named = about(&bench, next, "hog").any(|event| match &event.kind {
        EventKind::Warning { message } => message.contains("memory"),
        _ => false,
    });
    assert!(
        named,
        "the kill is named before the exit: {}",
        bench.story()
    );
    let (again, second, _) = bench.ready(after, "hog").await;
    assert_eq!(boot, again, "vm-init survives");
    assert!(second > first, "{second} follows {first}");
    bench.line("hog", "again").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_of_the_workload_that_runs_out_of_memory_is_named_and_the_workload_goes_on() {
    let hog = "/usr/bin/python3 -c 'held = []\nwhile True: held.append(b\"x\" * (4 << 20))'";
    let script = format!("{hog}; echo \"it ended with $?\"; while true; do sleep 1; done");
    let mut bench = Bench::start(vec![worker("parent", &script)]).await;
    let (boot, pid, next) = bench.ready(0, "parent").await;
    bench
        .event(next, "warning of the kill", |event| match &event.kind {
            EventKind::Warning { message } if is(event, "parent") => {
                (message.starts_with("python3 (process ") && message.contains("memory"))
                    .then_some(())
            }
            _ => None,
        })
        .await;
    bench.line("parent", "it ended with 137").await;
    let status = bench.worker("parent").status().await.expect("it is there");
    assert_eq!((status.boot, status.workload), (Some(boot), Some(pid)));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_workload_takes_all_of_its_cpu_is_not_taken_for_hung() {
    let spin = "for i in 1 2 3 4 5 6 7 8; do while true; do :; done & done; \
                i=0; while true; do i=$((i+1)); echo \"tick $i\"; sleep 1; done";
    let mut spec = worker("busy", spin);
    spec.heartbeat_timeout = Duration::from_secs(10);
    let mut bench = Bench::start(vec![spec]).await;
    let (boot, pid, next) = bench.ready(0, "busy").await;
    // Longer than the time-out by the guest's own clock.
    bench.line("busy", "tick 13").await;
    bench.mark();
    let after: Vec<&Event> = about(&bench, next, "busy").collect();
    assert!(after.is_empty(), "{after:?}");
    let status = bench.worker("busy").status().await.expect("it is there");
    assert_eq!((status.boot, status.workload), (Some(boot), Some(pid)));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_uses_up_its_limit_fails_its_worker_until_it_is_asked_for() {
    let mut spec = worker("fragile", STAYS);
    spec.vm_restart = at_most(2);
    let mut bench = Bench::start(vec![spec, worker("neighbour", STAYS)]).await;
    let (neighbour, neighbours, _) = bench.ready(0, "neighbour").await;
    let mut at = 0;
    for _ in 0..3 {
        at = bench.ready(at, "fragile").await.2;
        bench.hurt("fragile", Fault::KillVmm).await;
    }
    let (reason, next) = failed(&mut bench, at, "fragile").await;
    assert!(reason.contains("after 2 restarts"), "{reason}");
    let fragile = bench.worker("fragile");
    let status = fragile.at_rest().await.expect("it is kept");
    assert_eq!(status.outcome, Some(Outcome::Failed(reason)));
    // A request begins the counters anew: it may fail as often again.
    fragile.start().await.expect("it is there");
    let (_, _, mut at) = bench.ready(next, "fragile").await;
    for _ in 0..2 {
        bench.hurt("fragile", Fault::KillVmm).await;
        at = bench.ready(at, "fragile").await.2;
    }
    let status = bench.worker("neighbour").status().await.expect("it runs");
    assert_eq!(
        (status.boot, status.workload),
        (Some(neighbour), Some(neighbours))
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_not_to_be_restarted_is_done_with_its_exit() {
    let with = |name: &str, mode, code: i32| {
        let mut spec = worker(name, &format!("echo once; exit {code}"));
        spec.restart = RestartPolicy { mode, ..quick() };
        spec
    };
    let mut bench = Bench::start(vec![
        with("never", RestartMode::Never, 1),
        with("misconfigured", RestartMode::Always, 78),
        with("complete", RestartMode::OnFailure, 0),
    ])
    .await;
    for (name, code) in [("never", 1), ("misconfigured", 78), ("complete", 0)] {
        let expected = Exit::Code { code };
        let (last, decision, _, _) = exit(&mut bench, 0, name).await;
        assert_eq!(
            (last, decision),
            (expected.clone(), Decision::Done),
            "{name}"
        );
        let status = bench.worker(name).at_rest().await.expect("it is kept");
        assert_eq!(status.state, WorkerState::Done, "{name}");
        assert_eq!(status.outcome, Some(Outcome::Done(expected)), "{name}");
        assert_eq!((status.boots, status.workload_starts), (1, 1), "{name}");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_of_a_restart_restarts_that_and_counts_nothing() {
    let mut spec = worker("asked", STAYS);
    // The first restart that is counted would be refused.
    spec.restart = at_most(0);
    spec.vm_restart = at_most(0);
    let mut bench = Bench::start(vec![spec]).await;
    let asked = bench.worker("asked");
    let (mut boot, mut pid, mut at) = bench.ready(0, "asked").await;
    for scope in [Scope::Workload, Scope::Vm, Scope::All, Scope::Workload] {
        let mark = bench.mark();
        asked.restart(scope).await.expect("it runs");
        let (next_boot, next_pid, next) = bench.ready(at, "asked").await;
        match scope {
            Scope::Workload => {
                assert_eq!(next_boot, boot, "the VM stays up");
                assert!(next_pid > pid, "{next_pid} follows {pid}");
            }
            _ => assert_ne!(next_boot, boot, "{scope:?}"),
        }
        let events: Vec<&Event> = about(&bench, mark, "asked").collect();
        let actors_too = events
            .iter()
            .any(|event| matches!(event.kind, EventKind::WorkerStarting));
        assert_eq!(actors_too, scope == Scope::All, "{events:#?}");
        (boot, pid, at) = (next_boot, next_pid, next);
        let status = asked.ready().await.expect("it runs");
        assert_eq!(status.vm_restarts, 0, "{scope:?}");
    }
    asked.stop(Shutdown::Graceful).await.expect("it runs");
    for scope in [Scope::Workload, Scope::Vm] {
        let refusal = asked.restart(scope).await.expect_err("nothing runs");
        assert!(
            matches!(refusal, RequestError::NotRunning { .. }),
            "{refusal}"
        );
    }
    asked.restart(Scope::All).await.expect("that starts it");
    bench.ready(at, "asked").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_stopped_and_started_again() {
    let mut bench = Bench::start(vec![worker("pausing", STAYS)]).await;
    let pausing = bench.worker("pausing");
    let (first, _, mut at) = bench.ready(0, "pausing").await;
    let mut boots: Vec<BootId> = vec![first];
    for how in [Shutdown::Graceful, Shutdown::Now] {
        let status = pausing.stop(how).await.expect("it runs");
        assert_eq!(status.state, WorkerState::Stopped);
        assert_eq!(status.outcome, Some(Outcome::Stopped));
        assert_eq!((status.boot, status.workload), (None, None));
        pausing.start().await.expect("it is there");
        let (boot, _, next) = bench.ready(at, "pausing").await;
        assert!(!boots.contains(&boot), "{boots:?} {boot}");
        boots.push(boot);
        at = next;
    }
    let status = pausing.ready().await.expect("it runs");
    assert_eq!(
        (status.boots, status.vm_restarts, status.outcome),
        (3, 0, None)
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_frees_a_published_port_at_once() {
    let server = |name: &str, port: u16| {
        let script = format!(
            "mkdir /tmp/www; cd /tmp/www; echo {name} > name; exec python3 -m http.server --protocol HTTP/1.1 8000"
        );
        let mut spec = worker(name, &script);
        spec.ports.push(PublishSpec::loopback(port, 8000));
        spec.health = Some(HealthCheck {
            probe: Probe::Tcp(8000),
            ..probed("", 100, PATIENCE)
        });
        spec
    };
    let mut bench = Bench::start(vec![server("first", 0)]).await;
    let first = bench.worker("first");
    let published = first.ready().await.expect("it runs").published[0].0;
    let (status, body) = HttpConnection::open(published)
        .await
        .get_and_close("/name")
        .await;
    assert_eq!((status, body.as_slice()), (200, b"first\n".as_slice()));
    let removed = bench.supervisor.remove(worker_name("first")).await;
    removed.expect("nobody depends on it");
    assert!(first.status().await.is_err(), "it is forgotten");
    // The very port, and at once: `add` binds it before it returns.
    bench.add(vec![server("second", published.port())]).await;
    bench.worker("second").ready().await.expect("it runs");
    let (status, body) = HttpConnection::open(published)
        .await
        .get_and_close("/name")
        .await;
    assert_eq!((status, body.as_slice()), (200, b"second\n".as_slice()));
    bench.stop().await;
}

fn behind(mut spec: WorkerSpec, on: &str, restart: bool) -> WorkerSpec {
    spec.depends_on.push(Dependency {
        restart,
        ..Dependency::ready(worker_name(on))
    });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_start_behind_their_dependencies_and_stop_before_them() {
    let mut db = worker("db", &format!("sleep 1; touch /tmp/open; {STAYS}"));
    db.health = Some(probed("test -e /tmp/open", 100, PATIENCE));
    let api = behind(worker("api", STAYS), "db", false);
    let web = behind(worker("web", STAYS), "api", false);
    // Their names are in no order.
    let mut bench = Bench::start(vec![web, api, db]).await;
    bench.ready(0, "web").await;
    let starting = |kind: &EventKind| matches!(kind, EventKind::WorkerStarting);
    let ready = |kind: &EventKind| matches!(kind, EventKind::WorkloadReady { .. });
    for (dependent, dependency) in [("api", "db"), ("web", "api")] {
        assert!(
            position(&bench, dependency, "readiness", ready)
                < position(&bench, dependent, "start", starting),
            "{dependent} starts once {dependency} is ready: {}",
            bench.story()
        );
        position(&bench, dependent, "wait", |kind| {
            matches!(kind, EventKind::WorkerWaiting { .. })
        });
    }
    let bench = bench.stop().await;
    let powering_off = |kind: &EventKind| matches!(kind, EventKind::GuestPoweringOff { .. });
    let stopped = |kind: &EventKind| matches!(kind, EventKind::WorkerStopped);
    for (dependent, dependency) in [("web", "api"), ("api", "db")] {
        assert!(
            position(&bench, dependent, "stop", stopped)
                < position(&bench, dependency, "power-off", powering_off),
            "{dependency} stops once {dependent} has: {}",
            bench.story()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_dependency_restarts_those_that_asked_for_it_and_nobody_else() {
    let mut bench = Bench::start(vec![
        worker("db", STAYS),
        behind(worker("bound", STAYS), "db", true),
        behind(worker("loose", STAYS), "db", false),
        worker("stranger", STAYS),
    ])
    .await;
    let (db, _, _) = bench.ready(0, "db").await;
    let (bound, _, _) = bench.ready(0, "bound").await;
    let loose = bench.ready(0, "loose").await;
    let stranger = bench.ready(0, "stranger").await;
    let mark = bench.mark();
    bench.hurt("db", Fault::KillVmm).await;
    let (lost, next) = bench
        .event(mark, "restart of bound", |event| match &event.kind {
            EventKind::WorkerRestarting { lost } if is(event, "bound") => Some(lost.clone()),
            _ => None,
        })
        .await;
    assert_eq!(lost, Some(worker_name("db")));
    let (db_again, _, db_ready) = bench.ready(mark, "db").await;
    let (bound_again, _, _) = bench.ready(next, "bound").await;
    assert!(db != db_again && bound != bound_again);
    let started = bench.seen.iter().enumerate().skip(mark);
    let started = started
        .filter(|(_, event)| is(event, "bound"))
        .find(|(_, event)| matches!(event.kind, EventKind::WorkerStarting))
        .map(|(at, _)| at);
    assert!(
        started >= Some(db_ready),
        "bound waits for db: {}",
        bench.story()
    );
    for (name, (boot, pid, _)) in [("loose", loose), ("stranger", stranger)] {
        let status = bench.worker(name).status().await.expect("it runs");
        assert_eq!((status.boot, status.workload), (Some(boot), Some(pid)));
        assert_eq!(about(&bench, mark, name).count(), 0, "{}", bench.story());
    }
    let status = bench.worker("bound").status().await.expect("it runs");
    assert_eq!(status.vm_restarts, 0, "a lost dependency is not counted");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dropped_supervisor_knew_outlives_it() {
    let directory = tempfile::tempdir().expect("the host has room for a directory");
    let specs = || {
        let mut shaky = worker("shaky", STAYS);
        shaky.vm_restart = at_most(2);
        let mut broken = worker("broken", "exit 1");
        broken.restart = at_most(0);
        broken.vm_restart = at_most(0);
        vec![shaky, broken]
    };
    let mut bench = Bench::keeping(directory.path()).await;
    bench.add(specs()).await;
    let (_, _, next) = bench.ready(0, "shaky").await;
    bench.hurt("shaky", Fault::KillVmm).await;
    let (lost, _, _) = bench.ready(next, "shaky").await;
    let (why, _) = failed(&mut bench, 0, "broken").await;
    let shaky = bench.worker("shaky");
    let vmm = shaky.ready().await.expect("it runs").vmm_pid;
    let vmm = format!("/proc/{}", vmm.expect("it runs"));
    assert!(std::fs::exists(&vmm).expect("/proc is readable"));
    // No shutdown: to the next one that is as if it had been killed. A handle keeps nothing alive.
    drop(bench);
    assert!(!std::fs::exists(&vmm).expect("/proc is readable"));
    assert_eq!(shaky.status().await, Err(RequestError::Ended));

    let mut bench = Bench::keeping(directory.path()).await;
    bench.add(specs()).await;
    let recovered = |worker: &'static str| {
        move |event: &Event| match &event.kind {
            EventKind::WorkerRecovered {
                state,
                lost_boot,
                restarts,
            } if is(event, worker) => Some((*state, *lost_boot, *restarts)),
            _ => None,
        }
    };
    let (left, _) = bench.event(0, "recovery", recovered("shaky")).await;
    assert_eq!(left, (WorkerState::Ready, Some(lost), 1));
    let (left, _) = bench.event(0, "recovery", recovered("broken")).await;
    assert_eq!(left, (WorkerState::Failed, None, 0));
    let (still, _) = failed(&mut bench, 0, "broken").await;
    assert_eq!(still, why, "the reason is kept");
    let (_, _, next) = bench.ready(0, "shaky").await;
    let status = bench.worker("shaky").status().await.expect("it runs");
    assert_eq!((status.boots, status.vm_restarts), (3, 1));
    // Two in the window, of which one was granted by the supervisor before.
    bench.hurt("shaky", Fault::KillVmm).await;
    let (_, _, next) = bench.ready(next, "shaky").await;
    bench.hurt("shaky", Fault::KillVmm).await;
    let (reason, _) = failed(&mut bench, next, "shaky").await;
    assert!(reason.contains("after 2 restarts"), "{reason}");
    let status = bench.worker("broken").status().await.expect("it is kept");
    assert_eq!(
        (status.state, status.workload_starts),
        (WorkerState::Failed, 0)
    );
    bench.stop().await;
}
