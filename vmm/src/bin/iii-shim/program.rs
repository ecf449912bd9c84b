//! From the fork to the program's first instruction.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use iii_proto::shim::{ShimRequest, ShimStage};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, chdir, execve, getppid, setsid};

use crate::request::{Failure, Request};
use crate::sys;

/// All stages, by the number under which a failure travels through the pipe.
const STAGES: [ShimStage; 7] = [
    ShimStage::Request,
    ShimStage::Setup,
    ShimStage::Fork,
    ShimStage::Descriptors,
    ShimStage::Limits,
    ShimStage::WorkingDirectory,
    ShimStage::Execute,
];

/// Becomes the program, or tells the pipe why not. The pipe closes when the program is executed.
pub(crate) fn run(request: Request, init: Pid, pipe: OwnedFd) -> ! {
    // Moved out of the way of the program's descriptors, together with them.
    let Request { shim, descriptors } = request;
    let wanted: Vec<(OwnedFd, i32)> = descriptors
        .into_iter()
        .zip(shim.targets.iter().copied())
        .collect();
    let (failure, mut pipe) = match sys::place_descriptors(wanted, pipe) {
        Err((error, pipe)) => (Failure::at(ShimStage::Descriptors)(error), File::from(pipe)),
        Ok(pipe) => match become_program(&shim, init) {
            Ok(never) => match never {},
            Err(failure) => (failure, File::from(pipe)),
        },
    };
    let stage = STAGES.iter().position(|s| *s == failure.stage).unwrap_or(0);
    let mut bytes = vec![stage.to_le_bytes()[0]];
    bytes.extend(failure.errno.to_le_bytes());
    // Its reader is the init; without it there is nobody to tell.
    pipe.write_all(&bytes).unwrap_or_default();
    sys::exit(1)
}

/// What [`run`] has written, if anything.
pub(crate) fn decode_failure(bytes: &[u8]) -> Option<Failure> {
    let (stage, errno) = bytes.split_first()?;
    Some(Failure {
        stage: *STAGES.get(usize::from(*stage))?,
        errno: i32::from_le_bytes(errno.try_into().ok()?),
    })
}

fn become_program(shim: &ShimRequest, init: Pid) -> Result<std::convert::Infallible, Failure> {
    let setup = Failure::at(ShimStage::Setup);
    sys::die_with_parent().map_err(&setup)?;
    if getppid() != init {
        return Err(setup(io::Error::from_raw_os_error(libc::ESRCH)));
    }
    // A session of its own: no terminal, and none of its signals.
    setsid().map_err(|e| setup(e.into()))?;
    let limits = Failure::at(ShimStage::Limits);
    for &(resource, soft, hard) in &shim.rlimits {
        sys::set_limit(resource, soft, hard).map_err(&limits)?;
    }
    if let Some(nice) = shim.nice {
        rustix::process::setpriority_process(None, nice).map_err(|e| limits(e.into()))?;
    }
    chdir(c_string(&shim.cwd)?.as_c_str())
        .map_err(|e| Failure::at(ShimStage::WorkingDirectory)(e.into()))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| setup(e.into()))?;

    let program = c_string(&shim.program)?;
    let args = c_strings(&shim.args)?;
    let env = c_strings(&shim.env)?;
    // Last: until here a signal would have found neither the old nor the new behaviour.
    sys::reset_signal_actions().map_err(&setup)?;
    SigSet::empty()
        .thread_set_mask()
        .map_err(|e| setup(e.into()))?;
    execve(&program, &args, &env).map_err(|e| Failure::at(ShimStage::Execute)(e.into()))
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure {
        stage: ShimStage::Request,
        errno: libc::EINVAL,
    })
}

fn c_strings(texts: &[Vec<u8>]) -> Result<Vec<CString>, Failure> {
    texts.iter().map(|text| c_string(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_back_and_rubbish_is_none() {
        let failure = decode_failure(&[6, 2, 0, 0, 0]).unwrap();
        assert_eq!((failure.stage, failure.errno), (ShimStage::Execute, 2));
        assert!(decode_failure(&[]).is_none());
        assert!(decode_failure(&[7, 2, 0, 0, 0]).is_none());
        assert!(decode_failure(&[6, 2]).is_none());
    }
}
