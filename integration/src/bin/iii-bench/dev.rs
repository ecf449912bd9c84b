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

    fn wait_for(&self, text: &str) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            if line.map_err(|e| format!("no {text}: {e}"))?.contains(text) {
                return Ok(());
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
    let new = directory.join("start.tmp");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::write(&new, text)
        .and_then(|()| std::fs::set_permissions(&new, mode))
        .and_then(|()| std::fs::rename(&new, directory.join("start")))
        .map_err(|e| format!("failed to save: {e}"))
}

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
            // Nobody saves as fast as a machine, and what does is taken for the worker itself.
            std::thread::sleep(Duration::from_millis(2100));
        }
    }
    Ok(times)
}
