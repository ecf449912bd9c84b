//! `iii-vfs --config-fd N --events-fd M`: serves one worker's exports; see the library.
#![deny(unsafe_code)]

use std::io::Write;
use std::os::fd::RawFd;
use std::process::ExitCode;

/// By which the supervisor knows this file before it runs it.
#[used]
static MARKER: &str = iii_proto::helper_marker!("iii-vfs");

const USAGE: &str = "usage: iii-vfs --config-fd N --events-fd N | --version
iii-super starts it, with descriptors that no shell would have.";

/// Exit status for a wrong command line.
const MISUSE: u8 = 2;

enum Command {
    Version,
    Serve { config: RawFd, events: RawFd },
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Command> {
    let (mut config, mut events) = (None, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--version" => return Some(Command::Version),
            "--config-fd" => config = Some(arguments.next()?.parse().ok()?),
            "--events-fd" => events = Some(arguments.next()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(Command::Serve {
        config: config?,
        events: events?,
    })
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Some(Command::Version) => {
            match writeln!(std::io::stdout(), "{}", env!("CARGO_PKG_VERSION")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Some(Command::Serve { config, events }) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_max_level(tracing::Level::INFO)
                .with_ansi(false)
                .init();
            match iii_vfs::process::run(config, events) {
                Ok(()) => ExitCode::SUCCESS,
                // It has been logged and reported.
                Err(_) => ExitCode::FAILURE,
            }
        }
        None => {
            // Nobody is left to tell if standard error is closed.
            writeln!(std::io::stderr(), "{USAGE}").ok();
            ExitCode::from(MISUSE)
        }
    }
}
