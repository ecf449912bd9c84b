//! From the fork to the program's first instruction.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use iii_proto::codec::{FrameReader, encode_frame};
use iii_proto::shim::{Layers, ProgramReport, ShimRequest, ShimStage};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, chdir, execve, getppid, setsid};

use crate::request::{Failure, Request};
use crate::{confinement, sys};

/// Becomes the program, or tells the pipe why not. The pipe closes when the program is executed.
pub(crate) fn run(request: Request, init: Pid, pipe: OwnedFd) -> ! {
    // Moved out of the way of the program's descriptors, together with them.
    let Request {
        shim,
        descriptors,
        cgroup: _,
    } = request;
    let wanted: Vec<(OwnedFd, i32)> = descriptors
        .into_iter()
        .zip(shim.targets.iter().copied())
        .collect();
    let (failure, mut pipe) = match sys::place_descriptors(wanted, pipe) {
        Err((error, pipe)) => (Failure::at(ShimStage::Descriptors)(error), File::from(pipe)),
        Ok(pipe) => {
            let mut pipe = File::from(pipe);
            match become_program(&shim, init, &mut pipe) {
                Ok(never) => match never {},
                Err(failure) => (failure, pipe),
            }
        }
    };
    let Failure { stage, errno } = failure;
    tell(&mut pipe, &ProgramReport::Failed { stage, errno });
    sys::exit(1)
}

/// The pipe's reader is the init; without it there is nobody to tell.
fn tell(pipe: &mut File, report: &ProgramReport) {
    encode_frame(report)
        .map_err(io::Error::other)
        .and_then(|frame| pipe.write_all(&frame))
        .unwrap_or_default();
}

/// What [`run`] has written.
pub(crate) fn decode_reports(bytes: &[u8]) -> Result<Option<Layers>, Failure> {
    let mut frames = FrameReader::new();
    frames.feed(bytes);
    let mut layers = None;
    loop {
        match frames.next() {
            Ok(Some(ProgramReport::Confined(found))) => layers = Some(found),
            Ok(Some(ProgramReport::Failed { stage, errno })) => {
                return Err(Failure { stage, errno });
            }
            Ok(None) => return Ok(layers),
            Err(_) => {
                return Err(Failure {
                    stage: ShimStage::Setup,
                    errno: libc::EPROTO,
                });
            }
        }
    }
}

fn become_program(
    shim: &ShimRequest,
    init: Pid,
    pipe: &mut File,
) -> Result<std::convert::Infallible, Failure> {
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
    if let Some(confinement) = &shim.confinement {
        confinement::limit_threads(confinement.threads).map_err(&limits)?;
    }
    let root = shim.confinement.as_ref().map(confinement::enter_root);
    chdir(c_string(&shim.cwd)?.as_c_str())
        .map_err(|e| Failure::at(ShimStage::WorkingDirectory)(e.into()))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| setup(e.into()))?;

    let program = c_string(&shim.program)?;
    let args = c_strings(&shim.args)?;
    let env = c_strings(&shim.env)?;
    if let Some((confinement, root)) = shim.confinement.as_ref().zip(root) {
        confinement::drop_capabilities().map_err(Failure::at(ShimStage::Capabilities))?;
        let layers = confinement::restrict(confinement, root);
        tell(pipe, &ProgramReport::Confined(layers));
    }
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
    use iii_proto::shim::Layer;

    #[test]
    fn reports_are_read_back_and_rubbish_is_a_failure() {
        let layers = Layers {
            root: Layer::Applied,
            landlock: Layer::Partial,
            system_calls: Layer::Refused(1),
        };
        let mut bytes = encode_frame(&ProgramReport::Confined(layers)).unwrap();
        assert_eq!(decode_reports(&bytes).unwrap(), Some(layers));
        let failed = ProgramReport::Failed {
            stage: ShimStage::Execute,
            errno: 2,
        };
        bytes.extend(encode_frame(&failed).unwrap());
        let failure = decode_reports(&bytes).unwrap_err();
        assert_eq!((failure.stage, failure.errno), (ShimStage::Execute, 2));
        assert_eq!(decode_reports(&[]).unwrap(), None);
        assert!(decode_reports(&[1, 0, 0, 0, 9]).is_err());
    }
}
