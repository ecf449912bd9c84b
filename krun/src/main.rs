//! `iii-krun`: starts one VM under libkrun and becomes its VMM.
//!
//! libkrun is a library whose last call, `krun_start_enter`, never returns: it ends the process when
//! the guest ends. So each VM has a process of its own, which is this program. It reads one
//! [`KrunLaunch`](iii_proto::krun::KrunLaunch) from an inherited descriptor, checks it, makes the
//! calls (`machine`), and enters. All other ends of the VM are inherited descriptors too.
//!
//! libkrun is built in, or, with the feature `system-libkrun`, the system's; the source is the same,
//! and only `sys` knows which.
//!
//! May depend on `iii-proto`. Must never be in it: anything that decides what a VM looks like (that
//! is `iii-vmm`), and code that runs beside the VM.
#![deny(unsafe_code)]

mod error;
mod launch;
mod machine;
mod sys;

use std::io::Write;
use std::os::fd::RawFd;
use std::process::ExitCode;

use crate::error::KrunError;

/// By which the supervisor knows this file before it runs it.
#[used]
static MARKER: &str = iii_proto::helper_marker!("iii-krun");

const USAGE: &str = "usage: iii-krun --launch-fd N | --check | --version
iii-super starts it, with descriptors that no shell would have.";

/// Exit status where the VM could not be entered. What libkrun itself exits with is the guest's
/// matter, and tells nothing.
const FAILED: u8 = 1;
/// Exit status for a wrong command line.
const MISUSE: u8 = 2;

enum Command {
    Version,
    Check,
    Launch(RawFd),
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Command> {
    let command = match arguments.next()?.as_str() {
        "--version" => Command::Version,
        "--check" => Command::Check,
        "--launch-fd" => Command::Launch(arguments.next()?.parse().ok()?),
        _ => return None,
    };
    arguments.next().is_none().then_some(command)
}

fn run(command: Command) -> Result<String, KrunError> {
    match command {
        Command::Version => Ok(format!("iii-krun {}", env!("CARGO_PKG_VERSION"))),
        Command::Check => {
            machine::check_features()?;
            Ok(format!("libkrun {} {}", sys::VERSION, sys::ORIGIN))
        }
        Command::Launch(fd) => {
            let launch = launch::read(fd)?;
            match machine::enter(launch)? {}
        }
    }
}

fn main() -> ExitCode {
    let Some(command) = parse(std::env::args().skip(1)) else {
        // Nobody is left to tell if standard error is closed.
        writeln!(std::io::stderr(), "{USAGE}").ok();
        return ExitCode::from(MISUSE);
    };
    match run(command) {
        Ok(line) => match writeln!(std::io::stdout(), "{line}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            // As above; the exit code says it too.
            writeln!(std::io::stderr(), "iii-krun: {error}").ok();
            ExitCode::from(FAILED)
        }
    }
}
