//! Takes the cgroup that it was handed, as a supervisor does, and runs programs in leaves of it, a
//! line per program on standard output: what it said, how it ended, and what the host's kernel says
//! of it. For tests that run it in a guest, whose kernel has cgroups of version 2.
#![deny(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use iii_proto::ids::{BootId, WorkerName};
use iii_vmm::cgroup::{Delegation, VmSize, Wish};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::host::Acceleration;
use iii_vmm::process::{ChildSpec, Spawner, Stdio};

/// Nothing takes as long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let told = match run(&arguments, &mut out) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => writeln!(out, "failed: {error}"),
    };
    // Without a reader there is nobody to tell.
    told.map_or(ExitCode::from(2), |()| ExitCode::FAILURE)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `PROGRAM ARGUMENT...`: the program once with each argument.
fn run(arguments: &[String], out: &mut impl Write) -> Outcome<()> {
    let (program, each) = arguments
        .split_first()
        .ok_or("usage: iii-leaf PROGRAM ARG...")?;
    let delegation = Delegation::take(Wish::from_env()).map_err(text)?;
    let held = delegation.held();
    let names: Vec<String> = held.controllers.iter().map(ToString::to_string).collect();
    let own = fs::read_to_string("/proc/self/cgroup").map_err(text)?;
    writeln!(
        out,
        "taken: {} with {}; now in {}",
        held.root.display(),
        names.join(" "),
        own.trim()
    )
    .map_err(text)?;
    for (number, argument) in (1..).zip(each) {
        let line = in_leaf(&delegation, program, argument, number)?;
        writeln!(out, "{argument}: {line}").map_err(text)?;
    }
    Ok(())
}

fn in_leaf(delegation: &Delegation, program: &str, argument: &str, number: u64) -> Outcome<String> {
    let worker = WorkerName::new("leaf").map_err(text)?;
    let size = VmSize {
        memory: 64 << 20,
        cpus: 1,
        acceleration: Acceleration::Kvm,
    };
    let leaf = delegation.leaf(&worker, BootId::from_random(number), &size);
    let leaf = leaf.ok_or("no leaf is given")?;
    let path = leaf.path().to_owned();
    let limit = |file: &str| {
        let value = fs::read_to_string(path.join(file)).unwrap_or_default();
        format!("{file} {}", value.trim())
    };
    let limits = [
        "memory.max",
        "pids.max",
        "cpu.max",
        "cpu.weight",
        "memory.oom.group",
    ]
    .map(limit);
    let (mut said, its_output) = std::io::pipe().map_err(text)?;
    let mut spec = ChildSpec::new(program, format!("leaf/{argument}"));
    spec.arg(argument);
    spec.stdout = Stdio::Fd(its_output.into());
    spec.cgroup = Some(leaf.clone());
    let (ended, end) = channel();
    let on_exit = move |exit| {
        // The receiver waits below.
        ended.send(exit).unwrap_or(());
    };
    let handle = Spawner::global()
        .and_then(|spawner| spawner.spawn(spec, &HelperPlaces::default(), on_exit))
        .map_err(text)?;
    let joined = format!("{:?}", handle.isolation().cgroup);
    let mut words = String::new();
    said.read_to_string(&mut words).map_err(text)?;
    let exit = end.recv().map_err(text)?;
    let memory = leaf.out_of_memory().map(|memory| memory.to_string());
    drop(leaf);
    let gone = is_gone(&path);
    Ok(format!(
        "joined {joined}; {}; said {:?}; ended with {exit}; {}; the leaf is {}",
        limits.join(", "),
        words.trim(),
        memory.as_deref().unwrap_or("memory sufficed"),
        if gone { "gone" } else { "still there" },
    ))
}

/// The spawner holds the leaf until its last process is forgotten.
fn is_gone(path: &Path) -> bool {
    let end = Instant::now() + PATIENCE;
    while path.exists() {
        if Instant::now() > end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}
