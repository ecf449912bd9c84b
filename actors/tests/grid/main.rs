//! The contract of docs/supervision.md as a grid, a named test per cell, on the real cores of every
//! level and a clock that the tests move: milliseconds of real time.
//!
//! * [`exits`]: restart type × exit reason, of a workload and of a VM;
//! * [`dependencies`]: dependency set × failing child, within a worker and between workers;
//! * [`escalation`]: what a used-up limit becomes one level higher.

// In a test, an unwrap is an assertion; the lint knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod dependencies;
mod escalation;
mod exits;
mod world;

use std::time::Duration;

use iii_actors::spec::WorkerSpec;
use iii_proto::guest::{HealthCheck, Probe};
use iii_proto::ids::WorkerName;
use iii_proto::restart::{RestartLimit, RestartMode, RestartPolicy};
use world::Script;

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) fn name(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

/// 1 s, then 2 s, then 4 s: easy to tell from what the simulation itself takes.
pub(crate) fn policy(mode: RestartMode, restarts: u32) -> RestartPolicy {
    RestartPolicy {
        mode,
        initial: secs(1),
        limit: Some(RestartLimit {
            restarts,
            window: secs(3600),
        }),
        ..RestartPolicy::default()
    }
}

/// A worker in which nothing fails.
pub(crate) fn script(worker: &str) -> Script {
    let mut spec = WorkerSpec::new(name(worker), vec!["/bin/true".into()]);
    spec.restart = policy(RestartMode::OnFailure, 3);
    spec.vm_restart = policy(RestartMode::OnFailure, 3);
    spec.actor_restart = policy(RestartMode::Always, 3);
    spec.supervisor_restart = policy(RestartMode::Always, 3);
    spec.health = Some(HealthCheck {
        probe: Probe::Tcp(80),
        interval_ms: 100,
        timeout_ms: 50,
        retries: 3,
        start_period_ms: 0,
    });
    Script {
        spec,
        lives: Vec::new(),
        vms: Vec::new(),
        actors: Default::default(),
        supervisors: Vec::new(),
    }
}
