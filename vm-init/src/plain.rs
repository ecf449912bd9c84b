//! vm-init as an ordinary process: the same loop and the same workload handling, with a process
//! group in place of a cgroup, on two inherited sockets. It boots nothing, changes no user, runs no
//! exec sessions, and touches neither clock nor caches. The supervisor benchmark runs it beside other supervisors.

use std::os::fd::OwnedFd;
use std::path::Path;

use iii_proto::codec::{CodecError, decode_spec};
use iii_proto::control::{GuestMessage, PowerOffReason};
use iii_proto::guest::{GuestSpec, GuestUser, Probe};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::confinement::Confinement;
use crate::event_loop::{ControlPort, EventLoop, Finished, LoopError, Settings};
use crate::launch::{Identity, LaunchError, Launcher};
use crate::sys;

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The spec cannot be read.
    #[error("failed to read spec {0:?}: {1}")]
    Read(std::path::PathBuf, std::io::Error),
    /// The spec is not one.
    #[error("failed to read spec: {0}")]
    Decode(#[from] CodecError),
    /// The spec asks for something that only a guest can give.
    #[error("failed to run as a plain process: {0}")]
    GuestOnly(&'static str),
    /// A port is no descriptor of this process.
    #[error("failed to take over port {0}: {1}")]
    Port(i32, Errno),
    /// The workload cannot be prepared.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A system call failed.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
    /// The loop ended early.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// Supervises the workload of the spec in the file `spec` until the host says stop or hangs up.
/// `control` and `log` are the numbers of inherited stream sockets.
pub fn run(spec: &Path, control: i32, log: i32) -> Result<PowerOffReason, PlainError> {
    let control = port(control)?;
    let log = port(log)?;
    let bytes = std::fs::read(spec).map_err(|e| PlainError::Read(spec.to_owned(), e))?;
    let spec: GuestSpec = decode_spec(&bytes)?;
    let limits = &spec.workload.limits;
    if limits.memory_bytes.is_some() || limits.pids.is_some() {
        return Err(PlainError::GuestOnly(
            "memory and pids limits need a cgroup of its own",
        ));
    }
    let own = (nix::unistd::geteuid(), nix::unistd::getegid());
    let identity = match &spec.workload.user {
        GuestUser::Ids {
            name,
            uid,
            gid,
            home,
        } if (*uid, *gid) == (own.0.as_raw(), own.1.as_raw()) => Identity {
            name: name.clone(),
            home: home.clone(),
            credentials: None,
        },
        GuestUser::Ids { .. } | GuestUser::Named(_) | GuestUser::Known { .. } => {
            return Err(PlainError::GuestOnly(
                "the workload's user must be the caller, by its ids",
            ));
        }
    };
    // Grandchildren whose parent has ended come to us, as they come to PID 1.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| PlainError::System("become a subreaper", errno))?;
    let probe = match spec.health.as_ref().map(|check| &check.probe) {
        Some(Probe::Exec(command)) => Some(command.as_slice()),
        Some(Probe::Tcp(_) | Probe::Http { .. }) | None => None,
    };
    let launcher = Launcher::new(&spec.workload, probe, identity, false)?;
    let mut control = ControlPort::new(control);
    control.send(&GuestMessage::Hello {
        proto: iii_proto::PROTOCOL_VERSION,
        boot_id: spec.boot_id,
        kernel: crate::kernel_release(),
    })?;
    let settings = Settings::of(&spec, false);
    let Finished {
        reason,
        mut control,
        last_log_seq,
    } = EventLoop::new(
        settings,
        control,
        log,
        None,
        launcher,
        Confinement::ProcessGroup,
    )?
    .run()?;
    control.last_word(reason.clone(), last_log_seq)?;
    Ok(reason)
}

fn port(number: i32) -> Result<OwnedFd, PlainError> {
    let fd = sys::inherited_descriptor(number).map_err(|e| PlainError::Port(number, e))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| PlainError::Port(number, e))?;
    Ok(fd)
}
