//! iii-super under a service manager, and across its own death.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use iii_integration::PATIENCE;
use iii_integration::program::{Run, home, program, workers_file};
use nix::sys::signal::Signal;

/// The service manager's end of sd_notify(3).
struct Manager {
    socket: UnixDatagram,
    said: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let tick = Duration::from_millis(100);
        socket.set_read_timeout(Some(tick)).unwrap();
        Self {
            socket,
            said: Vec::new(),
        }
    }

    /// Waits for a message that holds this; the position behind it.
    fn hears(&mut self, from: usize, what: &str) -> usize {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            let said = self.said.iter().skip(from);
            if let Some(at) = said.clone().position(|line| line.contains(what)) {
                return from + at + 1;
            }
            assert!(Instant::now() < end, "no {what:?} in {:?}", self.said);
            if let Ok(count) = self.socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]);
                self.said.extend(text.lines().map(str::to_owned));
            }
        }
    }
}

fn run_with(home: &Path, file: &Path, more: &[&str], env: &[(&str, &str)]) -> Run {
    let mut command = program();
    command.args(["run", "--json", "-f"]).arg(file).args(more);
    command.env("III_HOME", home);
    for (name, value) in env {
        command.env(name, value);
    }
    Run::start(command)
}

fn states(home: &Path) -> Vec<PathBuf> {
    let projects = fs::read_dir(home.join("projects"));
    projects.map_or(Vec::new(), |entries| {
        entries.flatten().map(|entry| entry.path()).collect()
    })
}

#[test]
fn the_service_manager_is_told_when_all_are_ready_that_we_live_and_that_we_stop() {
    let home = home();
    let (directory, file) = workers_file(
        "
workers:
  late:
    command: [/bin/sh, -c, 'sleep 2; touch /tmp/ready; exec sleep 1000']
    health: {exec: [test, -e, /tmp/ready], interval: 200ms}
  early:
    command: [sleep, '1000']
",
    );
    let path = directory.path().join("notify");
    let mut manager = Manager::listen(&path);
    let path = path.to_str().unwrap();
    let env = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1000000")];
    let mut run = run_with(home.path(), &file, &[], &env);
    let ready = manager.hears(0, "READY=1");
    let before = &manager.said[..ready];
    assert!(
        before
            .iter()
            .any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")),
        "{before:?}"
    );
    assert!(
        before
            .iter()
            .any(|line| line.contains("1 started (late), 1 ready")),
        "{before:?}"
    );
    let alive = manager.hears(ready, "WATCHDOG=1");
    run.signal(Signal::SIGTERM);
    manager.hears(alive, "STOPPING=1");
    assert!(run.wait().success());
    let ready = manager.said.iter().filter(|line| *line == "READY=1");
    assert_eq!(ready.count(), 1);
}

#[test]
fn after_a_kill_the_next_run_says_what_was_lost_and_goes_on_counting() {
    let home = home();
    let (_directory, file) = workers_file(
        "
workers:
  steady:
    command: [/bin/sh, -c, 'echo awake; exec sleep 1000']
  hopeless:
    command: [/bin/sh, -c, 'exit 1']
    restart: {mode: on-failure, initial: 10ms, limit: 1/5m}
    vm_restart: {mode: on-failure, initial: 10ms, limit: 1/5m}
",
    );
    let mut first = run_with(home.path(), &file, &[], &[]);
    first.line("worker-failed");
    let event = first.said("awake");
    let boot = event.split("\"boot\":\"").nth(1).unwrap();
    let boot = boot.split('"').next().unwrap().to_owned();

    let mut second = run_with(home.path(), &file, &[], &[]);
    let pid = first.child.id().to_string();
    let refused = second.line("already, process");
    assert!(refused.contains(&pid), "{refused}");
    assert_eq!(second.wait().code(), Some(2));

    first.signal(Signal::SIGKILL);
    first.wait();
    assert_eq!(states(home.path()).len(), 1);
    let mut next = run_with(home.path(), &file, &[], &[]);
    let recovered = [next.line("worker-recovered"), next.line("worker-recovered")];
    let of = |name: &str| {
        let worker = format!("\"worker\":\"{name}\"");
        let event = recovered.iter().find(|event| event.contains(&worker));
        event.unwrap().clone()
    };
    assert!(of("steady").contains(&boot), "{}", of("steady"));
    let failed = of("hopeless");
    assert!(failed.contains("\"state\":\"failed\""), "{failed}");
    assert!(failed.contains("\"restarts\":1"), "{failed}");
    next.said("awake");
    let starts = next
        .seen
        .iter()
        .filter(|l| l.contains("hopeless") && l.contains("vm-started"));
    assert_eq!(starts.count(), 0, "what had failed stays failed");
    next.signal(Signal::SIGKILL);
    next.wait();

    let mut anew = run_with(home.path(), &file, &["--reset-failed"], &[]);
    anew.line("worker-failed");
    let starts = anew
        .seen
        .iter()
        .filter(|l| l.contains("hopeless") && l.contains("vm-started"));
    assert_eq!(starts.count(), 2);
    anew.signal(Signal::SIGTERM);
    // A worker that had failed makes the run a failure.
    assert_eq!(anew.wait().code(), Some(1));
    let state = states(home.path()).pop().unwrap();
    let mut left: Vec<_> = fs::read_dir(state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        ["logs", "workers-file"],
        "an end in order leaves the output alone"
    );
}

#[test]
fn the_units_are_what_systemd_understands() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let directory = tempfile::tempdir().unwrap();
    for unit in ["iii-super.service", "iii-super-user.service"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        // The program is looked for, and is not installed here.
        let text = text.replace("/usr/local/bin/iii-super", "/bin/true");
        let copy = directory.path().join(unit);
        fs::write(&copy, text).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.arg("verify").arg("--man=no");
        if unit.contains("user") {
            verify.arg("--user");
            verify.env("XDG_RUNTIME_DIR", directory.path());
        }
        let output = verify.arg(&copy).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{unit}: {said}");
        assert!(!said.contains(unit), "{unit}: {said}");
    }
}
