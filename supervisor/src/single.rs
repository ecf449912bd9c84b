//! The program `iii-super` with all that it needs inside: one file, which `make single` builds. It is
//! a target of its own, so that the ordinary program and this one can lie in one target directory.
#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    iii_supervisor::cli::main()
}
