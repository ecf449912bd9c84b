//! A workers file with a home of its own, as a user has them, for tests.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::binaries;
use crate::program::{Run, home, with_signals};

/// A directory that holds `iii.workers.yaml`, and a home that no other project uses.
#[derive(Debug)]
pub struct Project {
    directory: tempfile::TempDir,
    home: tempfile::TempDir,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// What came of a command.
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Its standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Project {
    /// A project of this workers file.
    pub fn new(file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = home();
        let project = Self { directory, home };
        project.write(file);
        project
    }

    /// Its workers file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("iii.workers.yaml")
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Changes the workers file.
    pub fn write(&self, file: &str) {
        fs::write(self.file(), file).unwrap();
    }

    /// The state directories in its home.
    pub fn states(&self) -> Vec<PathBuf> {
        let projects = fs::read_dir(self.home.path().join("projects"));
        projects.map_or(Vec::new(), |entries| {
            entries.flatten().map(|entry| entry.path()).collect()
        })
    }

    /// The state directory of its supervisor.
    pub fn state(&self) -> PathBuf {
        let states = self.states();
        assert_eq!(states.len(), 1, "{states:?}");
        states[0].clone()
    }

    /// What is in the state directory of its supervisor.
    pub fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// `iii-super` with these arguments, in its directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().join("iii-super"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("III_HOME", self.home.path())
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn says(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap())
    }

    /// The same with the signals of a user's shell, whatever this process has inherited: a run
    /// respects one that was ignored when it was started.
    pub fn says_with_signals(&self, arguments: &[&str]) -> Said {
        Said::of(with_signals(self.command(arguments)).output().unwrap())
    }

    /// A command that goes on while others are given.
    pub fn start(&self, arguments: &[&str]) -> Run {
        Run::start(self.command(arguments))
    }
}
