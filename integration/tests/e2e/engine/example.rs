//! An example, copied to where the packages that it fetches stay between runs of these tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use iii_integration::binaries;
use iii_integration::program::{Run, home};
use tempfile::TempDir;

/// Packages come over the network, and Rust's are built, the first time.
const FETCH: Duration = Duration::from_secs(30 * 60);
/// Where the examples expect an engine.
const ENGINE: &str = "ws://localhost:49134";

pub(crate) struct Example {
    name: &'static str,
    /// Holds `examples/NAME`, as the repository does.
    top: PathBuf,
    home: TempDir,
}

impl Example {
    /// What was copied before and is no source of it, stays.
    pub(crate) fn copy(name: &'static str) -> Self {
        let top = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
        let examples = top.join("examples");
        fs::create_dir_all(&examples).unwrap();
        let source = source(name);
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(&source)
            .output()
            .unwrap();
        assert!(listed.status.success());
        for file in String::from_utf8(listed.stdout).unwrap().lines() {
            let target = examples.join(name).join(file);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            // With their times, by which `start` and cargo know what is to be done anew.
            let copied = Command::new("cp")
                .arg("--preserve=mode,timestamps")
                .arg(source.join(file))
                .arg(target)
                .status();
            assert!(copied.unwrap().success());
        }
        Self {
            name,
            top,
            home: home(),
        }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.top.join("examples").join(self.name)
    }

    /// Starts it as its README says, but with the engine at `url`.
    pub(crate) fn start(&self, url: &str) -> Run {
        let readme = fs::read_to_string(self.directory().join("README.md")).unwrap();
        let block = readme.split("```").nth(1).unwrap();
        let lines: Vec<&str> = block.lines().skip(1).collect();
        let [line] = lines[..] else {
            panic!("one command starts it: {lines:?}");
        };
        assert!(line.contains(ENGINE), "{line}");
        let line = line.replace(ENGINE, url);
        let words: Vec<&str> = line.split(' ').collect();
        let mut run = self.run(&words);
        run.line_within(FETCH, "vm started");
        run
    }

    /// A command of its README, where its README is read.
    pub(crate) fn run(&self, words: &[&str]) -> Run {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", binaries().display());
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .current_dir(&self.top)
            .env("PATH", path)
            .env("III_HOME", self.home.path())
            .env_remove("III_URL")
            .env_remove("CARGO_TARGET_DIR");
        Run::start(command)
    }
}

fn source(name: &str) -> PathBuf {
    let integration = Path::new(env!("CARGO_MANIFEST_DIR"));
    integration.parent().unwrap().join("examples").join(name)
}
