//! `iii-shim`: keeps one child process of the supervisor from outliving it.
//!
//! ```text
//! supervisor ── iii-shim (relay) ── iii-shim (init) ── the program
//! ```
//!
//! The relay is the supervisor's child: it watches the lifeline, repeats the program's exit status
//! as its own and passes signals on. The init is, where the kernel allows it, PID 1 of a pid
//! namespace of its own, so that its end is the end of everything that the program has forked; the
//! program itself is not PID 1, since the kernel withholds default signal actions (SIGTERM, and
//! SIGABRT of an `abort`) from PID 1.
//!
//! It is started by the supervisor only, with a socket as standard input; see
//! [`iii_proto::shim`]. It must stay small and single-threaded: it runs between the supervisor and
//! every start, and it forks.
#![deny(unsafe_code)]

mod confinement;
mod init;
mod namespaces;
mod program;
mod relay;
mod request;
mod signals;
mod sys;

use std::io::Write;
use std::process::ExitCode;

use iii_proto::shim::EXIT_NOT_UNDERSTOOD;

#[used]
static MARKER: &str = iii_proto::helper_marker!("iii-shim");

fn main() -> ExitCode {
    let asked_for_version = std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "--version");
    if asked_for_version {
        let version = MARKER.rsplit(':').next().unwrap_or_default();
        let line = format!("iii-shim {}\n", version.trim_end_matches(';'));
        return match std::io::stdout().write_all(line.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    match relay::run() {
        Ok(ended) => ended.repeat(),
        Err(error) => {
            // The supervisor has been told; this is for somebody who has started it by hand.
            let text = format!("iii-shim: {error}; it is started by iii-super, never by hand\n");
            std::io::stderr()
                .write_all(text.as_bytes())
                .unwrap_or_default();
            ExitCode::from(EXIT_NOT_UNDERSTOOD)
        }
    }
}
