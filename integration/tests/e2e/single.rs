//! The self-contained file, as a user has it who copied it to a machine with QEMU and nothing of ours:
//! no helpers beside it, no network, an empty home, no variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use iii_integration::binaries;
use iii_integration::chaos::disk::SmallDisk;
use iii_integration::program::{Run, descendants};
use iii_integration::project::Said;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Built once for all tests here, of the programs that were built for the tests.
static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let out = binaries().join("../single/tested");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let output = Command::new(scripts.join("single"))
        .arg(binaries())
        .arg(&out)
        // Unoptimised programs are large, and nobody downloads these.
        .env("III_EMBED_LEVEL", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    out.join(format!(
        "iii-super-{}-{platform}",
        env!("CARGO_PKG_VERSION")
    ))
});

/// A machine that has the file, and a home in which nothing is.
struct Machine {
    directory: tempfile::TempDir,
}

const WORKERS: &str = "
workers:
  NAME: {command: [/bin/sh, -c, 'echo NAME is awake; exec sleep 1000']}
";

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        fs::create_dir(directory.path().join("home")).unwrap();
        fs::copy(&*BUILT, directory.path().join("bin/iii-super")).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file with these words, without a network and with no variable but these two.
    fn command(&self, home: &Path, words: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(["-i", "PATH=/usr/bin:/bin"]);
        command.arg(format!("HOME={}", home.display()));
        command.args(["unshare", "--net"]);
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .arg("--")
            .arg(self.path("bin/iii-super"))
            .args(words);
        command
    }

    fn says(&self, home: &Path, words: &[&str]) -> Said {
        Said::of(self.command(home, words).output().unwrap())
    }

    /// Runs a worker of this name.
    fn run(&self, name: &str) -> Run {
        let file = self.workers(name);
        let words = ["run", "-f", file.to_str().unwrap()];
        Run::start(self.command(&self.path("home"), &words))
    }

    fn workers(&self, name: &str) -> PathBuf {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        let file = directory.join("iii.workers.yaml");
        fs::write(&file, WORKERS.replace("NAME", name)).unwrap();
        file
    }

    /// Where a helper was laid.
    fn helper(&self, name: &str) -> PathBuf {
        let status = self
            .says(&self.path("home"), &["firmware", "--json"])
            .json();
        let helpers = status["helpers"].as_array().unwrap();
        let helper = helpers.iter().find(|helper| helper["name"] == name);
        PathBuf::from(helper.unwrap()["path"].as_str().unwrap())
    }
}

fn awake(mut run: Run, name: &str) {
    run.line(&format!("{name} is awake"));
    stop(run);
}

fn stop(mut run: Run) {
    run.signal(Signal::SIGINT);
    let status = run.wait();
    assert_eq!(status.code(), Some(0), "{}", run.seen.join("\n"));
}

/// Whether a laid helper is what its directory is named by.
fn is_as_built(path: &Path) -> bool {
    let found: String = Sha256::digest(fs::read(path).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    path.parent().unwrap().ends_with(found)
}

#[test]
fn one_file_runs_workers_with_nothing_beside_it() {
    let machine = Machine::new();
    let home = machine.path("home");
    let mut run = machine.run("alone");
    run.line("alone is awake");
    assert_eq!(fs::read_dir(machine.path("bin")).unwrap().count(), 1);

    // What runs is the file itself, what it has laid, and QEMU.
    let programs = descendants(run.child.id()).into_iter().map(|pid| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let name = program.file_name().unwrap().to_str().unwrap().to_owned();
        (name, program)
    });
    let mut laid = 0;
    for (name, program) in programs {
        if name.starts_with("iii-") {
            assert!(program.starts_with(&home), "{program:?}");
            assert!(is_as_built(&program));
            laid += 1;
        } else {
            assert!(name.starts_with("qemu-system-"), "{name}");
        }
    }
    assert!(laid >= 3, "the shims of QEMU and iii-vfs, and that");
    stop(run);

    // It says where its parts are from.
    let status = machine.says(&home, &["firmware", "--json"]);
    assert_eq!(status.code, 0, "{status:?}");
    let status = status.json();
    assert_eq!(status["looked"][0]["source"], "embedded");
    assert_eq!(status["used"], 0);
    for helper in status["helpers"].as_array().unwrap() {
        assert_eq!(helper["origin"], "embedded", "{helper}");
    }
    let report = machine.says(&home, &["doctor", "--json"]).json();
    for check in report["checks"].as_array().unwrap() {
        if let "iii-shim" | "iii-vfs" | "firmware" | "init" = check["id"].as_str().unwrap() {
            let found = check["found"].as_str().unwrap();
            assert!(found.contains("embedded in this program"), "{check}");
        }
    }
}

#[test]
fn two_first_runs_at_once_both_run_and_what_was_changed_later_is_made_anew() {
    let machine = Machine::new();
    let (one, other) = (machine.run("one"), machine.run("other"));
    awake(one, "one");
    awake(other, "other");

    // Of the same size, so that only the content tells.
    let shim = machine.helper("iii-shim");
    let mut bytes = fs::read(&shim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shim, bytes).unwrap();
    let server = machine.helper("iii-vfs");
    fs::write(&server, "#!/bin/sh\necho not iii-vfs\n").unwrap();
    assert!(!is_as_built(&shim) && !is_as_built(&server));
    let mut run = machine.run("again");
    run.line("again is awake");
    let told = run.seen.iter().filter(|line| line.contains("was changed"));
    assert_eq!(told.count(), 2, "{}", run.seen.join("\n"));
    stop(run);
    assert!(is_as_built(&shim) && is_as_built(&server));
}

#[test]
fn a_home_in_which_nothing_can_be_laid_is_told_with_what_to_do() {
    let Some(disk) = SmallDisk::mount() else {
        // Only root can have a disk of its own to spoil.
        return;
    };
    let machine = Machine::new();
    let file = machine.workers("none");
    let words = ["run", "-f", file.to_str().unwrap()];
    // A disk of a megabyte, which no helper's program fits on together with the others.
    let said = machine.says(disk.path(), &words);
    assert_eq!(said.code, 2, "{said:?}");
    for part in [
        "failed to use the embedded helper iii-",
        "No space left on device",
        "III_HOME",
    ] {
        assert!(said.stderr.contains(part), "{said:?}");
    }

    let remount = |options: &str| {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(disk.path())
            .status();
        assert!(status.unwrap().success());
    };
    remount("size=100m,noexec");
    let said = machine.says(disk.path(), &words);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("mounted noexec"), "{said:?}");
    assert!(said.stderr.contains("III_HOME"), "{said:?}");

    remount("exec,ro");
    let report = machine.says(disk.path(), &["doctor", "--json"]).json();
    let checks: &Vec<Value> = report["checks"].as_array().unwrap();
    let shim = checks
        .iter()
        .find(|check| check["id"] == "iii-vfs")
        .unwrap();
    let found = shim["found"].as_str().unwrap();
    assert_eq!(shim["verdict"], "failure", "{shim}");
    assert!(found.contains("Read-only file system"), "{found}");
    assert!(found.contains("III_HOME"), "{found}");
}

#[test]
fn the_file_is_installed_with_its_manual_pages() {
    let machine = Machine::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/install.sh");
    let install = |prefix: &Path, words: &[&str]| {
        let mut command = Command::new("sh");
        command.arg(&script).arg("--prefix").arg(prefix).args(words);
        Said::of(command.output().unwrap())
    };
    let spoiled = machine.path("spoiled");
    fs::copy(&*BUILT, &spoiled).unwrap();
    fs::write(spoiled.with_extension("sha256"), "0000  spoiled\n").unwrap();
    let prefix = machine.path("prefix");
    let said = install(&prefix, &[spoiled.to_str().unwrap()]);
    assert!(said.code != 0 && said.stderr.contains("nothing was installed"));
    assert!(!prefix.exists());

    let from = format!("file://{}", BUILT.parent().unwrap().display());
    let version = env!("CARGO_PKG_VERSION");
    for words in [
        &[BUILT.to_str().unwrap()][..],
        &["--single", "--version", version, "--from", &from],
    ] {
        let said = install(&prefix, words);
        assert_eq!(said.code, 0, "{said:?}");
        let programs = fs::read_dir(prefix.join("bin")).unwrap();
        let names: Vec<_> = programs.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["iii-super"]);
        assert!(prefix.join("share/man/man1/iii-super-run.1").is_file());
        let completions = "share/bash-completion/completions/iii-super";
        assert!(
            fs::read_to_string(prefix.join(completions))
                .unwrap()
                .contains("iii-super")
        );
    }
}
