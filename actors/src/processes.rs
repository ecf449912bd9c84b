//! The processes of one worker. They are kept outside the actors that started them, so that a
//! successor starts only after its predecessor's processes are reaped, however the actor ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iii_vmm::helpers::HelperPlaces;
use iii_vmm::process::{ChildExit, ChildHandle, ChildSpec, SpawnError, Spawner};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::event::ActorKind;

#[derive(Debug)]
struct Entry {
    owner: ActorKind,
    handle: ChildHandle,
    reaped: watch::Receiver<bool>,
}

/// What a worker's actors have spawned and what is not reaped yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes {
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Processes {
    /// Spawns a process for `owner`. `on_exit` runs on the spawner's thread once it is reaped; it
    /// must not block.
    pub(crate) fn spawn(
        &self,
        spawner: &Spawner,
        places: &HelperPlaces,
        owner: ActorKind,
        spec: ChildSpec,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<ChildHandle, SpawnError> {
        let (tx, reaped) = watch::channel(false);
        let handle = spawner.spawn(spec, places, move |exit| {
            tx.send_replace(true);
            on_exit(exit);
        })?;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|e| !*e.reaped.borrow());
        entries.push(Entry {
            owner,
            handle: handle.clone(),
            reaped,
        });
        Ok(handle)
    }

    /// Kills what `owner` (or, with `None`, anybody) has left and resolves when it is reaped.
    pub(crate) fn reap(&self, owner: Option<ActorKind>) -> impl Future<Output = ()> + use<> {
        let mut left = Vec::new();
        {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in entries
                .iter()
                .filter(|e| owner.is_none_or(|o| o == e.owner))
            {
                if *entry.reaped.borrow() {
                    continue;
                }
                if let Err(error) = entry.handle.kill(Signal::SIGKILL) {
                    tracing::warn!(child = entry.handle.label(), %error, "failed to kill process");
                }
                left.push(entry.reaped.clone());
            }
        }
        async move {
            for mut reaped in left {
                // The sender is dropped only after it has said so, or with the spawner itself.
                if reaped.wait_for(|done| *done).await.is_err() {
                    tracing::warn!("the spawner ended before a process was reaped");
                }
            }
        }
    }
}

/// How long a killed process may take to be reaped: one that hangs in a host file system cannot be
/// killed.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// The processes of all workers of a supervisor. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    workers: Arc<Mutex<Vec<Processes>>>,
}

impl Roster {
    /// Processes of one more worker.
    pub(crate) fn enlist(&self) -> Processes {
        let processes = Processes::default();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // A worker that was removed has let go of its own.
        workers.retain(|p| Arc::strong_count(&p.entries) > 1 || !p.running().is_empty());
        workers.push(processes.clone());
        processes
    }

    /// Kills whatever is left and waits until it is reaped. To be called when no actor runs any
    /// more that could spawn another.
    pub(crate) fn end(&self) {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<ChildHandle> = workers.iter().flat_map(Processes::running).collect();
        for handle in &left {
            if let Err(error) = handle.kill(Signal::SIGKILL) {
                tracing::warn!(child = handle.label(), %error, "failed to kill process");
            }
        }
        for handle in &left {
            if handle.wait_blocking(REAP_LIMIT).is_none() {
                tracing::error!(child = handle.label(), "a killed process does not end");
            }
        }
    }
}

impl Processes {
    /// Who runs which program, by process ids of this namespace.
    pub(crate) fn programs(&self) -> Vec<(ActorKind, u32)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.iter().filter(|e| !*e.reaped.borrow());
        running
            .filter_map(|e| Some((e.owner, u32::try_from(e.handle.pid()).ok()?)))
            .collect()
    }

    fn running(&self) -> Vec<ChildHandle> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.iter().filter(|e| !*e.reaped.borrow());
        running.map(|e| e.handle.clone()).collect()
    }
}
