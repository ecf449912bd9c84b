//! The processes of one worker. They are kept outside the actors that started them, so that a
//! successor starts only after its predecessor's processes are reaped, however the actor ended.

use std::sync::{Arc, Mutex, PoisonError};

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
