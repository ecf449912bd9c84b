//! The library: a supervisor that any program can embed. No actix type is in its interface, and it
//! works from any tokio runtime: the actors have threads of their own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iii_actors::VFS_HELPER;
use iii_actors::event::{EventBus, EventKind};
use iii_actors::exec::{ExecError, ExecRequest, ExecSession};
use iii_actors::logs::{LogBus, LogReader};
use iii_actors::memory::Keeper;
use iii_actors::plan::Environment;
use iii_actors::spec::WorkerSpec;
use iii_actors::{
    ActorSystem, AddError, Fault, InjectError, Outcomes, ReplaceError, RequestError, SystemError,
    WorkerStatus,
};
use iii_firmware::options::OptionsError;
use iii_firmware::{Firmware, FirmwareError, FirmwareOptions, Progress};
use iii_image::registry::RegistryOptions;
use iii_proto::ids::WorkerName;
use iii_vmm::cgroup::{Delegation, Refusal as CgroupRefusal, Wish};
use iii_vmm::choice::{AccelerationWish, UnknownAcceleration};
use iii_vmm::helpers::{self, HelperError, HelperPlaces};
use iii_vmm::process::{SHIM, SpawnError, Spawner};
use iii_vmm::tsc;
use iii_vmm::vmm::VmmError;
use iii_vmm::vmms::Vmms;

use crate::disks::{DiskError, DiskStore, DiskUse};
use crate::embedded;
use crate::guests::Guests;
use crate::host_vmms;
use crate::images::Images;
use crate::log_store::{self, LogStore, StoredLogs};
use crate::prepare::{Preparation, PrepareError, PreparedWorker};
use crate::state::{FileKeeper, StateDirectory, StateError};
use crate::streams::EventStream;
use crate::worker::Worker;

/// Which VMM runs the VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmmChoice {
    /// The fastest that this host can really run.
    #[default]
    Auto,
    /// libkrun, which needs hardware virtualisation.
    Krun,
    /// QEMU.
    Qemu,
}

/// How a worker or a supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Each workload gets its grace.
    Graceful,
    /// Each workload gets its grace; what is left after so long is killed.
    Within(Duration),
    /// Nothing gets any.
    Now,
}

/// Why a supervisor cannot start. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The environment holds something unusable.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No firmware.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// No VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The environment wishes for an acceleration that is none.
    #[error(transparent)]
    Acceleration(#[from] UnknownAcceleration),
    /// A helper binary is missing or of another build.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// Processes cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Threads cannot be started.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The thread that keeps the state cannot be started.
    #[error("failed to start the thread that keeps the state: {0}")]
    Keeper(std::io::Error),
    /// The thread that stores the output cannot be started.
    #[error("failed to start the thread that stores the output: {0}")]
    LogStore(std::io::Error),
    /// The runtime that this was called from is shutting down.
    #[error("failed to start the supervisor: the runtime is shutting down")]
    Runtime,
}

/// Options of a [`Supervisor`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct SupervisorBuilder {
    vmm: VmmChoice,
    acceleration: Option<AccelerationWish>,
    helper_dir: Option<PathBuf>,
    firmware: Option<FirmwareOptions>,
    progress: Arc<dyn Progress>,
    registry: Option<RegistryOptions>,
    images_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    forget: bool,
    store_logs: bool,
    take_cgroup: bool,
}

impl std::fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SupervisorBuilder")
            .field("vmm", &self.vmm)
            .field("acceleration", &self.acceleration)
            .field("helper_dir", &self.helper_dir)
            .field("firmware", &self.firmware)
            .field("state_dir", &self.state_dir)
            .field("forget", &self.forget)
            .field("store_logs", &self.store_logs)
            .field("take_cgroup", &self.take_cgroup)
            .finish_non_exhaustive()
    }
}

impl SupervisorBuilder {
    /// Which VMM runs the VMs; [`VmmChoice::Auto`] by default.
    pub fn vmm(mut self, vmm: VmmChoice) -> Self {
        self.vmm = vmm;
        self
    }

    /// Whether guests are run by hardware; by default what `III_VMM_ACCEL` says, else where this host
    /// really can.
    pub fn acceleration(mut self, wish: AccelerationWish) -> Self {
        self.acceleration = Some(wish);
        self
    }

    /// Where the helper binaries `iii-shim`, `iii-vfs` and `iii-krun` are, and nowhere else; by
    /// default `III_HELPER_DIR`, else beside the executable, else those that are embedded in it (the
    /// feature `embed-helpers`).
    pub fn helper_dir(mut self, directory: PathBuf) -> Self {
        self.helper_dir = Some(directory);
        self
    }

    /// Where firmware comes from; by default what the environment says.
    pub fn firmware(mut self, options: FirmwareOptions) -> Self {
        self.firmware = Some(options);
        self
    }

    /// Where images are kept; by default in this user's `~/.iii`. Supervisors may share it.
    pub fn images_dir(mut self, directory: PathBuf) -> Self {
        self.images_dir = Some(directory);
        self
    }

    /// How registries of images are spoken to; by default with the credentials that Docker keeps
    /// for this user, and with TLS, except on this host's loopback.
    pub fn registry(mut self, options: RegistryOptions) -> Self {
        self.registry = Some(options);
        self
    }

    /// Told about downloads. Silence by default.
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Where restart counters and the ends of workers outlive a supervisor that is killed; by
    /// default nowhere. No two supervisors share a directory.
    pub fn state_dir(mut self, directory: PathBuf) -> Self {
        self.state_dir = Some(directory);
        self
    }

    /// Begin anew, whatever a supervisor that was killed has left in the state directory.
    pub fn forget(mut self, forget: bool) -> Self {
        self.forget = forget;
        self
    }

    /// Whether the output of the workloads is kept in the state directory, where
    /// [`Supervisor::stored_logs`] reads it; it is, if there is one, unless told otherwise. How much
    /// of it is each worker's own matter ([`WorkerSpec::logs`]).
    pub fn store_logs(mut self, store: bool) -> Self {
        self.store_logs = store;
        self
    }

    /// Whether each VM gets limits of the host's kernel (memory, processes, CPU time) where this
    /// process's cgroup was handed to it (a service or scope with `Delegate=yes`, a container that
    /// holds nothing else). That moves this whole process, its children with it, into a cgroup below;
    /// so it is not done unless it is asked for. Where nothing was handed over, nothing is done.
    pub fn take_cgroup(mut self, take: bool) -> Self {
        self.take_cgroup = take;
        self
    }

    /// Checks the host, fetches what is missing, and starts a supervisor without workers.
    ///
    /// # Errors
    /// [`StartError`] says what this host lacks and what to do; nothing was started.
    pub async fn start(self) -> Result<Supervisor, StartError> {
        tsc::start();
        let (state_dir, forget) = (self.state_dir.clone(), self.forget);
        let store_logs = self.store_logs;
        let host = tokio::task::spawn_blocking(move || Host::look(self))
            .await
            .map_err(|_| StartError::Runtime)??;
        let state = state_dir
            .map(|path| StateDirectory::open(&path, forget))
            .transpose()?;
        let (logs, bus) = (LogBus::default(), EventBus::new());
        let keeper = state
            .as_ref()
            .map(|state| state.keeper(bus.clone()))
            .transpose()
            .map_err(StartError::Keeper)?;
        let store = match &state {
            Some(state) if store_logs => {
                let directory = log_store::directory_in(state.path());
                let store = LogStore::start(directory, &logs, bus.clone());
                Some(store.map_err(StartError::LogStore)?)
            }
            Some(_) | None => None,
        };
        let system = ActorSystem::start(Environment {
            vmms: Arc::new(host.vmms),
            spawner: Spawner::global()?,
            places: host.places,
            bus: bus.clone(),
            logs: logs.clone(),
            cgroups: host.cgroups,
            keeper: keeper.clone().map(|keeper| keeper as Arc<dyn Keeper>),
        })?;
        Ok(Supervisor {
            system: Arc::new(system),
            bus,
            firmware: Arc::new(host.firmware),
            images: Arc::new(host.images),
            guests: Arc::new(host.guests),
            logs,
            store,
            keeper,
            state,
        })
    }
}

/// What was found on this host.
struct Host {
    vmms: Vmms,
    places: HelperPlaces,
    firmware: Firmware,
    images: Images,
    guests: Guests,
    cgroups: Option<Arc<Delegation>>,
}

impl Host {
    fn look(options: SupervisorBuilder) -> Result<Self, StartError> {
        let firmware = match options.firmware {
            Some(firmware) => embedded::with_library(firmware),
            None => embedded::firmware_options()?,
        };
        let places = embedded::places(options.helper_dir, &firmware.home);
        for helper in [SHIM, VFS_HELPER] {
            helpers::find(helper, &places)?;
        }
        let wish = match options.acceleration {
            Some(wish) => wish,
            None => AccelerationWish::from_env()?,
        };
        let vmms = host_vmms::find(options.vmm, wish, &places, &firmware.home)?;
        let directory = options.images_dir;
        let directory = directory.unwrap_or_else(|| firmware.home.images_dir());
        let mut images = Images::new(directory, options.progress.clone());
        if let Some(registry) = options.registry {
            images.registry = registry;
        }
        let guests = Guests::new(firmware.clone(), places.clone(), options.progress.clone());
        let firmware = Firmware::locate(&firmware, &*options.progress)?;
        let cgroups = match options.take_cgroup {
            true => Delegation::take(Wish::from_env()),
            false => Err(CgroupRefusal::Off),
        };
        let cgroups = cgroups
            .inspect_err(|reason| tracing::debug!(%reason, "VMs have no cgroups of the host"))
            .ok();
        Ok(Self {
            cgroups,
            images,
            guests,
            vmms,
            places,
            firmware,
        })
    }
}

/// Why a worker cannot be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddWorkerError {
    /// It is not as it must be; every fault is named.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Prepare(Vec<PrepareError>),
    /// The supervisor does not take it.
    #[error(transparent)]
    Add(#[from] AddError),
}

/// Runs workers and keeps them running. Dropped, it kills them all and waits for their end;
/// [`Self::shutdown`] is the gentle way.
///
/// ```no_run
/// use iii_supervisor::{Shutdown, Supervisor, WorkerName, WorkerSpec};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let supervisor = Supervisor::builder().start().await?;
/// let command = vec!["python3".into(), "-m".into(), "http.server".into()];
/// let worker = supervisor.add(WorkerSpec::new(WorkerName::new("web")?, command)).await?;
/// println!("{:?}", worker.ready().await?.state);
/// let mut lines = worker.logs();
/// while let Some(Ok(line)) = lines.next().await {
///     println!("{}", String::from_utf8_lossy(&line.text));
/// }
/// supervisor.shutdown(Shutdown::Graceful).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Supervisor {
    system: Arc<ActorSystem>,
    bus: EventBus,
    firmware: Arc<Firmware>,
    images: Arc<Images>,
    guests: Arc<Guests>,
    logs: LogBus,
    store: Option<LogStore>,
    keeper: Option<Arc<FileKeeper>>,
    state: Option<StateDirectory>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // First what runs, whoever else has a handle to it; then what is remembered of it; the
        // lock on that goes with the fields.
        self.system.end();
        if let Some(store) = &self.store {
            store.close();
        }
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
    }
}

impl Supervisor {
    /// Options with their defaults.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder {
            vmm: VmmChoice::default(),
            acceleration: None,
            helper_dir: None,
            firmware: None,
            progress: Arc::new(()),
            registry: None,
            images_dir: None,
            state_dir: None,
            forget: false,
            store_logs: true,
            take_cgroup: false,
        }
    }

    /// Checks a worker whole, starts it once what it depends on allows, and keeps it running.
    ///
    /// # Errors
    /// [`AddWorkerError`] names every fault of the spec; nothing was started.
    pub async fn add(&self, spec: WorkerSpec) -> Result<Worker, AddWorkerError> {
        let prepared = self.prepare(vec![spec]).await;
        let mut prepared = prepared.map_err(AddWorkerError::Prepare)?;
        match prepared.pop() {
            Some(worker) => Ok(self.launch(worker).await?),
            // What goes in comes out; a runtime that is shutting down prepares nothing.
            None => Err(AddWorkerError::Add(AddError::Ended)),
        }
    }

    /// Checks workers whole: finds their commands, binds their ports. Either all of them can be
    /// started, or every fault is told. Starts nothing. They come back in an order in which they
    /// can be launched: each behind those that it depends on.
    ///
    /// # Errors
    /// Every fault of every spec.
    pub async fn prepare(
        &self,
        specs: Vec<WorkerSpec>,
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        self.prepare_inheriting(specs, Vec::new()).await
    }

    async fn prepare_inheriting(
        &self,
        specs: Vec<WorkerSpec>,
        inherited: Vec<TcpListener>,
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        let (firmware, images) = (Arc::clone(&self.firmware), Arc::clone(&self.images));
        let guests = Arc::clone(&self.guests);
        let present = self.workers().await.unwrap_or_default();
        let present = present.into_iter().map(|status| status.name).collect();
        let disks = self.disk_store();
        let work = move || {
            Preparation::new(&firmware, &images, &guests, disks, present)
                .inheriting(inherited)
                .prepare(specs)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            // Only a panic in there, or a runtime that is shutting down; neither has a remedy.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Vec::new()),
            },
        }
    }

    /// Starts a prepared worker once what it depends on allows, and keeps it running. One that had
    /// ended under a supervisor that was killed stays so until it is asked for.
    ///
    /// # Errors
    /// [`AddError`] for a name in use, or a dependency that is not there yet.
    pub async fn launch(&self, worker: PreparedWorker) -> Result<Worker, AddError> {
        let spec = &worker.plan.spec;
        let name = spec.name.clone();
        let memory = self.state.as_ref().and_then(|state| state.left_of(spec));
        if let Some(keeper) = &self.keeper {
            keeper.declare(spec);
        }
        if let Some(store) = &self.store {
            store.declare(&name, spec.logs);
        }
        self.system.add(worker.plan, memory, true).await?;
        Ok(self.worker(name))
    }

    /// As [`Self::prepare`], for workers that come after others that are there: what a worker of
    /// `instead_of` publishes now may be published by one of these.
    ///
    /// # Errors
    /// Every fault of every spec.
    pub async fn prepare_instead(
        &self,
        specs: Vec<WorkerSpec>,
        instead_of: &[WorkerName],
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        let mut inherited = Vec::new();
        for worker in instead_of {
            match self.system.listeners(worker.clone()).await {
                Ok(listeners) => inherited.extend(listeners),
                // Then its ports are found in use, which is told.
                Err(error) => tracing::warn!(%worker, %error, "failed to hand on its ports"),
            }
        }
        self.prepare_inheriting(specs, inherited).await
    }

    /// Takes a prepared worker without starting it.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub async fn hold(&self, worker: PreparedWorker) -> Result<Worker, AddError> {
        let name = worker.plan.spec.name.clone();
        if let Some(keeper) = &self.keeper {
            keeper.declare(&worker.plan.spec);
        }
        self.system.add(worker.plan, None, false).await?;
        Ok(self.worker(name))
    }

    /// Gives the worker of this name other settings: what runs of it is stopped in order and started
    /// anew, what is at rest is started. Counters begin anew; neighbours go on.
    ///
    /// # Errors
    /// [`ReplaceError`] for a name that is not there, and dependencies that cannot be.
    pub async fn replace(&self, worker: PreparedWorker) -> Result<Worker, ReplaceError> {
        let name = worker.plan.spec.name.clone();
        if let Some(keeper) = &self.keeper {
            keeper.declare(&worker.plan.spec);
        }
        self.system.replace(worker.plan).await?;
        Ok(self.worker(name))
    }

    /// A handle to a worker. Whether there is one of that name shows with the first request.
    pub fn worker(&self, name: WorkerName) -> Worker {
        Worker {
            system: Arc::clone(&self.system),
            logs: self.logs.clone(),
            name,
        }
    }

    /// How all workers are, by name.
    ///
    /// # Errors
    /// [`RequestError::Ended`].
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, RequestError> {
        self.system.statuses().await
    }

    /// Begins to stop workers within their grace, each behind those of them that depend on it;
    /// [`Worker::at_rest`] tells when that is done. [`Worker::stop`] for each in turn would stop the
    /// first before it is known that its dependents are to stop as well.
    pub fn stop(&self, workers: Vec<WorkerName>) {
        self.system.stop_workers(workers);
    }

    /// Stops a worker within its grace and forgets it; resolves when nothing of it is left, its
    /// published ports included.
    ///
    /// # Errors
    /// [`RequestError::Required`] while others depend on it.
    pub async fn remove(&self, worker: WorkerName) -> Result<(), RequestError> {
        self.system.remove(worker).await
    }

    /// Every event from now on, as a [`Stream`](futures_core::Stream). A subscriber that falls far
    /// behind is told how many it missed.
    pub fn events(&self) -> EventStream {
        EventStream::new(self.bus.subscribe())
    }

    /// The recent events, as many as are kept, and those to come, without a gap.
    #[cfg(feature = "cli")]
    pub(crate) fn follow_events(&self) -> iii_actors::event::Followed {
        self.bus.follow()
    }

    /// The recent lines of all workers, as many as are kept, and those to come, without a gap.
    #[cfg(feature = "cli")]
    pub(crate) fn follow_logs(&self) -> iii_actors::logs::Followed {
        self.logs.follow_all()
    }

    /// The output of all workloads from now on; for the first caller. Workers have queues of their
    /// own and are read in turn: a slow reader slows those down that write more than it reads, and
    /// loses nothing; without a reader, or once it is gone, nobody waits. [`Worker::logs`] follows
    /// one worker and slows nobody.
    pub fn take_logs(&self) -> Option<LogReader> {
        self.logs.take()
    }

    /// The output that is kept, of earlier supervisors with this state directory too; `None` if
    /// none is.
    pub fn stored_logs(&self) -> Option<StoredLogs> {
        let state = self.state.as_ref().filter(|_| self.store.is_some())?;
        Some(StoredLogs::of_state_dir(state.path()))
    }

    /// Resolves once no worker runs or will be started again, with how each ended.
    pub async fn idle(&self) -> Outcomes {
        self.system.idle().await
    }

    /// Stops every worker, each before those that it depends on; resolves when all their processes
    /// are reaped. Called again with [`Shutdown::Now`], it cuts a graceful shutdown short.
    pub async fn shutdown(&self, how: Shutdown) -> Outcomes {
        self.system.stop_all(how == Shutdown::Now);
        let idle = self.system.idle();
        let outcomes = match how {
            Shutdown::Graceful | Shutdown::Now => idle.await,
            Shutdown::Within(time) => {
                tokio::pin!(idle);
                match tokio::time::timeout(time, &mut idle).await {
                    Ok(outcomes) => outcomes,
                    Err(_) => {
                        self.system.stop_all(true);
                        idle.await
                    }
                }
            }
        };
        // The last words too.
        self.logs.all_stored().await;
        if let Some(keeper) = &self.keeper {
            keeper.clean();
        }
        self.bus.emit(None, None, EventKind::SupervisorStopped);
        outcomes
    }

    /// Runs a command in a worker's guest, beside its workload. Resolves when the command runs; its
    /// end is [`ExecSession::wait`]'s.
    pub async fn exec(
        &self,
        worker: WorkerName,
        request: ExecRequest,
    ) -> Result<ExecSession, ExecError> {
        self.system.exec(worker, request).await
    }

    /// Hurts a worker whose spec allows it, to see its repair.
    pub async fn inject(&self, worker: WorkerName, fault: Fault) -> Result<(), InjectError> {
        self.system.inject(worker, fault).await
    }

    /// How much of its workers' disks is used, by worker and name; those of workers that are not
    /// there any more included.
    ///
    /// # Errors
    /// The directory of the disks cannot be read.
    pub fn disks(&self) -> Result<Vec<DiskUse>, DiskError> {
        let store = self.disk_store();
        store.map_or_else(|| Ok(Vec::new()), |store| store.all())
    }

    /// Empties a worker's disks; how much of them was used.
    ///
    /// # Errors
    /// [`DiskError::Busy`] while a VM uses one, [`DiskError::None`] if it has none.
    pub async fn reset_disks(&self, worker: WorkerName) -> Result<Vec<DiskUse>, DiskError> {
        let Some(store) = self.disk_store() else {
            return Ok(Vec::new());
        };
        match tokio::task::spawn_blocking(move || store.reset(&worker)).await {
            Ok(result) => result,
            // Only a panic in there, or a runtime that is shutting down; neither has a remedy.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Ok(Vec::new()),
            },
        }
    }

    /// Tells the world what this crate knows of a worker, among what the actors tell.
    #[cfg(feature = "cli")]
    pub(crate) fn emit(&self, worker: &WorkerName, kind: EventKind) {
        self.bus.emit(Some(worker), None, kind);
    }

    /// The same of the supervisor itself.
    #[cfg(feature = "cli")]
    pub(crate) fn tell(&self, kind: EventKind) {
        self.bus.emit(None, None, kind);
    }

    fn disk_store(&self) -> Option<DiskStore> {
        let state = self.state.as_ref()?;
        Some(DiskStore::of(state.path()))
    }

    /// What the VMs boot from.
    pub fn firmware(&self) -> &Firmware {
        &self.firmware
    }
}
