//! The loop: one thread, one epoll over signals, a timer, the ports, the workload's pipes and the
//! running probe. It feeds [`Supervision`] and does what that orders.
//!
//! Ports and pipes are edge-triggered. A virtio-serial port whose host end is not open reports a
//! hang-up for as long as that lasts, which level triggering would turn into a busy loop, and a
//! pipe that is left unread for backpressure must not wake the loop either.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use iii_proto::codec::{CodecError, FrameReader};
use iii_proto::control::{GuestFault, GuestMessage, HostMessage, MAX_TEXT, PowerOffReason};
use iii_proto::guest::{GuestSpec, HealthCheck, Probe};
use iii_proto::ids::GuestPid;
use iii_proto::log::Stream;
use iii_proto::restart::{Exit, RestartPolicy};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::clock::{self, Discipline};
use crate::confinement::Confinement;
use crate::launch::Launcher;
use crate::outbound::Outbound;
use crate::output::Output;
use crate::probe::{Progress, SocketProbe};
use crate::supervision::{Action, Event, Supervision};
use crate::sys;

/// Bytes of unread control messages above which nothing is started and nothing is said that can be
/// left out: a host that does not read must not make PID 1 grow.
const CONTROL_HIGH_WATER: usize = 256 * 1024;
/// How long the host may take to open its end of the control port.
const CONNECT_TIME: Duration = Duration::from_secs(20);
/// How long the last message may wait for room on the port.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

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
    /// Between SIGTERM and SIGKILL where the host names no grace.
    pub stop_grace: Duration,
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
            stop_grace: Duration::from_millis(spec.workload.stop_grace_ms),
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

/// The control port, usable before the loop runs: boot stages go out through it.
#[derive(Debug)]
pub struct ControlPort {
    fd: OwnedFd,
    out: Outbound,
    reader: FrameReader,
    connected: bool,
    readable: bool,
}

impl ControlPort {
    /// Takes a non-blocking stream.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            out: Outbound::default(),
            reader: FrameReader::new(),
            connected: false,
            readable: true,
        }
    }

    /// Queues a message behind which another one follows soon.
    pub fn queue(&mut self, message: &GuestMessage) -> Result<(), LoopError> {
        Ok(self.out.push(message)?)
    }

    /// Queues a message and writes what the port takes. A port that the host has not opened yet
    /// takes nothing: the message waits.
    pub fn send(&mut self, message: &GuestMessage) -> Result<(), LoopError> {
        self.queue(message)?;
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        // Any other error is the host's end being closed, which the loop sees as a hang-up.
        if self.out.write_to(&self.fd) == Ok(true) {
            self.connected = true;
        }
    }

    /// Sends the last message of all and returns when the host has taken it, or after a second.
    pub fn last_word(
        &mut self,
        reason: PowerOffReason,
        last_log_seq: u64,
    ) -> Result<(), LoopError> {
        self.out.push(&GuestMessage::PoweringOff {
            reason,
            last_log_seq,
        })?;
        let until = clock::uptime() + LAST_WORD_TIME;
        loop {
            let left = until.saturating_sub(clock::uptime());
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(LoopError::System("wait for the control port", errno)),
            }
            let ready = fds[0].revents().unwrap_or(PollFlags::empty());
            if !ready.contains(PollFlags::POLLOUT) {
                if self.connected || left.is_zero() {
                    return Ok(());
                }
                // Not open yet: the hang-up is reported at once, so poll(2) is no wait here.
                let mut none: [PollFd<'_>; 0] = [];
                // An interrupted pause is only a shorter one.
                poll(&mut none, PollTimeout::from(10u8)).unwrap_or(0);
                continue;
            }
            // A blocking write to a virtio-serial port returns when the device has taken the
            // bytes; a non-blocking one may leave them in a queue that the power-off discards.
            fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::empty()))
                .map_err(|errno| LoopError::System("set up the control port", errno))?;
            // An error is the host's end being closed: there is nobody to tell.
            self.out.write_to(&self.fd).unwrap_or(false);
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Signals,
    Timer,
    Control,
    Log,
    Stdout,
    Stderr,
    Report,
    Probe,
}

impl Token {
    const ALL: [Self; 8] = [
        Self::Signals,
        Self::Timer,
        Self::Control,
        Self::Log,
        Self::Stdout,
        Self::Stderr,
        Self::Report,
        Self::Probe,
    ];
}

enum RunningProbe {
    Exec { pid: GuestPid },
    Socket(SocketProbe),
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
    epoll: Epoll,
    signals: SignalFd,
    timer: TimerFd,
    armed: Option<Duration>,
    connect_by: Duration,
    report: Option<OwnedFd>,
    /// What the main process wrote instead of becoming the program.
    start_failure: Option<[u8; 5]>,
    probe: Option<RunningProbe>,
    cache_drop: Option<GuestPid>,
    memory_kills: u64,
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
            ),
            memory_kills: confinement.memory_kills(),
            random: settings.seed,
            settings,
            launcher,
            confinement,
            control,
            log,
            log_out: Outbound::default(),
            output: Output::default(),
            epoll,
            signals,
            timer,
            armed: None,
            connect_by: clock::uptime() + CONNECT_TIME,
            report: None,
            start_failure: None,
            probe: None,
            cache_drop: None,
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
        self.read_control()?;
        self.output.pump(&mut self.log_out)?;
        self.settle()?;
        // The log first: the last output of a life is on its way before its `Exited` is. An error
        // is the host's end being closed; what is queued waits for the control port's hang-up.
        self.log_out.write_to(&self.log).unwrap_or(false);
        if self.core.flushing() && self.log_out.is_empty() && self.output.all_acked() {
            self.feed(Event::LogsSettled)?;
        }
        self.control.flush();
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

    /// One start per turn, so that a policy without any delay cannot starve the ports.
    fn may_start(&self) -> bool {
        self.core.wants_start()
            && !self.spawned_this_turn
            && self.control.out.bytes() < CONTROL_HIGH_WATER
    }

    fn start(&mut self) -> Result<(), LoopError> {
        self.spawned_this_turn = true;
        self.start_failure = None;
        if let Err(errno) = self.confinement.prepare() {
            let cause = format!("failed to make a cgroup for the workload: {errno}");
            return self.feed(Event::SpawnFailed { cause });
        }
        match self.launcher.start(&self.confinement) {
            Ok((child, pipes)) => {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                self.watch(&pipes.stdout, Token::Stdout, flags)?;
                self.watch(&pipes.stderr, Token::Stderr, flags)?;
                self.watch(&child.report, Token::Report, flags)?;
                self.output.open(child.pid, pipes.stdout, pipes.stderr);
                self.report = Some(child.report);
                self.feed(Event::Spawned { pid: child.pid })
            }
            Err(error) => self.feed(Event::SpawnFailed {
                cause: text(error.to_string()),
            }),
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
            let message = text(message);
            self.control.out.push(&GuestMessage::Warning { message })?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), LoopError> {
        self.arm()?;
        let busy =
            self.output.has_work(&self.log_out) || self.control.readable || self.may_start_next();
        let timeout = if busy {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); Token::ALL.len()];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(LoopError::System("wait for events", errno)),
        };
        for event in &events[..count] {
            let Some(token) = Token::ALL.into_iter().find(|t| *t as u64 == event.data()) else {
                continue;
            };
            self.on_event(token, event.events())?;
        }
        Ok(())
    }

    fn may_start_next(&self) -> bool {
        self.core.wants_start() && self.control.out.bytes() < CONTROL_HIGH_WATER
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
            Token::Stdout => {
                self.output.on_readable(Stream::Stdout);
                Ok(())
            }
            Token::Stderr => {
                self.output.on_readable(Stream::Stderr);
                Ok(())
            }
            Token::Report => self.on_report(),
            Token::Probe => self.on_probe(),
        }
    }

    fn arm(&mut self) -> Result<(), LoopError> {
        let connect = (!self.control.connected).then_some(self.connect_by);
        let deadline = match (self.core.deadline(), connect) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
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

    fn on_signals(&mut self) -> Result<(), LoopError> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGTERM as u32 || info.ssi_signo == Signal::SIGINT as u32 {
                self.feed(Event::Stop {
                    grace: self.settings.stop_grace,
                })?;
            }
        }
        while let Some((pid, status)) = sys::reap() {
            self.on_child_end(GuestPid(pid), status)?;
        }
        Ok(())
    }

    fn on_child_end(&mut self, pid: GuestPid, status: i32) -> Result<(), LoopError> {
        if self.core.main_pid() == Some(pid) {
            // Whether it ever became the program is in the pipe by now.
            self.on_report()?;
            let exit = match self.start_failure.take() {
                Some(report) => Exit::Fault {
                    cause: text(self.launcher.failure(report)),
                },
                None => exit_of(status),
            };
            self.report = None;
            self.explain_kill(&exit)?;
            return self.feed(Event::MainExited { pid, exit });
        }
        if self.cache_drop == Some(pid) {
            self.cache_drop = None;
        }
        if let Some(RunningProbe::Exec { pid: probe }) = &self.probe
            && *probe == pid
        {
            self.probe = None;
            return match exit_of(status) {
                Exit::Code { code: 0 } => self.feed(Event::ProbePassed),
                exit => self.feed(Event::ProbeFailed {
                    detail: format!("the probe ended with {exit}"),
                }),
            };
        }
        Ok(())
    }

    fn explain_kill(&mut self, exit: &Exit) -> Result<(), LoopError> {
        let kills = self.confinement.memory_kills();
        if kills > self.memory_kills && *exit == (Exit::Signal { signal: 9 }) {
            self.memory_kills = kills;
            return self.warn(String::from(
                "the workload used up its memory limit and was killed by the kernel",
            ));
        }
        Ok(())
    }

    fn on_report(&mut self) -> Result<(), LoopError> {
        let Some(report) = &self.report else {
            return Ok(());
        };
        let mut bytes = [0; 5];
        match nix::unistd::read(report, &mut bytes) {
            Ok(0) => {
                self.report = None;
                // The report of a child that was killed before execve reads the same as success;
                // its end follows at once.
                self.feed(Event::Executed)
            }
            // Five bytes are written at once, and a pipe delivers so few whole.
            Ok(_) => {
                self.report = None;
                self.start_failure = Some(bytes);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn start_probe(&mut self) -> Result<(), LoopError> {
        let Some(check) = &self.settings.health else {
            return Ok(());
        };
        let begun = match &check.probe {
            Probe::Exec(_) => self
                .launcher
                .start_probe(&self.confinement)
                .map(|child| RunningProbe::Exec { pid: child.pid })
                .map_err(|e| e.to_string()),
            Probe::Tcp(port) => SocketProbe::tcp(*port)
                .map(RunningProbe::Socket)
                .map_err(|e| format!("port {port}: {}", e.desc())),
            Probe::Http { port, path } => SocketProbe::http(*port, path)
                .map(RunningProbe::Socket)
                .map_err(|e| format!("port {port}: {}", e.desc())),
        };
        match begun {
            Ok(probe) => {
                if let RunningProbe::Socket(socket) = &probe {
                    self.watch_probe(socket)?;
                }
                self.probe = Some(probe);
                Ok(())
            }
            Err(detail) => self.feed(Event::ProbeFailed {
                detail: text(detail),
            }),
        }
    }

    fn watch_probe(&self, socket: &SocketProbe) -> Result<(), LoopError> {
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.watch(socket.fd(), Token::Probe, both)
    }

    fn on_probe(&mut self) -> Result<(), LoopError> {
        let Some(RunningProbe::Socket(mut socket)) = self.probe.take() else {
            return Ok(());
        };
        match socket.advance() {
            Progress::Pending => self.probe = Some(RunningProbe::Socket(socket)),
            Progress::Reconnecting => {
                self.watch_probe(&socket)?;
                self.probe = Some(RunningProbe::Socket(socket));
            }
            Progress::Passed => self.feed(Event::ProbePassed)?,
            Progress::Failed(detail) => self.feed(Event::ProbeFailed {
                detail: text(detail),
            })?,
        }
        Ok(())
    }

    fn cancel_probe(&mut self) {
        if let Some(RunningProbe::Exec { pid }) = self.probe.take() {
            // It may have ended already; reaping it finds no probe any more.
            sys::kill(pid.0, true, 9).unwrap_or(());
        }
    }

    fn read_control(&mut self) -> Result<(), LoopError> {
        let mut buffer = [0; 4096];
        while self.control.readable {
            match nix::unistd::read(&self.control.fd, &mut buffer) {
                Ok(0) => {
                    self.control.readable = false;
                    // Before the host has opened its end a port reads as ended.
                    if self.control.connected {
                        self.feed(Event::HostGone)?;
                    }
                }
                Ok(count) => {
                    self.control.connected = true;
                    self.control.reader.feed(&buffer[..count]);
                    self.take_messages()?;
                }
                Err(Errno::EINTR) => {}
                Err(_) => self.control.readable = false,
            }
        }
        Ok(())
    }

    fn take_messages(&mut self) -> Result<(), LoopError> {
        loop {
            match self.control.reader.next::<HostMessage>() {
                Ok(Some(message)) => self.on_message(message)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The stream has no boundary any more: whoever writes it is no supervisor.
                    self.warn(format!("failed to read the control port: {error}"))?;
                    self.control.readable = false;
                    self.control.reader = FrameReader::new();
                    return self.feed(Event::HostGone);
                }
            }
        }
    }

    fn on_message(&mut self, message: HostMessage) -> Result<(), LoopError> {
        match message {
            HostMessage::Stop { grace_ms } => self.feed(Event::Stop {
                grace: Duration::from_millis(grace_ms),
            }),
            HostMessage::RestartWorkload { grace_ms } => self.feed(Event::Restart {
                grace: Duration::from_millis(grace_ms),
            }),
            HostMessage::Signal { signal } => self.feed(Event::Signal { signal }),
            HostMessage::Heartbeat {
                seq,
                host_time_unix_ns,
            } => self.on_heartbeat(seq, host_time_unix_ns),
            HostMessage::LogAck { seq } => {
                self.output.on_ack(seq);
                Ok(())
            }
            HostMessage::DropCaches => self.drop_caches(),
            HostMessage::Fault(fault) => self.on_fault(fault),
        }
    }

    fn on_heartbeat(&mut self, seq: u64, host_ns: u64) -> Result<(), LoopError> {
        let guest_time_unix_ns = clock::wall_ns();
        // A host that does not read gets no more answers than it can take, and will notice.
        if self.control.out.bytes() < CONTROL_HIGH_WATER {
            self.control.send(&GuestMessage::Alive {
                seq,
                guest_time_unix_ns,
            })?;
        }
        if self.settings.owns_machine {
            let correction = self.clock.on_heartbeat(host_ns, guest_time_unix_ns);
            if let Err(errno) = clock::apply(correction) {
                self.warn(format!("failed to set the guest's clock: {errno}"))?;
            }
        }
        Ok(())
    }

    fn drop_caches(&mut self) -> Result<(), LoopError> {
        // One at a time: it takes the kernel up to a second, which is why a child does it.
        if !self.settings.owns_machine || self.cache_drop.is_some() {
            return Ok(());
        }
        // 2: dentries and inodes, which are what the file server holds descriptors for.
        match sys::write_in_child(c"/proc/sys/vm/drop_caches", b"2") {
            Ok(pid) => {
                self.cache_drop = Some(GuestPid(pid.as_raw()));
                Ok(())
            }
            Err(errno) => self.warn(format!("failed to drop caches: {errno}")),
        }
    }

    fn on_fault(&mut self, fault: GuestFault) -> Result<(), LoopError> {
        if !self.settings.allow_faults {
            return self.warn(String::from(
                "an injected fault was refused: the guest's spec does not allow any",
            ));
        }
        match fault {
            GuestFault::KernelPanic if self.settings.owns_machine => panic_kernel(),
            // The nearest thing to it for a plain process: an end without a word.
            GuestFault::KernelPanic => std::process::exit(1),
            GuestFault::Hang => loop {
                std::hint::spin_loop();
            },
            GuestFault::KillWorkload => self.feed(Event::KillMain),
        }
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

/// The guest kernel answers an init that exits with an orderly reboot, and has no sysrq; what does
/// make it panic is running out of memory when it was told to.
fn panic_kernel() -> ! {
    if std::fs::write("/proc/sys/vm/panic_on_oom", "2").is_err() {
        std::process::exit(1);
    }
    let mut hog = Vec::new();
    loop {
        hog.push(vec![1u8; 4 << 20]);
        std::hint::black_box(&hog);
    }
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal {
            signal: libc::WTERMSIG(status),
        }
    } else {
        Exit::Code {
            code: libc::WEXITSTATUS(status),
        }
    }
}

/// Cuts a text to what one message may carry.
fn text(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    text
}
