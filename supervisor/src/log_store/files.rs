//! Where the files are: `DIRECTORY/WORKER/NUMBER.log`, the highest number being written.

use std::io;
use std::path::{Path, PathBuf};

use iii_proto::ids::WorkerName;

const SUFFIX: &str = ".log";

/// A worker's directory.
pub(super) fn directory_of(directory: &Path, worker: &WorkerName) -> PathBuf {
    // A worker's name is a host name's label: no separator, no dots.
    directory.join(worker.as_str())
}

/// A file of a worker's directory.
pub(super) fn file(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}{SUFFIX}"))
}

/// The number of a file's name.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The numbers of a worker's files, oldest first; none if there is no directory.
pub(super) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for name in names(directory)? {
        numbers.extend(number(&name));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The workers that have a directory, by name; none if nothing was ever stored.
pub(super) fn workers(directory: &Path) -> io::Result<Vec<WorkerName>> {
    let mut workers = Vec::new();
    for name in names(directory)? {
        // What is no worker's name is not ours.
        workers.extend(WorkerName::new(name));
    }
    workers.sort_unstable();
    Ok(workers)
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Ours are ASCII.
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_ordered_by_number_and_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "00000002.log",
            "100000000.log",
            "00000010.log",
            "2.log",
            "+0000003.log",
            "00000003.log.new",
            "x",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(numbers(dir.path()).unwrap(), [2, 10, 100_000_000]);
        assert_eq!(file(dir.path(), 10), dir.path().join("00000010.log"));
        assert_eq!(numbers(&dir.path().join("none")).unwrap(), [0u64; 0]);
        assert!(numbers(&dir.path().join("x")).is_err());
    }

    #[test]
    fn workers_are_directories_with_a_workers_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["web", "api", "Not-One", ".hidden"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let names: Vec<String> = workers(dir.path())
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["api", "web"]);
    }
}
