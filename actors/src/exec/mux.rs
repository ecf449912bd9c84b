//! The sessions of one exec port, without I/O: frames of the guest and calls of clients in, frames
//! for the guest out.
//!
//! What the guest sends is hostile. Every frame is checked against the session's state and windows;
//! the first that does not fit ends the port and all its sessions, since whoever sends it is not
//! the vm-init that this supervisor was built with.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Waker};

use iii_proto::codec::{CodecError, FrameReader, encode_frame};
use iii_proto::exec::window::{ReceiveWindow, SendWindow, WindowError};
use iii_proto::exec::{GuestFrame, HostFrame, SessionId};
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

mod clients;

#[cfg(test)]
mod tests;
