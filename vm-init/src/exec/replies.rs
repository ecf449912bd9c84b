//! Frames on their way to the host, and warnings on their way to its user.

use std::os::fd::OwnedFd;

use iii_proto::codec::CodecError;
use iii_proto::exec::{GuestFrame, SessionId};
use iii_proto::log::Stream;

use crate::outbound::Outbound;
use crate::text::cut;

/// What is said to the host, and to its user.
#[derive(Debug, Default)]
pub(super) struct Replies {
    out: Outbound,
    /// Nobody hears it any more.
    gone: bool,
    warnings: Vec<String>,
}

impl Replies {
    pub(super) fn push(&mut self, frame: &GuestFrame) -> Result<(), CodecError> {
        if self.gone {
            return Ok(());
        }
        self.out.push(frame)
    }

    pub(super) fn refuse(&mut self, session: SessionId, message: String) -> Result<(), CodecError> {
        let message = cut(message);
        self.push(&GuestFrame::Refused { session, message })
    }

    /// Says something as the command would on its standard error.
    pub(super) fn complain(
        &mut self,
        session: SessionId,
        terminal: bool,
        message: String,
    ) -> Result<(), CodecError> {
        let message = cut(message);
        let (stream, message) = if terminal {
            (Stream::Stdout, message.replace('\n', "\r\n"))
        } else {
            (Stream::Stderr, message)
        };
        self.push(&GuestFrame::Output {
            session,
            stream,
            bytes: message.into_bytes(),
        })
    }

    pub(super) fn warn(&mut self, message: String) {
        self.warnings.push(message);
    }

    /// What the user should be told.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Bytes that the port has not taken yet.
    pub(super) fn bytes(&self) -> usize {
        self.out.bytes()
    }

    /// Writes as much as the port takes.
    pub(super) fn write_to(&mut self, port: &OwnedFd) {
        // An error is the host's end being closed, which is heard of as a hang-up.
        self.out.write_to(port).unwrap_or(false);
    }

    /// Nobody hears anything any more.
    pub(super) fn give_up(&mut self) {
        self.out = Outbound::default();
        self.gone = true;
    }
}
