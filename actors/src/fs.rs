//! FsActor: owns the process `iii-vfs`, one life of it for every life of the VM.
//!
//! A VMM cannot be attached to a restarted file server: the guest's callers would hang for good.
//! So the death of `iii-vfs` under a running VM is this actor's failure, and the VM, which requires
//! it, is restarted with it. `iii-vfs` itself ends with exit code 0 when its VMM is gone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use actix::prelude::*;
use iii_proto::codec::FrameReader;
use iii_proto::ids::BootId;
use iii_proto::restart::Exit;
use iii_proto::vfs::{VfsEvent, VfsExport};
use iii_vfs::launch::{VfsLaunch, VhostDevice};
use iii_vmm::cgroup::Leaf;
use iii_vmm::helpers;
use iii_vmm::process::{ChildExit, ChildSpec, KillOnDrop, Stdio};
use iii_vmm::vmm::{ExportService, ExportSource, VmExport};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::death_watch::DeathGuard;
use crate::event::{ActorKind, EventKind};
use crate::messages::{Halt, InjectPanic, OnUp};
use crate::plan::{Environment, WorkerPlan};
use crate::processes::Processes;
use crate::tail::Tail;
use crate::tree::ChildEnd;

/// Name of the helper that serves files.
pub const VFS_HELPER: &str = "iii-vfs";

/// Told when the guest should give inodes back.
pub(crate) type OnPressure = Arc<dyn Fn() + Send + Sync>;

pub(crate) struct FsActor {
    env: Environment,
    plan: Arc<WorkerPlan>,
    processes: Processes,
    server: Option<Server>,
    on_pressure: OnPressure,
    on_up: Option<OnUp>,
    /// Kinds of refusal already told: once each, however often a guest tries.
    told: BTreeMap<String, u64>,
    // Last: the parent is told when all else is released.
    guard: DeathGuard,
}

struct Server {
    boot: BootId,
    process: KillOnDrop,
    leaf: Option<Arc<Leaf>>,
    fatal: Option<String>,
    stderr: Tail,
    /// Its standard error is read to the end.
    quiet: bool,
    exit: Option<ChildExit>,
}

impl FsActor {
    pub(crate) fn new(
        env: Environment,
        plan: Arc<WorkerPlan>,
        processes: Processes,
        on_pressure: OnPressure,
        on_up: OnUp,
        guard: DeathGuard,
    ) -> Self {
        Self {
            env,
            plan,
            processes,
            server: None,
            on_pressure,
            on_up: Some(on_up),
            told: BTreeMap::new(),
            guard,
        }
    }

    fn fail(&mut self, cause: String, ctx: &mut Context<Self>) {
        self.guard.set(ChildEnd::Failed(Exit::Fault { cause }));
        ctx.stop();
    }

    fn spawn(
        &mut self,
        SpawnServer {
            boot,
            args,
            inherited,
            events,
            leaf,
        }: SpawnServer,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        let worker = self.plan.spec.name.as_str();
        // Found anew each time: what was embedded may have been cleared away with the cache.
        let program = helpers::find(VFS_HELPER, &self.env.places).map_err(|e| e.to_string())?;
        let mut spec = ChildSpec::new(program, format!("{worker}/vfs"));
        spec.args = args;
        spec.inherit = inherited;
        spec.cgroup.clone_from(&leaf);
        let failed = |e: std::io::Error| format!("failed to listen to iii-vfs: {e}");
        let (stderr, its_stderr) = StdUnixStream::pair().map_err(failed)?;
        spec.stderr = Stdio::Fd(its_stderr.into());
        let ended = ctx.address();
        let on_exit = move |exit| ended.do_send(ServerExited { boot, exit });
        let process = self
            .processes
            .spawn(
                &self.env.spawner,
                &self.env.places,
                ActorKind::Fs,
                spec,
                on_exit,
            )
            .map_err(|e| e.to_string())?;
        let tail = Tail::default();
        self.server = Some(Server {
            boot,
            process: KillOnDrop(process),
            leaf,
            fatal: None,
            stderr: tail.clone(),
            quiet: false,
            exit: None,
        });
        stderr.set_nonblocking(true).map_err(failed)?;
        let reading = tail.read(UnixStream::from_std(stderr).map_err(failed)?);
        ctx.spawn(reading.into_actor(self).map(move |(), actor, ctx| {
            if let Some(server) = actor.server.as_mut().filter(|s| s.boot == boot) {
                server.quiet = true;
            }
            actor.check_ended(boot, ctx);
        }));
        self.listen(boot, events, ctx).map_err(failed)
    }

    /// Once a server is reaped and its last words are read.
    fn check_ended(&mut self, boot: BootId, ctx: &mut Context<Self>) {
        let over = |s: &mut Server| s.boot == boot && s.quiet && s.exit.is_some();
        let Some(server) = self.server.take_if(over) else {
            return;
        };
        let exit = match server.exit {
            None | Some(ChildExit::Code(0)) => return,
            Some(exit) => exit,
        };
        let is_over = |leaf: &Arc<Leaf>| leaf.ended_for_want_of_memory();
        if server.leaf.as_ref().is_some_and(is_over) {
            // With its VM, whose actor tells of it.
            return;
        }
        let out_of_memory = server.leaf.and_then(|leaf| leaf.out_of_memory());
        let cause = match (server.fatal, out_of_memory, server.stderr.last_line()) {
            (Some(message), ..) => format!("iii-vfs gave up: {message}"),
            (None, Some(memory), _) => format!("iii-vfs ended with {exit}: {memory}"),
            (None, None, Some(line)) => format!("iii-vfs ended with {exit}: {line}"),
            (None, None, None) => format!("iii-vfs ended with {exit}"),
        };
        self.fail(cause, ctx);
    }

    fn listen(
        &mut self,
        boot: BootId,
        events: StdUnixStream,
        ctx: &mut Context<Self>,
    ) -> std::io::Result<()> {
        events.set_nonblocking(true)?;
        let mut events = UnixStream::from_std(events)?;
        let address = ctx.address();
        ctx.spawn(
            async move {
                let mut reader = FrameReader::new();
                let mut buffer = vec![0; 4096];
                loop {
                    let n = match events.read(&mut buffer).await {
                        // The end of the process, which the spawner reports.
                        Ok(0) | Err(_) => return,
                        Ok(n) => n,
                    };
                    reader.feed(&buffer[..n]);
                    loop {
                        match reader.next::<VfsEvent>() {
                            Ok(Some(event)) => address.do_send(ServerSays { boot, event }),
                            Ok(None) => break,
                            Err(error) => {
                                tracing::warn!(%error, "iii-vfs sent what is no event");
                                return;
                            }
                        }
                    }
                }
            }
            .into_actor(self),
        );
        Ok(())
    }
}

impl Actor for FsActor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        if let Some(up) = self.on_up.take() {
            up();
        }
    }
}

/// Have this boot's exports served in this way; answers with the VMM's devices.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<VmExport>, String>")]
pub(crate) struct Serve {
    pub(crate) boot: BootId,
    pub(crate) by: ExportService,
    /// Where the server is to run.
    pub(crate) leaf: Option<Arc<Leaf>>,
}

impl Handler<Serve> for FsActor {
    type Result = Result<Vec<VmExport>, String>;

    fn handle(&mut self, Serve { boot, by, leaf }: Serve, ctx: &mut Context<Self>) -> Self::Result {
        if self.plan.exports.is_empty() {
            return Ok(Vec::new());
        }
        match by {
            ExportService::VhostUser => {}
            // No server of ours: nothing of this boot can fail here.
            ExportService::Vmm => return Ok(self.plan.exports.iter().map(directory).collect()),
        }
        let worker = self.plan.spec.name.as_str();
        let launch =
            VfsLaunch::prepare(worker, self.plan.exports.clone()).map_err(|e| e.to_string())?;
        // The connections are in the listeners' backlogs already: the VMM can be started while
        // the server is.
        ctx.notify(SpawnServer {
            boot,
            args: launch.args,
            inherited: launch.inherited,
            events: launch.events,
            leaf,
        });
        Ok(launch.devices.into_iter().map(served).collect())
    }
}

fn served(device: VhostDevice) -> VmExport {
    VmExport {
        tag: device.tag,
        source: ExportSource::VhostUser(device.stream),
    }
}

fn directory(export: &VfsExport) -> VmExport {
    VmExport {
        tag: export.tag.clone(),
        source: ExportSource::Directory {
            path: export.path.clone(),
            read_only: export.read_only,
        },
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct SpawnServer {
    boot: BootId,
    args: Vec<OsString>,
    inherited: Vec<(OwnedFd, RawFd)>,
    events: StdUnixStream,
    leaf: Option<Arc<Leaf>>,
}

impl Handler<SpawnServer> for FsActor {
    type Result = ();

    fn handle(&mut self, msg: SpawnServer, ctx: &mut Self::Context) {
        if let Err(cause) = self.spawn(msg, ctx) {
            self.fail(cause, ctx);
        }
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct ServerExited {
    boot: BootId,
    exit: ChildExit,
}

impl Handler<ServerExited> for FsActor {
    type Result = ();

    fn handle(&mut self, msg: ServerExited, ctx: &mut Self::Context) {
        if let Some(server) = self.server.as_mut().filter(|s| s.boot == msg.boot) {
            server.exit = Some(msg.exit);
        }
        self.check_ended(msg.boot, ctx);
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct ServerSays {
    boot: BootId,
    event: VfsEvent,
}

impl Handler<ServerSays> for FsActor {
    type Result = ();

    fn handle(&mut self, msg: ServerSays, _: &mut Self::Context) {
        let Some(server) = self.server.as_mut().filter(|s| s.boot == msg.boot) else {
            return;
        };
        let worker = &self.plan.spec.name;
        let warn = |message: String| {
            self.env
                .bus
                .emit(Some(worker), Some(msg.boot), EventKind::Warning { message });
        };
        match msg.event {
            VfsEvent::Serving { descriptor_limit } => {
                tracing::debug!(%worker, boot = %msg.boot, descriptor_limit, "iii-vfs serves");
            }
            VfsEvent::InodePressure { inodes, cap } => {
                tracing::debug!(%worker, boot = %msg.boot, inodes, cap, "inode pressure");
                (self.on_pressure)();
            }
            VfsEvent::InodesExhausted { refused } => {
                if self.told.insert("inodes".into(), refused).is_none() {
                    warn(format!(
                        "the guest holds more files than this host has descriptors for; it got \
                         ENFILE ({refused} times); raise the hard limit of open files"
                    ));
                }
            }
            VfsEvent::Refused { kind, count } => {
                if self.told.insert(kind.clone(), count).is_none() {
                    warn(format!("iii-vfs refused a request of the guest: {kind}"));
                }
            }
            VfsEvent::Fatal { message } => server.fatal = Some(message),
        }
    }
}

/// Kills `iii-vfs`, so that its repair can be seen.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InjectServerDeath;

impl Handler<InjectServerDeath> for FsActor {
    type Result = ();

    fn handle(&mut self, _: InjectServerDeath, _: &mut Self::Context) {
        if let Some(server) = &self.server
            && let Err(error) = server.process.0.kill(nix::sys::signal::Signal::SIGKILL)
        {
            tracing::warn!(%error, "failed to kill iii-vfs");
        }
    }
}

impl Handler<Halt> for FsActor {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        self.guard.set(ChildEnd::Stopped);
        ctx.stop();
    }
}

impl Handler<InjectPanic> for FsActor {
    type Result = ();

    fn handle(&mut self, _: InjectPanic, _: &mut Self::Context) {
        panic!("injected fault");
    }
}
