//! What clients ask of the mux.

use std::io;
use std::task::{Context, Poll};

use iii_proto::codec::{CodecError, encode_frame};
use iii_proto::exec::{Command, HostFrame, MAX_SESSIONS, SessionId, TerminalSize};
use iii_proto::ids::GuestPid;
use iii_proto::restart::Exit;

use super::{ExecError, ExecOutput, Mux, Phase, Session};

impl Mux {
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
