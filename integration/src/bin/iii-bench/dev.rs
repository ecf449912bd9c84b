//! What a developer waits for: from a save to the first line of the new process, beside `entr`,
//! which restarts the same program on the host.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use iii_integration::binaries;

/// Nothing here takes as long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that watches a directory, and the lines that it prints.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("failed to start {:?}: {e}", command.get_program()))?;
        let out = child.stdout.take().ok_or("it has no output")?;
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // Who listened has seen enough.
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn wait_for(&self, text: &str) -> Result<String, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.map_err(|e| format!("no {text}: {e}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        // It may have ended by itself, which is told where its lines end.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// As editors save: a new file takes the name of the old one.
fn save(directory: &Path, version: usize) -> Result<(), String> {
    let text = format!("#!/bin/sh\necho version {version}.\nexec sleep 100000\n");
    put(directory, "start", &text)
}

fn put(directory: &Path, name: &str, text: &str) -> Result<(), String> {
    let new = directory.join(format!("{name}.tmp"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::write(&new, text)
        .and_then(|()| std::fs::set_permissions(&new, mode))
        .and_then(|()| std::fs::rename(&new, directory.join(name)))
        .map_err(|e| format!("failed to save: {e}"))
}

/// A runtime whose own start is known: each version of its program prints its first line, and then
/// how long another one of it takes to its first line in the same guest.
struct Runtime {
    name: &'static str,
    program: &'static str,
    file: &'static str,
    text: &'static str,
}

const RUNTIMES: [Runtime; 2] = [
    Runtime {
        name: "Python",
        program: "/usr/bin/python3",
        file: "main.py",
        text: r#"
import sys
print("version VERSION.", flush=True)
if len(sys.argv) == 1:
    import subprocess, time
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "main.py", "again"], stdout=subprocess.PIPE)
    child.stdout.readline()
    print("own", time.monotonic() - begun, "of VERSION.", flush=True)
    time.sleep(100000)
"#,
    },
    Runtime {
        name: "Node",
        program: "/usr/bin/node",
        file: "index.js",
        text: r#"
process.stdout.write("version VERSION.\n");
if (process.argv.length === 2) {
  const begun = process.hrtime.bigint();
  const { spawn } = require("child_process");
  const child = spawn(process.execPath, ["index.js", "again"], { stdio: ["ignore", "pipe", "inherit"] });
  child.stdout.once("data", () => {
    const own = Number(process.hrtime.bigint() - begun) / 1e9;
    process.stdout.write(`own ${own} of VERSION.\n`);
  });
  setInterval(() => {}, 100000);
}
"#,
    },
];

/// What a developer waits for with one runtime.
pub(crate) struct Waits {
    pub(crate) runtime: &'static str,
    /// From the save to the new process's first line.
    pub(crate) first_line: Vec<Duration>,
    /// From the start of the runtime's process to its first line, in the same guest.
    pub(crate) own: Vec<Duration>,
}

/// `runs` saves with each runtime that is on this host; one more warms the caches.
pub(crate) fn runtimes(runs: usize) -> Result<Vec<Waits>, String> {
    let there = (RUNTIMES.iter()).filter(|runtime| Path::new(runtime.program).exists());
    there.map(|runtime| waits(runtime, runs)).collect()
}

fn waits(runtime: &Runtime, runs: usize) -> Result<Waits, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let save = |version: usize| {
        let text = runtime.text.replace("VERSION", &version.to_string());
        put(directory.path(), runtime.file, &text)
    };
    if runtime.file.ends_with(".js") {
        put(directory.path(), "package.json", "{\"main\": \"index.js\"}")?;
    }
    save(0)?;
    let mut dev = Command::new(binaries().join("iii-super"));
    dev.arg("dev")
        .arg(directory.path())
        .args(["--json", "--name", "bench"]);
    let dev = Watching::start(dev.stdin(Stdio::null()))?;
    dev.wait_for("of 0.")?;
    let mut waits = Waits {
        runtime: runtime.name,
        first_line: Vec::new(),
        own: Vec::new(),
    };
    for version in 1..=runs + 1 {
        std::thread::sleep(BETWEEN_SAVES);
        let begun = Instant::now();
        save(version)?;
        dev.wait_for(&format!("\"version {version}."))?;
        let first_line = begun.elapsed();
        let told = dev.wait_for(&format!("of {version}."))?;
        let own = told
            .split("own ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let own = own.and_then(|seconds| seconds.parse().ok());
        let own: f64 = own.ok_or_else(|| format!("no time in {told}"))?;
        if version > 1 {
            waits.first_line.push(first_line);
            waits.own.push(Duration::from_secs_f64(own));
        }
    }
    Ok(waits)
}

/// Nobody saves as fast as a machine, and what does is taken for the worker itself.
const BETWEEN_SAVES: Duration = Duration::from_millis(2100);

/// Ours and entr's times of `runs` saves each, taken in turn; one more of each warms the caches.
pub(crate) fn saves(runs: usize) -> Result<[Vec<Duration>; 2], String> {
    let directories = [tempfile::tempdir(), tempfile::tempdir()];
    let [ours, theirs] = directories.map(|d| d.map_err(|e| e.to_string()));
    let (ours, theirs) = (ours?, theirs?);
    save(ours.path(), 0)?;
    save(theirs.path(), 0)?;
    let mut dev = Command::new(binaries().join("iii-super"));
    dev.arg("dev")
        .arg(ours.path())
        .args(["--json", "--name", "bench"]);
    dev.stdin(Stdio::null());
    let dev = Watching::start(&mut dev)?;
    // -r restarts the program, -n needs no terminal; what is watched is named on its input.
    let names = theirs.path().join("names");
    std::fs::write(&names, "start\n").map_err(|e| e.to_string())?;
    let names = std::fs::File::open(names).map_err(|e| e.to_string())?;
    let mut entr = Command::new("entr");
    entr.args(["-rn", "./start"]).current_dir(theirs.path());
    let entr = Watching::start(entr.stdin(names))?;
    dev.wait_for("version 0.")?;
    entr.wait_for("version 0.")?;
    let mut times = [Vec::new(), Vec::new()];
    for run in 1..=runs + 1 {
        let pairs = [(&dev, ours.path()), (&entr, theirs.path())];
        for (times, (watching, directory)) in times.iter_mut().zip(pairs) {
            let start = Instant::now();
            save(directory, run)?;
            watching.wait_for(&format!("version {run}."))?;
            if run > 1 {
                times.push(start.elapsed());
            }
            std::thread::sleep(BETWEEN_SAVES);
        }
    }
    Ok(times)
}
