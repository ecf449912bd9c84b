//! The thread that starts every child and waits for it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use iii_proto::shim::{Isolation, Layer, ShimReport};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::SigSet;
use nix::sys::wait::WaitPidFlag;

use super::child::{Child, START_DEADLINE, deliver, kill};
use super::error::SpawnError;
use super::handle::ChildExit;
use super::lifecycle::{Action, Event, State, step};
use super::link::{Launched, Received, launch_shim, reap, receive};
use super::spawner::Start;

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

/// The thread's state.
pub(super) struct Worker {
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
    pub(super) fn new(commands: Receiver<Box<Start>>, wake: Arc<EventFd>) -> io::Result<Self> {
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

    /// Never returns: the end of the thread would be the death of all children.
    pub(super) fn run(mut self) {
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
                kill(&launched.shim)?;
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
                        _cgroup: request.cgroup.clone(),
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
        if let Some(Layer::Refused(errno)) = isolation.cgroup {
            let error = io::Error::from_raw_os_error(errno);
            tracing::warn!(child = child.label, %error, "a child runs outside of its cgroup");
        }
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
