//! Nothing outlives a supervisor, however it ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;
use iii_vmm::process::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// The example as a supervisor in a process of its own.
struct Supervisor {
    process: Child,
    /// Shim, init and program.
    all: Vec<i32>,
    program: i32,
    line: String,
    _binaries: tempfile::TempDir,
}

impl Supervisor {
    fn start(prepare: impl FnOnce(&mut Command)) -> Self {
        let (binaries, example) = public_binaries();
        let mut command = Command::new(example);
        command
            .args(["/bin/sleep", "1000"])
            .current_dir("/")
            .stdout(Stdio::piped());
        command.env_remove("III_HELPER_DIR").process_group(0);
        prepare(&mut command);
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, program, _, shim, ..] = words[..] else {
            panic!("{line:?}");
        };
        let (program, shim): (i32, i32) = (program.parse().unwrap(), shim.parse().unwrap());
        let init = children(shim);
        let [init] = init[..] else { panic!("{init:?}") };
        assert_eq!(children(init), [program]);
        let all = vec![shim, init, program];
        assert!(all.iter().all(|&pid| is_alive(pid)));
        Self {
            process,
            all,
            program,
            line,
            _binaries: binaries,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    fn is_everything_gone(&mut self) {
        let all = self.all.clone();
        wait_for("the end of all", || !all.iter().any(|&pid| is_alive(pid)));
        self.process.wait().unwrap();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // After a failed assertion; otherwise it has been waited for, and this is an error.
        self.process.kill().unwrap_or_default();
    }
}

fn as_an_ordinary_user(command: &mut Command) {
    // Already one, if not root.
    if nix::unistd::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
}

#[test]
fn killed() {
    let mut supervisor = Supervisor::start(|_| {});
    supervisor.signal(Signal::SIGKILL);
    supervisor.is_everything_gone();
}

#[test]
fn killed_as_an_ordinary_user() {
    let mut supervisor = Supervisor::start(as_an_ordinary_user);
    assert!(supervisor.line.contains("[Pid]"), "{}", supervisor.line);
    supervisor.signal(Signal::SIGKILL);
    supervisor.is_everything_gone();
}

#[test]
fn killed_while_it_and_its_children_are_stopped() {
    let mut supervisor = Supervisor::start(|_| {});
    supervisor.signal(Signal::SIGSTOP);
    for &pid in supervisor.all.iter().rev() {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    supervisor.signal(Signal::SIGKILL);
    supervisor.is_everything_gone();
}

#[test]
fn aborted() {
    let mut supervisor = Supervisor::start(|_| {});
    supervisor.signal(Signal::SIGABRT);
    supervisor.is_everything_gone();
}

#[test]
fn ctrl_c_reaches_the_supervisor_alone() {
    let (binaries, example) = public_binaries();
    // Ignored signals are inherited: so the supervisor survives, and its children's own state shows.
    let mut supervisor = {
        let start = Supervisor::start(|command| {
            let mut shell = Command::new("/bin/sh");
            shell
                .args(["-c", "trap '' INT; exec \"$0\" /bin/sleep 1000"])
                .arg(&example);
            shell
                .process_group(0)
                .stdout(Stdio::piped())
                .current_dir("/");
            *command = shell;
        });
        drop(binaries);
        start
    };
    let group = supervisor.process.id().cast_signed();
    nix::sys::signal::killpg(Pid::from_raw(group), Signal::SIGINT).unwrap();
    // The signal was generated for the whole group when the call returned, so that who is in another
    // group did not get it.
    for &pid in &supervisor.all {
        let own = nix::unistd::getpgid(Some(Pid::from_raw(pid))).unwrap();
        assert_ne!(own.as_raw(), group);
    }
    let status = Path::new("/proc")
        .join(supervisor.program.to_string())
        .join("status");
    let status = std::fs::read_to_string(status).unwrap();
    let ignored = status
        .lines()
        .find(|line| line.starts_with("SigIgn"))
        .unwrap();
    assert!(ignored.ends_with("0000000000000000"), "{ignored}");
    assert!(supervisor.all.iter().all(|&pid| is_alive(pid)));
    supervisor.signal(Signal::SIGKILL);
    supervisor.is_everything_gone();
}
