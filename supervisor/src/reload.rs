//! The workers file read again: what is new is started, what is gone is removed, what has changed is
//! restarted, and nothing else is touched. A file with a fault changes nothing at all.

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use iii_actors::spec::WorkerSpec;
use iii_proto::ids::WorkerName;
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::task::JoinSet;

use crate::cli::engine;
use crate::gate::Gate;
use crate::order::launch_order;
use crate::workers_file::{EngineKey, WorkersFile};
use crate::{
    AddError, EventKind, PrepareError, PreparedWorker, ReplaceError, RequestError, Supervisor,
};

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Workers that are new.
    pub(crate) started: Vec<WorkerName>,
    /// Workers whose settings have changed.
    pub(crate) restarted: Vec<WorkerName>,
    /// Workers that are gone.
    pub(crate) removed: Vec<WorkerName>,
    /// Workers that are as they were.
    pub(crate) unchanged: Vec<WorkerName>,
}

/// Why a reload has not done all that it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The file, or a worker in it, has faults. Nothing was changed.
    #[error("{}\nnothing was changed", .0.join("\n"))]
    Faults(Vec<String>),
    /// A worker was not taken.
    #[error(transparent)]
    Add(#[from] AddError),
    /// A worker was not given its new settings.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// A worker was not started or removed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A panic of ours.
    #[error("failed to read the workers file again: {0}")]
    Read(#[from] tokio::task::JoinError),
    /// The supervisor ends.
    #[error("failed to read the workers file again: the supervisor is ending")]
    Ended,
}

/// Knows what was read last.
#[derive(Debug)]
pub(crate) struct Reloader {
    supervisor: Arc<Supervisor>,
    gate: Arc<Gate>,
    file: PathBuf,
    /// What the run was told of the engine, which goes before what the file says.
    engine: Option<EngineKey>,
    /// Held while a reload is under way.
    known: Mutex<Known>,
    /// Reloads that go on, whoever waits for them.
    tasks: std::sync::Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Known {
    /// The names that the run was started with; none: all of the file.
    names: Vec<String>,
    /// As the file says it: what runs has its command looked up.
    workers: Vec<WorkerSpec>,
}

impl Reloader {
    /// For a supervisor of these workers of this file, selected by these names.
    pub(crate) fn new(
        supervisor: Arc<Supervisor>,
        gate: Arc<Gate>,
        file: PathBuf,
        engine: Option<EngineKey>,
        names: Vec<String>,
        workers: Vec<WorkerSpec>,
    ) -> Self {
        Self {
            supervisor,
            gate,
            file,
            engine,
            known: Mutex::new(Known { names, workers }),
            tasks: std::sync::Mutex::default(),
        }
    }

    /// The file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Resolves when no reload is under way.
    pub(crate) async fn settled(&self) {
        drop(self.known.lock().await);
    }

    /// Reads the file again and makes it so. With names, only of these and of what they depend on;
    /// they join the selection, and all else goes on as it is.
    /// Resolves when what is gone has ended and all else is ordered. Given up, it goes on.
    pub(crate) async fn reload(
        self: &Arc<Self>,
        names: Option<Vec<String>>,
    ) -> Result<Changes, ReloadError> {
        let (told, result) = oneshot::channel();
        let reloader = Arc::clone(self);
        self.tasks().spawn(async move {
            let changes = reloader.reload_alone(names).await;
            // Whoever asked may have stopped waiting.
            told.send(changes).unwrap_or(());
        });
        result.await.unwrap_or(Err(ReloadError::Ended))
    }

    /// The same, as before; what stands against it is told as a warning, and `touched` at the end.
    pub(crate) fn reload_in_background(self: &Arc<Self>, touched: Arc<Notify>) {
        let reloader = Arc::clone(self);
        self.tasks().spawn(async move {
            if let Err(error) = reloader.reload_alone(None).await {
                let message = error.to_string();
                reloader.supervisor.tell(EventKind::Warning { message });
            }
            touched.notify_one();
        });
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are over are not kept.
        while tasks.try_join_next().is_some() {}
        tasks
    }

    /// Resolves when none is left; none must be begun any more.
    pub(crate) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        while tasks.join_next().await.is_some() {}
    }

    async fn reload_alone(&self, names: Option<Vec<String>>) -> Result<Changes, ReloadError> {
        let mut known = self.known.lock().await;
        let (file, selected) = (
            self.file.clone(),
            names.as_ref().unwrap_or(&known.names).clone(),
        );
        let engine = self.engine.clone();
        let read = move || read(&file, engine.as_ref(), &selected);
        let mut wanted = tokio::task::spawn_blocking(read).await??;
        if names.is_some() {
            known.keep_others(&mut wanted);
        }
        let difference = Difference::between(&known.workers, wanted);
        let instead_of: Vec<WorkerName> = difference
            .changed
            .iter()
            .map(|spec| spec.name.clone())
            .chain(difference.gone.iter().cloned())
            .collect();
        let to_prepare = [difference.new.clone(), difference.changed.clone()].concat();
        let prepared = self.supervisor.prepare_instead(to_prepare, &instead_of);
        let prepared = prepared.await.map_err(|errors| {
            ReloadError::Faults(errors.iter().map(PrepareError::to_string).collect())
        })?;
        let entered = self.gate.enter().await.ok_or(ReloadError::Ended)?;
        let changes = difference.changes();
        known.select(names.unwrap_or_default());
        let gone = difference.gone.clone();
        self.apply(&mut known, difference, prepared).await?;
        // What ends keeps nobody from ending.
        drop(entered);
        for name in gone {
            self.supervisor.remove(name.clone()).await?;
            known.workers.retain(|spec| spec.name != name);
        }
        let told = changes.clone();
        self.supervisor.tell(EventKind::Reloaded {
            started: told.started,
            restarted: told.restarted,
            removed: told.removed,
        });
        Ok(changes)
    }

    /// New ones wait until what they depend on goes by its new settings. What is gone goes after
    /// this, when nobody depends on it any more.
    async fn apply(
        &self,
        known: &mut Known,
        difference: Difference,
        prepared: Vec<PreparedWorker>,
    ) -> Result<(), ReloadError> {
        let is_new = |worker: &PreparedWorker| {
            let name = &worker.spec().name;
            difference.new.iter().any(|spec| spec.name == *name)
        };
        let (new, changed): (Vec<_>, Vec<_>) = prepared.into_iter().partition(is_new);
        let mut held = Vec::new();
        for worker in new {
            let name = worker.spec().name.clone();
            held.push(self.supervisor.hold(worker).await?);
            known.take(&name, &difference.new);
        }
        for worker in changed {
            let name = worker.spec().name.clone();
            self.supervisor.replace(worker).await?;
            known.take(&name, &difference.changed);
        }
        for worker in held {
            worker.start().await?;
        }
        Ok(())
    }
}

impl Known {
    /// Adds the workers that are not among these, as they are.
    fn keep_others(&self, wanted: &mut Vec<WorkerSpec>) {
        for spec in &self.workers {
            if !wanted.iter().any(|other| other.name == spec.name) {
                wanted.push(spec.clone());
            }
        }
    }

    /// These belong to the run from now on. A run of all of the file has them already.
    fn select(&mut self, names: Vec<String>) {
        if self.names.is_empty() {
            return;
        }
        for name in names {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }

    /// From now on the worker goes by what one of these says.
    fn take(&mut self, name: &WorkerName, specs: &[WorkerSpec]) {
        self.workers.retain(|spec| spec.name != *name);
        let spec = specs.iter().find(|spec| spec.name == *name);
        self.workers.extend(spec.cloned());
    }
}

fn read(
    file: &Path,
    engine: Option<&EngineKey>,
    names: &[String],
) -> Result<Vec<WorkerSpec>, ReloadError> {
    let faults = |faults: Vec<String>| ReloadError::Faults(faults);
    let mut file = WorkersFile::load(file).map_err(|error| faults(vec![error.to_string()]))?;
    let engine = engine::choose(engine, &file.engine).map_err(|error| faults(vec![error]))?;
    engine::tell(&mut file.workers, &engine);
    file.select(names)
        .map_err(|unknown| faults(unknown.iter().map(ToString::to_string).collect()))
}

/// What has become of the workers.
#[derive(Debug, Default)]
struct Difference {
    new: Vec<WorkerSpec>,
    changed: Vec<WorkerSpec>,
    /// Each before those that it depended on.
    gone: Vec<WorkerName>,
    unchanged: Vec<WorkerName>,
}

impl Difference {
    fn between(before: &[WorkerSpec], now: Vec<WorkerSpec>) -> Self {
        let gone = |spec: &&WorkerSpec| !now.iter().any(|other| other.name == spec.name);
        let gone: Vec<&WorkerSpec> = before.iter().filter(gone).collect();
        let mut difference = Self {
            gone: ends_first(&gone),
            ..Self::default()
        };
        for spec in now {
            match before.iter().find(|other| other.name == spec.name) {
                None => difference.new.push(spec),
                Some(other) if *other == spec => difference.unchanged.push(spec.name),
                Some(_) => difference.changed.push(spec),
            }
        }
        difference
    }

    fn changes(&self) -> Changes {
        let names = |specs: &[WorkerSpec]| specs.iter().map(|spec| spec.name.clone()).collect();
        Changes {
            started: names(&self.new),
            restarted: names(&self.changed),
            removed: self.gone.clone(),
            unchanged: self.unchanged.clone(),
        }
    }
}

/// Each before those that it depends on.
fn ends_first(specs: &[&WorkerSpec]) -> Vec<WorkerName> {
    let pairs: Vec<(WorkerName, Vec<WorkerName>)> = specs
        .iter()
        .map(|spec| {
            let on = spec.depends_on.iter().map(|d| d.worker.clone());
            (spec.name.clone(), on.collect())
        })
        .collect();
    // They were all started once, so there is no circle.
    let order = launch_order(&pairs).unwrap_or_else(|_| (0..pairs.len()).collect());
    let names = order.into_iter().rev().map(|at| pairs[at].0.clone());
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(text: &str) -> Vec<WorkerSpec> {
        let file = WorkersFile::parse(text, Path::new("f"), Path::new("/"), &|_| None);
        file.unwrap().workers
    }

    #[test]
    fn what_has_become_of_each_worker_is_known() {
        let before = specs(
            "workers: {a: {command: x}, b: {command: x, depends_on: [a]}, c: {command: x}, \
             d: {command: x, depends_on: [c]}}",
        );
        let now = specs("workers: {e: {command: x}, a: {command: x}, b: {command: y}}");
        let names = |names: &[&str]| -> Vec<WorkerName> {
            let name = |text: &&str| WorkerName::new(*text).unwrap();
            names.iter().map(name).collect()
        };
        assert_eq!(
            Difference::between(&before, now).changes(),
            Changes {
                started: names(&["e"]),
                restarted: names(&["b"]),
                removed: names(&["d", "c"]),
                unchanged: names(&["a"]),
            }
        );
        let nothing = Difference::between(&before, before.clone()).changes();
        assert_eq!(nothing.unchanged.len(), 4);
        assert_eq!(nothing.started.len() + nothing.restarted.len(), 0);
        // An order of keys is no change.
        let other = specs("workers: {a: {env: {B: '1', A: '2'}, command: x}}");
        let same = specs("workers: {a: {command: x, env: {B: '1', A: '2'}}}");
        assert_eq!(Difference::between(&other, same).unchanged, names(&["a"]));
    }
}
