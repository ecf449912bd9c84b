//! What is to be started, as the supervisor has sent it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iii_proto::codec::{MAX_SPEC, decode_spec, encode_spec};
use iii_proto::shim::{MAX_DESCRIPTORS, ShimReport, ShimRequest, ShimStage};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Why there is no program running.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was being done.
    pub(crate) stage: ShimStage,
    /// Why not.
    pub(crate) errno: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = io::Error::from_raw_os_error(self.errno);
        write!(f, "failed to {} the program: {cause}", self.stage)
    }
}

impl Failure {
    /// A failure of this stage.
    pub(crate) fn at(stage: ShimStage) -> impl Fn(io::Error) -> Self {
        move |error| Self {
            stage,
            errno: error.raw_os_error().unwrap_or(libc::EPROTO),
        }
    }
}

/// A received request.
#[derive(Debug)]
pub(crate) struct Request {
    /// What stands in it.
    pub(crate) shim: ShimRequest,
    /// The program's descriptors, in the order of the targets.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The `cgroup.procs` of its cgroup.
    pub(crate) cgroup: Option<OwnedFd>,
}

/// Takes the one request from the socket.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Request> {
    let protocol = || io::Error::from_raw_os_error(libc::EPROTO);
    let mut byte = [0u8; 1];
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if descriptors.is_empty() {
        return Err(protocol());
    }
    let memfd = File::from(descriptors.remove(0));
    let mut bytes = Vec::new();
    memfd.take(MAX_SPEC as u64 + 1).read_to_end(&mut bytes)?;
    let shim: ShimRequest = decode_spec(&bytes).map_err(|_| protocol())?;
    let cgroup = match shim.joins_cgroup {
        true => Some(descriptors.pop().ok_or_else(protocol)?),
        false => None,
    };
    if shim.targets.len() != descriptors.len() {
        return Err(protocol());
    }
    Ok(Request {
        shim,
        descriptors,
        cgroup,
    })
}

/// Sends a report. A supervisor that is gone needs none, and the lifeline tells us.
pub(crate) fn report(socket: BorrowedFd<'_>, report: &ShimReport, pidfds: &[OwnedFd]) {
    let Ok(bytes) = encode_spec(report) else {
        return;
    };
    let fds: Vec<BorrowedFd<'_>> = pidfds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[io::IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
    .unwrap_or_default();
}
