//! Landlock (landlock(7)): files by what may be done with them; no TCP, no signal to and no abstract
//! socket of a process outside.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use iii_proto::shim::{Confinement, Layer, Reopen};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest that all of this is written for. What an older kernel does not know is left out.
const KNOWN: ABI = ABI::V6;

pub(super) fn restrict(confinement: &Confinement) -> Layer {
    match apply(confinement) {
        Ok(RulesetStatus::FullyEnforced) => Layer::Applied,
        Ok(RulesetStatus::PartiallyEnforced) => Layer::Partial,
        Ok(RulesetStatus::NotEnforced) => Layer::Refused(libc::EOPNOTSUPP),
        Err(_) => Layer::Refused(libc::EINVAL),
    }
}

fn apply(confinement: &Confinement) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    // Nothing that is in there may be executed, and no device be made.
    let write = AccessFs::from_all(KNOWN)
        & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for (paths, access) in [
        (&confinement.read, read),
        (&confinement.write, write),
        (&confinement.execute, AccessFs::ReadFile | AccessFs::Execute),
        (&confinement.devices, device),
    ] {
        for path in paths {
            rules = allow(rules, Path::new(OsStr::from_bytes(path)), access)?;
        }
    }
    for Reopen { fd, writable } in &confinement.reopen {
        let access = match writable {
            true => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            false => AccessFs::ReadFile.into(),
        };
        // The rule is the file's own, whatever its path is called.
        rules = allow(rules, Path::new(&format!("/proc/self/fd/{fd}")), access)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // What is not there needs no rule.
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(KNOWN)
    };
    rules.add_rule(PathBeneath::new(file, access))
}
