//! The sessions of one exec port, without I/O: frames of the guest and calls of clients in, frames
//! for the guest out.
//!
//! What the guest sends is hostile. Every frame is checked against the session's state and windows;
//! the first that does not fit ends the port and all its sessions, since whoever sends it is not
//! the vm-init that this supervisor was built with.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::task::{Context, Poll, Waker};

use iii_proto::codec::{CodecError, FrameReader, encode_frame};
use iii_proto::exec::window::{ReceiveWindow, SendWindow, WindowError};
use iii_proto::exec::{Command, GuestFrame, HostFrame, MAX_SESSIONS, SessionId, TerminalSize};
use iii_proto::ids::GuestPid;
use iii_proto::log::Stream;
use iii_proto::restart::Exit;
use tokio::sync::mpsc;

use super::{ExecError, ExecOutput};

/// How a guest broke its port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortFault {
    /// It is no frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A session that was never opened, or is over.
    #[error("a frame for session {0}, which there is not")]
    Unknown(SessionId),
    /// Not in this state.
    #[error("{frame} for session {session} {when}")]
    OutOfOrder {
        frame: &'static str,
        session: SessionId,
        when: &'static str,
    },
    /// More than it was granted.
    #[error("session {session}: {error}")]
    Window {
        session: SessionId,
        error: WindowError,
    },
}

#[derive(Debug)]
enum Phase {
    /// The guest has not answered.
    Opening,
    /// The guest has it.
    Open { pid: Option<GuestPid> },
    /// The guest has nothing of it any more.
    Ended(Result<Exit, ExecError>),
}

#[derive(Debug)]
struct Session {
    phase: Phase,
    /// Its client is gone: only its end is waited for.
    closed: bool,
    output: VecDeque<ExecOutput>,
    output_window: ReceiveWindow,
    /// Output is thrown away.
    output_dropped: bool,
    stdin_window: SendWindow,
    /// The client says no more.
    stdin_ended: bool,
    /// The command hears no more.
    stdin_closed: bool,
    on_phase: Vec<Waker>,
    on_output: Option<Waker>,
    on_stdin: Option<Waker>,
}

impl Session {
    fn new(stdin: bool) -> Self {
        Self {
            phase: Phase::Opening,
            closed: false,
            output: VecDeque::new(),
            output_window: ReceiveWindow::default(),
            output_dropped: false,
            stdin_window: SendWindow::default(),
            stdin_ended: !stdin,
            stdin_closed: false,
            on_phase: Vec::new(),
            on_output: None,
            on_stdin: None,
        }
    }

    fn is_open(&self) -> bool {
        match self.phase {
            Phase::Open { .. } => !self.closed,
            Phase::Opening | Phase::Ended(_) => false,
        }
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Ended(_) => true,
            Phase::Opening | Phase::Open { .. } => false,
        }
    }

    fn enter(&mut self, phase: Phase, woken: &mut Vec<Waker>) {
        self.phase = phase;
        woken.append(&mut self.on_phase);
        if self.is_over() {
            woken.extend(self.on_output.take());
            woken.extend(self.on_stdin.take());
        }
    }

    fn wait_for_phase(&mut self, cx: &Context<'_>) {
        if !self.on_phase.iter().any(|w| w.will_wake(cx.waker())) {
            self.on_phase.push(cx.waker().clone());
        }
    }
}

/// All sessions of a port.
#[derive(Debug)]
pub(crate) struct Mux {
    sessions: BTreeMap<SessionId, Session>,
    next: u32,
    reader: FrameReader,
    /// Bounded by the sessions' windows; `None` once the port is of no more use.
    to_guest: Option<mpsc::UnboundedSender<Vec<u8>>>,
    /// Why it is not.
    lost: Option<String>,
    /// To be woken as soon as nobody holds the mux.
    woken: Vec<Waker>,
}

impl Mux {
    pub(crate) fn new(to_guest: mpsc::UnboundedSender<Vec<u8>>) -> Self {
        Self {
            sessions: BTreeMap::new(),
            next: 0,
            reader: FrameReader::new(),
            to_guest: Some(to_guest),
            lost: None,
            woken: Vec::new(),
        }
    }

    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.woken)
    }

    /// Takes what one read of the port returned. After a fault the port is of no more use.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) -> Result<(), PortFault> {
        if self.lost.is_some() {
            return Ok(());
        }
        self.reader.feed(bytes);
        let result = self.take_frames();
        if let Err(fault) = &result {
            self.lose(format!("the guest broke its exec port: {fault}"));
        }
        result
    }

    fn take_frames(&mut self) -> Result<(), PortFault> {
        while let Some(frame) = self.reader.next::<GuestFrame>()? {
            self.on_frame(frame)?;
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: GuestFrame) -> Result<(), PortFault> {
        let id = frame.session();
        let Some(session) = self.sessions.get_mut(&id) else {
            return Err(PortFault::Unknown(id));
        };
        let out_of_order = |frame, when| {
            Err(PortFault::OutOfOrder {
                frame,
                session: id,
                when,
            })
        };
        let broken = |error| PortFault::Window { session: id, error };
        match (&session.phase, frame) {
            (Phase::Opening, GuestFrame::Opened { pid, .. }) => {
                session.enter(Phase::Open { pid }, &mut self.woken);
            }
            (Phase::Opening, GuestFrame::Refused { message, .. }) => {
                let end = Err(ExecError::Refused(message));
                session.enter(Phase::Ended(end), &mut self.woken);
            }
            (
                Phase::Opening,
                frame @ (GuestFrame::Output { .. }
                | GuestFrame::StdinCredit { .. }
                | GuestFrame::StdinClosed { .. }
                | GuestFrame::Exited { .. }),
            ) => return out_of_order(name(&frame), "before it was opened"),
            (
                Phase::Open { .. },
                frame @ (GuestFrame::Opened { .. } | GuestFrame::Refused { .. }),
            ) => return out_of_order(name(&frame), "after it was opened"),
            (Phase::Open { .. }, GuestFrame::Output { stream, bytes, .. }) => {
                return self.on_output(id, stream, bytes);
            }
            (Phase::Open { .. }, GuestFrame::StdinCredit { credit, .. }) => {
                session.stdin_window.refill(credit).map_err(broken)?;
                self.woken.extend(session.on_stdin.take());
            }
            (Phase::Open { .. }, GuestFrame::StdinClosed { .. }) => {
                if session.stdin_closed {
                    return out_of_order("StdinClosed", "for the second time");
                }
                session.stdin_closed = true;
                self.woken.extend(session.on_stdin.take());
            }
            (Phase::Open { .. }, GuestFrame::Exited { exit, .. }) => {
                session.enter(Phase::Ended(Ok(exit)), &mut self.woken);
            }
            (
                Phase::Ended(_),
                GuestFrame::Opened { .. }
                | GuestFrame::Refused { .. }
                | GuestFrame::Output { .. }
                | GuestFrame::StdinCredit { .. }
                | GuestFrame::StdinClosed { .. }
                | GuestFrame::Exited { .. },
            ) => return Err(PortFault::Unknown(id)),
        }
        if session.closed && session.is_over() {
            self.sessions.remove(&id);
        }
        Ok(())
    }

    fn on_output(
        &mut self,
        id: SessionId,
        stream: Stream,
        bytes: Vec<u8>,
    ) -> Result<(), PortFault> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Err(PortFault::Unknown(id));
        };
        session
            .output_window
            .receive(bytes.len())
            .map_err(|error| PortFault::Window { session: id, error })?;
        if session.closed {
            // No credit for it: a guest that goes on after `Close` has one window left.
            return Ok(());
        }
        if session.output_dropped {
            let credit = session.output_window.consume(bytes.len());
            self.grant(id, credit);
            return Ok(());
        }
        session.output.push_back(match stream {
            Stream::Stdout => ExecOutput::Stdout(bytes),
            Stream::Stderr => ExecOutput::Stderr(bytes),
        });
        self.woken.extend(session.on_output.take());
        Ok(())
    }

    fn grant(&mut self, session: SessionId, credit: Option<u32>) {
        if let Some(credit) = credit {
            self.send(&HostFrame::OutputCredit { session, credit });
        }
    }

    fn send(&mut self, frame: &HostFrame) {
        match encode_frame(frame) {
            Ok(frame) => self.send_encoded(frame),
            Err(error) => tracing::error!(%error, "failed to tell the guest"),
        }
    }

    fn send_encoded(&mut self, frame: Vec<u8>) {
        if let Some(to_guest) = &self.to_guest
            && to_guest.send(frame).is_err()
        {
            // The writer ends with the VM, whose end the reader notices.
            self.to_guest = None;
        }
    }

    /// The port is of no more use, and no session has an end that is known.
    pub(crate) fn lose(&mut self, cause: String) {
        if self.lost.is_some() {
            return;
        }
        for session in self.sessions.values_mut().filter(|s| !s.is_over()) {
            let end = Err(ExecError::Lost(cause.clone()));
            session.enter(Phase::Ended(end), &mut self.woken);
        }
        self.sessions.retain(|_, s| !s.closed);
        self.to_guest = None;
        self.lost = Some(cause);
    }

    /// Begins a session.
    pub(crate) fn open(&mut self, command: Command) -> Result<SessionId, ExecError> {
        if let Some(cause) = &self.lost {
            return Err(ExecError::Lost(cause.clone()));
        }
        // Those that were closed count until the guest has said that nothing is left of them.
        if self.sessions.values().filter(|s| !s.is_over()).count() >= MAX_SESSIONS {
            return Err(ExecError::TooManySessions);
        }
        // Four thousand million sessions in one boot of one guest are as good as too many.
        let next = self.next.checked_add(1);
        let next = next.ok_or(ExecError::TooManySessions)?;
        let session = SessionId(next);
        let stdin = command.stdin;
        let frame = match encode_frame(&HostFrame::Open { session, command }) {
            Ok(frame) => frame,
            Err(CodecError::TooLong { length, limit }) => {
                return Err(ExecError::TooLong { length, limit });
            }
            Err(error) => return Err(ExecError::Refused(error.to_string())),
        };
        self.next = next;
        self.sessions.insert(session, Session::new(stdin));
        self.send_encoded(frame);
        Ok(session)
    }

    /// Its client is gone.
    pub(crate) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.closed = true;
        session.output.clear();
        self.woken.extend(session.on_output.take());
        self.woken.extend(session.on_stdin.take());
        if session.is_over() {
            self.sessions.remove(&id);
        } else {
            self.send(&HostFrame::Close { session: id });
        }
    }

    /// Resolves when the guest has answered: with the pid of the command's process.
    pub(crate) fn poll_opened(
        &mut self,
        id: SessionId,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<GuestPid>, ExecError>> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Poll::Ready(Err(ExecError::Ended));
        };
        match &session.phase {
            Phase::Opening => {
                session.wait_for_phase(cx);
                Poll::Pending
            }
            Phase::Open { pid } => Poll::Ready(Ok(*pid)),
            Phase::Ended(Err(error)) => Poll::Ready(Err(error.clone())),
            // It was opened and is over: a pid of the past is of no use to anybody.
            Phase::Ended(Ok(_)) => Poll::Ready(Ok(None)),
        }
    }

    /// Resolves when the session is over.
    pub(crate) fn poll_end(
        &mut self,
        id: SessionId,
        cx: &Context<'_>,
    ) -> Poll<Result<Exit, ExecError>> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Poll::Ready(Err(ExecError::Ended));
        };
        match &session.phase {
            Phase::Opening | Phase::Open { .. } => {
                session.wait_for_phase(cx);
                Poll::Pending
            }
            Phase::Ended(end) => Poll::Ready(end.clone()),
        }
    }

    /// Resolves to the next output; `None` when there is no more.
    pub(crate) fn poll_output(
        &mut self,
        id: SessionId,
        cx: &Context<'_>,
    ) -> Poll<Option<ExecOutput>> {
        let Some(session) = self.sessions.get_mut(&id).filter(|s| !s.closed) else {
            return Poll::Ready(None);
        };
        if let Some(output) = session.output.pop_front() {
            let credit = session.output_window.consume(output.bytes().len());
            // A session that is over needs none.
            if session.is_open() {
                self.grant(id, credit);
            }
            return Poll::Ready(Some(output));
        }
        if session.is_over() {
            return Poll::Ready(None);
        }
        session.on_output = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nobody reads the output any more: it is taken and thrown away, so that the command goes on.
    pub(crate) fn drop_output(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.output_dropped = true;
        let mut credit = 0;
        for output in session.output.drain(..) {
            credit += session
                .output_window
                .consume(output.bytes().len())
                .unwrap_or(0);
        }
        if session.is_open() && credit > 0 {
            self.grant(id, Some(credit));
        }
    }

    /// Resolves to the number of bytes that were taken as input.
    pub(crate) fn poll_stdin(
        &mut self,
        id: SessionId,
        bytes: &[u8],
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let session = self.sessions.get_mut(&id);
        let open = session.filter(|s| s.is_open() && !s.stdin_ended && !s.stdin_closed);
        let Some(session) = open else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let room = session.stdin_window.room(bytes.len());
        if room == 0 && !bytes.is_empty() {
            session.on_stdin = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if room > 0 {
            session.stdin_window.spend(room);
            let bytes = bytes[..room].to_vec();
            self.send(&HostFrame::Stdin { session: id, bytes });
        }
        Poll::Ready(Ok(room))
    }

    /// No more input comes.
    pub(crate) fn end_stdin(&mut self, id: SessionId) {
        let session = self.sessions.get_mut(&id);
        if let Some(session) = session.filter(|s| s.is_open() && !s.stdin_ended) {
            session.stdin_ended = true;
            self.send(&HostFrame::StdinEnd { session: id });
        }
    }

    pub(crate) fn resize(&mut self, id: SessionId, size: TerminalSize) {
        if self.sessions.get(&id).is_some_and(Session::is_open) {
            self.send(&HostFrame::Resize { session: id, size });
        }
    }

    pub(crate) fn signal(&mut self, id: SessionId, signal: i32) {
        if self.sessions.get(&id).is_some_and(Session::is_open) {
            let session = id;
            self.send(&HostFrame::Signal { session, signal });
        }
    }
}

fn name(frame: &GuestFrame) -> &'static str {
    match frame {
        GuestFrame::Opened { .. } => "Opened",
        GuestFrame::Refused { .. } => "Refused",
        GuestFrame::Output { .. } => "Output",
        GuestFrame::StdinCredit { .. } => "StdinCredit",
        GuestFrame::StdinClosed { .. } => "StdinClosed",
        GuestFrame::Exited { .. } => "Exited",
    }
}

#[cfg(test)]
mod tests;
