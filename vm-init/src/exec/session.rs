//! One session: feeds its [`Lifecycle`] and does what that orders.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use iii_proto::codec::CodecError;
use iii_proto::exec::window::SendWindow;
use iii_proto::exec::{GuestFrame, MAX_CHUNK, SessionId, TerminalSize};
use iii_proto::ids::GuestPid;
use iii_proto::log::Stream;

use super::lifecycle::{Action, Event, Lifecycle};
use super::replies::Replies;
use super::start::Process;
use super::streams::{Input, Output};
use crate::cgroup::Cgroup;
use crate::sys;

const SIGHUP: i32 = 1;
const SIGCONT: i32 = 18;

/// Something of a session that epoll watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Part {
    Input,
    Stdout,
    Stderr,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Input, Self::Stdout, Self::Stderr];
}

/// One session.
pub(super) struct Session {
    id: SessionId,
    life: Lifecycle,
    pid: GuestPid,
    cgroup: Cgroup,
    terminal: bool,
    input: Input,
    outputs: Vec<Output>,
    window: SendWindow,
}

impl Session {
    pub(super) fn new(id: SessionId, terminal: bool, process: Process) -> Self {
        Self {
            id,
            life: Lifecycle::default(),
            pid: process.pid,
            cgroup: process.cgroup,
            terminal,
            input: process.input,
            outputs: process.outputs,
            window: SendWindow::default(),
        }
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    pub(super) fn over(&self) -> bool {
        self.life.over()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.life.deadline()
    }

    /// Its main process is this one.
    pub(super) fn leads(&self, pid: GuestPid) -> bool {
        self.life.has_main() && self.pid == pid
    }

    /// What is to be watched, once, right after it was made.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Part, BorrowedFd<'_>)> {
        let outputs = self.outputs.iter().map(|output| {
            let part = match output.stream() {
                Stream::Stdout => Part::Stdout,
                Stream::Stderr => Part::Stderr,
            };
            (part, output.fd())
        });
        let input = self.input.fd().map(|fd| (Part::Input, fd));
        outputs.chain(input)
    }

    pub(super) fn feed(
        &mut self,
        event: Event,
        now: Duration,
        replies: &mut Replies,
    ) -> Result<(), CodecError> {
        for action in self.life.handle(event, now) {
            self.perform(action, replies)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action, replies: &mut Replies) -> Result<(), CodecError> {
        let session = self.id;
        match action {
            Action::Hangup => {
                self.signal(SIGHUP);
                self.signal(SIGCONT);
                Ok(())
            }
            Action::Kill => {
                if !self.cgroup.is_empty()
                    && let Err(errno) = self.cgroup.kill()
                {
                    replies.warn(format!("failed to kill exec session {session}: {errno}"));
                }
                Ok(())
            }
            Action::CloseInput if self.input.close() => {
                replies.push(&GuestFrame::StdinClosed { session })
            }
            Action::CloseInput => Ok(()),
            Action::CloseStreams => {
                self.input.close();
                if self.terminal {
                    // As a telephone that is hung up: the kernel tells all who hold the terminal.
                    self.outputs.clear();
                } else {
                    self.outputs.iter_mut().for_each(Output::discard);
                }
                Ok(())
            }
            Action::Seal => {
                self.outputs.iter_mut().for_each(Output::seal);
                Ok(())
            }
            Action::Exited(exit) => {
                self.cgroup.remove();
                replies.push(&GuestFrame::Exited { session, exit })
            }
        }
    }

    /// To the main process's group. It has not been reaped, so that the number is its own.
    pub(super) fn signal(&self, signal: i32) {
        if self.life.has_main() {
            // A group whose processes have all just ended; its SIGCHLD is on its way.
            sys::kill(self.pid.0, true, signal).unwrap_or(());
        }
    }

    pub(super) fn resize(&self, size: TerminalSize) {
        if self.terminal
            && let Some(output) = self.outputs.first()
        {
            // The master is open, which is all that this needs.
            sys::terminal::resize(output.fd(), size).unwrap_or(());
        }
    }

    pub(super) fn input(&mut self) -> &mut Input {
        &mut self.input
    }

    pub(super) fn window(&mut self) -> &mut SendWindow {
        &mut self.window
    }

    pub(super) fn on_ready(
        &mut self,
        part: Part,
        error: bool,
        replies: &mut Replies,
    ) -> Result<(), CodecError> {
        match part {
            Part::Input if error && self.input.on_error() => {
                let session = self.id;
                return replies.push(&GuestFrame::StdinClosed { session });
            }
            Part::Input => self.input.on_ready(),
            Part::Stdout => self.output_ready(Stream::Stdout),
            Part::Stderr => self.output_ready(Stream::Stderr),
        }
        Ok(())
    }

    fn output_ready(&mut self, stream: Stream) {
        for output in self.outputs.iter_mut().filter(|o| o.stream() == stream) {
            output.on_ready();
        }
    }

    /// Writes input as far as there is room.
    pub(super) fn write_input(&mut self, replies: &mut Replies) -> Result<(), CodecError> {
        if !self.input.has_work() {
            return Ok(());
        }
        let session = self.id;
        let written = self.input.write();
        if written.credit > 0 {
            let credit = written.credit;
            replies.push(&GuestFrame::StdinCredit { session, credit })?;
        }
        if written.closed {
            replies.push(&GuestFrame::StdinClosed { session })?;
        }
        Ok(())
    }

    /// Output can be read and sent now.
    pub(super) fn has_output(&self) -> bool {
        self.outputs.iter().any(|o| o.has_work(&self.window))
    }

    /// One read of each output that has something. True if anything came.
    pub(super) fn read_outputs(
        &mut self,
        buffer: &mut Vec<u8>,
        replies: &mut Replies,
    ) -> Result<bool, CodecError> {
        let mut any = false;
        for output in &mut self.outputs {
            if let Some(count) = output.read(&mut self.window, buffer) {
                any = true;
                if output.discarded() {
                    continue;
                }
                // Lent to the frame and taken back: a copy less of every byte.
                let mut bytes = std::mem::take(buffer);
                bytes.truncate(count);
                let frame = GuestFrame::Output {
                    session: self.id,
                    stream: output.stream(),
                    bytes,
                };
                replies.push(&frame)?;
                if let GuestFrame::Output { bytes, .. } = frame {
                    *buffer = bytes;
                }
                buffer.resize(MAX_CHUNK, 0);
            }
        }
        Ok(any)
    }

    /// Notices what has come about without an event of its own.
    pub(super) fn settle(
        &mut self,
        now: Duration,
        replies: &mut Replies,
    ) -> Result<(), CodecError> {
        if self.life.clearing() && self.cgroup.is_empty() {
            self.feed(Event::Cleared, now, replies)?;
        }
        if self.life.draining() && self.outputs.iter().all(Output::ended) {
            self.feed(Event::Drained, now, replies)?;
        }
        Ok(())
    }
}
