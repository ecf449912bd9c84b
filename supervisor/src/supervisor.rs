//! The library: a supervisor that any program can embed. No actix type is in its interface, and it
//! works from any tokio runtime: the actors have threads of their own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use iii_actors::event::{Event, EventBus, EventKind, LogLine};
use iii_actors::exec::{ExecError, ExecRequest, ExecSession};
use iii_actors::plan::Environment;
use iii_actors::spec::WorkerSpec;
use iii_actors::{ActorSystem, AddError, Fault, InjectError, Outcomes, SystemError};
use iii_firmware::options::OptionsError;
use iii_firmware::{Firmware, FirmwareError, FirmwareOptions, Progress};
use iii_proto::ids::WorkerName;
use iii_vmm::helpers::{self, HelperError, HelperPlaces};
use iii_vmm::host::{HostFacts, virtualisation};
use iii_vmm::process::{SpawnError, Spawner};
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::tsc;
use iii_vmm::vmm::{Vmm, VmmError, VmmInfo};
use tokio::sync::{broadcast, mpsc};

use crate::prepare::{Preparation, PrepareError, PreparedWorker};

/// Lines of output between the workloads and whoever reads them. A reader that is further behind
/// makes the workloads wait.
const LOG_QUEUE: usize = 1024;

/// The helper that every process runs below.
const SHIM_HELPER: &str = "iii-shim";
/// The helper that serves files.
const VFS_HELPER: &str = "iii-vfs";

/// Which VMM runs the VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmmChoice {
    /// The fastest that this host can really run.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
}

/// How a supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Each workload gets its grace.
    Graceful,
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
    /// A helper binary is missing or of another build.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// Processes cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Threads cannot be started.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The runtime that this was called from is shutting down.
    #[error("failed to start the supervisor: the runtime is shutting down")]
    Runtime,
}

/// Options of a [`Supervisor`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct SupervisorBuilder {
    vmm: VmmChoice,
    helper_dir: Option<PathBuf>,
    firmware: Option<FirmwareOptions>,
    progress: Arc<dyn Progress>,
}

impl SupervisorBuilder {
    /// Which VMM runs the VMs; [`VmmChoice::Auto`] by default.
    pub fn vmm(mut self, vmm: VmmChoice) -> Self {
        self.vmm = vmm;
        self
    }

    /// Where the helper binaries `iii-shim` and `iii-vfs` are; by default `III_HELPER_DIR`, else
    /// beside the executable.
    pub fn helper_dir(mut self, directory: PathBuf) -> Self {
        self.helper_dir = Some(directory);
        self
    }

    /// Where firmware comes from; by default what the environment says.
    pub fn firmware(mut self, options: FirmwareOptions) -> Self {
        self.firmware = Some(options);
        self
    }

    /// Told about downloads. Silence by default.
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Checks the host, fetches what is missing, and starts a supervisor without workers.
    pub async fn start(self) -> Result<Supervisor, StartError> {
        tsc::start();
        let host = tokio::task::spawn_blocking(move || Host::look(self))
            .await
            .map_err(|_| StartError::Runtime)??;
        let (logs, receiver) = mpsc::channel(LOG_QUEUE);
        let bus = EventBus::new();
        let system = ActorSystem::start(Environment {
            vmm: host.vmm,
            vmm_info: host.vmm_info,
            spawner: Spawner::global()?,
            places: host.places,
            vfs_program: host.vfs_program,
            bus: bus.clone(),
            logs,
        })?;
        Ok(Supervisor {
            system: Arc::new(system),
            bus,
            firmware: Arc::new(host.firmware),
            logs: Mutex::new(Some(receiver)),
        })
    }
}

/// What was found on this host.
struct Host {
    vmm: Arc<dyn Vmm>,
    vmm_info: VmmInfo,
    places: HelperPlaces,
    vfs_program: PathBuf,
    firmware: Firmware,
}

impl Host {
    fn look(options: SupervisorBuilder) -> Result<Self, StartError> {
        let firmware = match options.firmware {
            Some(firmware) => firmware,
            None => FirmwareOptions::from_env()?,
        };
        let places = HelperPlaces {
            directory: options.helper_dir,
        };
        helpers::find(SHIM_HELPER, &places)?;
        let vfs_program = helpers::find(VFS_HELPER, &places)?;
        let vmm: Arc<dyn Vmm> = match options.vmm {
            VmmChoice::Auto | VmmChoice::Qemu => Arc::new(Qemu::new(QemuOptions {
                program: None,
                cache_directory: Some(firmware.home.cache_dir()),
                acceleration: virtualisation(&HostFacts::collect()).acceleration,
            })),
        };
        let vmm_info = vmm.check()?;
        let firmware = Firmware::locate(&firmware, &*options.progress)?;
        Ok(Self {
            vmm,
            vmm_info,
            places,
            vfs_program,
            firmware,
        })
    }
}

/// Runs workers and keeps them running. Dropped, it kills them all and waits for their end;
/// [`Self::shutdown`] is the gentle way.
#[derive(Debug)]
pub struct Supervisor {
    system: Arc<ActorSystem>,
    bus: EventBus,
    firmware: Arc<Firmware>,
    logs: Mutex<Option<mpsc::Receiver<LogLine>>>,
}

impl Supervisor {
    /// Options with their defaults.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder {
            vmm: VmmChoice::default(),
            helper_dir: None,
            firmware: None,
            progress: Arc::new(()),
        }
    }

    /// Checks workers whole: finds their commands, binds their ports. Either all of them can be
    /// started, or every fault is told. Starts nothing.
    pub async fn prepare(
        &self,
        specs: Vec<WorkerSpec>,
    ) -> Result<Vec<PreparedWorker>, Vec<PrepareError>> {
        let firmware = Arc::clone(&self.firmware);
        let work = move || Preparation::new(&firmware).prepare(specs);
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            // Only a panic in there, or a runtime that is shutting down; neither has a remedy.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Vec::new()),
            },
        }
    }

    /// Starts a worker and keeps it running.
    pub async fn add(&self, worker: PreparedWorker) -> Result<(), AddError> {
        self.system.add(worker.plan).await
    }

    /// Every event from now on. A subscriber that falls far behind is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.bus.subscribe()
    }

    /// The workloads' output; for the first caller. A slow reader slows the workloads down and
    /// loses nothing; once the receiver is dropped, output is thrown away.
    pub fn take_logs(&self) -> Option<mpsc::Receiver<LogLine>> {
        self.logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Resolves once no worker runs or will be started again, with how each ended.
    pub async fn idle(&self) -> Outcomes {
        self.system.idle().await
    }

    /// Stops every worker; resolves when all their processes are reaped. Called again with
    /// [`Shutdown::Now`], it cuts a graceful shutdown short.
    pub async fn shutdown(&self, how: Shutdown) -> Outcomes {
        self.system.stop_all(how == Shutdown::Now);
        let outcomes = self.system.idle().await;
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

    /// What the VMs boot from.
    pub fn firmware(&self) -> &Firmware {
        &self.firmware
    }
}
