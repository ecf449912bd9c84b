//! PID 1 of the guest, or with arguments a plain supervisor; everything is in the library.
//!
//! The C entry point takes the place of Rust's, which opens /dev/null for descriptors that the
//! kernel left closed and aborts without it: PID 1 starts before there is a /dev, and now and then
//! without a console.
#![no_main]
#![deny(unsafe_code)]

use std::ffi::{c_char, c_int};

mod sys {
    //! The entry point.
    #![allow(unsafe_code)]

    use super::{c_char, c_int};

    // SAFETY: `main` is the one symbol of this name in the program, as `no_main` demands, and has
    // the type that the C runtime calls. Its arguments are not used: std keeps its own copy.
    #[unsafe(no_mangle)]
    extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
        super::entry()
    }
}

fn entry() -> c_int {
    if std::process::id() == 1 {
        vm_init::pid1::run();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [command, spec, control, log] if command == "supervise" => {
            let result = match (control.parse(), log.parse()) {
                (Ok(control), Ok(log)) => {
                    vm_init::plain::run(spec.as_ref(), control, log).map_err(|e| e.to_string())
                }
                _ => Err(String::from("CONTROL_FD and LOG_FD are numbers")),
            };
            match result {
                Ok(_) => 0,
                Err(message) => complain(&message),
            }
        }
        _ => complain("usage: vm-init supervise SPEC_FILE CONTROL_FD LOG_FD"),
    }
}

fn complain(message: &str) -> c_int {
    use std::io::Write;
    // With stderr closed there is nobody to tell.
    writeln!(std::io::stderr(), "vm-init: {message}").unwrap_or(());
    2
}
