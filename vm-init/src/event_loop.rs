//! The loop: one thread, one epoll over signals, a timer, the ports, the workload's pipes and the
//! running probe. It feeds [`Supervision`] and does what that orders.
//!
//! Ports and pipes are edge-triggered. A virtio-serial port whose host end is not open reports a
//! hang-up for as long as that lasts, which level triggering would turn into a busy loop, and a
//! pipe that is left unread for backpressure must not wake the loop either.

mod children;
mod control_port;
mod host;
mod probes;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use iii_proto::codec::CodecError;
use iii_proto::control::{GuestMessage, PowerOffReason};
use iii_proto::guest::{AtRest, GuestSpec, HealthCheck};
use iii_proto::ids::GuestPid;
use iii_proto::log::Stream;
use iii_proto::restart::RestartPolicy;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

pub use control_port::ControlPort;
use probes::RunningProbe;

use crate::announce::Announcer;
use crate::clock::{self, Discipline};
use crate::confinement::Confinement;
use crate::exec::{self, Exec};
use crate::kernel_log::KernelLog;
use crate::launch::Launcher;
use crate::outbound::Outbound;
use crate::output::Output;
use crate::supervision::{Action, Event, Supervision};
use crate::sys;
use crate::text::cut;

/// Bytes of unread control messages above which nothing is started and nothing is said that can be
/// left out: a host that does not read must not make PID 1 grow.
const CONTROL_HIGH_WATER: usize = 256 * 1024;
/// Events that one wait takes at most; the rest comes with the next.
const EVENTS_PER_WAIT: usize = 64;
/// How long the host may take to open its end of the control port.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// A system call that has no reason to fail.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
    /// A message of our own that cannot be sent.
    #[error("failed to send message: {0}")]
    Codec(#[from] CodecError),
}

/// What the loop is told once.
#[derive(Debug)]
pub struct Settings {
    /// When the workload is started again.
    pub restart: RestartPolicy,
    /// Its probe.
    pub health: Option<HealthCheck>,
    /// What is done once the workload is not to be started again.
    pub at_rest: AtRest,
    /// Between SIGTERM and SIGKILL where the host names no grace.
    pub stop_grace: Duration,
    /// What asks the workload to end.
    pub stop_signal: i32,
    /// Obey injected faults.
    pub allow_faults: bool,
    /// Seed of the restarts' jitter.
    pub seed: u64,
    /// The clock and the caches are the guest's own. As an ordinary process none is touched.
    pub owns_machine: bool,
}

impl Settings {
    /// What a spec says about supervision.
    pub fn of(spec: &GuestSpec, owns_machine: bool) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = spec.entropy;
        Self {
            restart: spec.restart.clone(),
            health: spec.health.clone(),
            at_rest: spec.at_rest,
            stop_grace: Duration::from_millis(spec.workload.stop_grace_ms),
            stop_signal: spec.workload.stop_signal,
            allow_faults: spec.allow_faults,
            seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            owns_machine,
        }
    }
}

/// What is left when the workload is not to run any more: sync, then
/// [`ControlPort::last_word`].
#[derive(Debug)]
pub struct Finished {
    /// Why.
    pub reason: PowerOffReason,
    /// For the last word.
    pub control: ControlPort,
    /// The number of the last log frame.
    pub last_log_seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Signals,
    Timer,
    Control,
    Log,
    Exec,
    Stdout,
    Stderr,
    Probe,
    KernelLog,
}

impl Token {
    const ALL: [Self; 9] = [
        Self::Signals,
        Self::Timer,
        Self::Control,
        Self::Log,
        Self::Exec,
        Self::Stdout,
        Self::Stderr,
        Self::Probe,
        Self::KernelLog,
    ];
}

/// The loop and all it holds.
pub struct EventLoop {
    core: Supervision,
    settings: Settings,
    launcher: Launcher,
    confinement: Confinement,
    control: ControlPort,
    log: OwnedFd,
    log_out: Outbound,
    output: Output,
    /// `None` where nobody can ask for a session: as an ordinary process.
    exec: Option<Exec>,
    epoll: Epoll,
    signals: SignalFd,
    timer: TimerFd,
    armed: Option<Duration>,
    connect_by: Duration,
    probe: Option<RunningProbe>,
    cache_drop: Option<GuestPid>,
    announcer: Announcer,
    /// `None`: as an ordinary process, or in a kernel without one.
    kernel_log: Option<KernelLog>,
    /// There may be more in it than was read.
    kernel_log_unread: bool,
    clock: Discipline,
    random: u64,
    actions: Vec<Action>,
    spawned_this_turn: bool,
    finished: Option<PowerOffReason>,
}

impl EventLoop {
    /// Takes the ports (non-blocking streams) and what starts and holds the workload. Blocks all
    /// signals of this thread.
    pub fn new(
        settings: Settings,
        control: ControlPort,
        log: OwnedFd,
        exec: Option<Exec>,
        launcher: Launcher,
        confinement: Confinement,
    ) -> Result<Self, LoopError> {
        let system = |what| move |errno| LoopError::System(what, errno);
        // All of them: SIGPIPE becomes EPIPE, and nothing but SIGKILL ends this process unasked.
        SigSet::all()
            .thread_block()
            .map_err(system("block signals"))?;
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            wanted.add(signal);
        }
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(system("make a signalfd"))?;
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .map_err(system("make a timerfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("make an epoll"))?;
        let this = Self {
            core: Supervision::new(
                settings.restart.clone(),
                settings.health.clone(),
                settings.stop_grace,
                settings.at_rest,
            )
            .stopped_by(settings.stop_signal),
            kernel_log: settings
                .owns_machine
                .then(KernelLog::open)
                .and_then(Result::ok),
            kernel_log_unread: false,
            random: settings.seed,
            settings,
            launcher,
            confinement,
            control,
            log,
            log_out: Outbound::default(),
            output: Output::default(),
            exec,
            epoll,
            signals,
            timer,
            armed: None,
            connect_by: clock::uptime() + CONNECT_TIME,
            probe: None,
            cache_drop: None,
            announcer: Announcer::default(),
            clock: Discipline::default(),
            actions: Vec::new(),
            spawned_this_turn: false,
            finished: None,
        };
        this.watch(&this.signals, Token::Signals, EpollFlags::EPOLLIN)?;
        this.watch(&this.timer, Token::Timer, EpollFlags::EPOLLIN)?;
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        this.watch(&this.control.fd, Token::Control, both)?;
        this.watch(&this.log, Token::Log, both)?;
        if let Some(log) = &this.kernel_log {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            this.watch(log.records(), Token::KernelLog, flags)?;
        }
        if let Some(exec) = &this.exec {
            this.watch(exec.port(), Token::Exec, both)?;
        }
        Ok(this)
    }

    fn watch(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> Result<(), LoopError> {
        self.epoll
            .add(fd, EpollEvent::new(flags, token as u64))
            .map_err(|errno| LoopError::System("watch a descriptor", errno))
    }

    /// Runs until the guest is to end.
    pub fn run(mut self) -> Result<Finished, LoopError> {
        self.feed(Event::Boot)?;
        loop {
            self.turn()?;
            if let Some(reason) = self.finished.take() {
                if let Some(exec) = &mut self.exec {
                    exec.kill(clock::uptime())?;
                }
                return Ok(Finished {
                    reason,
                    last_log_seq: self.output.last_seq(),
                    control: self.control,
                });
            }
            self.wait()?;
        }
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) -> Result<(), LoopError> {
        self.spawned_this_turn = false;
        if self.kernel_log_unread {
            self.on_kernel_log()?;
        }
        self.read_control()?;
        self.output.pump(&mut self.log_out)?;
        self.settle()?;
        // The log first: the last output of a life is on its way before its `Exited` is. An error
        // is the host's end being closed; what is queued waits for the control port's hang-up.
        self.log_out.write_to(&self.log).unwrap_or(false);
        self.turn_exec()?;
        if self.core.flushing()
            && self.log_out.is_empty()
            && self.output.all_acked()
            && self.exec.as_ref().is_none_or(Exec::is_quiet)
        {
            self.feed(Event::LogsSettled)?;
        }
        self.control.flush();
        Ok(())
    }

    fn turn_exec(&mut self) -> Result<(), LoopError> {
        let Some(exec) = &mut self.exec else {
            return Ok(());
        };
        let now = clock::uptime();
        if self.core.ending() {
            exec.end(now)?;
        }
        exec.turn(&exec::Hands {
            epoll: &self.epoll,
            surroundings: self.launcher.surroundings(),
            now,
        })?;
        for message in exec.take_warnings() {
            self.warn(message)?;
        }
        Ok(())
    }

    /// Does what the core waits for, as far as it can be done now.
    fn settle(&mut self) -> Result<(), LoopError> {
        loop {
            if let Some(pid) = self.core.clearing()
                && self.confinement.is_empty(pid)
            {
                self.feed(Event::LifeCleared)?;
            } else if self.may_start() {
                self.start()?;
            } else {
                return Ok(());
            }
        }
    }

    fn feed(&mut self, event: Event) -> Result<(), LoopError> {
        let mut actions = std::mem::take(&mut self.actions);
        let entropy = self.next_random();
        self.core
            .handle(event, clock::uptime(), entropy, &mut actions);
        // `perform` may feed further events, whose actions come after these.
        for action in actions.drain(..) {
            self.perform(action)?;
        }
        self.actions = actions;
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), LoopError> {
        match action {
            Action::Send(message) => self.control.out.push(&message)?,
            Action::SignalGroup { pid, signal } => self.signal(pid, true, signal)?,
            Action::SignalMain { pid, signal } => self.signal(pid, false, signal)?,
            Action::TerminateStrays { pid } => self.confinement.terminate_strays(pid),
            Action::KillLife { pid } => {
                if let Err(errno) = self.confinement.kill(pid) {
                    self.warn(format!("failed to kill the workload: {errno}"))?;
                }
            }
            Action::StartProbe => self.start_probe()?,
            Action::CancelProbe => self.cancel_probe(),
            Action::SealOutput => self.output.seal(&mut self.log_out)?,
            Action::PowerOff(reason) => self.finished = Some(reason),
        }
        Ok(())
    }

    fn signal(&mut self, pid: GuestPid, group: bool, signal: i32) -> Result<(), LoopError> {
        match sys::kill(pid.0, group, signal) {
            // It has just ended; its SIGCHLD is on its way.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => self.warn(format!(
                "failed to send signal {signal} to the workload: {errno}"
            )),
        }
    }

    fn warn(&mut self, message: String) -> Result<(), LoopError> {
        if self.control.out.bytes() < CONTROL_HIGH_WATER {
            let message = cut(message);
            self.control.out.push(&GuestMessage::Warning { message })?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), LoopError> {
        self.arm()?;
        let busy = self.output.has_work(&self.log_out)
            || self.kernel_log_unread
            || self.control.readable
            || self.may_start_next()
            || self.exec.as_ref().is_some_and(Exec::has_work);
        let timeout = if busy {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(LoopError::System("wait for events", errno)),
        };
        for event in &events[..count] {
            if event.data() >= exec::TOKENS {
                if let Some(exec) = &mut self.exec {
                    exec.on_event(event.data(), event.events())?;
                }
                continue;
            }
            let Some(token) = Token::ALL.into_iter().find(|t| *t as u64 == event.data()) else {
                continue;
            };
            self.on_event(token, event.events())?;
        }
        Ok(())
    }

    fn on_event(&mut self, token: Token, flags: EpollFlags) -> Result<(), LoopError> {
        match token {
            Token::Signals => self.on_signals(),
            Token::Timer => {
                // The count of expirations says nothing: the deadline is compared with the clock.
                self.timer.wait().unwrap_or(());
                self.armed = None;
                if !self.control.connected && clock::uptime() >= self.connect_by {
                    return self.feed(Event::HostGone);
                }
                if let Some(exec) = &mut self.exec {
                    exec.on_timer(clock::uptime())?;
                }
                self.feed(Event::Timer)
            }
            Token::Control => {
                self.control.readable = true;
                if !flags.contains(EpollFlags::EPOLLHUP) {
                    self.control.connected = true;
                    return Ok(());
                }
                if self.control.connected {
                    // What the host said before it closed still counts.
                    self.read_control()?;
                    return self.feed(Event::HostGone);
                }
                Ok(())
            }
            Token::Log => Ok(()),
            Token::Exec => match &mut self.exec {
                Some(exec) => Ok(exec.on_port(flags, clock::uptime())?),
                None => Ok(()),
            },
            Token::Stdout => {
                self.output.on_readable(Stream::Stdout);
                Ok(())
            }
            Token::Stderr => {
                self.output.on_readable(Stream::Stderr);
                Ok(())
            }
            Token::Probe => self.on_probe(),
            Token::KernelLog => self.on_kernel_log(),
        }
    }

    fn arm(&mut self) -> Result<(), LoopError> {
        let connect = (!self.control.connected).then_some(self.connect_by);
        let exec = self.exec.as_ref().and_then(Exec::deadline);
        let deadline = [self.core.deadline(), connect, exec]
            .into_iter()
            .flatten()
            .min();
        if deadline == self.armed {
            return Ok(());
        }
        let result = match deadline {
            // A time of zero would disarm the timer.
            Some(at) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(at.max(Duration::from_nanos(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.timer.unset(),
        };
        self.armed = deadline;
        result.map_err(|errno| LoopError::System("set the timer", errno))
    }

    /// SplitMix64: jitter needs spread, not secrecy.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
