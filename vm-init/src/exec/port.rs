//! All sessions, and the port that they share.
//!
//! The port is always read, and nothing waits for a single session: its windows bound what it can
//! make wait. The port's own queue is filled only to a mark, in turn by all sessions.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use iii_proto::codec::{CodecError, FrameReader};
use iii_proto::exec::{Command, GuestFrame, HostFrame, MAX_CHUNK, MAX_SESSIONS, SessionId};
use iii_proto::ids::GuestPid;
use iii_proto::restart::Exit;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::lifecycle::Event;
use super::replies::Replies;
use super::session::{Part, Session};
use super::start::{self, Start};
use crate::launch::Surroundings;

/// Where the numbers begin by which epoll names parts of sessions.
pub(crate) const TOKENS: u64 = 1 << 40;
/// Room for a [`Part`] in such a number.
const PART_BITS: u32 = 2;

/// Queued bytes above which no output is read: commands that flood their output would otherwise
/// make PID 1 grow beyond the guest's memory.
const HIGH_WATER: usize = 256 * 1024;
/// Reads of outputs per turn of the event loop, so that a flood does not keep heartbeats waiting.
const READS_PER_TURN: usize = 8;
/// Reads of the port per turn; the driver gives a page at a time.
const PORT_READS_PER_TURN: usize = 64;

/// What the event loop lends for a turn.
pub(crate) struct Hands<'a> {
    pub(crate) epoll: &'a Epoll,
    pub(crate) surroundings: &'a Surroundings,
    pub(crate) now: Duration,
}

/// All exec sessions of a guest.
pub struct Exec {
    port: OwnedFd,
    reader: FrameReader,
    connected: bool,
    readable: bool,
    /// Why no session is begun any more.
    refusal: Option<&'static str>,
    replies: Replies,
    /// Below it, each session has a cgroup of its own.
    cgroups: PathBuf,
    begun: u32,
    sessions: Vec<Session>,
    /// Whose turn to be read comes first.
    first: usize,
    buffer: Vec<u8>,
}

impl Exec {
    /// Takes the port, a non-blocking stream, and the cgroup whose limits hold for all sessions.
    pub fn new(port: OwnedFd, cgroups: PathBuf) -> Self {
        Self {
            port,
            reader: FrameReader::new(),
            connected: false,
            readable: true,
            refusal: None,
            replies: Replies::default(),
            cgroups,
            begun: 0,
            sessions: Vec::new(),
            first: 0,
            buffer: vec![0; MAX_CHUNK],
        }
    }

    /// What epoll watches for the port.
    pub(crate) fn port(&self) -> &OwnedFd {
        &self.port
    }

    /// When [`Self::on_timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.sessions.iter().filter_map(Session::deadline).min()
    }

    /// Something can be done without waiting.
    pub(crate) fn has_work(&self) -> bool {
        self.readable
            || self.replies.bytes() < HIGH_WATER && self.sessions.iter().any(Session::has_output)
    }

    /// No session is left, and the host has heard of their ends.
    pub(crate) fn is_quiet(&self) -> bool {
        self.sessions.is_empty() && self.replies.bytes() == 0
    }

    /// What the user should be told.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        self.replies.take_warnings()
    }

    /// Everything that can be done without waiting, within a turn's bounds.
    pub(crate) fn turn(&mut self, hands: &Hands<'_>) -> Result<(), CodecError> {
        self.read_port(hands)?;
        for session in &mut self.sessions {
            session.write_input(&mut self.replies)?;
        }
        self.read_outputs()?;
        for session in &mut self.sessions {
            session.settle(hands.now, &mut self.replies)?;
        }
        self.sessions.retain(|session| !session.over());
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        self.replies.write_to(&self.port);
    }

    fn read_outputs(&mut self) -> Result<(), CodecError> {
        let count = self.sessions.len();
        let mut reads = READS_PER_TURN;
        let mut idle = 0;
        while idle < count && reads > 0 && self.replies.bytes() < HIGH_WATER {
            self.first = (self.first + 1) % count;
            let session = &mut self.sessions[self.first];
            if session.read_outputs(&mut self.buffer, &mut self.replies)? {
                idle = 0;
                reads -= 1;
            } else {
                idle += 1;
            }
        }
        Ok(())
    }

    fn read_port(&mut self, hands: &Hands<'_>) -> Result<(), CodecError> {
        for _ in 0..PORT_READS_PER_TURN {
            if !self.readable {
                return Ok(());
            }
            match nix::unistd::read(&self.port, &mut self.buffer) {
                Ok(0) => {
                    self.readable = false;
                    // Before the host has opened its end a port reads as ended.
                    if self.connected {
                        self.hang_up(hands.now)?;
                    }
                }
                Ok(count) => {
                    self.connected = true;
                    self.reader.feed(&self.buffer[..count]);
                    self.take_frames(hands)?;
                }
                Err(Errno::EINTR) => {}
                Err(_) => self.readable = false,
            }
        }
        Ok(())
    }

    fn take_frames(&mut self, hands: &Hands<'_>) -> Result<(), CodecError> {
        loop {
            match self.reader.next::<HostFrame>() {
                Ok(Some(frame)) => self.on_frame(frame, hands)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The stream has no boundary any more: whoever writes it is no supervisor.
                    let message = format!("failed to read the exec port: {error}");
                    self.replies.warn(message);
                    self.readable = false;
                    return self.hang_up(hands.now);
                }
            }
        }
    }

    fn on_frame(&mut self, frame: HostFrame, hands: &Hands<'_>) -> Result<(), CodecError> {
        let id = frame.session();
        let session = self.sessions.iter_mut().find(|s| s.id() == id);
        let (frame, session) = match (frame, session) {
            (HostFrame::Open { session, command }, None) => {
                return self.open(session, &command, hands);
            }
            // Of a session that has just ended: the host has not heard of it yet.
            (_, None) => return Ok(()),
            (frame, Some(session)) => (frame, session),
        };
        let kept = match frame {
            HostFrame::Open { .. } => {
                let message = format!("the host opened exec session {id} twice");
                self.replies.warn(message);
                return Ok(());
            }
            HostFrame::Stdin { bytes, .. } => session.input().push(bytes),
            HostFrame::StdinEnd { .. } => {
                session.input().end();
                Ok(())
            }
            HostFrame::OutputCredit { credit, .. } => session.window().refill(credit),
            HostFrame::Resize { size, .. } => {
                session.resize(size);
                Ok(())
            }
            HostFrame::Signal { signal, .. } => {
                session.signal(signal);
                Ok(())
            }
            HostFrame::Close { .. } => {
                return session.feed(Event::Close, hands.now, &mut self.replies);
            }
        };
        if let Err(error) = kept {
            let message = format!("the host broke exec session {id}: {error}");
            self.replies.warn(message);
            session.feed(Event::Close, hands.now, &mut self.replies)?;
        }
        Ok(())
    }

    fn open(
        &mut self,
        id: SessionId,
        command: &Command,
        hands: &Hands<'_>,
    ) -> Result<(), CodecError> {
        if let Some(refusal) = self.refusal {
            return self.replies.refuse(id, refusal.to_owned());
        }
        if self.sessions.len() >= MAX_SESSIONS {
            let message = format!("the guest has {MAX_SESSIONS} sessions, which is the limit");
            return self.replies.refuse(id, message);
        }
        self.begun += 1;
        // Never one that was used before: see `Cgroup`.
        let cgroup = self.cgroups.join(format!("exec{}", self.begun));
        let terminal = command.terminal.is_some();
        match start::start(command, hands.surroundings, cgroup) {
            Ok(Start::Process(process)) => {
                self.replies.push(&GuestFrame::Opened {
                    session: id,
                    pid: Some(process.pid),
                })?;
                let session = Session::new(id, terminal, *process);
                let watched = watch(&session, hands.epoll);
                self.sessions.push(session);
                if let Err(errno) = watched {
                    // Only a guest without memory or descriptors; what is not heard of is ended.
                    let message = format!("failed to watch exec session {id}: {errno}");
                    self.replies.warn(message);
                    return self.close_last(hands.now);
                }
                Ok(())
            }
            Ok(Start::NoProgram { code, message }) => {
                self.replies.push(&GuestFrame::Opened {
                    session: id,
                    pid: None,
                })?;
                self.replies.complain(id, terminal, message)?;
                self.replies.push(&GuestFrame::Exited {
                    session: id,
                    exit: Exit::Code { code },
                })
            }
            Err(error) => self.replies.refuse(id, error.to_string()),
        }
    }

    fn close_last(&mut self, now: Duration) -> Result<(), CodecError> {
        match self.sessions.last_mut() {
            Some(session) => session.feed(Event::Kill, now, &mut self.replies),
            None => Ok(()),
        }
    }

    /// epoll says something about the port.
    pub(crate) fn on_port(&mut self, flags: EpollFlags, now: Duration) -> Result<(), CodecError> {
        if !flags.contains(EpollFlags::EPOLLHUP) {
            self.readable = self.refusal != Some(GONE);
            self.connected = true;
            return Ok(());
        }
        if self.connected {
            return self.hang_up(now);
        }
        Ok(())
    }

    /// epoll says something about a part of a session.
    pub(crate) fn on_event(&mut self, token: u64, flags: EpollFlags) -> Result<(), CodecError> {
        let number = (token - TOKENS) >> PART_BITS;
        let part = token & ((1 << PART_BITS) - 1);
        let part = Part::ALL.into_iter().find(|p| *p as u64 == part);
        // It may have ended earlier in this batch of events.
        let session = self
            .sessions
            .iter_mut()
            .find(|s| u64::from(s.id().0) == number);
        let (Some(part), Some(session)) = (part, session) else {
            return Ok(());
        };
        let error = flags.contains(EpollFlags::EPOLLERR);
        session.on_ready(part, error, &mut self.replies)
    }

    /// A child was reaped; true if it was the main process of a session.
    pub(crate) fn on_child_end(
        &mut self,
        pid: GuestPid,
        exit: Exit,
        now: Duration,
    ) -> Result<bool, CodecError> {
        match self.sessions.iter_mut().find(|s| s.leads(pid)) {
            Some(session) => {
                session.feed(Event::MainEnded { exit }, now, &mut self.replies)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A deadline may have come.
    pub(crate) fn on_timer(&mut self, now: Duration) -> Result<(), CodecError> {
        self.feed_all(&Event::Timer, now)
    }

    /// The guest ends: sessions get their grace, as far as the guest's end leaves it to them.
    pub(crate) fn end(&mut self, now: Duration) -> Result<(), CodecError> {
        if self.refusal.is_some() {
            return Ok(());
        }
        self.refusal = Some("the guest is being stopped");
        self.feed_all(&Event::Close, now)
    }

    /// The guest ends now.
    pub(crate) fn kill(&mut self, now: Duration) -> Result<(), CodecError> {
        self.refusal = Some("the guest is being stopped");
        self.feed_all(&Event::Kill, now)?;
        self.flush();
        Ok(())
    }

    /// The host's end is closed: all clients are gone, and none comes again.
    fn hang_up(&mut self, now: Duration) -> Result<(), CodecError> {
        self.refusal = Some(GONE);
        self.readable = false;
        self.reader = FrameReader::new();
        self.replies.give_up();
        self.feed_all(&Event::Close, now)
    }

    fn feed_all(&mut self, event: &Event, now: Duration) -> Result<(), CodecError> {
        for session in &mut self.sessions {
            session.feed(event.clone(), now, &mut self.replies)?;
        }
        Ok(())
    }
}

const GONE: &str = "the host has closed the port";

/// Edge-triggered, as the workload's pipes are: an output that is left unread for backpressure must
/// not wake the loop.
fn watch(session: &Session, epoll: &Epoll) -> nix::Result<()> {
    for (part, fd) in session.parts() {
        let wanted = match part {
            Part::Input => EpollFlags::EPOLLOUT,
            Part::Stdout | Part::Stderr => EpollFlags::EPOLLIN,
        };
        let number = u64::from(session.id().0) << PART_BITS;
        let token = TOKENS + (number | part as u64);
        epoll.add(fd, EpollEvent::new(wanted | EpollFlags::EPOLLET, token))?;
    }
    Ok(())
}
