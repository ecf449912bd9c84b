//! What the process gives up, and what it makes sure of, before it serves a guest.

use std::io;
use std::os::unix::fs::MetadataExt;

use caps::{CapSet, Capability};
use iii_proto::vfs::VfsExport;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use crate::sys;

/// Why the process cannot take the state in which it may serve.
#[derive(Debug, thiserror::Error)]
pub enum HardeningError {
    /// An export's directory cannot be looked at.
    #[error("failed to find the owner of {path:?}: {source}")]
    Owner {
        /// The directory.
        path: std::path::PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Root serves directories of different users: one process can act only for one of them.
    #[error(
        "failed to serve {first:?} and {second:?} as one user: they belong to different users; \
         start iii-super as the user who owns the mounts, or give them one owner"
    )]
    Owners {
        /// A directory.
        first: std::path::PathBuf,
        /// Another one of another owner.
        second: std::path::PathBuf,
    },
    /// The system refused.
    #[error("failed to {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> HardeningError {
    move |source| HardeningError::System {
        action,
        source: source.into(),
    }
}

/// Raises RLIMIT_NOFILE to its hard limit; the limit in force.
pub fn raise_descriptor_limit() -> Result<u64, HardeningError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system("read the limits"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(system("raise the descriptor limit"))?;
    }
    Ok(hard)
}

/// Sets what files are created with and what a write beyond a limit does.
pub fn prepare_process() -> Result<(), HardeningError> {
    // The guest's kernel has applied the umask of the guest's process to every mode that it
    // sends; ours on top would take away bits that the guest was promised.
    umask(Mode::empty());
    // A write beyond RLIMIT_FSIZE must fail with EFBIG in the guest, not kill the server.
    sys::ignore(Signal::SIGXFSZ).map_err(system("ignore SIGXFSZ"))?;
    prctl::set_no_new_privs().map_err(system("set no-new-privs"))?;
    Ok(())
}

/// Takes the identity as which files are accessed. An ordinary user keeps its own. Root becomes
/// the owner of the directories that it serves, and gives up all capabilities even where that
/// owner is root, but for the one that inode file handles need and that reads only.
///
/// Immutable exports have no say: they are readable to everybody, or not meant to be read.
pub fn take_identity(exports: &[VfsExport]) -> Result<(u32, u32), HardeningError> {
    if geteuid().is_root() {
        let (uid, gid) = common_owner(exports)?.unwrap_or((0, 0));
        // A change of identity makes the kernel forget it.
        let death_signal = prctl::get_pdeathsig().map_err(system("read the death signal"))?;
        setgroups(&[]).map_err(system("drop supplementary groups"))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setresgid(gid, gid, gid).map_err(system("take the group of the mounts' owner"))?;
        setresuid(uid, uid, uid).map_err(system("become the mounts' owner"))?;
        keep_only_read_capability().map_err(system("drop capabilities"))?;
        prctl::set_pdeathsig(death_signal).map_err(system("set the death signal"))?;
    }
    Ok((geteuid().as_raw(), getegid().as_raw()))
}

fn common_owner(exports: &[VfsExport]) -> Result<Option<(u32, u32)>, HardeningError> {
    let mut found: Option<(&VfsExport, (u32, u32))> = None;
    for export in exports.iter().filter(|export| !export.immutable) {
        let metadata = std::fs::metadata(&export.path).map_err(|source| HardeningError::Owner {
            path: export.path.clone(),
            source,
        })?;
        let owner = (metadata.uid(), metadata.gid());
        match found {
            Some((first, (uid, _))) if uid != owner.0 => {
                return Err(HardeningError::Owners {
                    first: first.path.clone(),
                    second: export.path.clone(),
                });
            }
            Some(_) => {}
            None => found = Some((export, owner)),
        }
    }
    Ok(found.map(|(_, owner)| owner))
}

fn keep_only_read_capability() -> io::Result<()> {
    let mut kept = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    kept.retain(|capability| *capability == Capability::CAP_DAC_READ_SEARCH);
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    // Effective first: it may never exceed the permitted set.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Whether all exports can be served without a descriptor per inode.
pub fn file_handles(exports: &[VfsExport]) -> bool {
    exports
        .iter()
        .all(|export| sys::opens_by_handle(&export.path))
}
