//! A guest has taken over its VMM: this program stands in a VMM's place, with its arguments and
//! descriptors, tries what an attacker would, and tells on the VM's console what came of it, a line
//! per attempt: `attack NAME: held (why)` or `attack NAME: THROUGH (how)`.
//!
//! In QEMU's place it is found in PATH, in iii-krun's beside the other helpers; `--hog` and `--bomb`
//! use up what a cgroup must limit.
#![deny(unsafe_code)]

mod attacks;
mod krun;
mod sys;
mod usage;

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use attacks::{ATTEMPTS, Outcome};

/// By which the supervisor takes it for its launcher of libkrun.
#[used]
static MARKER: &str = iii_proto::helper_marker!("iii-krun");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let first = arguments.first().map(String::as_str).unwrap_or_default();
    match first {
        // What iii-super asks QEMU, and iii-krun, for before it starts a VM.
        "--version" => said("QEMU emulator version 7.2.0\n"),
        "--check" => said("libkrun 1.19.7 built in\n"),
        "--hog" => usage::hog(),
        "--bomb" => usage::bomb(),
        "--launch-fd" => {
            let launch = arguments.get(1).and_then(|number| krun::launch(number));
            launch.map_or(ExitCode::from(64), |(console, launch)| {
                attack(console, |tell| krun::attack_exports(&launch, tell))
            })
        }
        _ if usage::is_wanted() => usage::hog(),
        _ => console(&arguments).map_or(ExitCode::from(64), |console| attack(console, |_| true)),
    }
}

fn said(line: &str) -> ExitCode {
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Tells of an attempt; whether anybody listens.
type Tell<'a> = dyn FnMut(&str, Outcome) -> bool + 'a;

/// Tries everything; `first` is what only this place allows to try.
fn attack(mut console: File, first: impl FnOnce(&mut Tell<'_>) -> bool) -> ExitCode {
    let told = {
        let mut tell = |name: &str, outcome: Outcome| {
            let line = match outcome {
                Ok(how) => format!("attack {name}: THROUGH ({how})\n"),
                Err(why) => format!("attack {name}: held ({why})\n"),
            };
            console.write_all(line.as_bytes()).is_ok()
        };
        first(&mut tell) && ATTEMPTS.iter().all(|(name, attempt)| tell(name, attempt()))
    };
    if !told {
        return ExitCode::FAILURE;
    }
    let threads = std::thread::spawn(|| 1).join().is_ok();
    let line = format!("attacks are over; a thread of its own: {threads}\n");
    if console.write_all(line.as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    // The very last: where it is not held, nobody is left to tell.
    let error = Command::new("/bin/true").exec();
    let line = format!("attack execute: held ({error})\n");
    match console.write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
/// The descriptor that QEMU is told to write the console to.
fn console(arguments: &[String]) -> Option<File> {
    let number = arguments.iter().find_map(|word| {
        let file = word.strip_prefix("fd=")?.strip_suffix(",set=1");
        file.map(str::to_owned)
    });
    let number = number.or_else(|| {
        arguments.iter().find_map(|word| {
            let fd = word.strip_prefix("socket,id=console,fd=")?;
            Some(fd.to_owned())
        })
    })?;
    sys::inherited(number.parse().ok()?).ok().map(File::from)
}
