//! Completion of arguments in a shell.
//!
//! `completions` prints a script that knows commands and options. A shell that asks the program
//! itself, by [`VARIABLE`], gets the names of workers too. That way of clap's is not promised to
//! stay compatible with scripts that were saved, so it is set up anew at each start of a shell.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use super::arguments::Arguments;
use super::say::print;
use crate::workers_file::{FILE_NAME, edit};

/// Set by a shell that asks for completions.
const VARIABLE: &str = "III_SUPER_COMPLETE";

/// Answers a shell and ends the program, if a shell asks.
pub(super) fn answer() {
    CompleteEnv::with_factory(Arguments::command)
        .var(VARIABLE)
        .bin("iii-super")
        .completer("iii-super")
        .complete();
}

/// The script for a shell.
pub(super) fn script(shell: clap_complete::Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "iii-super", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Names of the workers in the file that the command line names.
pub(crate) fn workers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let file = file(std::env::args_os());
        // Without a file that can be read there is nothing to offer.
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let names = edit::names(&text).into_iter();
        names.map(CompletionCandidate::new).collect()
    })
}

/// The value of `-f`, which stands before or behind the word that is being completed.
fn file(arguments: impl Iterator<Item = OsString>) -> PathBuf {
    let mut file = None;
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str() else {
            continue;
        };
        if matches!(text, "-f" | "--file") {
            file = arguments.peek().map(PathBuf::from);
        } else if let Some(value) = text.strip_prefix("--file=") {
            file = Some(PathBuf::from(value));
        }
    }
    file.unwrap_or_else(|| PathBuf::from(FILE_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_one_that_the_line_names() {
        let of = |line: &str| file(line.split(' ').map(OsString::from));
        assert_eq!(of("iii-super run "), PathBuf::from(FILE_NAME));
        assert_eq!(of("iii-super run -f a.yaml "), PathBuf::from("a.yaml"));
        assert_eq!(of("iii-super run a --file=b.yaml"), PathBuf::from("b.yaml"));
        assert_eq!(of("iii-super run --file"), PathBuf::from(FILE_NAME));
    }
}
