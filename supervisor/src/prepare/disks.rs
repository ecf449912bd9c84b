//! The disks of a worker: made, named for the guest, and mounted.

use iii_actors::plan::{DiskImage, PlanDisk};
use iii_actors::spec::{DiskSpec, WorkerSpec};
use iii_proto::guest::{Mount, MountSource, Upper};

use super::PrepareFault;
use crate::disks::{DiskStore, LEAST_DISK, MOST_DISK, is_disk_name};
use crate::workers_file::format_size;

/// Serial number of the disk that keeps changes to the root.
const ROOT_SERIAL: &str = "changes";

/// What a worker's disks become.
#[derive(Debug, Default)]
pub(super) struct PlannedDisks {
    pub(super) disks: Vec<PlanDisk>,
    /// Where the root's changes go, if that is a disk.
    pub(super) upper: Option<Upper>,
    pub(super) mounts: Vec<Mount>,
}

/// Makes what is missing. A worker without disks needs no store.
pub(super) fn plan(
    spec: &WorkerSpec,
    store: Option<&DiskStore>,
    owner: (u32, u32),
    faults: &mut Vec<PrepareFault>,
) -> PlannedDisks {
    let mut planned = PlannedDisks::default();
    if spec.persist.is_none() && spec.disks.is_empty() {
        return planned;
    }
    let Some(store) = store else {
        faults.push(PrepareFault::NowhereToKeep);
        return planned;
    };
    if let Some(size) = spec.persist {
        let serial = ROOT_SERIAL.to_owned();
        match provide(store, spec, None, size, &serial) {
            Ok(disk) => planned.disks.push(disk),
            Err(fault) => faults.push(fault),
        }
        planned.upper = Some(Upper::Disk { serial });
    }
    for (n, disk) in spec.disks.iter().enumerate() {
        let serial = format!("disk-{}", disk.name);
        let made = match fault(disk, &spec.disks[..n]) {
            Some(reason) => Err(PrepareFault::BadDisk {
                name: disk.name.clone(),
                reason,
            }),
            None => provide(store, spec, Some(&disk.name), disk.size, &serial),
        };
        match made {
            Ok(disk) => planned.disks.push(disk),
            Err(fault) => faults.push(fault),
        }
        planned.mounts.extend(disk.mounts.iter().map(|mount| Mount {
            target: mount.guest.clone(),
            source: MountSource::Disk {
                serial: serial.clone(),
                directory: mount.directory.clone(),
                uid: owner.0,
                gid: owner.1,
            },
        }));
    }
    planned
}

fn provide(
    store: &DiskStore,
    spec: &WorkerSpec,
    name: Option<&str>,
    size: u64,
    serial: &str,
) -> Result<PlanDisk, PrepareFault> {
    let path = store.provide(&spec.name, name, size);
    let path = path.map_err(|error| PrepareFault::Disk(Box::new(error)))?;
    Ok(PlanDisk {
        serial: serial.to_owned(),
        image: DiskImage::Writable(path),
    })
}

fn fault(disk: &DiskSpec, earlier: &[DiskSpec]) -> Option<String> {
    if !is_disk_name(&disk.name) {
        return Some("a name has 1 to 15 lower-case letters, digits and '-'".to_owned());
    }
    if earlier.iter().any(|other| other.name == disk.name) {
        return Some("another disk of the worker has this name; choose another".to_owned());
    }
    if !(LEAST_DISK..=MOST_DISK).contains(&disk.size) {
        let (least, most) = (format_size(LEAST_DISK), format_size(MOST_DISK));
        return Some(format!("its size is outside of {least} to {most}"));
    }
    let inside = |path: &str| path.split('/').all(|part| part != ".." && part != ".");
    disk.mounts
        .iter()
        .find(|mount| !mount.guest.starts_with('/') || !inside(&mount.directory))
        .map(|mount| {
            format!(
                "{:?} of it cannot be shown at {:?}: name a directory without `..`, and an \
                 absolute path of the guest",
                mount.directory, mount.guest
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_actors::spec::DiskMountSpec;
    use iii_proto::ids::WorkerName;

    fn disk(name: &str, directory: &str, guest: &str) -> DiskSpec {
        DiskSpec {
            name: name.into(),
            size: LEAST_DISK,
            mounts: vec![DiskMountSpec {
                directory: directory.into(),
                guest: guest.into(),
            }],
        }
    }

    fn spec(disks: Vec<DiskSpec>) -> WorkerSpec {
        let mut spec = WorkerSpec::new(WorkerName::new("web").unwrap(), vec!["true".into()]);
        spec.persist = Some(LEAST_DISK);
        spec.disks = disks;
        spec
    }

    fn faults_of(disks: Vec<DiskSpec>) -> Vec<String> {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        let mut faults = Vec::new();
        plan(&spec(disks), Some(&store), (1000, 1000), &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn disks_are_made_and_named_for_the_guest() {
        let state = tempfile::tempdir().unwrap();
        let store = DiskStore::of(state.path());
        let mut faults = Vec::new();
        let spec = spec(vec![disk("cache", "npm", "/npm")]);
        let planned = plan(&spec, Some(&store), (7, 8), &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        let serials: Vec<&str> = planned.disks.iter().map(|d| d.serial.as_str()).collect();
        assert_eq!(serials, ["changes", "disk-cache"]);
        assert!(matches!(planned.upper, Some(Upper::Disk { serial }) if serial == "changes"));
        let source = MountSource::Disk {
            serial: "disk-cache".into(),
            directory: "npm".into(),
            uid: 7,
            gid: 8,
        };
        assert_eq!(planned.mounts[0].source, source);
        assert_eq!(store.all().unwrap().len(), 2);
    }

    #[test]
    fn faults_say_what_would_be_right() {
        assert!(faults_of(vec![disk("a.b", "", "/x")])[0].contains("lower-case letters"));
        assert!(faults_of(vec![disk("a", "../x", "/x")])[0].contains("without `..`"));
        assert!(faults_of(vec![disk("a", "", "x")])[0].contains("absolute path"));
        let twice = vec![disk("a", "", "/x"), disk("a", "", "/y")];
        assert!(faults_of(twice)[0].contains("another disk"));
        let mut faults = Vec::new();
        plan(&spec(Vec::new()), None, (0, 0), &mut faults);
        assert!(faults[0].to_string().contains("state_dir"));
    }
}
