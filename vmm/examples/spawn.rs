//! Runs a program as a child of the spawner:
//!
//! ```text
//! cargo run -p iii-vmm --example spawn -- /bin/sleep 60
//! ```
//!
//! Prints the process ids of the program and of its shim, waits for its end and prints that. Kill
//! this process in any way, and the program is gone.

use std::error::Error;
use std::io::Write;
use std::sync::mpsc::channel;

use iii_vmm::helpers::HelperPlaces;
use iii_vmm::process::{ChildSpec, Spawner};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or("which program?")?;
    let mut spec = ChildSpec::new(program, "example");
    spec.args(arguments);
    spec.allow_user_namespace = true;

    let (ended, end) = channel();
    let child = Spawner::global()?.spawn(spec, &HelperPlaces::default(), move |exit| {
        ended.send(exit).expect("main waits for it");
    })?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "program {} shim {} namespaces {:?}",
        child.pid(),
        child.shim_pid(),
        child.isolation().namespaces
    )?;
    writeln!(out, "ended with {}", end.recv()?)?;
    Ok(())
}
