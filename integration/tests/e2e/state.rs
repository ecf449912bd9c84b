//! A home that cannot be used: what is said, and that nothing is started or left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use iii_integration::chaos::disk::SmallDisk;
use iii_integration::program::{processes_with, program, workers_file};
use tempfile::TempDir;

const FILE: &str = "workers: {homeless: {command: [/bin/true]}}\n";

/// Commands that keep something in the home.
const COMMANDS: [&[&str]; 2] = [&["run"], &["add", "other", "--command", "x"]];

struct Project {
    file: TempDir,
}

impl Project {
    fn new() -> Self {
        Self {
            file: workers_file(FILE).0,
        }
    }

    fn command(&self, words: &[&str], home: &dyn Fn(&mut Command)) -> Command {
        let mut command = program();
        command
            .args(words)
            .current_dir(self.file.path())
            .env_remove("III_HOME")
            .env_remove("III_LOG");
        home(&mut command);
        command
    }

    /// Each command is refused with all of these words, and changes and leaves nothing.
    fn refused(&self, home: &dyn Fn(&mut Command), parts: &[&str]) {
        for words in COMMANDS {
            let output = self.command(words, home).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
            assert_eq!(output.stdout, b"", "{words:?}");
            for part in parts {
                assert!(said.contains(part), "{words:?} lacks {part:?}: {said}");
            }
            let file = self.file.path().join("iii.workers.yaml");
            assert_eq!(fs::read_to_string(file).unwrap(), FILE);
            assert_eq!(fs::read_dir(self.file.path()).unwrap().count(), 1);
        }
        assert_eq!(processes_with("homeless"), Vec::<String>::new());
        // What needs no home works without one.
        let output = self.command(&["config"], home).output().unwrap();
        assert!(output.status.success());
        // And doctor says what is wrong.
        let output = self.command(&["doctor"], home).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            report.contains('✗') && report.contains("III_HOME"),
            "{report}"
        );
    }
}

/// The firmware of this host in a home of its own, so that it is not what is missing there.
fn furnish(home: &Path) {
    let own = std::env::var_os("III_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap()).join(".iii"),
        Into::into,
    );
    fs::create_dir_all(home).unwrap();
    for part in ["lib", "cache"] {
        if own.join(part).exists() {
            symlink(own.join(part), home.join(part)).unwrap();
        }
    }
}

#[test]
fn a_home_that_is_none_is_named_and_never_the_root() {
    let project = Project::new();
    for (value, part) in [
        (None, "HOME is not set"),
        (Some(""), "HOME is not set"),
        (Some("/"), "HOME is `/`"),
        (Some("relative"), "an absolute path is wanted"),
    ] {
        let home = |command: &mut Command| {
            match value {
                Some(value) => command.env("HOME", value),
                None => command.env_remove("HOME"),
            };
        };
        project.refused(&home, &[part]);
    }
    assert!(!Path::new("/.iii").exists());
}

#[test]
fn a_file_in_the_place_of_a_directory_is_named() {
    let project = Project::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let home = |command: &mut Command| {
        command.env("HOME", &file);
    };
    project.refused(&home, &["file/.iii", "III_HOME"]);
    let home = |command: &mut Command| {
        command.env("III_HOME", &file);
    };
    project.refused(&home, &["/file", "III_HOME"]);
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn a_read_only_or_full_home_is_named_with_what_to_do() {
    let Some(disk) = SmallDisk::mount() else {
        // Only root can have a disk of its own to spoil.
        return;
    };
    let project = Project::new();
    let place = disk.path().join("home");
    furnish(&place);
    let home = |command: &mut Command| {
        command.env("III_HOME", &place);
    };
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(disk.path())
            .status();
        assert!(status.unwrap().success());
    };
    remount("ro");
    project.refused(
        &home,
        &["Read-only file system", "make it writable", "III_HOME"],
    );
    remount("rw");
    assert!(!place.join("projects").exists());

    // Full, so that nothing but empty files can be made.
    disk.fill();
    let output = project.command(&["run"], &home).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["No space left on device", "make room", "III_HOME"] {
        assert!(said.contains(part), "{said}");
    }
    let projects = fs::read_dir(place.join("projects")).unwrap();
    assert_eq!(projects.count(), 0, "nothing is left");
    // An edit needs no room there, and its file is on another disk.
    let words = ["add", "other", "--command", "x"];
    let output = project.command(&words, &home).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    disk.free();
}

/// One worker that ends by itself, with a disk or without.
fn short(root: &str) -> iii_integration::project::Project {
    iii_integration::project::Project::new(&format!(
        "workers: {{short: {{command: [/bin/echo, said], restart: never{root}}}}}\n"
    ))
}

#[test]
fn what_is_kept_of_a_project_that_is_gone_is_removed_but_for_its_disks() {
    let plain = short("");
    assert_eq!(plain.says(&["run"]).code, 0);
    let state = plain.state();
    let nothing = plain.says(&["prune"]);
    assert_eq!(
        (nothing.code, &*nothing.stdout),
        (0, "nothing is kept of a project that is gone\n"),
        "while the file is there: {nothing:?}"
    );
    assert!(state.join("logs").exists());

    fs::remove_file(plain.file()).unwrap();
    let dry = plain.says(&["prune", "--dry-run", "--json"]);
    assert_eq!(dry.json()["fate"], "removable", "{dry:?}");
    assert!(dry.json()["bytes"].as_u64().unwrap() > 0, "{dry:?}");
    let file = plain.file().display().to_string();
    assert_eq!(dry.json()["project"], file);
    assert!(state.join("logs").exists());
    let done = plain.says(&["prune"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout.starts_with(&file) && done.stdout.contains("removed"),
        "{done:?}"
    );
    assert_eq!(plain.states(), Vec::<std::path::PathBuf>::new());

    // What a worker has written to its disk is somebody's work.
    let kept = short(", root: {persist: 64MiB}");
    assert_eq!(kept.says(&["run"]).code, 0);
    fs::remove_file(kept.file()).unwrap();
    assert_eq!(
        kept.says(&["prune", "--json"]).json()["fate"],
        "kept-for-disks"
    );
    assert!(kept.state().join("disks").exists());
    assert_eq!(
        kept.says(&["prune", "--disks", "--json"]).json()["fate"],
        "removed"
    );
    assert_eq!(kept.states(), Vec::<std::path::PathBuf>::new());

    // A supervisor may go on when its file is gone.
    let busy = iii_integration::project::Project::new("workers: {busy: {command: sleep 1000}}\n");
    let mut run = busy.start(&["run"]);
    run.line("workload started");
    fs::remove_file(busy.file()).unwrap();
    assert_eq!(busy.says(&["prune", "--json"]).json()["fate"], "in-use");
    run.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(run.wait().code(), Some(0));
    // It has kept nothing, and has left nothing.
    assert_eq!(busy.states(), Vec::<std::path::PathBuf>::new());
}
