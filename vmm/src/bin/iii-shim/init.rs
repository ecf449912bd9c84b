//! The init: forks the program, reaps for it, and takes everything down with it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use iii_proto::shim::{Isolation, ShimExit, ShimReport, ShimStage};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, pipe2};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::relay::{exit_of, has_pid_namespace};
use crate::request::{self, Failure, Request};
use crate::sys::{self, Fork};
use crate::{program, signals};

/// An end by exit code, in the message to the relay.
pub(crate) const CODE: i32 = 0;
/// An end by signal.
pub(crate) const SIGNAL: i32 = 1;

/// Rounds of killing what the program has left behind without a pid namespace: a program that forks
/// faster than it is killed must not keep us for ever.
const MAX_ROUNDS: usize = 10_000;

/// All that the init needs.
pub(crate) struct Init<'a> {
    /// For the first report.
    pub(crate) socket: BorrowedFd<'a>,
    /// What to start.
    pub(crate) request: Request,
    /// What this process is in.
    pub(crate) isolation: Isolation,
    /// Signals of the relay; the descriptor reads those of whoever reads it.
    pub(crate) signals: SignalFd,
    /// Takes the program's end.
    pub(crate) status: OwnedFd,
    /// Closed when the relay is gone.
    pub(crate) lifeline: OwnedFd,
}

/// The message about an end.
fn encode_end(exit: ShimExit) -> [u8; 8] {
    let (kind, number) = match exit {
        ShimExit::Code(code) => (CODE, code),
        ShimExit::Signal(signal) => (SIGNAL, signal),
    };
    (i64::from(number) << 32 | i64::from(kind)).to_le_bytes()
}

/// Kind and number of [`encode_end`].
pub(crate) fn decode_end(bytes: [u8; 8]) -> [i32; 2] {
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        i32::from_le_bytes([a, b, c, d]),
        i32::from_le_bytes([e, f, g, h]),
    ]
}

/// The life of the init.
pub(crate) fn run(init: Init<'_>) -> ! {
    let socket = init.socket;
    match serve(init) {
        Ok(()) => sys::exit(0),
        Err(Failure { stage, errno }) => {
            request::report(socket, &ShimReport::Failed { stage, errno }, &[]);
            sys::exit(1)
        }
    }
}

fn serve(init: Init<'_>) -> Result<(), Failure> {
    let Init {
        socket,
        request,
        mut isolation,
        signals,
        status,
        lifeline,
    } = init;
    let setup = |error: io::Error| Failure::at(ShimStage::Setup)(error);
    sys::die_with_parent().map_err(setup)?;
    // In a pid namespace the parent has no number here; the pipe tells whether it has ended before
    // the death signal was set.
    if is_hung_up(lifeline.as_fd()).map_err(setup)? {
        return Ok(());
    }
    let namespace = has_pid_namespace(&isolation);
    if !namespace {
        set_child_subreaper(true).map_err(|e| setup(e.into()))?;
    }

    let (executed, in_program) = pipe2(OFlag::O_CLOEXEC).map_err(|e| setup(e.into()))?;
    let own = getpid();
    let program = match sys::fork().map_err(Failure::at(ShimStage::Fork))? {
        Fork::Child => program::run(request, own, in_program),
        Fork::Parent(pid) => pid,
    };
    drop((request, in_program));

    let pidfds = [own, program].map(|pid| {
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    });
    let [own_pidfd, program_pidfd] = pidfds;
    let pidfds = [own_pidfd.map_err(setup)?, program_pidfd.map_err(setup)?];
    let pid = outer_pid(pidfds[1].as_fd()).map_err(setup)?;
    let mut reports = Vec::new();
    File::from(executed)
        .read_to_end(&mut reports)
        .map_err(setup)?;
    isolation.layers = program::decode_reports(&reports)?;
    request::report(socket, &ShimReport::Started { pid, isolation }, &pidfds);
    drop(pidfds);
    // The relay's copy is the one whose end the supervisor waits for.
    sys::close_stdin();

    let exit = attend(program, &signals, lifeline.as_fd()).map_err(setup)?;
    if let Some(exit) = exit {
        // If the relay is gone, nobody reads it, and nobody needs it.
        File::from(status)
            .write_all(&encode_end(exit))
            .unwrap_or_default();
    }
    if !namespace {
        kill_rest(program);
    }
    Ok(())
}

fn is_hung_up(lifeline: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(lifeline, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))?;
    Ok(!fds[0].revents().is_empty())
}

/// The program's number in the namespace of the mounted `/proc`, which is the supervisor's.
fn outer_pid(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Passes signals on and reaps until the program has ended. `None`: the relay was gone first.
fn attend(
    program: Pid,
    signals: &SignalFd,
    lifeline: BorrowedFd<'_>,
) -> io::Result<Option<ShimExit>> {
    loop {
        // Before the first wait: the program may have ended already.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => {
                    let Some(pid) = status.pid() else { break };
                    if pid == program
                        && let Some(exit) = exit_of(status)
                    {
                        return Ok(Some(exit));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let seen = signals::wait(signals, Some(lifeline))?;
        for signal in seen.forward {
            signals::send(program, signal);
        }
        if seen.hang_up {
            signals::send(program, Signal::SIGKILL);
            return Ok(None);
        }
    }
}

/// Kills the program's process group, and then whatever has been handed to us as subreaper.
fn kill_rest(program: Pid) {
    // setsid has made it the group's leader.
    signals::send(Pid::from_raw(-program.as_raw()), Signal::SIGKILL);
    for _ in 0..MAX_ROUNDS {
        let own = getpid();
        if let Ok(children) = fs::read_to_string(format!("/proc/{own}/task/{own}/children")) {
            for child in children
                .split_ascii_whitespace()
                .filter_map(|c| c.parse().ok())
            {
                signals::send(Pid::from_raw(child), Signal::SIGKILL);
            }
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            // ECHILD: none is left.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_survives_the_pipe() {
        assert_eq!(decode_end(encode_end(ShimExit::Code(255))), [CODE, 255]);
        assert_eq!(decode_end(encode_end(ShimExit::Signal(9))), [SIGNAL, 9]);
    }
}
