//! `iii-super dev` as a developer uses it: real projects in real VMs, saved and saved again.

mod caches;
mod saves;
mod terminal;
mod watchers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use iii_integration::PATIENCE;
use iii_integration::program::{Run, home, program};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A project's directory, and the home of who works on it.
struct Project {
    _directory: TempDir,
    root: PathBuf,
    home: TempDir,
}

impl Project {
    /// `name` is the directory's and so the worker's.
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join(name);
        fs::create_dir(&root).unwrap();
        let project = Self {
            _directory: directory,
            root,
            home: home(),
        };
        for (name, text) in files {
            project.write(name, text);
        }
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As editors save: a new file takes the name of the old one.
    fn save(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.tmp"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    fn command(&self, more: &[&str]) -> std::process::Command {
        let mut command = program();
        command.arg("dev").arg(&self.root).args(more);
        command.env("III_HOME", self.home.path());
        command
    }

    fn dev(&self, more: &[&str]) -> Dev {
        let mut command = self.command(more);
        command.arg("--json");
        Dev {
            run: Run::start(command),
            told: Vec::new(),
        }
    }
}

/// A session that tells everything as JSON.
struct Dev {
    run: Run,
    told: Vec<Value>,
}

impl Dev {
    /// Waits for something that satisfies `fact`, looking from `from` on; its position.
    fn until(&mut self, from: usize, what: &str, fact: impl Fn(&Value) -> bool) -> usize {
        let end = Instant::now() + PATIENCE;
        let mut at = from;
        loop {
            while let Some(value) = self.told.get(at) {
                if fact(value) {
                    return at;
                }
                at += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.run.lines.recv_timeout(left) {
                // What goes to stderr is for people.
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(value) => self.told.push(value),
                    Err(_) => self.run.seen.push(line),
                },
                Err(error) => panic!("no {what} ({error}):\n{}", self.story()),
            }
        }
    }

    /// Waits for an event of this kind; its position.
    fn event(&mut self, from: usize, kind: &str) -> usize {
        self.until(from, kind, |value| value["event"] == kind)
    }

    /// Waits for a line of the worker that begins with this; its position.
    fn line(&mut self, from: usize, begins: &str) -> usize {
        self.until(from, begins, |value| {
            value["text"]
                .as_str()
                .is_some_and(|text| text.starts_with(begins))
        })
    }

    /// Lines of the worker so far.
    fn lines(&self) -> Vec<&str> {
        self.told
            .iter()
            .filter_map(|value| value["text"].as_str())
            .collect()
    }

    /// How many events of this kind there were.
    fn count(&self, kind: &str) -> usize {
        self.told
            .iter()
            .filter(|value| value["event"] == kind)
            .count()
    }

    fn boot(&self, at: usize) -> &str {
        self.told[at]["boot"].as_str().unwrap()
    }

    fn story(&self) -> String {
        let told = self.told.iter().map(Value::to_string);
        told.chain(self.run.seen.iter().cloned())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Ctrl-C.
    fn quit(&mut self) {
        self.run.signal(Signal::SIGINT);
        let status = self.run.wait();
        let lines = std::mem::take(&mut self.run.seen);
        for line in lines {
            match serde_json::from_str(&line) {
                Ok(value) => self.told.push(value),
                Err(_) => self.run.seen.push(line),
            }
        }
        assert_eq!(status.code(), Some(0), "{}", self.story());
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
