//! The control port, from the first stage to the last word.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use iii_proto::codec::FrameReader;
use iii_proto::control::{GuestMessage, PowerOffReason};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::LoopError;
use crate::clock;
use crate::outbound::Outbound;

/// How long the last message may wait for room on the port.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

/// The control port, usable before the loop runs: boot stages go out through it.
#[derive(Debug)]
pub struct ControlPort {
    pub(super) fd: OwnedFd,
    pub(super) out: Outbound,
    pub(super) reader: FrameReader,
    pub(super) connected: bool,
    pub(super) readable: bool,
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

    pub(super) fn flush(&mut self) {
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
