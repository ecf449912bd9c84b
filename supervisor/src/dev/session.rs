//! The loop: what was saved becomes a restart of the workload, a new VM, or a message to the guest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iii_actors::event::{EventKind, SourceAction};
use iii_actors::{RequestError, Scope, WorkerState};
use iii_proto::control::{MAX_CHANGED_PATHS, MAX_PATH_BYTES};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::detect::{self, DetectError};
use super::pace::{Batch, Pace};
use super::project::Project;
use super::watch::{Changes, OWN_FILE, Watch, WatchError};
use super::worker::{self, APP, Additions, WorkerError};
use crate::disks::DiskError;
use crate::{PrepareError, Supervisor, Worker, WorkerSpec};

/// Paths that a line names; the rest is counted.
const SHOWN: usize = 2;

/// What a session is for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) additions: Additions,
    /// The worker sees to its restarts by itself.
    pub(crate) no_restart: bool,
    /// Begin with an empty cache.
    pub(crate) fresh: bool,
    /// How long files must be quiet.
    pub(crate) quiet: Duration,
}

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// As if something had been saved.
    Restart,
}

/// Why a session cannot begin, or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevError {
    #[error(transparent)]
    Detect(#[from] DetectError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Every fault of the worker.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Prepare(Vec<PrepareError>),
    #[error(transparent)]
    Add(#[from] crate::AddError),
    /// A directory that the cache is to cover cannot be made.
    #[error("failed to make {}, which the cache covers in the guest: {source}", path.display())]
    Cover {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// A project and the worker that it is now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) project: Project,
    pub(crate) spec: WorkerSpec,
}

impl Plan {
    /// Looks at the project. Starts and changes nothing.
    pub(crate) fn make(options: &Options) -> Result<Self, DevError> {
        let project = detect::detect(&options.path)?;
        let spec = worker::spec(&project, &options.additions)?;
        Ok(Self { project, spec })
    }

    /// Whether nobody has said that the worker sees to its restarts by itself.
    fn may_restart(&self, options: &Options) -> bool {
        !options.no_restart && !self.project.settings.no_restart
    }

    /// Whether a save restarts the workload.
    pub(crate) fn restarts(&self, options: &Options) -> bool {
        self.may_restart(options) && self.project.watches_itself.is_none()
    }
}

/// One project in its VM.
pub(crate) struct Session<'s> {
    supervisor: &'s Supervisor,
    options: Options,
    plan: Plan,
    worker: Option<Worker>,
    covers: Vec<Cover>,
    watch: Watch,
    pace: Pace,
    /// Files that others have taken the name of since the last batch.
    replaced: BTreeSet<PathBuf>,
    begun: Instant,
}

impl<'s> Session<'s> {
    /// Starts the worker.
    pub(crate) async fn begin(
        supervisor: &'s Supervisor,
        options: Options,
        plan: Plan,
    ) -> Result<Self, DevError> {
        let watch = Watch::new(&plan.project.directory, &plan.project.settings.ignore)?;
        if options.fresh {
            match supervisor.reset_disks(plan.spec.name.clone()).await {
                Ok(_) | Err(DiskError::None { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut session = Self {
            supervisor,
            pace: Pace::new(options.quiet),
            options,
            plan,
            worker: None,
            covers: Vec::new(),
            watch,
            replaced: BTreeSet::new(),
            begun: Instant::now(),
        };
        session.launch().await?;
        Ok(session)
    }

    /// Runs until the watch fails; ended by being dropped.
    pub(crate) async fn run(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Result<(), DevError> {
        let mut events = self.supervisor.events();
        loop {
            let due = self.pace.due_at().map(|at| self.begun + at);
            let quiet = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changes = self.watch.next() => self.changed(changes?),
                () = quiet => {
                    if let Some(batch) = self.pace.take(self.begun.elapsed()) {
                        self.act(batch).await?;
                    }
                }
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if matches!(event.kind, EventKind::WorkloadStarted { .. }) {
                            self.pace.on_start(self.begun.elapsed());
                        }
                    }
                    // What was missed is only when it was started.
                    Some(Err(_)) => {}
                    None => return Ok(()),
                },
                Some(Request::Restart) = requests.recv() => self.restart().await?,
            }
        }
    }

    fn emit(&self, kind: EventKind) {
        self.supervisor.emit(&self.plan.spec.name, kind);
    }

    fn warn(&self, message: String) {
        self.emit(EventKind::Warning { message });
    }

    fn changed(&mut self, changes: Changes) {
        let mut paths = changes.paths;
        self.replaced.extend(changes.replaced);
        if changes.more {
            paths.insert(self.plan.project.directory.clone());
        }
        self.pace.on_change(paths, self.begun.elapsed());
    }

    async fn act(&mut self, batch: Batch) -> Result<(), DevError> {
        let root = self.plan.project.directory.clone();
        let replaced = std::mem::take(&mut self.replaced);
        if batch.circle {
            let paths = shown(&root, &batch.paths).join(", ");
            self.warn(format!(
                "{paths} changed right after each of the last starts; if the worker writes it, add \
                 it to {OWN_FILE}. Until then saves are acted on more slowly"
            ));
        }
        if batch.paths.iter().any(|path| detect::decides(&root, path)) || self.worker.is_none() {
            match Plan::make(&self.options) {
                Ok(plan) if plan != self.plan || self.worker.is_none() => {
                    self.told(&batch, SourceAction::NewVm);
                    return self.replace(plan).await;
                }
                Ok(_) => {}
                Err(error) => {
                    self.warn(error.to_string());
                    return Ok(());
                }
            }
        }
        self.announce(&batch.paths).await;
        // A watcher that was only recognised, and that may watch a file which is no longer there.
        let blind = !replaced.is_empty() && self.plan.may_restart(&self.options);
        if !self.plan.restarts(&self.options) && !blind {
            self.told(&batch, SourceAction::Told);
            return Ok(());
        }
        // A directory alone changes nothing that a worker has read.
        if batch
            .paths
            .iter()
            .all(|path| path != &root && path.is_dir())
        {
            return Ok(());
        }
        self.told(&batch, SourceAction::Restart);
        self.restart().await
    }

    fn told(&self, batch: &Batch, action: SourceAction) {
        let paths = shown(&self.plan.project.directory, &batch.paths);
        self.emit(EventKind::SourceChanged {
            more: batch.paths.len().saturating_sub(paths.len()),
            paths,
            action,
        });
    }

    /// Has the guest's kernel tell those who watch these files there.
    async fn announce(&self, paths: &BTreeSet<PathBuf>) {
        let Some(worker) = &self.worker else {
            return;
        };
        let root = &self.plan.project.directory;
        let in_guest = |path: &PathBuf| {
            let relative = path.strip_prefix(root).ok()?.to_str()?;
            let guest = format!("{APP}/{relative}");
            let guest = guest.trim_end_matches('/').to_owned();
            (guest.len() <= MAX_PATH_BYTES).then_some(guest)
        };
        let all: Vec<String> = paths.iter().filter_map(in_guest).collect();
        for some in all.chunks(MAX_CHANGED_PATHS) {
            if let Err(error) = worker.announce(some.to_vec()).await {
                // Between two VMs nobody is watching.
                tracing::debug!(%error, "the guest was not told of changes");
                return;
            }
        }
    }

    async fn restart(&mut self) -> Result<(), DevError> {
        let Some(worker) = &self.worker else {
            let plan = self.plan.clone();
            return self.replace(plan).await;
        };
        match worker.restart(Scope::Workload).await {
            Ok(()) => Ok(()),
            Err(RequestError::NotRunning { state, .. }) => match state {
                WorkerState::Done | WorkerState::Failed | WorkerState::Stopped => {
                    Ok(worker.start().await?)
                }
                // It is on its way, and will read what was saved.
                _ => Ok(()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the worker and starts another. One that cannot be is told, and tried again with the
    /// next save.
    async fn replace(&mut self, plan: Plan) -> Result<(), DevError> {
        if self.worker.take().is_some() {
            self.supervisor.remove(self.plan.spec.name.clone()).await?;
        }
        self.covers.clear();
        if plan.project.settings.ignore != self.plan.project.settings.ignore {
            self.watch = Watch::new(&plan.project.directory, &plan.project.settings.ignore)?;
        }
        self.plan = plan;
        match self.launch().await {
            Err(error @ (DevError::Prepare(_) | DevError::Cover { .. })) => {
                self.warn(format!("{error}; waiting for the next save"));
                Ok(())
            }
            other => other,
        }
    }

    async fn launch(&mut self) -> Result<(), DevError> {
        let covers = worker::covered(&self.plan.project);
        self.covers = covers
            .into_iter()
            .map(Cover::make)
            .collect::<Result<_, DevError>>()?;
        let prepared = self.supervisor.prepare(vec![self.plan.spec.clone()]).await;
        let mut prepared = prepared.map_err(DevError::Prepare)?;
        // What goes in comes out; a runtime that is shutting down prepares nothing.
        if let Some(prepared) = prepared.pop() {
            self.worker = Some(self.supervisor.launch(prepared).await?);
        }
        Ok(())
    }
}

/// The first few paths as the user knows them.
fn shown(root: &Path, paths: &BTreeSet<PathBuf>) -> Vec<String> {
    let relative = |path: &PathBuf| {
        let relative = path.strip_prefix(root).unwrap_or(path);
        match relative.as_os_str().is_empty() {
            true => String::from("many files"),
            false => relative.display().to_string(),
        }
    };
    paths.iter().take(SHOWN).map(relative).collect()
}

/// A directory of the host's project that the guest sees another over. Where there is none, an
/// empty one is made to mount over, and taken away in the end.
#[derive(Debug)]
struct Cover {
    path: PathBuf,
    made: bool,
}

impl Cover {
    fn make(path: PathBuf) -> Result<Self, DevError> {
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self { path, made: true }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(Self { path, made: false })
            }
            Err(source) => Err(DevError::Cover { path, source }),
        }
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = std::fs::remove_dir(&self.path)
        {
            // Somebody has put something into it.
            tracing::debug!(path = %self.path.display(), %error, "a directory stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_goes_unless_it_was_there_or_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node_modules");
        let cover = Cover::make(path.clone()).unwrap();
        let second = Cover::make(path.clone()).unwrap();
        drop(second);
        assert!(path.is_dir(), "it was there before the second");
        drop(cover);
        assert!(!path.exists());
        let cover = Cover::make(path.clone()).unwrap();
        std::fs::write(path.join("mine"), "").unwrap();
        drop(cover);
        assert!(path.join("mine").exists());
        assert!(Cover::make(directory.path().join("no/parent")).is_err());
    }
}
