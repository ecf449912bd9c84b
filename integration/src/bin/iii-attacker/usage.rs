//! Uses up what the host's kernel must limit.

use std::io::Write;
use std::process::ExitCode;

use crate::sys;
use nix::unistd::ForkResult;

/// What one of the bomb's children is made for: more than any cgroup of a VM has room for.
const CHILDREN: usize = 5000;
/// Taken at a time.
const PIECE: usize = 8 << 20;
/// One byte of each is enough.
const PAGE: usize = 4096;
/// As much as this, if nobody keeps it from that.
const PIECES: usize = 1024;

/// Whether a VMM in QEMU's place is to take memory instead of attacking: its confinement leaves it no
/// environment, so the program's own name says it.
pub(crate) fn is_wanted() -> bool {
    std::env::args()
        .next()
        .is_some_and(|name| name.contains("hog"))
}

/// Takes memory until it is killed.
pub(crate) fn hog() -> ExitCode {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..PIECES {
        let mut piece = vec![0; PIECE];
        // What is not written to, the kernel does not have to keep.
        piece.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        taken.push(piece);
    }
    match writeln!(std::io::stdout(), "took {} pieces", taken.len()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Makes processes until it is refused, says how many, and ends with them.
pub(crate) fn bomb() -> ExitCode {
    let mut children = Vec::new();
    let end = loop {
        if children.len() == CHILDREN {
            break "nobody kept it from more".to_owned();
        }
        match sys::fork() {
            Ok(ForkResult::Child) => loop {
                nix::unistd::pause();
            },
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(errno) => break errno.to_string(),
        }
    };
    let line = format!("made {} processes: {end}\n", children.len());
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
