//! Landlock (landlock(7)): the exports' directories are all of the file system that is left to the
//! process, the writable ones for writing.
//!
//! Not where inodes are held as file handles, as root's server does: the kernel finds no path to a
//! file that was opened by its handle alone, and would deny it.

use iii_proto::vfs::VfsExport;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest that all of this is written for. What an older kernel does not know is left out.
const KNOWN: ABI = ABI::V6;

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// An export's directory cannot be named in a rule.
    #[error("failed to open an export for its Landlock rule: {0}")]
    Export(#[from] PathFdError),
    /// The kernel refused the rules.
    #[error("failed to restrict the process by Landlock: {0}")]
    Rules(#[from] RulesetError),
    /// The kernel has no Landlock, or it is switched off.
    #[error("this kernel has no Landlock")]
    Missing,
}

/// Restricts this thread and those that it will make, for good.
pub fn confine(exports: &[VfsExport]) -> Result<(), LandlockError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for export in exports {
        let access = if export.read_only {
            read
        } else {
            AccessFs::from_all(KNOWN)
        };
        rules = rules.add_rule(PathBeneath::new(PathFd::new(&export.path)?, access))?;
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(LandlockError::Missing),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn exports_alone_are_left_and_read_only_ones_are() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
            path
        };
        let (writable, fixed, other) = (make("writable"), make("fixed"), make("other"));
        let export = |path: &std::path::Path, read_only| VfsExport {
            tag: "files".into(),
            path: path.to_owned(),
            read_only,
            guest_uid: 0,
            guest_gid: 0,
            listener_fd: 3,
            immutable: false,
            live: false,
        };
        let exports = [export(&writable, false), export(&fixed, true)];
        // A thread of its own: what it has given up, no other test misses.
        std::thread::spawn(move || {
            match confine(&exports) {
                Ok(()) => {}
                Err(LandlockError::Missing) => return,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(fs::read(writable.join("file")).unwrap(), b"x");
            fs::rename(writable.join("file"), writable.join("renamed")).unwrap();
            File::create(writable.join("new")).unwrap();
            assert_eq!(fs::read(fixed.join("file")).unwrap(), b"x");
            for denied in [
                File::create(fixed.join("new")).map(drop),
                File::open(other.join("file")).map(drop),
                File::open("/etc/passwd").map(drop),
                fs::rename(writable.join("new"), other.join("new")),
            ] {
                let kind = denied.unwrap_err().kind();
                assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
            }
        })
        .join()
        .unwrap();
    }
}
