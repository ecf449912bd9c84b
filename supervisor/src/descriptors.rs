//! The files that this process may have open. Each worker takes some; where they run out, a part of
//! a worker fails at some later time with a cause that names anything but this.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the supervisor itself holds, and its starting of processes for a moment.
const OWN: u64 = 48;
/// What it holds for a worker that nobody speaks with: pipes, sockets, and what is shared with its
/// VM.
const PER_WORKER: u64 = 24;
/// A file server is a process of its own under the same limit, and keeps this many to itself before
/// the guest gets any.
const LEAST: u64 = 128;

/// There are too few.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to start {workers} {}: they need {needed} open files, and this process may have {limit}; \
     raise the hard limit (`ulimit -Hn`, LimitNOFILE= of a systemd unit, `--ulimit nofile=` of a \
     container), or run fewer workers",
    if *workers == 1 { "worker" } else { "workers" }
)]
pub(crate) struct TooFewDescriptors {
    workers: usize,
    needed: u64,
    limit: u64,
}

/// Raises the limit as far as this user may, and looks whether it is enough for so many workers.
pub(crate) fn claim(workers: usize) -> Result<(), TooFewDescriptors> {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => {
            // Then what is short is told where it is short.
            tracing::debug!(%error, "failed to raise the limit of open files");
            return Ok(());
        }
    };
    judge(workers, limit)
}

fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

fn judge(workers: usize, limit: u64) -> Result<(), TooFewDescriptors> {
    let needed = (OWN + PER_WORKER.saturating_mul(workers as u64)).max(LEAST);
    if limit >= needed {
        return Ok(());
    }
    Err(TooFewDescriptors {
        workers,
        needed,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_are_told_before_anything_starts() {
        assert_eq!(judge(1, LEAST), Ok(()));
        assert_eq!(judge(40, 1024), Ok(()));
        let error = judge(1, 64).unwrap_err().to_string();
        assert!(
            error.contains("1 worker:") && error.contains("may have 64"),
            "{error}"
        );
        assert!(error.contains("ulimit -Hn"), "{error}");
        let error = judge(41, 1024).unwrap_err().to_string();
        assert!(
            error.contains("41 workers") && error.contains("need 1032"),
            "{error}"
        );
    }
}
