//! VmActor: owns one VM's process and talks to its vm-init.
//!
//! * [`lifecycle`] decides; this file does what it says.
//! * `ports` reads what comes out of the VM.

pub mod lifecycle;
mod ports;

use std::io::PipeReader;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use iii_firmware::initramfs;
use iii_net::config::{DEFAULT_MTU, GUEST_MAC};
use iii_proto::codec::encode_frame;
use iii_proto::control::{
    GuestFault, GuestMemory, GuestMessage, HostMessage, MAX_CHANGED_PATHS, MAX_PATH_BYTES,
};
use iii_proto::ids::{BootId, GuestPid};
use iii_proto::restart::Exit;
use iii_proto::{CONTROL_PORT, EXEC_PORT, LOG_PORT};
use iii_vmm::cgroup::Leaf;
use iii_vmm::host::Acceleration;
use iii_vmm::process::{ChildExit, KillOnDrop, Stdio};
use iii_vmm::vmm::{VmExport, VmLaunch, VmNetwork, VmPort};
use iii_vmm::vmms::Candidate;
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use self::lifecycle::{Effect, Failure, Times, VmEnd, VmInput, VmLifecycle};
use self::ports::Port;
use crate::death_watch::DeathGuard;
use crate::event::{ActorKind, EventKind, LogLine, LogSource, unix_ns};
use crate::exec::{self, ExecOwner, ExecPort};
use crate::fs::{FsActor, Serve};
use crate::messages::{Halt, InjectPanic, OnUp};
use crate::plan::{Environment, WorkerPlan};
use crate::processes::Processes;
use crate::tail::Tail;
use crate::tree::ChildEnd;
use crate::usage::MemoryAnswer;
use crate::worker::Progress;

/// SIGABRT: the end that a VMM makes itself where something cannot be.
const ABORT: i32 = Signal::SIGABRT as i32;

/// Told how far the worker has come.
pub(crate) type OnProgress = Box<dyn Fn(Progress) + Send>;

/// One boot of one worker.
pub(crate) struct VmActor {
    env: Environment,
    plan: Arc<WorkerPlan>,
    processes: Processes,
    boot: BootId,
    boots: u64,
    /// What runs this VM; the next may be run by another.
    vmm: Candidate,
    link: Option<OwnedFd>,
    fs: Addr<FsActor>,
    lifecycle: VmLifecycle,
    timer: Option<SpawnHandle>,
    to_guest: Option<mpsc::UnboundedSender<Vec<u8>>>,
    exec: Option<ExecOwner>,
    process: Option<KillOnDrop>,
    /// The cgroup of this boot.
    leaf: Option<Arc<Leaf>>,
    /// The last question about the guest's memory, and who waits for its answer.
    question: u64,
    curious: Vec<MemoryAnswer>,
    /// The control port once more, to be dropped by a fault; kept only where faults are allowed.
    control: Option<StdUnixStream>,
    console: Tail,
    stderr: Tail,
    open_ports: u32,
    /// How the VMM ended.
    exit: Option<ChildExit>,
    /// It has said that its guest will never run again.
    gave_up: bool,
    on_progress: OnProgress,
    on_up: Option<OnUp>,
    // Last: the parent is told when all else is released.
    guard: DeathGuard,
}

/// What a VmActor is made of.
pub(crate) struct VmActorParts {
    pub(crate) env: Environment,
    pub(crate) plan: Arc<WorkerPlan>,
    pub(crate) processes: Processes,
    pub(crate) boot: BootId,
    /// 1 for the worker's first VM.
    pub(crate) boots: u64,
    /// The VMM's end of the network link.
    pub(crate) link: Option<OwnedFd>,
    pub(crate) fs: Addr<FsActor>,
    pub(crate) on_progress: OnProgress,
    pub(crate) on_up: OnUp,
    pub(crate) guard: DeathGuard,
}

impl VmActor {
    pub(crate) fn new(parts: VmActorParts) -> Self {
        let spec = &parts.plan.spec;
        let times = Times::new(spec.boot_deadline, spec.heartbeat_timeout);
        Self {
            lifecycle: VmLifecycle::new(parts.boot, times),
            vmm: match &parts.plan.vmm {
                Some(own) => own.clone(),
                None => parts.env.vmms.for_next(&spec.name),
            },
            env: parts.env,
            plan: parts.plan,
            processes: parts.processes,
            boot: parts.boot,
            boots: parts.boots,
            link: parts.link,
            fs: parts.fs,
            timer: None,
            to_guest: None,
            exec: None,
            process: None,
            leaf: None,
            question: 0,
            curious: Vec::new(),
            control: None,
            console: Tail::default(),
            stderr: Tail::default(),
            open_ports: 0,
            exit: None,
            gave_up: false,
            on_progress: parts.on_progress,
            on_up: Some(parts.on_up),
            guard: parts.guard,
        }
    }

    fn emit(&self, kind: EventKind) {
        self.env
            .bus
            .emit(Some(&self.plan.spec.name), Some(self.boot), kind);
    }

    fn on(&mut self, input: VmInput, ctx: &mut Context<Self>) {
        let now = self.env.bus.now();
        for effect in self.lifecycle.on(input, now, unix_ns()) {
            self.perform(effect, ctx);
        }
        self.set_timer(now, ctx);
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Emit(kind) => {
                let progress = progress(&kind);
                // A worker's own VMM is in software, and says nothing of this host's hardware.
                if let (EventKind::GuestUp { .. }, None) = (&kind, &self.plan.vmm) {
                    self.env.vmms.spoke(&self.plan.spec.name, &self.vmm.info);
                }
                // Told first: what follows from it, a dependent's start, comes behind it.
                self.emit(kind);
                if let Some(progress) = progress {
                    (self.on_progress)(progress);
                }
            }
            Effect::Send(message) => self.send(&message),
            Effect::Measured { seq, memory } => self.measured(seq, memory),
            Effect::Kill => {
                if let Some(process) = &self.process
                    && let Err(error) = process.0.kill(Signal::SIGKILL)
                {
                    tracing::error!(boot = %self.boot, %error, "failed to kill the VMM");
                }
            }
            // The readers go on to the end of their ports by themselves.
            Effect::Drain => self.check_drained(ctx),
            Effect::Finish(end) => self.finish(end, ctx),
        }
    }

    fn set_timer(&mut self, now: Duration, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.lifecycle.wake_at() {
            let delay = at.saturating_sub(now);
            self.timer = Some(ctx.run_later(delay, |actor, ctx| {
                actor.timer = None;
                actor.on(VmInput::Tick, ctx);
            }));
        }
    }

    fn send(&mut self, message: &HostMessage) {
        let Some(to_guest) = &self.to_guest else {
            return;
        };
        match encode_frame(message) {
            Ok(frame) => {
                // The writer ends with the port, and the port with the VMM, which is noticed.
                if to_guest.send(frame).is_err() {
                    tracing::debug!(boot = %self.boot, "the control port is closed");
                }
            }
            Err(error) => tracing::error!(boot = %self.boot, %error, "failed to tell the guest"),
        }
    }

    /// The guest's answer, or what it takes for one.
    fn measured(&mut self, seq: u64, memory: Option<GuestMemory>) {
        if seq != self.question {
            tracing::debug!(boot = %self.boot, seq, "the guest answers what nobody has asked");
            return;
        }
        for asker in self.curious.drain(..) {
            if let Some(memory) = memory {
                // It may not wait any more.
                asker.send(memory).unwrap_or(());
            }
        }
    }

    fn finish(&mut self, end: VmEnd, ctx: &mut Context<Self>) {
        let end = match end {
            VmEnd::Stopped => {
                self.emit(EventKind::VmStopped);
                ChildEnd::Stopped
            }
            VmEnd::Done(exit) => {
                self.emit(EventKind::VmStopped);
                ChildEnd::Done(exit)
            }
            VmEnd::Failed(failure) => {
                // What the guest's kernel said, or else what the VMM did, tells more than the end;
                // unless the VMM's words are the cause already.
                let out_of_memory = self.leaf.as_ref().and_then(|leaf| leaf.out_of_memory());
                let said = out_of_memory.map(|memory| memory.to_string());
                let said = said.or_else(|| self.console.panic_line());
                let said = said.or_else(|| match self.gave_up {
                    true => None,
                    false => self.stderr.last_line(),
                });
                let cause = match said {
                    Some(line) => format!("{}: {line}", failure.cause),
                    None => failure.cause.clone(),
                };
                self.keep_console();
                if let Some(end) = self.software_instead(&failure, &cause) {
                    self.guard.set(end);
                    return ctx.stop();
                }
                let cause = match (failure.silent, self.vmm.info.acceleration) {
                    (true, Acceleration::Kvm) => format!(
                        "{cause} ({} with kvm; iii-super doctor says whether that is real here)",
                        self.vmm.info.name
                    ),
                    (true, Acceleration::Tcg) | (false, _) => cause,
                };
                self.emit(EventKind::VmCrashed {
                    cause: cause.clone(),
                    exit: failure.exit,
                    last_stage: failure.last_stage,
                    console_tail: self.console.text(),
                    announced: failure.announced,
                });
                ChildEnd::Failed(Exit::Fault { cause })
            }
        };
        self.guard.set(end);
        ctx.stop();
    }

    /// Whether it is the acceleration's fault that nothing was heard of the guest, as far as can be
    /// known, and the next VM is to do without. A VMM that somebody else has killed is no sign.
    fn software_instead(&self, failure: &Failure, cause: &str) -> Option<ChildEnd> {
        let killed_by_others = !failure.killed && matches!(self.exit, Some(ChildExit::Signal(_)));
        if self.plan.vmm.is_some()
            || !failure.silent
            || killed_by_others && self.exit != Some(ChildExit::Signal(ABORT))
        {
            return None;
        }
        let worker = &self.plan.spec.name;
        let retry = self.env.vmms.died_early(worker, &self.vmm.info, cause)?;
        self.emit(match retry.warning {
            Some(message) => EventKind::Warning { message },
            None => EventKind::VmRestarting {
                delay: Duration::ZERO,
                cause: cause.to_owned(),
            },
        });
        Some(ChildEnd::Again)
    }

    /// The console's tail is as good as all that is known of a guest that crashed.
    fn keep_console(&self) {
        let now = unix_ns();
        for (text, complete) in self.console.lines() {
            self.env.logs.put_aside(LogLine {
                worker: self.plan.spec.name.clone(),
                boot: self.boot,
                pid: GuestPid(0),
                stream: LogSource::Console,
                time_unix_ns: now,
                received_unix_ns: now,
                text,
                complete,
            });
        }
    }

    fn launch(&mut self, exports: Vec<VmExport>, ctx: &mut Context<Self>) {
        match self.try_launch(exports, ctx) {
            Ok(()) => {
                if let Some(up) = self.on_up.take() {
                    up();
                }
                self.on(VmInput::Spawned, ctx);
            }
            Err(cause) => self.on(VmInput::SpawnFailed { cause }, ctx),
        }
    }

    fn try_launch(
        &mut self,
        exports: Vec<VmExport>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let socket = |e: std::io::Error| format!("failed to make a port: {e}");
        let initrd = self.initrd()?;
        // A pipe, since libkrun opens it by path.
        let (console, vmm_console) = std::io::pipe().map_err(socket)?;
        let (control, vmm_control) = StdUnixStream::pair().map_err(socket)?;
        let (log, vmm_log) = StdUnixStream::pair().map_err(socket)?;
        let (exec, vmm_exec) = StdUnixStream::pair().map_err(socket)?;
        let spec = &self.plan.spec;
        let launch = VmLaunch {
            worker: spec.name.clone(),
            boot_id: self.boot,
            cpus: u32::from(spec.resources.cpus),
            memory_mib: u32::try_from(spec.resources.memory >> 20).unwrap_or(u32::MAX),
            kernel: self.plan.kernel.clone(),
            initrd,
            console: vmm_console.into(),
            ports: vec![
                VmPort {
                    name: CONTROL_PORT.into(),
                    fd: vmm_control.into(),
                },
                VmPort {
                    name: LOG_PORT.into(),
                    fd: vmm_log.into(),
                },
                VmPort {
                    name: EXEC_PORT.into(),
                    fd: vmm_exec.into(),
                },
            ],
            network: self.link.take().map(|fd| VmNetwork {
                fd,
                mac: GUEST_MAC,
                mtu: u32::from(DEFAULT_MTU),
            }),
            exports,
            disks: self.plan.vm_disks().map_err(|e| text(&e))?,
            kernel_words: Vec::new(),
        };
        let mut command = self.vmm.vmm.command(launch).map_err(|e| text(&e))?;
        let (stderr, vmm_stderr) = StdUnixStream::pair().map_err(socket)?;
        command.stderr = Stdio::Fd(vmm_stderr.into());
        command.cgroup.clone_from(&self.leaf);
        let ended = ctx.address();
        let process = self
            .processes
            .spawn(
                &self.env.spawner,
                &self.env.places,
                ActorKind::Vm,
                command,
                move |exit| {
                    ended.do_send(VmmExited(exit));
                },
            )
            .map_err(|e| text(&e))?;
        let pid = u32::try_from(process.pid()).unwrap_or(0);
        (self.on_progress)(Progress::VmStarted {
            boot: self.boot,
            boots: self.boots,
            pid,
        });
        self.emit(EventKind::VmStarted {
            vmm: self.vmm.info.name.into(),
            accel: self.vmm.info.acceleration.to_string(),
            pid,
            boots: self.boots,
        });
        self.process = Some(KillOnDrop(process));
        self.listen_to_vmm(console, stderr, ctx)
            .and_then(|()| self.listen(control, log, ctx))
            .and_then(|()| self.listen_to_exec(exec, ctx))
            .map_err(socket)
    }

    fn initrd(&self) -> Result<OwnedFd, String> {
        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).map_err(|e| format!("failed to draw entropy: {e}"))?;
        let spec = self.plan.guest_spec(self.boot, unix_ns(), entropy);
        let segment = initramfs::boot_segment(&spec).map_err(|e| e.to_string())?;
        initramfs::sealed(&[&self.plan.initramfs, &segment])
            .map_err(|e| format!("failed to make the initramfs: {e}"))
    }

    /// Its console, and what it says itself.
    fn listen_to_vmm(
        &mut self,
        console: PipeReader,
        stderr: StdUnixStream,
        ctx: &mut Context<Self>,
    ) -> std::io::Result<()> {
        let console = pipe::Receiver::from_owned_fd(console.into())?;
        let reading = self.console.clone().read(console);
        ctx.spawn(reading.into_actor(self).map(|(), actor, ctx| {
            actor.port_closed(Port::Console, None, ctx);
        }));
        stderr.set_nonblocking(true)?;
        let stderr = UnixStream::from_std(stderr)?;
        let (vmm, me) = (Arc::clone(&self.vmm.vmm), ctx.address());
        let mut told = false;
        let reading = self.stderr.clone().watch(stderr, move |tail| {
            if !told && let Some(line) = vmm.gave_up(&tail.text()) {
                told = true;
                me.do_send(VmmGaveUp(line.to_owned()));
            }
        });
        ctx.spawn(reading.into_actor(self).map(|(), actor, ctx| {
            actor.port_closed(Port::Stderr, None, ctx);
        }));
        self.open_ports = 2;
        Ok(())
    }

    fn listen(
        &mut self,
        control: StdUnixStream,
        log: StdUnixStream,
        ctx: &mut Context<Self>,
    ) -> std::io::Result<()> {
        let stream = |s: StdUnixStream| {
            s.set_nonblocking(true)?;
            UnixStream::from_std(s)
        };
        if self.plan.spec.allow_faults {
            self.control = Some(control.try_clone()?);
        }
        let (from_guest, into_guest) = stream(control)?.into_split();
        let (frames, queued) = mpsc::unbounded_channel();
        self.to_guest = Some(frames.clone());
        ctx.spawn(ports::write(into_guest, queued).into_actor(self));
        ctx.add_stream(ports::messages(from_guest));
        // A task of its own: if the reader of the logs is slow, what the VM wrote is still handed
        // on after this actor's end.
        let worker = self.plan.spec.name.clone();
        let logs = self.env.logs.clone();
        let reading = ports::read_log(stream(log)?, worker, self.boot, logs, frames);
        let reading = actix_rt::spawn(reading);
        ctx.spawn(
            actix::fut::wrap_future::<_, Self>(reading).map(|result, actor, ctx| {
                let broken = match result {
                    Ok(broken) => broken,
                    Err(error) => Some(format!("the log's reader ended: {error}")),
                };
                actor.port_closed(Port::Log, broken, ctx);
            }),
        );
        self.open_ports += 2;
        Ok(())
    }

    fn listen_to_exec(
        &mut self,
        exec: StdUnixStream,
        ctx: &mut Context<Self>,
    ) -> std::io::Result<()> {
        exec.set_nonblocking(true)?;
        let (from_guest, into_guest) = UnixStream::from_std(exec)?.into_split();
        let (frames, queued) = mpsc::unbounded_channel();
        let port = ExecPort::new(frames);
        self.exec = Some(ExecOwner(port.clone()));
        // Tasks of their own: bytes that pass by do not wake this actor. Both end with the port.
        actix_rt::spawn(ports::write(into_guest, queued));
        let reading = actix_rt::spawn(exec::read(from_guest, port));
        ctx.spawn(
            actix::fut::wrap_future::<_, Self>(reading).map(|result, actor, ctx| {
                let broken = match result {
                    Ok(broken) => broken,
                    Err(error) => Some(format!("its reader ended: {error}")),
                };
                actor.port_closed(Port::Exec, broken, ctx);
            }),
        );
        self.open_ports += 1;
        Ok(())
    }

    fn port_closed(&mut self, port: Port, broken: Option<String>, ctx: &mut Context<Self>) {
        self.open_ports = self.open_ports.saturating_sub(1);
        let cause = broken.map(|cause| {
            tracing::warn!(boot = %self.boot, ?port, cause, "the guest broke a port");
            format!("the guest broke its {port} port: {cause}")
        });
        match port {
            Port::Control => self.on(VmInput::PortBroken { cause }, ctx),
            // A log that is closed without a fault is noticed by the VMM's end.
            Port::Log if cause.is_some() => self.on(VmInput::PortBroken { cause }, ctx),
            // The workload goes on; what is lost is told to whom it concerns.
            Port::Exec => {
                if let Some(cause) = cause {
                    let message = format!("{cause}; it runs no commands until its VM is new");
                    self.emit(EventKind::Warning { message });
                }
            }
            Port::Log | Port::Console | Port::Stderr => {}
        }
        self.check_drained(ctx);
    }

    fn check_drained(&mut self, ctx: &mut Context<Self>) {
        if self.open_ports == 0 && self.lifecycle.state() == lifecycle::State::Draining {
            // Not from within an effect: the table is not reentrant.
            ctx.notify(Drained);
        }
    }
}

/// What an event says of the worker's state.
fn progress(kind: &EventKind) -> Option<Progress> {
    if let EventKind::WorkloadStarted { pid, .. } = kind {
        Some(Progress::WorkloadStarted(*pid))
    } else if let EventKind::WorkloadReady { pid } = kind {
        Some(Progress::WorkloadReady(*pid))
    } else if let EventKind::WorkloadExited { exit, .. } = kind {
        Some(Progress::WorkloadExited(exit.clone()))
    } else {
        None
    }
}

impl Actor for VmActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let acceleration = self.vmm.info.acceleration;
        self.leaf = self.env.leaf(&self.plan, self.boot, acceleration);
        let serve = self.fs.send(Serve {
            boot: self.boot,
            by: self.vmm.vmm.exports(),
            leaf: self.leaf.clone(),
        });
        ctx.spawn(
            serve
                .into_actor(self)
                .map(|answer, actor, ctx| match answer {
                    Ok(Ok(exports)) => actor.launch(exports, ctx),
                    Ok(Err(cause)) => actor.on(VmInput::SpawnFailed { cause }, ctx),
                    Err(_) => {
                        let cause = "FsActor ended before it could serve".into();
                        actor.on(VmInput::SpawnFailed { cause }, ctx);
                    }
                }),
        );
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct VmmExited(ChildExit);

impl Handler<VmmExited> for VmActor {
    type Result = ();

    fn handle(&mut self, VmmExited(exit): VmmExited, ctx: &mut Self::Context) {
        let text = exit.to_string();
        self.exit = Some(exit);
        self.on(VmInput::Exited { exit: text }, ctx);
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct VmmGaveUp(String);

impl Handler<VmmGaveUp> for VmActor {
    type Result = ();

    fn handle(&mut self, VmmGaveUp(cause): VmmGaveUp, ctx: &mut Self::Context) {
        self.gave_up = true;
        self.on(VmInput::Stuck { cause }, ctx);
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Drained;

impl Handler<Drained> for VmActor {
    type Result = ();

    fn handle(&mut self, _: Drained, ctx: &mut Self::Context) {
        self.on(VmInput::Drained, ctx);
    }
}

impl StreamHandler<Result<GuestMessage, String>> for VmActor {
    fn handle(&mut self, item: Result<GuestMessage, String>, ctx: &mut Self::Context) {
        match item {
            Ok(message) => self.on(VmInput::Guest(message), ctx),
            Err(cause) => self.on(VmInput::PortBroken { cause: Some(cause) }, ctx),
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        self.port_closed(Port::Control, None, ctx);
    }
}

/// Something for the guest, past the table: it changes nothing of the VM's state.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum Tell {
    /// Give inodes back.
    DropCaches,
    /// End the workload within its grace and start it again.
    RestartWorkload,
    /// Tell those who watch these files in the guest that the host has changed them.
    FilesChanged(Vec<String>),
    /// Hurt the guest.
    Fault(GuestFault),
}

impl Handler<Tell> for VmActor {
    type Result = ();

    fn handle(&mut self, tell: Tell, _: &mut Self::Context) {
        self.send(&match tell {
            Tell::DropCaches => HostMessage::DropCaches,
            Tell::RestartWorkload => HostMessage::RestartWorkload {
                grace_ms: lifecycle::milliseconds(self.plan.spec.stop_grace),
            },
            Tell::FilesChanged(mut paths) => {
                paths.retain(|path| path.len() <= MAX_PATH_BYTES);
                paths.truncate(MAX_CHANGED_PATHS);
                HostMessage::FilesChanged { paths }
            }
            Tell::Fault(fault) => HostMessage::Fault(fault),
        });
    }
}

/// How is the guest's memory? Dropped unanswered where no guest runs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct MeasureGuest(pub(crate) MemoryAnswer);

impl Handler<MeasureGuest> for VmActor {
    type Result = ();

    fn handle(&mut self, MeasureGuest(asker): MeasureGuest, _: &mut Self::Context) {
        if self.lifecycle.state() != lifecycle::State::Running {
            return;
        }
        // A guest that does not answer is asked again only when nobody waits any more.
        self.curious.retain(|asker| !asker.is_closed());
        if self.curious.is_empty() {
            self.question += 1;
            let seq = self.question;
            self.send(&HostMessage::Measure { seq });
        }
        self.curious.push(asker);
    }
}

impl Handler<exec::Find> for VmActor {
    type Result = ();

    fn handle(&mut self, find: exec::Find, _: &mut Self::Context) {
        use lifecycle::State;
        match (self.lifecycle.state(), &self.exec) {
            (State::Running, Some(exec)) => find.answer(Ok(exec.0.clone())),
            (State::Launching | State::Booting | State::Running, _) => find.not_running("booting"),
            (State::Stopping | State::PoweringOff, _) => find.not_running("stopping"),
            (State::Killed | State::Draining | State::Ended, _) => {
                find.not_running("between two VMs");
            }
        }
    }
}

/// Hurts the VM from outside, so that its repair can be seen.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum InjectVm {
    /// Kill the VMM.
    Kill,
    /// Stop the VMM (SIGSTOP).
    Stop,
    /// Close the control port.
    DropControl,
}

impl Handler<InjectVm> for VmActor {
    type Result = ();

    fn handle(&mut self, fault: InjectVm, _: &mut Self::Context) {
        let hurt = match fault {
            InjectVm::Kill => self.process.as_ref().map(|p| p.0.kill(Signal::SIGKILL)),
            InjectVm::Stop => self.process.as_ref().map(|p| p.0.kill(Signal::SIGSTOP)),
            InjectVm::DropControl => self
                .control
                .as_ref()
                .map(|port| port.shutdown(Shutdown::Both)),
        };
        if let Some(Err(error)) = hurt {
            tracing::warn!(boot = %self.boot, ?fault, %error, "failed to hurt the VM");
        }
    }
}

impl Handler<Halt> for VmActor {
    type Result = ();

    fn handle(&mut self, halt: Halt, ctx: &mut Self::Context) {
        let grace = self.plan.spec.stop_grace;
        let input = if halt.urgent {
            VmInput::Kill
        } else {
            VmInput::Stop { grace }
        };
        self.on(input, ctx);
    }
}

impl Handler<InjectPanic> for VmActor {
    type Result = ();

    fn handle(&mut self, _: InjectPanic, _: &mut Self::Context) {
        panic!("injected fault");
    }
}
