//! The program `iii-super`: see [`iii_supervisor::cli`].
#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    iii_supervisor::cli::main()
}
