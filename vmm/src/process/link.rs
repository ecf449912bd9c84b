//! Starting a shim, hearing from it, reaping it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio as StdStdio};

use iii_proto::codec::decode_spec;
use iii_proto::shim::ShimReport;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};

use super::handle::ChildExit;
use super::request::Prepared;

/// A shim that has its request.
pub(super) struct Launched {
    /// Our end of its socket.
    pub(super) socket: OwnedFd,
    pub(super) shim_pid: i32,
    /// Its pidfd.
    pub(super) shim: OwnedFd,
}

/// Starts a shim.
pub(super) fn launch_shim(shim: &Path, label: &str, request: &Prepared) -> io::Result<Launched> {
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

/// Waits for a child by its pidfd.
pub(super) fn reap(pidfd: BorrowedFd<'_>, flags: WaitPidFlag) -> Result<Option<ChildExit>, Errno> {
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

/// What [`receive`] has found.
pub(super) enum Received {
    Report(ShimReport, Vec<OwnedFd>),
    Nothing,
    HangUp,
}

/// Takes one report, without waiting.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
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
