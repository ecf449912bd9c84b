//! Hardware virtualisation that turns out to be false: the way back to software, on a real host of
//! that kind. Where /dev/kvm opens and guests die (kvm_pvm), that is what happens here; where there
//! is none at all, QEMU and libkrun end at once, which is the same to us.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use iii_firmware::FirmwareOptions;
use iii_firmware::home::IiiHome;
use iii_integration::program::program;
use iii_integration::{Bench, PATIENCE, binaries, is, shell};
use iii_supervisor::{AccelerationWish, EventKind, Supervisor, VmmChoice};
use iii_vmm::host::{Acceleration, HostFacts, virtualisation};
use iii_vmm::verdict::{Verdicts, host_boot_id};
use serde_json::Value;

/// Says so, and ends the test, where virtualisation is real: then nothing here can be seen.
fn real() -> bool {
    let real = virtualisation(&HostFacts::collect()).acceleration == Acceleration::Kvm;
    if real {
        let text = "acceleration: skipped, since this host's virtualisation is real\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    real
}

/// A home with this machine's firmware, whose other memories are its own.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let user = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".iii");
    fs::create_dir(home.path().join("cache")).unwrap();
    for part in ["lib", "cache/kernel", "cache/verified"] {
        fs::create_dir_all(user.join(part)).unwrap();
        symlink(user.join(part), home.path().join(part)).unwrap();
    }
    home
}

async fn bench(home: &Path, vmm: VmmChoice) -> Bench {
    let mut firmware = FirmwareOptions::from_env().unwrap();
    firmware.home = IiiHome::at(home).unwrap();
    let builder = Supervisor::builder()
        .firmware(firmware)
        .vmm(vmm)
        .acceleration(AccelerationWish::Kvm);
    Bench::build(builder).await
}

fn doctor(home: &Path, variables: &[(&str, &str)]) -> Value {
    let mut command = program();
    command.args(["doctor", "--json"]).env("III_HOME", home);
    command.env_remove("III_VMM_ACCEL");
    command.envs(variables.iter().copied());
    serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
}

fn found<'a>(report: &'a Value, id: &str) -> &'a str {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["id"] == id).unwrap();
    check["found"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_that_die_of_false_virtualisation_are_run_in_software_with_one_warning() {
    if real() {
        return;
    }
    let home = home();
    for vmm in [VmmChoice::Qemu, VmmChoice::Auto] {
        let mut bench = bench(home.path(), vmm).await;
        let names = ["a", "b"];
        let specs = names.map(|name| {
            let mut spec = shell(name, "exec sleep 1000");
            spec.boot_deadline = PATIENCE;
            // Any restart that is counted would end the worker.
            spec.vm_restart.limit.as_mut().unwrap().restarts = 0;
            spec
        });
        bench.add(specs.into()).await;
        for name in names {
            bench.ready(0, name).await;
        }
        let first = match vmm {
            VmmChoice::Qemu => "qemu",
            _ => "krun",
        };
        for name in names {
            let started: Vec<(&str, &str)> = bench
                .seen
                .iter()
                .filter(|event| is(event, name))
                .filter_map(|event| match &event.kind {
                    EventKind::VmStarted { vmm, accel, .. } => Some((vmm.as_str(), accel.as_str())),
                    _ => None,
                })
                .collect();
            assert!(
                started == [(first, "kvm"), ("qemu", "tcg")],
                "{started:?}\n{}",
                bench.story()
            );
            let status = bench.worker(name).status().await.unwrap();
            assert_eq!(status.vm_restarts, 0, "{}", bench.story());
        }
        let warnings: Vec<&str> = bench
            .seen
            .iter()
            .filter_map(|event| match &event.kind {
                EventKind::Warning { message } => Some(message.as_str()),
                _ => None,
            })
            .filter(|message| message.contains("software"))
            .collect();
        let [warning] = warnings[..] else {
            panic!("{warnings:?}");
        };
        assert!(warning.contains("tried again in software"), "{warning}");
        bench.stop().await;

        let verdicts = Verdicts::in_directory(&home.path().join("cache"));
        let known = verdicts.recall(&host_boot_id().unwrap()).unwrap();
        assert_eq!(known.vmm, first);
        let report = doctor(home.path(), &[]);
        let kvm = found(&report, "kvm");
        assert!(kvm.contains("since the host's last boot"), "{kvm}");
        // Whoever wants to try again can.
        let report = doctor(home.path(), &[("III_VMM_ACCEL", "kvm")]);
        let kvm = found(&report, "kvm");
        assert!(kvm.contains("III_VMM_ACCEL"), "{kvm}");
        fs::remove_file(verdicts.path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libkrun_alone_has_no_software_and_its_failure_says_why() {
    if real() {
        return;
    }
    let home = home();
    let mut bench = bench(home.path(), VmmChoice::Krun).await;
    let mut spec = shell("a", "exec sleep 1000");
    spec.boot_deadline = PATIENCE;
    spec.vm_restart.limit.as_mut().unwrap().restarts = 0;
    bench.add(vec![spec]).await;
    let (cause, _) = bench
        .event(0, "the VM's end", |event| match &event.kind {
            EventKind::VmCrashed { cause, .. } => Some(cause.clone()),
            _ => None,
        })
        .await;
    assert!(cause.contains("before the guest spoke"), "{cause}");
    assert!(
        cause.contains("krun with kvm") && cause.contains("iii-super doctor"),
        "{cause}"
    );
    let (_, _) = bench
        .event(0, "the worker's end", |event| {
            matches!(event.kind, EventKind::WorkerFailed { .. }).then_some(())
        })
        .await;
    bench.stop().await;
    let verdicts = Verdicts::in_directory(&home.path().join("cache"));
    assert_eq!(verdicts.recall(&host_boot_id().unwrap()), None);
}

fn run(file: &Path, home: &Path, words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command: Command = program();
    command.arg("run").arg("-f").arg(file).args(words);
    command.env("III_HOME", home);
    command.env_remove("III_VMM").env_remove("III_VMM_ACCEL");
    command.envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn libkrun_is_refused_where_it_cannot_run_and_wrong_wishes_are_told() {
    let home = home();
    let (_directory, file) = iii_integration::program::workers_file(
        "workers:\n  a:\n    command: 'true'\n    restart: never\n",
    );
    let refused = |words: &[&str], variables: &[(&str, &str)], parts: &[&str]| {
        let output = run(&file, home.path(), words, variables);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    };
    let tcg = ("III_VMM_ACCEL", "tcg");
    let why = ["failed to use krun", "III_VMM_ACCEL", "--vmm qemu"];
    refused(&["--vmm", "krun"], &[tcg], &why);
    refused(&[], &[tcg, ("III_VMM", "krun")], &why);
    refused(&[], &[("III_VMM", "kvm")], &["III_VMM", "\"kvm\"", "qemu"]);
    let wrong = ("III_VMM_ACCEL", "yes");
    refused(&[], &[wrong], &["III_VMM_ACCEL", "\"yes\"", "tcg"]);
    if !real() {
        refused(
            &["--vmm", "krun"],
            &[],
            &["failed to use krun", "--vmm auto"],
        );
    }
    // The option outweighs the variable.
    let output = run(
        &file,
        home.path(),
        &["--vmm", "qemu"],
        &[tcg, ("III_VMM", "krun")],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("qemu/tcg"), "{text}");
}

#[test]
fn the_recorded_launcher_is_no_part_of_a_build() {
    // The stand-in for libkrun must never be what users get.
    let launcher = Command::new(binaries().join("iii-krun"))
        .arg("--check")
        .output()
        .unwrap();
    let text = String::from_utf8(launcher.stdout).unwrap();
    assert!(text.ends_with("built in\n"), "{text}");
}

#[test]
fn doctor_shows_which_hosts_are_told_apart_and_which_of_them_nobody_has_run() {
    let home = home();
    let report = doctor(home.path(), &[]);
    let hosts = report["hosts"].as_array().unwrap();
    assert!(hosts.len() >= 8);
    let facts = HostFacts::collect();
    for (host, row) in hosts.iter().zip(iii_vmm::host::TABLE) {
        assert_eq!(host["situation"], row.situation);
        assert_eq!(host["proven"], row.proven);
        assert_eq!(host["this"], row.is_of(&facts));
    }
    let output = program()
        .arg("doctor")
        .env("III_HOME", home.path())
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("unproven"), "{text}");
}
