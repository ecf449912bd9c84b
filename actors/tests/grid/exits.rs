//! Restart type × exit reason.

use std::time::Duration;

use iii_actors::Outcome;
use iii_actors::root::lifecycle::WorkerState;
use iii_proto::restart::{Exit, RestartMode};

use crate::world::{Fact, Life, Part, VM, VmLife, World};
use crate::{policy, script, secs};

/// What becomes of a workload that ends so, three times, and would run then.
enum Expect {
    Restarted,
    Done(Exit),
}

fn workload(mode: RestartMode, life: Life, expect: Expect) {
    let mut worker = script("w");
    worker.spec.restart = policy(mode, 3);
    worker.lives = vec![life; 3];
    let mut world = World::new(vec![worker]);
    world.run(secs(60));
    let starts = world.times("w", Part::Workload, &Fact::Started);
    let ends = world.times("w", Part::Workload, &Fact::Ended);
    assert_eq!(world.starts("w", VM), 1, "one VM: {:#?}", world.story);
    match expect {
        Expect::Restarted => {
            assert_eq!((starts.len(), ends.len()), (4, 3), "{:#?}", world.story);
            assert_eq!(world.state("w"), WorkerState::Ready);
            for (n, delay) in [1, 2, 4].map(secs).into_iter().enumerate() {
                assert_eq!(starts[n + 1] - ends[n], delay, "restart {n}");
            }
            assert_eq!(world.outcome("w"), None);
        }
        Expect::Done(exit) => {
            assert_eq!((starts.len(), ends.len()), (1, 1), "{:#?}", world.story);
            assert_eq!(world.state("w"), WorkerState::Done);
            assert_eq!(world.outcome("w"), Some(Outcome::Done(exit)));
        }
    }
}

/// What becomes of a worker whose VM ends so three times.
fn vm(mode: RestartMode, life: VmLife, restarted: bool) {
    let mut worker = script("w");
    worker.spec.vm_restart = policy(mode, 3);
    worker.vms = vec![life; 3];
    let mut world = World::new(vec![worker]);
    world.run(secs(600));
    let starts = world.times("w", VM, &Fact::Started);
    let ends = world.times("w", VM, &Fact::Ended);
    if restarted {
        assert_eq!((starts.len(), ends.len()), (4, 3), "{:#?}", world.story);
        assert_eq!(world.state("w"), WorkerState::Ready);
        for n in 1..3 {
            let (before, delay) = (starts[n] - ends[n - 1], starts[n + 1] - ends[n]);
            // A VM that ran for `reset_after` begins a new row.
            let new_row = ends[n] - starts[n] >= Duration::from_secs(60);
            assert_eq!(delay, if new_row { secs(1) } else { before * 2 }, "{n}");
        }
    } else {
        assert_eq!((starts.len(), ends.len()), (1, 1), "{:#?}", world.story);
        assert_eq!(world.state("w"), WorkerState::Failed);
        assert!(matches!(world.outcome("w"), Some(Outcome::Failed(_))));
    }
}

fn code(code: i32) -> Life {
    Life::Exits(secs(2), code)
}

fn done(code: i32) -> Expect {
    Expect::Done(Exit::Code { code })
}

const SICK: Life = Life::Sickens(Duration::from_secs(2));
const KILLED: Life = Life::Signalled(Duration::from_secs(2), 11);
const FAULT: &str = "no such program";

macro_rules! workload {
    ($($name:ident: $mode:ident, $life:expr => $expect:expr;)*) => {
        mod of_a_workload {
            use super::*;
            $(#[test]
            fn $name() {
                workload(RestartMode::$mode, $life, $expect);
            })*
        }
    };
}

workload! {
    always_after_code_0: Always, code(0) => Expect::Restarted;
    always_after_code_1: Always, code(1) => Expect::Restarted;
    always_after_code_78: Always, code(78) => done(78);
    always_after_a_signal: Always, KILLED => Expect::Restarted;
    always_after_unhealthy: Always, SICK => Expect::Restarted;
    always_after_a_fault: Always, Life::CannotStart => Expect::Restarted;
    on_failure_after_code_0: OnFailure, code(0) => done(0);
    on_failure_after_code_1: OnFailure, code(1) => Expect::Restarted;
    on_failure_after_code_78: OnFailure, code(78) => done(78);
    on_failure_after_a_signal: OnFailure, KILLED => Expect::Restarted;
    on_failure_after_unhealthy: OnFailure, SICK => Expect::Restarted;
    on_failure_after_a_fault: OnFailure, Life::CannotStart => Expect::Restarted;
    never_after_code_0: Never, code(0) => done(0);
    never_after_code_1: Never, code(1) => done(1);
    never_after_code_78: Never, code(78) => done(78);
    never_after_a_signal: Never, KILLED => Expect::Done(Exit::Signal { signal: 11 });
    never_after_unhealthy: Never, SICK => Expect::Done(Exit::Unhealthy);
    never_after_a_fault: Never, Life::CannotStart
        => Expect::Done(Exit::Fault { cause: FAULT.into() });
}

macro_rules! vm {
    ($($name:ident: $mode:ident, $life:expr => $restarted:expr;)*) => {
        mod of_a_vm {
            use super::*;
            $(#[test]
            fn $name() {
                vm(RestartMode::$mode, $life, $restarted);
            })*
        }
    };
}

vm! {
    always_after_a_killed_vmm: Always, VmLife::Killed(secs(2)) => true;
    always_after_a_vmm_killed_while_it_boots: Always, VmLife::Killed(super::super::world::STEP) => true;
    always_after_silence: Always, VmLife::Silent => true;
    always_after_a_hang: Always, VmLife::Hangs(secs(2)) => true;
    on_failure_after_a_killed_vmm: OnFailure, VmLife::Killed(secs(2)) => true;
    on_failure_after_a_vmm_killed_while_it_boots: OnFailure, VmLife::Killed(super::super::world::STEP) => true;
    on_failure_after_silence: OnFailure, VmLife::Silent => true;
    on_failure_after_a_hang: OnFailure, VmLife::Hangs(secs(2)) => true;
    never_after_a_killed_vmm: Never, VmLife::Killed(secs(2)) => false;
    never_after_a_vmm_killed_while_it_boots: Never, VmLife::Killed(super::super::world::STEP) => false;
    never_after_silence: Never, VmLife::Silent => false;
    never_after_a_hang: Never, VmLife::Hangs(secs(2)) => false;
}
