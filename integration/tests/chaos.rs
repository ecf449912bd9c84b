//! A short run of `make chaos`: in a process of its own, so that what it holds can be counted.

use std::process::Command;

#[test]
fn forty_faults_are_repaired_and_leave_nothing() {
    let scratch = tempfile::tempdir().expect("the host has room for a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_iii-chaos"))
        .arg("40")
        .env("TMPDIR", scratch.path())
        .output()
        .expect("cargo has built it");
    let told = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{told}");
    let left: Vec<_> = std::fs::read_dir(scratch.path())
        .expect("it is readable")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}\n{told}");
}
