//! Bytes between smoltcp's socket and a host socket, without a queue of its own: the host is read
//! only as far as the guest's window has room, and the guest only as far as the host takes.

use std::io;

use nix::sys::epoll::EpollFlags;
use smoltcp::socket::tcp::Socket;

use super::host::HostStream;
use super::stack::finish_sending;

/// The guest's bytes on their way to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upward {
    /// There may be more.
    Open,
    /// All are delivered, and so is the guest's FIN.
    Shut,
    /// The host takes no more.
    Broken,
}

/// The host's bytes on their way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Downward {
    /// There may be more.
    Open,
    /// The host has ended its stream; smoltcp sends the FIN behind what is left.
    Ended,
    /// The host has reset the connection.
    Broken,
}

/// A connection's host side.
#[derive(Debug)]
pub(crate) struct HostRelay {
    stream: HostStream,
    /// A read may bring something. Cleared by a read that would block, set by an event.
    readable: bool,
    /// As `readable`.
    writable: bool,
    upward: Upward,
    downward: Downward,
}

impl HostRelay {
    pub(crate) fn new(stream: HostStream) -> Self {
        Self {
            stream,
            // Events are told once; those of the time before were not kept.
            readable: true,
            writable: true,
            upward: Upward::Open,
            downward: Downward::Open,
        }
    }

    pub(crate) fn event(&mut self, events: EpollFlags) {
        let either = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        self.readable |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | either);
        self.writable |= events.intersects(EpollFlags::EPOLLOUT | either);
    }

    /// Moves what can be moved. `guest_finished`: the guest's FIN has arrived.
    pub(crate) fn pump(&mut self, guest: &mut Socket<'_>, guest_finished: bool) -> bool {
        let up = self.pump_up(guest, guest_finished);
        let down = self.pump_down(guest);
        if self.downward == Downward::Ended {
            finish_sending(guest);
        }
        let failed = self.upward == Upward::Broken || self.downward == Downward::Broken;
        // What the host had sent before the failure still reaches the guest.
        if failed && self.downward != Downward::Open && guest.send_queue() == 0 {
            guest.abort();
        }
        up || down
    }

    fn pump_up(&mut self, guest: &mut Socket<'_>, guest_finished: bool) -> bool {
        let mut moved = false;
        while self.upward == Upward::Open && self.writable && guest.can_recv() {
            let written = guest.recv(|bytes| match self.stream.write(bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(())) => moved = true,
                Ok(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.writable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => self.upward = Upward::Broken,
                },
                // Nothing can be received in this state.
                Err(_) => break,
            }
        }
        if self.upward == Upward::Open && guest_finished && !guest.can_recv() {
            self.upward = match self.stream.shut_down_write() {
                Ok(()) => Upward::Shut,
                Err(_) => Upward::Broken,
            };
        }
        moved
    }

    fn pump_down(&mut self, guest: &mut Socket<'_>) -> bool {
        let mut moved = false;
        while self.downward == Downward::Open && self.readable && guest.can_send() {
            let read = guest.send(|buffer| match self.stream.read(buffer) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => self.downward = Downward::Ended,
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.readable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => self.downward = Downward::Broken,
                },
                // Nothing can be sent in this state.
                Err(_) => break,
            }
        }
        moved
    }

    /// Bytes of the guest's wait for the host to take them.
    pub(crate) fn owes_host(&self) -> bool {
        self.upward == Upward::Open
    }

    /// One direction has come to its end.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.upward != Upward::Open || self.downward != Downward::Open
    }

    /// Lets go of the host's socket: in order if both directions have ended so, else by a reset.
    pub(crate) fn close(self) {
        if self.upward == Upward::Shut && self.downward == Downward::Ended {
            self.stream.finish();
        }
    }
}
