//! Runs the launcher as the supervisor does: with a launch description and descriptors.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use iii_proto::codec::encode_spec;
use iii_proto::krun::KrunLaunch;

use crate::program;

const LAUNCH: i32 = 3;

/// A file that passes for a kernel.
pub(crate) fn kernel() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("vmlinux");
    std::fs::write(&kernel, b"\x7fELF and more").unwrap();
    (directory, kernel)
}

/// Descriptors for the launcher.
#[derive(Default)]
pub(crate) struct Inherited(Vec<FdMapping>);

impl Inherited {
    pub(crate) fn give(&mut self, number: i32, fd: impl Into<OwnedFd>) {
        self.0.push(FdMapping {
            parent_fd: fd.into(),
            child_fd: number,
        });
    }

    pub(crate) fn file(&mut self, number: i32, contents: &[u8]) {
        self.give(number, file(contents));
    }
}

/// An open file that holds this.
pub(crate) fn file(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file.rewind().unwrap();
    file
}

/// A launcher that is to run.
pub(crate) struct Run {
    description: Vec<u8>,
    answers: String,
}

impl Run {
    pub(crate) fn new(launch: &KrunLaunch) -> Self {
        Self::of_bytes(&encode_spec(launch).unwrap())
    }

    pub(crate) fn of_bytes(description: &[u8]) -> Self {
        Self {
            description: description.to_owned(),
            answers: String::new(),
        }
    }

    pub(crate) fn answers(mut self, answers: &str) -> Self {
        self.answers = answers.to_owned();
        self
    }

    pub(crate) fn start(self, mut inherited: Inherited) -> Running {
        inherited.file(LAUNCH, &self.description);
        let directory = tempfile::tempdir().unwrap();
        let mut command = program::command();
        command
            .args(["--launch-fd", &LAUNCH.to_string()])
            .env("III_RECORDING", directory.path().join("recording"))
            .env("III_RECORDING_ANSWERS", self.answers)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.fd_mappings(inherited.0).unwrap();
        // The command holds the descriptors, and a test waits for the end of some of them.
        let child = command.spawn().unwrap();
        drop(command);
        Running { child, directory }
    }
}

pub(crate) struct Running {
    child: Child,
    directory: tempfile::TempDir,
}

impl Running {
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub(crate) fn wait(mut self) -> Ended {
        let mut stderr = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        let recording = self.directory.path().join("recording");
        Ended {
            status: self.child.wait().unwrap(),
            stderr,
            recording: std::fs::read_to_string(recording).unwrap_or_default(),
        }
    }
}

pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    pub(crate) recording: String,
}

impl Ended {
    /// The VM was not entered, and the last line on standard error holds this.
    pub(crate) fn refused(&self, part: &str) {
        assert_eq!(self.status.code(), Some(1), "{}", self.stderr);
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("iii-krun: failed to "), "{last}");
        assert!(last.contains(part), "{part:?} is not in {last:?}");
    }
}
