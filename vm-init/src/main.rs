//! PID 1 of the guest, or with arguments a plain supervisor; everything is in the library.
#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
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
                Ok(_) => ExitCode::SUCCESS,
                Err(message) => complain(&message),
            }
        }
        _ => complain("usage: vm-init supervise SPEC_FILE CONTROL_FD LOG_FD"),
    }
}

fn complain(message: &str) -> ExitCode {
    use std::io::Write;
    // With stderr closed there is nobody to tell.
    drop(writeln!(std::io::stderr(), "vm-init: {message}"));
    ExitCode::from(2)
}
