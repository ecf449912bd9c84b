//! What a used-up limit becomes one level higher, and that it goes no further.

use std::time::Duration;

use iii_actors::Outcome;
use iii_actors::event::ActorKind;
use iii_actors::root::lifecycle::WorkerState;
use iii_actors::spec::Dependency;
use iii_proto::restart::{Exit, RestartMode};

use crate::world::{Fact, Life, Part, Script, VM, VmLife, World};
use crate::{name, policy, script, secs};

/// Runs the worker `w` beside a neighbour, which must not notice.
fn beside_a_neighbour(worker: Script, end: Duration) -> World {
    let mut world = World::new(vec![worker, script("neighbour")]);
    world.run(end);
    assert_eq!(world.state("neighbour"), WorkerState::Ready);
    assert_eq!(world.starts("neighbour", Part::Workload), 1);
    assert_eq!(world.starts("neighbour", VM), 1);
    world
}

fn reason(world: &World, worker: &str) -> String {
    match world.outcome(worker) {
        Some(Outcome::Failed(reason)) => reason,
        other => panic!("{other:?}: {:#?}", world.story),
    }
}

#[test]
fn a_workload_that_fails_three_times_and_then_runs_stays_in_its_vm() {
    let mut worker = script("w");
    worker.lives = vec![Life::Exits(secs(2), 1); 3];
    let world = beside_a_neighbour(worker, secs(60));
    assert_eq!(world.starts("w", Part::Workload), 4);
    assert_eq!(world.starts("w", VM), 1);
    assert_eq!(world.state("w"), WorkerState::Ready);
}

#[test]
fn a_workloads_limit_is_a_failure_of_the_vm() {
    let mut worker = script("w");
    worker.lives = vec![Life::Exits(secs(2), 1); 4];
    let world = beside_a_neighbour(worker, secs(60));
    // Four in the first VM, one that runs in the second.
    assert_eq!(world.starts("w", Part::Workload), 5);
    assert_eq!(world.starts("w", VM), 2);
    assert_eq!(world.state("w"), WorkerState::Ready);
    let (ended, started) = (
        world.times("w", VM, &Fact::Ended)[0],
        world.times("w", VM, &Fact::Started)[1],
    );
    assert_eq!(started - ended, secs(1), "the VM's own delay");
}

#[test]
fn the_limits_of_workload_and_vm_make_the_worker_failed() {
    let mut worker = script("w");
    worker.lives = vec![Life::Exits(secs(2), 1); 100];
    let world = beside_a_neighbour(worker, secs(600));
    assert_eq!(world.starts("w", VM), 4, "one and three restarts");
    assert_eq!(world.starts("w", Part::Workload), 16, "four in each");
    assert_eq!(world.state("w"), WorkerState::Failed);
    let reason = reason(&world, "w");
    assert!(
        reason.contains("restart limit") && reason.contains("exit code 1"),
        "{reason}"
    );
}

#[test]
fn a_vms_limit_makes_the_worker_failed() {
    let mut worker = script("w");
    worker.vms = vec![VmLife::Killed(secs(2)); 100];
    let world = beside_a_neighbour(worker, secs(600));
    assert_eq!(world.starts("w", VM), 4);
    assert_eq!(world.state("w"), WorkerState::Failed);
    assert!(reason(&world, "w").contains("VmActor"));
    for kind in [ActorKind::Dns, ActorKind::NetPoll, ActorKind::Fs] {
        let part = Part::Actor(kind);
        assert_eq!(world.starts("w", part), 1, "{kind}");
        assert_eq!(world.times("w", part, &Fact::Ended).len(), 1, "{kind} ends");
    }
}

fn an_actors_limit(kind: ActorKind, vms: usize) {
    let mut worker = script("w");
    worker.actors.insert(kind, vec![secs(2); 100]);
    let world = beside_a_neighbour(worker, secs(600));
    assert_eq!(world.starts("w", Part::Actor(kind)), 4, "{kind}");
    assert_eq!(world.starts("w", VM), vms, "{kind}");
    assert_eq!(world.state("w"), WorkerState::Failed);
    assert!(reason(&world, "w").contains(&kind.to_string()));
}

#[test]
fn the_resolvers_limit_makes_the_worker_failed() {
    an_actors_limit(ActorKind::Dns, 1);
}

#[test]
fn the_network_loops_limit_makes_the_worker_failed() {
    an_actors_limit(ActorKind::NetPoll, 1);
}

#[test]
fn the_file_servers_limit_makes_the_worker_failed() {
    // Each takes the VM that requires it along, and that is not counted on the VM.
    an_actors_limit(ActorKind::Fs, 4);
}

#[test]
fn a_worker_supervisors_limit_makes_the_worker_failed() {
    let mut worker = script("w");
    worker.supervisors = vec![secs(2); 100];
    let world = beside_a_neighbour(worker, secs(600));
    assert_eq!(world.starts("w", Part::Supervisor), 4);
    assert_eq!(world.starts("w", VM), 4, "each with a VM of its own");
    assert_eq!(world.state("w"), WorkerState::Failed);
    assert!(reason(&world, "w").contains("its supervisor failed too often"));
    let starts = world.times("w", Part::Supervisor, &Fact::Started);
    let ends = world.times("w", Part::Supervisor, &Fact::Ended);
    for (n, delay) in [1, 2, 4].map(secs).into_iter().enumerate() {
        assert_eq!(starts[n + 1] - ends[n], delay);
    }
}

#[test]
fn restarts_of_a_vm_are_counted_on_across_a_supervisors_panic() {
    let mut worker = script("w");
    // Two VMs die under the first supervisor, the third with it.
    worker.vms = vec![VmLife::Killed(secs(2)); 2];
    worker.vms.push(VmLife::Runs);
    worker.vms.extend([VmLife::Killed(secs(2)); 100]);
    worker.supervisors = vec![secs(20)];
    let world = beside_a_neighbour(worker, secs(600));
    // Of the three restarts one was left to the second supervisor.
    assert_eq!(world.starts("w", VM), 5, "{:#?}", world.story);
    assert_eq!(world.state("w"), WorkerState::Failed);
}

#[test]
fn a_failed_dependency_fails_those_that_wait_for_it() {
    let mut db = script("db");
    db.spec.vm_restart = policy(RestartMode::OnFailure, 0);
    db.vms = vec![VmLife::Silent];
    let mut api = script("api");
    api.spec.depends_on = vec![Dependency::ready(name("db"))];
    let mut web = script("web");
    web.spec.depends_on = vec![Dependency::ready(name("api"))];
    let mut world = World::new(vec![db, api, web, script("stranger")]);
    world.run(secs(600));
    for worker in ["db", "api", "web"] {
        assert_eq!(world.state(worker), WorkerState::Failed, "{worker}");
        assert!(
            reason(&world, worker).contains("no word from the guest"),
            "the first cause is told to the last"
        );
    }
    assert_eq!(world.starts("api", VM) + world.starts("web", VM), 0);
    assert_eq!(world.state("stranger"), WorkerState::Ready);
}

#[test]
fn a_dependency_that_is_done_fails_those_that_want_it_ready() {
    let mut db = script("db");
    // It ends before its first probe.
    db.lives = vec![Life::Exits(Duration::from_millis(10), 0)];
    let mut api = script("api");
    api.spec.depends_on = vec![Dependency::ready(name("db"))];
    let mut world = World::new(vec![db, api]);
    world.run(secs(60));
    let done = Outcome::Done(Exit::Code { code: 0 });
    assert_eq!(world.outcome("db"), Some(done));
    assert_eq!(world.state("api"), WorkerState::Failed);
    assert!(reason(&world, "api").contains("should be ready"));
}
