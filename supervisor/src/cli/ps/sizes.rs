//! `iii-super ps --size`: how much of this host's disks workers take.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use iii_actors::spec::RootSpec;
use iii_firmware::home::IiiHome;
use iii_image::ImageStore;
use iii_proto::ids::WorkerName;
use serde::Serialize;

use crate::cli::REFUSED;
use crate::cli::contact::Failure;
use crate::cli::usage::NONE;
use crate::control::protocol::WorkerInfo;
use crate::disks::{DiskStore, DiskUse};
use crate::log_store;
use crate::output::table::{Cell, table};
use crate::output::words;
use crate::workers_file::WorkersFile;

/// The two sizes that a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Size {
    /// As long as it seems.
    apparent: u64,
    /// What it takes of the disk.
    allocated: u64,
}

/// A disk that outlives a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Disk {
    name: String,
    #[serde(flatten)]
    size: Size,
}

/// An image, which workers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Image {
    name: String,
    #[serde(flatten)]
    size: Size,
}

/// What a worker takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sizes {
    /// The disk that keeps its root; `None`: its root is fresh at every boot.
    root: Option<Size>,
    /// Its other disks.
    disks: Vec<Disk>,
    /// Its output.
    logs: Size,
    /// What its image's name stands for now; `None`: it has none.
    image: Option<Image>,
}

/// The sizes of a project.
#[derive(Clone, Debug, Default)]
pub(super) struct ProjectSizes {
    workers: BTreeMap<WorkerName, Sizes>,
}

impl ProjectSizes {
    /// Looks at what is there of the project in this state directory, which runs this workers file.
    pub(super) fn look(home: &IiiHome, state: &Path, file: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(REFUSED, error);
        let mut workers: BTreeMap<WorkerName, Sizes> = BTreeMap::new();
        for disk in DiskStore::of(state).all().map_err(|e| failed(&e))? {
            let DiskUse {
                worker,
                name,
                used,
                limit,
                ..
            } = disk;
            let size = Size {
                apparent: limit,
                allocated: used,
            };
            let sizes = workers.entry(worker).or_default();
            match name {
                None => sizes.root = Some(size),
                Some(name) => sizes.disks.push(Disk { name, size }),
            }
        }
        for (name, size) in logs(&log_store::directory_in(state)).map_err(|e| failed(&e))? {
            workers.entry(name).or_default().logs = size;
        }
        for (name, image) in images(home, file).map_err(|e| failed(&e))? {
            workers.entry(name).or_default().image = Some(image);
        }
        Ok(Self { workers })
    }

    /// Those of one worker.
    pub(super) fn of(&self, worker: &WorkerName) -> Sizes {
        self.workers.get(worker).cloned().unwrap_or_default()
    }

    /// A row for each worker, and for what those that are not there any more have left.
    pub(super) fn human(&self, workers: &[&WorkerInfo], colour: bool) -> String {
        let mut rows: Vec<[Cell; 6]> = Vec::new();
        for worker in workers {
            let state = super::state(worker.state, colour);
            rows.push(row(&worker.name, state, &self.of(&worker.name)));
        }
        let is_there = |name: &WorkerName| workers.iter().any(|worker| worker.name == *name);
        let mut left = Vec::new();
        for (name, sizes) in self.workers.iter().filter(|(name, _)| !is_there(name)) {
            rows.push(row(name, NONE.into(), sizes));
            if sizes.root.is_some() || !sizes.disks.is_empty() {
                left.push(name.as_str());
            }
        }
        let mut text = table(["NAME", "STATE", "ROOT", "DISKS", "LOGS", "IMAGE"], rows);
        if !left.is_empty() {
            text += &format!(
                "of workers that are not there any more; to empty a disk: iii-super reset {}\n",
                left.join(" ")
            );
        }
        text
    }
}

fn row(name: &WorkerName, state: Cell, sizes: &Sizes) -> [Cell; 6] {
    let of_limit = |size: &Size| {
        let (used, limit) = (words::bytes(size.allocated), words::bytes(size.apparent));
        format!("{used}/{limit}")
    };
    let disks: Vec<String> = (sizes.disks.iter())
        .map(|disk| format!("{} {}", disk.name, of_limit(&disk.size)))
        .collect();
    let dash = || String::from(NONE);
    [
        name.as_str().into(),
        state,
        sizes.root.as_ref().map_or_else(dash, of_limit).into(),
        match disks.is_empty() {
            true => dash(),
            false => disks.join(", "),
        }
        .into(),
        words::bytes(sizes.logs.allocated).into(),
        (sizes.image.as_ref())
            .map_or_else(dash, |image| {
                format!("{} {}", image.name, words::bytes(image.size.allocated))
            })
            .into(),
    ]
}

/// What each worker's output takes. The supervisor writes and removes these files meanwhile.
fn logs(directory: &Path) -> std::io::Result<BTreeMap<WorkerName, Size>> {
    let mut found = BTreeMap::new();
    for (name, path) in entries(directory)? {
        let Ok(worker) = WorkerName::new(&name) else {
            continue;
        };
        let mut size = Size::default();
        for (_, file) in entries(&path)? {
            if let Some(of_file) = size_of(&file)? {
                size.apparent += of_file.apparent;
                size.allocated += of_file.allocated;
            }
        }
        found.insert(worker, size);
    }
    Ok(found)
}

fn entries(directory: &Path) -> std::io::Result<Vec<(String, std::path::PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    Ok(found)
}

fn gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// `None`: it is not there.
fn size_of(path: &Path) -> std::io::Result<Option<Size>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(Size {
            apparent: found.len(),
            // stat(2) counts in units of 512 bytes, whatever the file system's blocks are.
            allocated: found.blocks().saturating_mul(512),
        })),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The images of the workers of a file. One that cannot be read any more names none: what runs was
/// read from it before.
fn images(
    home: &IiiHome,
    file: &Path,
) -> Result<Vec<(WorkerName, Image)>, Box<dyn std::error::Error>> {
    let workers = match WorkersFile::load(file) {
        Ok(file) => file.workers,
        Err(error) => {
            tracing::debug!(%error, "the workers file cannot be read");
            return Ok(Vec::new());
        }
    };
    let named: Vec<_> = (workers.into_iter())
        .filter_map(|worker| match worker.root {
            RootSpec::Image(image) => Some((worker.name, image)),
            _ => None,
        })
        .collect();
    // A store is made by who opens it.
    if named.is_empty() || !home.images_dir().exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (worker, image) in named {
        let platform = crate::images::platform(image.platform);
        let store = ImageStore::of_platform(&home.images_dir(), &platform)?;
        let Some(record) = store.record(&image.reference)? else {
            continue;
        };
        if let Some(size) = size_of(&store.root_file(&record))? {
            let name = record.reference.familiar();
            found.push((worker, Image { name, size }));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_actors::WorkerState;

    fn name(name: &str) -> WorkerName {
        WorkerName::new(name).unwrap()
    }

    #[test]
    fn disks_and_logs_are_counted_by_worker_as_they_seem_and_as_they_are() {
        let state = tempfile::tempdir().unwrap();
        let home = IiiHome::at(state.path().join("home")).unwrap();
        let store = DiskStore::of(state.path());
        store.provide(&name("db"), None, 64 << 20).unwrap();
        store.provide(&name("db"), Some("cache"), 32 << 20).unwrap();
        store.provide(&name("gone"), None, 64 << 20).unwrap();
        let logs = state.path().join("logs/db");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("00000001.log"), vec![1; 9000]).unwrap();
        std::fs::write(logs.join("00000002.log"), vec![1; 1000]).unwrap();
        let sizes = ProjectSizes::look(&home, state.path(), &state.path().join("none")).unwrap();
        let db = sizes.of(&name("db"));
        let root = db.root.unwrap();
        assert_eq!(root.apparent, 64 << 20);
        assert!(root.allocated > 0 && root.allocated < 16 << 20, "{root:?}");
        assert_eq!((db.disks.len(), &*db.disks[0].name), (1, "cache"));
        assert_eq!(db.disks[0].size.apparent, 32 << 20);
        assert_eq!(db.logs.apparent, 10_000);
        assert!(db.logs.allocated >= 10_000, "{:?}", db.logs);
        assert_eq!(db.image, None);
        assert_eq!(sizes.of(&name("none")), Sizes::default());

        let worker = super::super::tests::worker("db");
        assert_eq!(worker.state, WorkerState::Ready);
        let text = sizes.human(&[&worker], false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("db    ready  "), "{text}");
        assert!(lines[1].contains("/64MiB"), "{text}");
        assert!(lines[1].contains("  cache "), "{text}");
        assert!(lines[2].starts_with("gone  -  "), "{text}");
        assert!(lines[3].ends_with("iii-super reset gone"), "{text}");
    }
}
