//! The program `iii-super` as a user runs it, for tests.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{PATIENCE, binaries};

/// Waits for a fact that no one announces.
pub fn eventually(what: &str, limit: Duration, mut fact: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !fact() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A run of `iii-super`, whose lines can be waited for.
#[derive(Debug)]
pub struct Run {
    /// It.
    pub child: Child,
    /// Lines of both outputs that nobody has waited for yet.
    pub lines: Receiver<String>,
    /// Lines of both outputs so far.
    pub seen: Vec<String>,
}

/// Whoever runs these tests in the background may have had SIGINT or SIGHUP ignored, which is
/// inherited and which `iii-super` respects; `env` puts that back and becomes the program.
pub fn with_signals(command: Command) -> Command {
    let mut wrapper = Command::new("env");
    wrapper.arg("--default-signal=INT,TERM,HUP,QUIT");
    let mut wrapped = around(wrapper, &command);
    wrapped.stdin(Stdio::null());
    wrapped
}

/// The same as the user, and the group, of this number.
pub fn as_user(id: u32, command: &Command) -> Command {
    let mut wrapper = Command::new("setpriv");
    wrapper.args([format!("--reuid={id}"), format!("--regid={id}")]);
    wrapper.args(["--clear-groups", "--"]);
    around(wrapper, command)
}

/// User and group of nobody in particular.
pub const NOBODY: u32 = 65_534;

/// A program that becomes another, in front of that one.
pub(crate) fn around(mut wrapper: Command, command: &Command) -> Command {
    wrapper.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapper.env(name, value),
            None => wrapper.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapper.current_dir(directory);
    }
    wrapper
}

impl Run {
    /// Starts it, with the signals of a user's shell.
    pub fn start(command: Command) -> Self {
        let mut wrapped = with_signals(command);
        let mut child = wrapped
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tx, lines) = channel();
        let out = child.stdout.take().unwrap();
        let err = child.stderr.take().unwrap();
        for stream in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
            let tx = tx.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    // The test has seen enough.
                    if tx.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that holds this.
    pub fn line(&mut self, holds: &str) -> String {
        self.line_within(PATIENCE, holds)
    }

    /// As [`Self::line`], for what takes longer than a VM does.
    pub fn line_within(&mut self, limit: Duration, holds: &str) -> String {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(holds) {
                        return line;
                    }
                }
                Err(error) => panic!(
                    "no line with {holds:?} ({error}):\n{}",
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// A line that holds this, whether it was seen before or is still to come.
    pub fn said(&mut self, holds: &str) -> String {
        match self.seen.iter().find(|line| line.contains(holds)) {
            Some(line) => line.clone(),
            None => self.line(holds),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_doing(|_| {})
    }

    /// Sends the signal again and again until the program has ended.
    pub fn wait_pressing(&mut self, signal: Signal) -> ExitStatus {
        let mut last = Instant::now();
        self.wait_doing(|run| {
            if last.elapsed() > Duration::from_millis(500) {
                last = Instant::now();
                run.signal(signal);
            }
        })
    }

    fn wait_doing(&mut self, mut meanwhile: impl FnMut(&Self)) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            // A full pipe would keep it from ending.
            self.seen.extend(self.lines.try_iter());
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "it does not end:\n{}",
                self.seen.join("\n")
            );
            meanwhile(self);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// The program, without arguments.
pub fn program() -> Command {
    Command::new(binaries().join("iii-super"))
}

/// `iii-super run -f FILE`, with a home beside the file: what a run keeps goes with the test.
pub fn run(file: &Path) -> Run {
    let home = file.with_file_name(".home");
    if !home.exists() {
        fs::create_dir(&home).unwrap();
        furnish(&home);
    }
    let mut command = program();
    command.arg("run").arg("-f").arg(file);
    command.env("III_HOME", home);
    Run::start(command)
}

/// A home with the firmware that this machine has already, and nothing else.
pub fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    furnish(home.path());
    home
}

/// Puts the firmware that this machine has already, or will have, into a home.
pub fn furnish(home: &Path) {
    let user = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".iii");
    for part in ["lib", "cache"] {
        fs::create_dir_all(user.join(part)).unwrap();
        std::os::unix::fs::symlink(user.join(part), home.join(part)).unwrap();
    }
}

/// A workers file in a directory of its own.
pub fn workers_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("iii.workers.yaml");
    fs::write(&file, text).unwrap();
    (directory, file)
}

/// Processes whose command line or name holds `word`: QEMU carries the worker's name, and so do
/// the labels of the others' arguments.
pub fn processes_with(word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) && line.contains("qemu-system") {
            found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// All descendants of a process, by the parents in /proc.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let Some(parent) = rest.split(' ').nth(1).and_then(|p| p.parse::<u32>().ok()) else {
            continue;
        };
        parents.push((pid, parent));
    }
    let mut family = vec![root];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(
            parents
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    family.split_off(1)
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    // A zombie is dead; it only waits to be looked at.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}
