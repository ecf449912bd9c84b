//! Writes the record, from a thread of its own: a disk that is slow or full slows no worker.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use iii_actors::event::{EventBus, EventKind};
use iii_actors::memory::{Keeper, WorkerMemory};
use iii_actors::spec::WorkerSpec;
use iii_proto::ids::WorkerName;

use super::record::{self, Record, Remembered};

/// Keeps the workers' memories in a file.
#[derive(Debug)]
pub(crate) struct FileKeeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    desk: Mutex<Desk>,
    changed: Condvar,
}

#[derive(Debug)]
struct Desk {
    record: Record,
    specs: BTreeMap<WorkerName, String>,
    dirty: bool,
    end: Option<End>,
}

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// In order: the file goes.
    Clean,
    /// Dropped while workers run: the file stays.
    Dropped,
}

impl FileKeeper {
    pub(super) fn start(file: PathBuf, bus: EventBus) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            file,
            desk: Mutex::new(Desk {
                record: Record::new(),
                specs: BTreeMap::new(),
                // So that a supervisor that is killed before it has said anything is noticed.
                dirty: true,
                end: None,
            }),
            changed: Condvar::new(),
        });
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("iii-state".into())
            .spawn(move || writer.write_all(&bus))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The spec by which a worker runs from now on.
    pub(crate) fn declare(&self, spec: &WorkerSpec) {
        let mut desk = self.shared.lock();
        desk.specs.insert(spec.name.clone(), record::digest(spec));
    }

    /// The supervisor has ended in order: nothing is left to be remembered.
    pub(crate) fn clean(&self) {
        self.end(End::Clean);
    }

    /// Writes what is to be remembered and ends.
    pub(crate) fn close(&self) {
        self.end(End::Dropped);
    }

    fn end(&self, end: End) {
        self.shared.lock().end.get_or_insert(end);
        self.shared.changed.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps the state panicked");
        }
    }
}

impl Drop for FileKeeper {
    fn drop(&mut self) {
        self.close();
    }
}

impl Keeper for FileKeeper {
    fn keep(&self, worker: &WorkerName, memory: Option<WorkerMemory>) {
        let mut desk = self.shared.lock();
        match memory {
            Some(memory) => {
                let spec = desk.specs.get(worker).cloned().unwrap_or_default();
                let remembered = Remembered { spec, memory };
                desk.record.workers.insert(worker.clone(), remembered);
            }
            None => {
                desk.specs.remove(worker);
                desk.record.workers.remove(worker);
            }
        }
        desk.dirty = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, bus: &EventBus) {
        let mut works = true;
        loop {
            let (bytes, end) = {
                let mut desk = self.lock();
                while !desk.dirty && desk.end.is_none() {
                    desk = self
                        .changed
                        .wait(desk)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                desk.dirty = false;
                (serde_json::to_vec_pretty(&desk.record), desk.end)
            };
            let result = match (end, bytes) {
                (Some(End::Clean), _) => match fs::remove_file(&self.file) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    result => result,
                },
                (Some(End::Dropped) | None, Ok(bytes)) => replace(&self.file, &bytes),
                (Some(End::Dropped) | None, Err(error)) => Err(error.into()),
            };
            match result {
                Ok(()) if !works => {
                    works = true;
                    let message = "what outlives the supervisor is kept again".to_owned();
                    bus.emit(None, None, EventKind::Warning { message });
                }
                Ok(()) => {}
                // Once, not at each change of a day with a full disk.
                Err(error) if works => {
                    works = false;
                    let message = format!(
                        "failed to write {}: {error}; if the supervisor is killed now, restart \
                         counters are lost",
                        self.file.display()
                    );
                    bus.emit(None, None, EventKind::Warning { message });
                }
                Err(_) => {}
            }
            if end.is_some() {
                return;
            }
        }
    }
}

/// A crash at any instant leaves the old file or the new one.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = file.with_extension("json.new");
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    let written = out.write_all(bytes).and_then(|()| out.sync_data());
    if let Err(error) = written.and_then(|()| fs::rename(&new, file)) {
        // It may be what keeps the disk full.
        fs::remove_file(&new).unwrap_or(());
        return Err(error);
    }
    Ok(())
}
