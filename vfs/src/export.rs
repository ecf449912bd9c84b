//! One export: a host directory behind the rules of this crate.
//!
//! [`Export`] wraps fuse-backend-rs' PassthroughFs. PassthroughFs resolves one component at a
//! time with `O_NOFOLLOW` from an `O_PATH` descriptor, so that neither a symlink nor a rename race
//! leads out of the export. What it lets through otherwise is refused or rewritten here before it
//! sees the request; `operations` holds the trait's methods, this file what they share.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuse_backend_rs::abi::virtio_fs::RemovemappingOne;
use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem, ROOT_ID};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::FsCacheReqHandler;
use iii_proto::vfs::VfsExport;
use nix::fcntl::AtFlags;
use nix::unistd::linkat;

use crate::budget::{Budget, InodeTable};
use crate::checks;
use crate::events::{Refusal, Refusals};
use crate::ownership::Ownership;
use crate::sys;

mod operations;

/// Validity of names and attributes where the tree changes under the guest: the guest sees an
/// edit made on the host after at most this time, and at once when it opens the file or looks for
/// a name that it has not seen (negative answers are not cached, contents only between opens).
const CHANGING: Duration = Duration::from_secs(1);

/// Validity where it does not change; longer than a boot is likely to live.
const IMMUTABLE: Duration = Duration::from_secs(24 * 60 * 60);

/// What the exports of one process share.
#[derive(Clone, Debug)]
pub struct Common {
    /// Counts of what the guest holds.
    pub budget: Arc<Budget>,
    /// Counts of what it was refused.
    pub refusals: Arc<Refusals>,
    /// The uid and gid as which the process accesses files.
    pub server: (u32, u32),
    /// Whether inodes are held by file handle, not by descriptor.
    pub file_handles: bool,
}

/// One export.
pub struct Export {
    inner: PassthroughFs,
    read_only: bool,
    immutable: bool,
    ownership: Ownership,
    server: (u32, u32),
    inodes: InodeTable,
    handles: AtomicU64,
    common: Common,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Export")
            .field("read_only", &self.read_only)
            .field("immutable", &self.immutable)
            .finish_non_exhaustive()
    }
}

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The path cannot be handed to the passthrough layer.
    #[error("failed to export {0:?}: the path is not UTF-8; rename the directory")]
    NotUtf8(std::path::PathBuf),
    /// A tree that the guest may cache for ever must not be changed by it.
    #[error("failed to export {0:?}: an immutable export must be read-only")]
    ImmutableWritable(std::path::PathBuf),
    /// The directory cannot be opened.
    #[error("failed to open the directory {path:?}: {source}")]
    Open {
        /// The directory.
        path: std::path::PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Export {
    /// Opens the directory.
    pub fn open(spec: &VfsExport, common: Common) -> Result<Self, ExportError> {
        if spec.immutable && !spec.read_only {
            return Err(ExportError::ImmutableWritable(spec.path.clone()));
        }
        let fault = |source| ExportError::Open {
            path: spec.path.clone(),
            source,
        };
        let inner = PassthroughFs::new(passthrough(spec, common.file_handles)?).map_err(fault)?;
        inner.import().map_err(fault)?;
        let ownership = if spec.immutable {
            Ownership::unmapped()
        } else {
            Ownership::new(common.server, (spec.guest_uid, spec.guest_gid))
        };
        Ok(Self {
            inner,
            read_only: spec.read_only,
            immutable: spec.immutable,
            ownership,
            server: common.server,
            inodes: InodeTable::new(Arc::clone(&common.budget)),
            handles: AtomicU64::new(0),
            common,
        })
    }

    /// Writes everything of the export's host file system to disk (FUSE_SYNCFS).
    pub fn sync(&self) -> io::Result<()> {
        if !self.read_only {
            nix::unistd::syncfs(self.borrow_file(ROOT_ID)?)?;
        }
        Ok(())
    }

    /// Every request runs with the server's own credentials: PassthroughFs takes 0 for "do not
    /// switch", and switching fails anyway as an ordinary user.
    fn context() -> Context {
        Context::new()
    }

    fn component(&self, name: &CStr) -> io::Result<()> {
        checks::component(name).map_err(|refusal| self.refuse(refusal, libc::EINVAL))
    }

    fn open_flags(&self, flags: u32) -> io::Result<u32> {
        checks::open_flags(flags).map_err(|refusal| self.refuse(refusal, libc::EINVAL))
    }

    fn refuse(&self, refusal: Refusal, errno: i32) -> io::Error {
        self.common.refusals.count(refusal);
        error(errno)
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(error(libc::EROFS));
        }
        Ok(())
    }

    /// Counts an entry that PassthroughFs has looked up and prepares it for the guest. An entry
    /// for which there is no room is given back.
    fn admit(&self, mut entry: Entry) -> io::Result<Entry> {
        if !self.inodes.admit(entry.inode) {
            self.inner.forget(&Self::context(), entry.inode, 1);
            return Err(error(libc::ENFILE));
        }
        self.ownership.map_attributes(&mut entry.attr);
        Ok(entry)
    }

    /// Takes back an admitted entry that will not be sent after all.
    fn take_back(&self, inode: u64) {
        self.inodes.forget(inode, 1);
        self.inner.forget(&Self::context(), inode, 1);
    }

    fn admit_handle(&self) -> io::Result<HandlePermit<'_>> {
        if !self.common.budget.admit_handle() {
            return Err(error(libc::ENFILE));
        }
        self.handles.fetch_add(1, Ordering::Relaxed);
        Ok(HandlePermit { export: self })
    }

    fn release_handle(&self) {
        // Saturating, because a guest that sends DESTROY on one queue and RELEASE on the other
        // can have a handle released that destroy() has given back already.
        let open = self
            .handles
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                open.checked_sub(1)
            });
        if open.is_ok() {
            self.common.budget.release_handles(1);
        }
    }

    /// A descriptor of a regular file or directory, opened for reading. PassthroughFs shows one
    /// only where it is about to be mapped for DAX, so that is what it is asked for.
    fn borrow_file(&self, inode: u64) -> io::Result<OwnedFd> {
        struct Tap(Option<OwnedFd>);
        impl FsCacheReqHandler for Tap {
            fn map(&mut self, _: u64, _: u64, _: u64, _: u64, fd: RawFd) -> io::Result<()> {
                self.0 = Some(sys::duplicate(fd)?);
                Ok(())
            }
            fn unmap(&mut self, _: Vec<RemovemappingOne>) -> io::Result<()> {
                Ok(())
            }
        }
        let mut tap = Tap(None);
        self.inner
            .setupmapping(&Self::context(), inode, 0, 0, 0, 0, 0, &mut tap)?;
        tap.0.ok_or_else(|| error(libc::EBADF))
    }

    /// A hard link made without privileges. PassthroughFs uses `AT_EMPTY_PATH`, which before
    /// Linux 6.10 only CAP_DAC_READ_SEARCH may; the link in /proc needs nothing. It reaches files
    /// that the server may read, and no symlinks.
    fn link_through_proc(&self, inode: u64, parent: u64, name: &CStr) -> io::Result<()> {
        let file = self.borrow_file(inode)?;
        let parent = self.borrow_file(parent)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(
            nix::fcntl::AT_FDCWD,
            Path::new(&path),
            &parent,
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.common
            .budget
            .release_handles(self.handles.load(Ordering::Relaxed));
    }
}

/// Room for one open file, given back unless the file was opened.
struct HandlePermit<'a> {
    export: &'a Export,
}

impl HandlePermit<'_> {
    /// The guest has the handle; `release` gives the room back.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for HandlePermit<'_> {
    fn drop(&mut self) {
        self.export.release_handle();
    }
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn passthrough(spec: &VfsExport, file_handles: bool) -> Result<Config, ExportError> {
    let root_dir = spec
        .path
        .to_str()
        .ok_or_else(|| ExportError::NotUtf8(spec.path.clone()))?
        .to_owned();
    let validity = match (spec.immutable, spec.live) {
        (true, _) => IMMUTABLE,
        (false, true) => Duration::ZERO,
        (false, false) => CHANGING,
    };
    Ok(Config {
        root_dir,
        attr_timeout: validity,
        entry_timeout: validity,
        cache_policy: if spec.immutable {
            CachePolicy::Always
        } else {
            CachePolicy::Auto
        },
        // The host changes files too, so the guest's cache must not hold the newest version.
        writeback: false,
        xattr: !spec.read_only,
        do_import: true,
        no_open: false,
        no_opendir: false,
        // Spares the guest a getxattr of security.capability before each write.
        killpriv_v2: true,
        inode_file_handles: file_handles,
        // Without it, PassthroughFs keeps a mapping for every inode ever seen.
        use_host_ino: true,
        // The guest's kernel bypasses its own cache; the host's is none of its business, and
        // not every host file system takes the flag.
        allow_direct_io: false,
        ..Config::default()
    })
}

#[cfg(test)]
mod tests;
