//! The thread that starts every child and waits for it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as StdStdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use iii_proto::codec::decode_spec;
use iii_proto::shim::{Isolation, ShimReport};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::error::SpawnError;
use super::handle::{ChildExit, ChildHandle, Shared};
use super::lifecycle::{Action, Event, StartFailure, State, step};
use super::request::Prepared;
use super::spec::ChildSpec;
use crate::helpers::{self, HelperPlaces};

/// Name of the shim.
const SHIM: &str = "iii-shim";

/// A caller of [`Spawner::spawn`] must not wait for ever, say for a program on a network file
/// system that hangs. The ordinary way takes milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Called with the handle once the program was executed, or with the reason why not.
pub type OnStart = Box<dyn FnOnce(Result<ChildHandle, SpawnError>) + Send>;
/// Called once nothing of the child is left. Never called for a child that did not start.
pub type OnExit = Box<dyn FnOnce(ChildExit) + Send>;

/// The way to the thread that starts every child.
///
/// There is one per process, shared by all supervisors in it ([`Spawner::global`]). Its thread
/// never ends: the end of the thread would be the death of all children.
///
/// Callbacks run on that thread: they must not block and should do no more than send a message. A
/// panic in one is caught and logged.
#[derive(Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner")
            .field("thread", &self.inner.thread)
            .finish()
    }
}

struct Inner {
    commands: Sender<Box<Start>>,
    wake: Arc<EventFd>,
    thread: ThreadId,
}

struct Start {
    label: String,
    program: PathBuf,
    shim: PathBuf,
    request: Prepared,
    on_start: OnStart,
    on_exit: OnExit,
}

static GLOBAL: Mutex<Option<Spawner>> = Mutex::new(None);

impl Spawner {
    /// The process's spawner; its thread is started by the first call.
    pub fn global() -> Result<Self, SpawnError> {
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spawner) = &*global {
            return Ok(spawner.clone());
        }
        let spawner = Self::start().map_err(SpawnError::Thread)?;
        Ok(global.insert(spawner).clone())
    }

    fn start() -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (commands, received) = channel();
        let worker = Worker::new(received, Arc::clone(&wake))?;
        let thread = thread::Builder::new()
            .name("iii-spawner".into())
            .spawn(move || worker.run())?
            .thread()
            .id();
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                wake,
                thread,
            }),
        })
    }

    /// Starts a child and waits until its program was executed, which takes a few milliseconds.
    /// `on_exit` is called once nothing of it is left, also if that is before this call returns.
    pub fn spawn(
        &self,
        spec: ChildSpec,
        places: &HelperPlaces,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<ChildHandle, SpawnError> {
        if thread::current().id() == self.inner.thread {
            return Err(SpawnError::WouldDeadlock { label: spec.label });
        }
        let (started, outcome) = channel();
        let on_start = move |result| {
            // The receiver waits below; it can only be gone with its thread.
            drop(started.send(result));
        };
        self.spawn_with(spec, places, on_start, on_exit)?;
        match outcome.recv() {
            Ok(result) => result,
            Err(_) => Err(SpawnError::Thread(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Starts a child without waiting. `on_start` is called exactly once unless this returns an
    /// error, and `on_exit` after it, if the child started.
    pub fn spawn_with(
        &self,
        spec: ChildSpec,
        places: &HelperPlaces,
        on_start: impl FnOnce(Result<ChildHandle, SpawnError>) + Send + 'static,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<(), SpawnError> {
        let start = Start {
            label: spec.label.clone(),
            program: spec.program.clone(),
            shim: helpers::find(SHIM, places)?,
            request: Prepared::new(spec)?,
            on_start: Box::new(on_start),
            on_exit: Box::new(on_exit),
        };
        let gone = |_| SpawnError::Thread(io::ErrorKind::BrokenPipe.into());
        self.inner.commands.send(Box::new(start)).map_err(gone)?;
        match self.inner.wake.write(1) {
            // EAGAIN: the counter is full, so that the thread is being woken anyway.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(SpawnError::Thread(errno.into())),
        }
    }
}

/// What one of epoll's tokens stands for.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Report(u64),
    Shim(u64),
    Init(u64),
    Program(u64),
}

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Report(child) => child * 4,
            Self::Shim(child) => child * 4 + 1,
            Self::Init(child) => child * 4 + 2,
            Self::Program(child) => child * 4 + 3,
        }
    }

    fn of(token: u64) -> Self {
        let child = token / 4;
        match (token, token % 4) {
            (0, _) => Self::Wake,
            (_, 0) => Self::Report(child),
            (_, 1) => Self::Shim(child),
            (_, 2) => Self::Init(child),
            (_, _) => Self::Program(child),
        }
    }
}

struct Child {
    label: String,
    program_path: PathBuf,
    shim_path: PathBuf,
    state: State,
    deadline: Option<Instant>,
    socket: Option<OwnedFd>,
    shim_pid: i32,
    /// Of the program; known once it has started.
    pid: i32,
    shim: OwnedFd,
    init: Option<OwnedFd>,
    program: Option<OwnedFd>,
    isolation: Isolation,
    shared: Option<Arc<Shared>>,
    on_start: Option<OnStart>,
    on_exit: Option<OnExit>,
}

struct Worker {
    epoll: Epoll,
    commands: Receiver<Box<Start>>,
    wake: Arc<EventFd>,
    children: HashMap<u64, Child>,
    /// Children that have not started yet, by their deadline.
    starting: BTreeMap<(Instant, u64), ()>,
    /// Child numbers begin at 1, so that no token is the wake-up's, and are never used again: a
    /// stale event of an earlier child finds nobody.
    next: u64,
}

impl Worker {
    fn new(commands: Receiver<Box<Start>>, wake: Arc<EventFd>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            &*wake,
            EpollEvent::new(EpollFlags::EPOLLIN, Source::Wake.token()),
        )?;
        Ok(Self {
            epoll,
            commands,
            wake,
            children: HashMap::new(),
            starting: BTreeMap::new(),
            next: 1,
        })
    }

    /// Never returns: see [`Spawner`].
    fn run(mut self) {
        // The host program's handlers run on its own threads.
        if let Err(errno) = SigSet::all().thread_block() {
            tracing::warn!(%errno, "the spawner failed to block signals");
        }
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let ready = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    // EBADF and EINVAL are all that is left: somebody has closed our descriptor.
                    // Without it no child can be waited for; to end would kill them all.
                    tracing::error!(%errno, "the spawner failed to wait for its children");
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            for event in &events[..ready] {
                match Source::of(event.data()) {
                    Source::Wake => self.take_commands(),
                    Source::Report(id) => self.read_reports(id),
                    Source::Shim(id) => self.reap_shim(id),
                    Source::Init(id) => self.gone(id, Event::InitGone),
                    Source::Program(id) => self.gone(id, Event::ProgramGone),
                }
            }
            self.expire(Instant::now());
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some(((deadline, _), ())) = self.starting.first_key_value() else {
            return EpollTimeout::NONE;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // One more millisecond, so that the deadline has passed when we wake.
        u16::try_from(left.as_millis() + 1).map_or(EpollTimeout::MAX, EpollTimeout::from)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((&(deadline, id), ())) = self.starting.first_key_value() {
            if deadline > now {
                return;
            }
            self.starting.remove(&(deadline, id));
            self.apply(id, Event::Deadline);
        }
    }

    fn take_commands(&mut self) {
        if let Err(errno) = self.wake.read()
            && errno != Errno::EAGAIN
        {
            tracing::error!(%errno, "the spawner failed to read its wake-up");
        }
        while let Ok(start) = self.commands.try_recv() {
            self.start_child(*start);
        }
    }

    fn start_child(&mut self, start: Start) {
        let Start {
            label,
            program,
            shim: shim_path,
            request,
            on_start,
            on_exit,
        } = start;
        let id = self.next;
        self.next += 1;
        match launch_shim(&shim_path, &label, &request).and_then(|launched| {
            if let Err(error) = self.watch(id, &launched) {
                // It has got no further than waiting for its request to come true; it dies of the
                // closed socket too.
                rustix::process::pidfd_send_signal(&launched.shim, Signal::KILL)?;
                reap(launched.shim.as_fd(), WaitPidFlag::empty())?;
                return Err(error);
            }
            Ok(launched)
        }) {
            Err(source) => deliver(&label, "on_start", || {
                on_start(Err(SpawnError::Shim {
                    label: label.clone(),
                    shim: shim_path,
                    source,
                }));
            }),
            Ok(launched) => {
                let deadline = Instant::now() + START_DEADLINE;
                self.starting.insert((deadline, id), ());
                self.children.insert(
                    id,
                    Child {
                        label,
                        program_path: program,
                        shim_path,
                        state: State::Starting,
                        deadline: Some(deadline),
                        socket: Some(launched.socket),
                        shim_pid: launched.shim_pid,
                        pid: 0,
                        shim: launched.shim,
                        init: None,
                        program: None,
                        isolation: Isolation::default(),
                        shared: None,
                        on_start: Some(on_start),
                        on_exit: Some(on_exit),
                    },
                );
            }
        }
    }

    fn watch(&self, id: u64, launched: &Launched) -> io::Result<()> {
        self.add(&launched.socket, Source::Report(id))?;
        self.add(&launched.shim, Source::Shim(id))
    }

    fn add(&self, fd: &OwnedFd, source: Source) -> io::Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))
            .map_err(io::Error::from)
    }

    /// Takes every report that is there.
    fn read_reports(&mut self, id: u64) {
        loop {
            let Some(child) = self.children.get_mut(&id) else {
                return;
            };
            let Some(socket) = &child.socket else {
                return;
            };
            match receive(socket.as_fd()) {
                Ok(Received::Report(ShimReport::Started { pid, isolation }, pidfds)) => {
                    self.started(id, pid, isolation, pidfds);
                }
                Ok(Received::Report(ShimReport::Failed { stage, errno }, _)) => {
                    self.apply(id, Event::Failed { stage, errno });
                }
                Ok(Received::Report(ShimReport::Exited { status }, _)) => {
                    self.apply(id, Event::Reported(status));
                }
                Ok(Received::Nothing) => return,
                Ok(Received::HangUp) => {
                    // Its processes' ends are seen by their pidfds. Closing it also ends the polling
                    // of a socket that would be ready for ever.
                    child.socket = None;
                    return;
                }
                Err(error) => {
                    tracing::error!(child = child.label, %error, "failed to read a shim's report");
                    child.socket = None;
                    return;
                }
            }
        }
    }

    fn started(&mut self, id: u64, pid: i32, isolation: Isolation, pidfds: Vec<OwnedFd>) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        let Ok([init, program]) = <[OwnedFd; 2]>::try_from(pidfds) else {
            tracing::error!(child = child.label, "a shim's report lacks its pidfds");
            child.socket = None;
            return;
        };
        child.isolation = isolation;
        child.pid = pid;
        let watched = self
            .add(&init, Source::Init(id))
            .and_then(|()| self.add(&program, Source::Program(id)));
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        if let Err(error) = watched {
            // Without the pidfds its end could not be seen: close the lifeline, and the shim kills
            // the program and ends, which counts as a failed start.
            tracing::error!(child = child.label, %error, "failed to watch a child");
            child.socket = None;
            return;
        }
        child.init = Some(init);
        child.program = Some(program);
        self.apply(id, Event::Started);
    }

    fn reap_shim(&mut self, id: u64) {
        // What it has said before it ended comes first.
        self.read_reports(id);
        let Some(child) = self.children.get(&id) else {
            return;
        };
        let exit = match reap(child.shim.as_fd(), WaitPidFlag::WNOHANG) {
            Ok(Some(exit)) => exit,
            Ok(None) => return,
            // Something else in this process has waited for it, or SIGCHLD is ignored.
            Err(_) => ChildExit::Unknown,
        };
        if let Err(error) = self.epoll.delete(&child.shim) {
            tracing::error!(child = child.label, %error, "failed to forget a reaped shim");
        }
        self.apply(id, Event::ShimReaped(exit));
    }

    fn gone(&mut self, id: u64, event: Event) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        // The pidfd of an ended process stays readable: it is watched no longer. The handle's copy
        // of the descriptor would keep a closed one in the epoll set, hence the explicit removal.
        let pidfd = match event {
            Event::InitGone => child.init.take(),
            Event::ProgramGone => child.program.take(),
            Event::Started
            | Event::Failed { .. }
            | Event::Reported(_)
            | Event::Deadline
            | Event::ShimReaped(_) => None,
        };
        if let Some(pidfd) = pidfd
            && let Err(error) = self.epoll.delete(&pidfd)
        {
            tracing::error!(child = child.label, %error, "failed to forget an ended process");
        }
        self.apply(id, event);
    }

    fn apply(&mut self, id: u64, event: Event) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        let (state, action) = step(child.state, event);
        tracing::trace!(child = child.label, ?event, ?state, ?action, "child");
        child.state = state;
        if state != State::Starting
            && let Some(deadline) = child.deadline.take()
        {
            self.starting.remove(&(deadline, id));
        }
        match action {
            None => {}
            Some(Action::AnnounceStart) => child.announce_start(),
            Some(Action::AnnounceFailure(failure, exit)) => child.announce_failure(failure, exit),
            Some(Action::KillShim) => child.kill([Some(&child.shim)]),
            Some(Action::KillRest) => {
                child.kill([child.init.as_ref(), child.program.as_ref()]);
            }
            Some(Action::AnnounceExit(exit)) => child.announce_exit(exit),
        }
        if state == State::Ended {
            self.children.remove(&id);
        }
    }
}

impl Child {
    fn announce_start(&mut self) {
        let (Some(program), Some(on_start)) = (&self.program, self.on_start.take()) else {
            return;
        };
        match program.try_clone() {
            Ok(program) => {
                let shared = Arc::new(Shared::new(
                    self.label.clone(),
                    self.pid,
                    self.shim_pid,
                    std::mem::take(&mut self.isolation),
                    program,
                ));
                self.shared = Some(Arc::clone(&shared));
                deliver(&self.label, "on_start", || {
                    on_start(Ok(ChildHandle(shared)))
                });
            }
            Err(source) => {
                // Nobody will ever hold a handle to it, so it must not go on.
                self.kill([self.program.as_ref()]);
                self.on_exit = None;
                deliver(&self.label, "on_start", || {
                    on_start(Err(SpawnError::Shim {
                        label: self.label.clone(),
                        shim: self.shim_path.clone(),
                        source,
                    }));
                });
            }
        }
    }

    fn announce_failure(&mut self, failure: StartFailure, exit: ChildExit) {
        let label = self.label.clone();
        let error = match failure {
            StartFailure::Reported { stage, errno } => SpawnError::Start {
                program: self.program_path.clone(),
                stage,
                source: io::Error::from_raw_os_error(errno),
            },
            StartFailure::TimedOut => SpawnError::TimedOut {
                label,
                seconds: START_DEADLINE.as_secs(),
            },
            StartFailure::ShimDied => SpawnError::ShimDied { label, exit },
        };
        if let Some(on_start) = self.on_start.take() {
            deliver(&self.label, "on_start", || on_start(Err(error)));
        }
    }

    fn announce_exit(&mut self, exit: ChildExit) {
        if let Some(shared) = &self.shared {
            shared.set_reaped(exit);
        }
        if let Some(on_exit) = self.on_exit.take() {
            deliver(&self.label, "on_exit", || on_exit(exit));
        }
    }

    fn kill<'a>(&self, pidfds: impl IntoIterator<Item = Option<&'a OwnedFd>>) {
        for pidfd in pidfds.into_iter().flatten() {
            match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
                // It has ended already.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    tracing::error!(child = self.label, %error, "failed to kill a child's process");
                }
            }
        }
    }
}

/// Runs somebody else's callback: its panic must not end the thread on which every child depends.
fn deliver(label: &str, name: &str, callback: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        tracing::error!(
            child = label,
            callback = name,
            "a callback of the spawner panicked"
        );
    }
}

struct Launched {
    socket: OwnedFd,
    shim_pid: i32,
    shim: OwnedFd,
}

fn launch_shim(shim: &Path, label: &str, request: &Prepared) -> io::Result<Launched> {
    use std::os::unix::process::CommandExt;
    let (socket, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Sent before there is anybody to receive it: the shim finds it at its first read.
    request.send(socket.as_fd())?;
    let child = Command::new(shim)
        // For people who read a list of processes.
        .arg(format!("--label={label}"))
        .env_clear()
        .stdin(StdStdio::from(theirs))
        .stdout(StdStdio::null())
        .stderr(StdStdio::null())
        // A terminal's Ctrl-C is for the supervisor alone.
        .process_group(0)
        .spawn()?;
    let shim_pid = child.id().cast_signed();
    let pid = Pid::from_raw(shim_pid).ok_or(io::ErrorKind::InvalidData)?;
    // Only this thread waits for it, so that the number is still its own.
    let shim = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Launched {
        socket,
        shim_pid,
        shim,
    })
}

fn reap(pidfd: BorrowedFd<'_>, flags: WaitPidFlag) -> Result<Option<ChildExit>, Errno> {
    loop {
        match waitid(Id::PIDFd(pidfd), flags | WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(ChildExit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(Some(ChildExit::Signal(signal as i32)));
            }
            // WEXITED asks for nothing but these two.
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

enum Received {
    Report(ShimReport, Vec<OwnedFd>),
    Nothing,
    HangUp,
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => break received.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
            // The shim was killed with our request unread.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::HangUp),
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if received == 0 {
        return Ok(Received::HangUp);
    }
    let report = decode_spec(&bytes[..received])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Received::Report(report, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_their_source() {
        for child in [1, 2, 1 << 40] {
            for source in [
                Source::Report(child),
                Source::Shim(child),
                Source::Init(child),
                Source::Program(child),
            ] {
                let token = source.token();
                assert_eq!(Source::of(token).token(), token);
                assert_ne!(token, Source::Wake.token());
            }
        }
    }
}
