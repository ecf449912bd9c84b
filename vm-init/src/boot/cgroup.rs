//! The workload's cgroup (v2). A limit that cannot be set is an error.

use std::fs;
use std::path::{Path, PathBuf};

use iii_proto::guest::GuestLimits;
use nix::errno::Errno;

use crate::confinement::LifeCgroup;

const HIERARCHY: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";

/// Why the workload cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A limit cannot be set.
    #[error("failed to set {what} limit of the workload to {value}: {error}")]
    Limit {
        /// Which.
        what: &'static str,
        /// To what.
        value: u64,
        /// Why.
        error: std::io::Error,
    },
    /// The cgroup cannot be made.
    #[error("failed to make the workload's cgroup: {0}")]
    Make(std::io::Error),
    /// The cgroup of a life cannot be made below it.
    #[error("failed to make a cgroup below the workload's: {0}")]
    Life(Errno),
}

/// Makes the workload's cgroup with its limits.
pub fn make(limits: &GuestLimits) -> Result<LifeCgroup, CgroupError> {
    let wanted = [
        ("memory", "memory.max", limits.memory_bytes),
        ("pids", "pids.max", limits.pids),
    ];
    for (what, _, value) in wanted {
        // Accounting costs every allocation something: only what is limited is accounted.
        if let Some(value) = value {
            fs::write(
                Path::new(HIERARCHY).join("cgroup.subtree_control"),
                format!("+{what}"),
            )
            .map_err(|error| CgroupError::Limit { what, value, error })?;
        }
    }
    fs::create_dir(WORKLOAD).map_err(CgroupError::Make)?;
    for (what, file, value) in wanted {
        if let Some(value) = value {
            fs::write(Path::new(WORKLOAD).join(file), value.to_string())
                .map_err(|error| CgroupError::Limit { what, value, error })?;
        }
    }
    if let Some(value) = limits.memory_bytes {
        // Out of memory ends the life as a whole: half a workload is neither alive nor dead.
        fs::write(Path::new(WORKLOAD).join("memory.oom.group"), "1").map_err(|error| {
            CgroupError::Limit {
                what: "memory",
                value,
                error,
            }
        })?;
    }
    LifeCgroup::new(PathBuf::from(WORKLOAD)).map_err(CgroupError::Life)
}
