//! The file's format: JSON, of a version.

use std::collections::BTreeMap;

use iii_actors::memory::WorkerMemory;
use iii_actors::spec::WorkerSpec;
use iii_proto::ids::WorkerName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Of the format. A file of another version is not read: what it holds is a convenience.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Of the host, so that a reboot is recognised (proc_sys_kernel(5), random/boot_id).
    host_boot: String,
    pid: u32,
    pub(super) workers: BTreeMap<WorkerName, Remembered>,
}

/// One worker in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Digest of the spec that it ran by.
    pub(super) spec: String,
    pub(super) memory: WorkerMemory,
}

impl Record {
    pub(super) fn new() -> Self {
        Self {
            version: VERSION,
            host_boot: host_boot(),
            pid: std::process::id(),
            workers: BTreeMap::new(),
        }
    }
}

fn host_boot() -> String {
    // Without it every start counts as the first after a reboot.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What counts for a successor. A file that cannot be read counts for nothing.
pub(super) fn decode(bytes: &[u8]) -> BTreeMap<WorkerName, Remembered> {
    let record: Record = match serde_json::from_slice(bytes) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(%error, "failed to read what an earlier supervisor left; it is ignored");
            return BTreeMap::new();
        }
    };
    if record.version != VERSION {
        return BTreeMap::new();
    }
    let mut workers = record.workers;
    if record.host_boot.is_empty() || record.host_boot != host_boot() {
        for worker in workers.values_mut() {
            let memory = &mut worker.memory;
            // A reboot begins anew; where the worker stood is told all the same.
            memory.outcome = None;
            memory.restarts.clear();
            memory.supervisor = Default::default();
        }
    }
    workers
}

/// Stands for everything in a spec but its secrets: a digest of a short one gives it away to who
/// tries them all.
pub(super) fn digest(spec: &WorkerSpec) -> String {
    let digest = Sha256::digest(format!("{spec:?}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
