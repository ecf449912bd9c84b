//! What the process tests share.
#![allow(dead_code)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iii_vmm::helpers::HelperPlaces;
use iii_vmm::process::{ChildExit, ChildHandle, ChildSpec, Spawner, Stdio};

/// Bound of failures; nothing that works takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn places() -> HelperPlaces {
    let shim = Path::new(env!("CARGO_BIN_EXE_iii-shim"));
    HelperPlaces::in_directory(shim.parent().unwrap())
}

pub(crate) fn spawn(spec: ChildSpec) -> ChildHandle {
    Spawner::global()
        .unwrap()
        .spawn(spec, &places(), |_| {})
        .unwrap()
}

pub(crate) fn shell(script: &str) -> ChildSpec {
    let mut spec = ChildSpec::new("/bin/sh", "test");
    spec.allow_user_namespace = true;
    spec.env("PATH", "/usr/bin:/bin").args(["-c", script]);
    spec
}

/// Runs it to its end; its exit and what it has written.
pub(crate) fn run(mut spec: ChildSpec) -> (ChildExit, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    spec.stdout = Stdio::Fd(writer.into());
    let child = spawn(spec);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    (child.wait_blocking(LONG).expect("it ends"), output)
}

/// Runs it, and returns it with the first line that it writes.
pub(crate) fn run_until_line(mut spec: ChildSpec) -> (ChildHandle, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    spec.stdout = Stdio::Fd(writer.into());
    let child = spawn(spec);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(reader), &mut line).unwrap();
    (child, line.trim().to_owned())
}

/// Whether a process goes on: not gone, and not a zombie that somebody has yet to reap.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

/// Waits for a fact.
pub(crate) fn wait_for(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !fact() {
        assert!(Instant::now() < deadline, "{what} has not come");
        std::thread::yield_now();
    }
}

/// Children of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// The example `spawn` and the shim, where every user can execute them.
pub(crate) fn public_binaries() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let shim = Path::new(env!("CARGO_BIN_EXE_iii-shim"));
    let example = shim.parent().unwrap().join("examples/spawn");
    // By a process of its own: a descriptor of ours that is open for writing would be inherited for
    // a moment by whatever another test starts, and the kernel executes no file that is being
    // written.
    let copied = std::process::Command::new("cp")
        .args([shim, &example, directory.path()])
        .status()
        .unwrap();
    assert!(copied.success());
    let example = directory.path().join("spawn");
    (directory, example)
}
