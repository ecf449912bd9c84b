//! The relay: the supervisor's own child.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use iii_proto::shim::{Isolation, Layer, Namespace, ShimExit, ShimReport, ShimStage};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::pipe2;
use nix::unistd::{Pid, getppid};

use crate::request::{self, Failure};
use crate::sys::{self, Fork};
use crate::{init, namespaces, signals};

/// How the program ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// As it did.
    As(ShimExit),
    /// It was never there: the supervisor was gone first.
    Orphaned,
}

impl Ended {
    /// Ends this process in the same way.
    pub(crate) fn repeat(self) -> ExitCode {
        match self {
            // Exit codes are a byte.
            Self::As(ShimExit::Code(code)) => ExitCode::from(code.to_le_bytes()[0]),
            Self::As(ShimExit::Signal(number)) => sys::die_of(number),
            Self::Orphaned => ExitCode::FAILURE,
        }
    }
}

/// Starts the program and stays with it until its end.
pub(crate) fn run() -> Result<Ended, Failure> {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    sys::keep_from_children(socket).map_err(Failure::at(ShimStage::Setup))?;
    let request = request::receive(socket).map_err(Failure::at(ShimStage::Request))?;
    match supervise(socket, request) {
        Err(failure) => {
            let Failure { stage, errno } = failure;
            request::report(socket, &ShimReport::Failed { stage, errno }, &[]);
            Err(failure)
        }
        ended => ended,
    }
}

fn supervise(socket: BorrowedFd<'_>, mut request: request::Request) -> Result<Ended, Failure> {
    let setup = |error: io::Error| Failure::at(ShimStage::Setup)(error);
    // An ignored SIGCHLD is inherited and would make the kernel reap our children.
    sys::reset_signal_actions().map_err(setup)?;
    let signals = signals::capture().map_err(setup)?;
    // First of all, and by a descriptor that the supervisor has opened with its own rights: whatever
    // is made from here on is in it.
    let cgroup = request.cgroup.take().map(join);
    let mut isolation = namespaces::enter(&request.shim);
    isolation.cgroup = cgroup;
    // After the change of credentials, which clears it.
    sys::die_with_parent().map_err(setup)?;
    if getppid().as_raw() != request.shim.parent_pid {
        return Ok(Ended::Orphaned);
    }

    let (status, init_status) = pipe2(OFlag::O_CLOEXEC).map_err(|e| setup(e.into()))?;
    let (init_lifeline, lifeline) = pipe2(OFlag::O_CLOEXEC).map_err(|e| setup(e.into()))?;
    let init = match sys::fork().map_err(Failure::at(ShimStage::Fork))? {
        Fork::Child => {
            drop((status, lifeline));
            init::run(init::Init {
                socket,
                request,
                isolation,
                signals,
                status: init_status,
                lifeline: init_lifeline,
            })
        }
        Fork::Parent(pid) => pid,
    };
    // The program's descriptors among them: held here they would hide its end from their peers.
    drop((request, init_status, init_lifeline));

    let own_namespace = has_pid_namespace(&isolation);
    let mut lifeline = Some(lifeline);
    let mut watched = Some(socket);
    loop {
        let seen = signals::wait(&signals, watched).map_err(setup)?;
        for signal in seen.forward {
            signals::send(init, signal);
        }
        if seen.hang_up {
            watched = None;
            // The init kills all that it knows of; as PID 1 its own end does that better.
            drop(lifeline.take());
            let end = if own_namespace {
                Signal::SIGKILL
            } else {
                Signal::SIGCONT
            };
            signals::send(init, end);
        }
        if seen.child
            && let Some(exit) = reap(init).map_err(setup)?
        {
            drop(lifeline);
            let exit = last_word(File::from(status)).unwrap_or(exit);
            request::report(socket, &ShimReport::Exited { status: exit }, &[]);
            return Ok(Ended::As(exit));
        }
    }
}

/// Moves this process into the cgroup.
fn join(processes: OwnedFd) -> Layer {
    // 0 is the writer itself (cgroups(7)).
    match File::from(processes).write_all(b"0") {
        Ok(()) => Layer::Applied,
        Err(error) => Layer::Refused(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Whether the program's init is PID 1 of a namespace.
pub(crate) fn has_pid_namespace(isolation: &Isolation) -> bool {
    isolation.namespaces.contains(&Namespace::Pid)
}

fn reap(init: Pid) -> io::Result<Option<ShimExit>> {
    Ok(exit_of(waitpid(init, Some(WaitPidFlag::WNOHANG))?))
}

/// The end that a wait has reported, if it was one.
pub(crate) fn exit_of(status: WaitStatus) -> Option<ShimExit> {
    match status {
        WaitStatus::Exited(_, code) => Some(ShimExit::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(ShimExit::Signal(signal as i32)),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => None,
    }
}

/// What the init has said about the program's end before its own.
fn last_word(mut status: File) -> Option<ShimExit> {
    let mut bytes = [0; 8];
    status.read_exact(&mut bytes).ok()?;
    let [kind, number] = init::decode_end(bytes);
    match kind {
        init::CODE => Some(ShimExit::Code(number)),
        init::SIGNAL => Some(ShimExit::Signal(number)),
        _ => None,
    }
}
