//! `doctor --boot`: a boot stage by stage, and what is said of one that fails.

use std::fs;
use std::process::Output;

use iii_firmware::{INIT_MARKER, INIT_VERSION};
use iii_integration::program::program;
use serde_json::Value;

fn doctor(init: Option<&std::path::Path>, words: &[&str]) -> Output {
    let mut command = program();
    command.arg("doctor").args(words).env_remove("III_LOG");
    if let Some(init) = init {
        command.env("III_INIT_PATH", init);
    }
    command.output().unwrap()
}

#[test]
fn a_boot_is_shown_stage_by_stage() {
    let output = doctor(None, &["--boot", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let boot = &report["boot"];
    assert_eq!(boot["booted"], true, "{boot}");
    assert_eq!(boot["failure"], Value::Null);
    let steps = boot["steps"].as_array().unwrap();
    let ids: Vec<&str> = steps.iter().map(|s| s["id"].as_str().unwrap()).collect();
    // The line and the fact that its writer has ended come by two ways.
    let way: Vec<&str> = ids
        .iter()
        .copied()
        .filter(|id| *id != "first-line")
        .collect();
    assert!(ids.contains(&"first-line"), "{ids:?}");
    assert_eq!(
        way,
        [
            "vmm-started",
            "hello",
            "init",
            "spec-read",
            "mounted",
            "network-up",
            "prepared",
            "workload-started",
            "workload-exited",
            "powering-off",
            "vm-stopped",
        ]
    );
    let times: Vec<u64> = steps
        .iter()
        .filter(|step| step["id"] != "first-line")
        .map(|step| step["at_ms"].as_u64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[1] > 0, "a kernel takes its time");

    let output = doctor(None, &["--boot", "--no-color"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{report}");
    for part in [
        "✓ qemu",
        "qemu is started (",
        "the guest says hello (Linux 6.12.",
        "the workload's first line is here",
        "A VM boots, runs a workload and powers off.",
    ] {
        assert!(report.contains(part), "{report}");
    }
}

/// A static program for x86-64 that claims to be our vm-init, and that no kernel executes: its type
/// is none.
fn unfit_init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let text = format!("{INIT_MARKER}{INIT_VERSION}\0");
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_NONE, EM_X86_64, version 1.
    elf.extend([0, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend((BASE + HEADERS).to_le_bytes());
    // Program headers behind this one, no section headers, no flags.
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    for field in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(field.to_le_bytes());
    }
    // PT_LOAD, readable and executable, all of the file.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = HEADERS + text.len() as u64;
    for field in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(text.as_bytes());
    elf
}

#[test]
fn a_boot_that_fails_shows_the_console_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let init = directory.path().join("init");
    fs::write(&init, unfit_init()).unwrap();
    let output = doctor(Some(&init), &["--boot", "--no-color"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{report}");
    for part in [
        "The end of the guest's console:",
        "No working init found",
        "The VM did not boot: ",
        "last words say why",
    ] {
        assert!(report.contains(part), "lacks {part:?}: {report}");
    }
    let output = doctor(Some(&init), &["--boot", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failure = &report["boot"]["failure"];
    let tail = failure["console_tail"].as_str().unwrap();
    assert!(tail.contains("No working init found"), "{tail}");
    assert!(failure["fix"].is_string(), "{failure}");
    assert_eq!(report["can_run"], true);

    // A host that cannot run workers is not made to try.
    fs::write(&init, "no program").unwrap();
    let output = doctor(Some(&init), &["--boot", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["can_run"], false);
    assert_eq!(report["boot"], Value::Null);
}
