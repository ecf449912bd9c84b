//! What a service manager is told (sd_notify(3)): readiness, state, and that we are alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::{Supervisor, WorkerState, WorkerStatus};

/// Between two looks at the workers, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How much longer a start may take from now on, said anew at each look.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether somebody listens.
pub(super) fn is_wanted() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells until it is dropped. The watchdog is answered only after the tree has answered: a
/// supervisor whose actors hang is to be killed.
pub(super) async fn tell(supervisor: Arc<Supervisor>) {
    let watchdog = sd_notify::watchdog_enabled().map(|time| time / 2);
    let mut ready = Readiness::default();
    let mut said = String::new();
    let mut looks = tokio::time::interval(watchdog.unwrap_or(LOOK).min(LOOK));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Ok(workers) = supervisor.workers().await else {
            return;
        };
        let mut states = Vec::new();
        if watchdog.is_some() {
            states.push(NotifyState::Watchdog);
        }
        let status = summary(&workers);
        if status != said {
            states.push(NotifyState::Status(&status));
        }
        match ready.look(&workers) {
            Step::Wait => states.push(NotifyState::ExtendTimeoutUsec(micros(PATIENCE))),
            Step::Ready => states.push(NotifyState::Ready),
            Step::Past => {}
        }
        send(&states);
        said = status;
    }
}

/// A stop has begun.
pub(super) fn stopping() {
    if is_wanted() {
        send(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping all workers"),
        ]);
    }
}

fn send(states: &[NotifyState<'_>]) {
    if !states.is_empty()
        && let Err(error) = sd_notify::notify(states)
    {
        tracing::warn!(%error, "failed to tell the service manager");
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Ready,
    Past,
}

/// Whether each worker has been ready, or has ended, at some look.
#[derive(Debug, Default)]
struct Readiness {
    seen: BTreeMap<String, bool>,
    told: bool,
}

impl Readiness {
    fn look(&mut self, workers: &[WorkerStatus]) -> Step {
        if self.told {
            return Step::Past;
        }
        for worker in workers {
            let settled = worker.state == WorkerState::Ready || worker.state.is_at_rest();
            *self.seen.entry(worker.name.to_string()).or_default() |= settled;
        }
        if self.seen.is_empty() || self.seen.values().any(|settled| !settled) {
            return Step::Wait;
        }
        self.told = true;
        Step::Ready
    }
}

/// `2 ready, 1 failed (api)`.
fn summary(workers: &[WorkerStatus]) -> String {
    let mut by_state: BTreeMap<WorkerState, Vec<&str>> = BTreeMap::new();
    for worker in workers {
        by_state
            .entry(worker.state)
            .or_default()
            .push(worker.name.as_str());
    }
    let parts: Vec<String> = by_state
        .iter()
        .map(|(state, names)| {
            if *state == WorkerState::Ready {
                format!("{} {state}", names.len())
            } else {
                format!("{} {state} ({})", names.len(), names.join(", "))
            }
        })
        .collect();
    parts.join(", ")
}
