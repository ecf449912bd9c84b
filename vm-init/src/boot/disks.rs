//! The disks that a guest writes to: each an ext4 file system on a virtio-blk device.
//!
//! After a VM that was killed the kernel replays the journal as it mounts: the file system is
//! whole, and what was fsynced is there. It is this guest's kernel that reads what an earlier guest
//! wrote, never a program of the host. A disk that has grown since is grown into at the same time.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

use super::early::{self, EarlyError};
use super::filesystem::{
    Filesystem, FilesystemError, by_descriptor, make_directory, remount_read_only,
};
use crate::sys;

/// Where they are mounted, below the directory from which relative paths lead while the root is
/// assembled. Nothing leads here once it is.
const DISKS: &str = "disks";

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has this serial number.
    #[error("failed to find disk: the VM has none with serial number {0:?}")]
    Missing(String),
    /// It cannot be mounted.
    #[error(
        "{0}; `iii-super reset` empties the disk, and e2fsck -f on its file may repair it while \
         nothing uses it"
    )]
    Mount(FilesystemError),
    /// The kernel's own files cannot be seen.
    #[error(transparent)]
    Early(#[from] EarlyError),
    /// The place to mount it on cannot be made.
    #[error(transparent)]
    Place(#[from] FilesystemError),
    /// A call failed.
    #[error("failed to {what} disk {serial:?}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The disk.
        serial: String,
        /// Why.
        errno: Errno,
    },
}

/// The disks that are mounted.
#[derive(Debug, Default)]
pub struct Disks {
    mounted: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    serial: String,
    path: PathBuf,
    /// Its top, which no path leads to once the root is another.
    top: OwnedFd,
}

impl Disks {
    /// None is mounted.
    pub fn is_empty(&self) -> bool {
        self.mounted.is_empty()
    }

    /// Mounts a disk, unless it is already; where it is.
    pub fn mount(&mut self, serial: &str) -> Result<&Path, DiskError> {
        Ok(&self.mounted(serial)?.path)
    }

    fn mounted(&mut self, serial: &str) -> Result<&Disk, DiskError> {
        let at = match self.mounted.iter().position(|disk| disk.serial == serial) {
            Some(at) => at,
            None => {
                self.mounted.push(Disk::mount(serial)?);
                self.mounted.len() - 1
            }
        };
        Ok(&self.mounted[at])
    }

    /// A directory of a disk, made if it is missing, and given to its owner.
    pub fn directory(
        &mut self,
        serial: &str,
        directory: &str,
        uid: u32,
        gid: u32,
    ) -> Result<OwnedFd, DiskError> {
        let system = |what| {
            move |errno| DiskError::System {
                what,
                serial: serial.to_owned(),
                errno,
            }
        };
        let top = &self.mounted(serial)?.top;
        let found = directory_inside(top, &Path::new("/").join(directory))
            .map_err(system("make a directory on"))?;
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(&found, "", owner, group, AtFlags::AT_EMPTY_PATH)
            .map_err(system("give a directory of"))?;
        Ok(found)
    }

    /// What a user should know of the disks: that a kernel has found faults in one.
    pub fn warnings(&self) -> Vec<String> {
        let faulty = |disk: &&Disk| errors_of(&disk.serial) > 0;
        let text = |disk: &Disk| {
            format!(
                "the file system on disk {:?} has faults, and files on it may be damaged; check it \
                 with e2fsck -f while nothing uses it, or empty it with `iii-super reset`",
                disk.serial
            )
        };
        self.mounted.iter().filter(faulty).map(text).collect()
    }

    /// Writes everything out and marks the file systems clean.
    pub fn close(&self) -> Result<(), DiskError> {
        for disk in &self.mounted {
            remount_read_only(&by_descriptor(&disk.top)).map_err(|errno| DiskError::System {
                what: "close",
                serial: disk.serial.clone(),
                errno,
            })?;
        }
        Ok(())
    }
}

impl Disk {
    fn mount(serial: &str) -> Result<Self, DiskError> {
        let device = name_of(serial)?;
        let system = |what| {
            move |errno| DiskError::System {
                what,
                serial: serial.to_owned(),
                errno,
            }
        };
        let path = Path::new(DISKS).join(serial);
        make_directory(Path::new(DISKS), 0o755)?;
        make_directory(&path, 0o755)?;
        let node = format!("/dev/{device}");
        Filesystem {
            kind: "ext4",
            source: &node,
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            // What is deleted is given back to the host.
            options: "errors=remount-ro,discard",
        }
        .mount(&path)
        .map_err(DiskError::Mount)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = open(&path, flags, Mode::empty()).map_err(system("open"))?;
        grow(&node, &device, &top).map_err(system("grow the file system on"))?;
        Ok(Self {
            serial: serial.to_owned(),
            path,
            top,
        })
    }
}

/// The block device with this serial number.
pub fn device(serial: &str) -> Result<String, DiskError> {
    Ok(format!("/dev/{}", name_of(serial)?))
}

fn name_of(serial: &str) -> Result<String, DiskError> {
    early::mount_sys()?;
    find(serial).ok_or_else(|| DiskError::Missing(serial.to_owned()))
}

/// The directory at `path`, made with its parents where it is missing. A symlink that an earlier
/// guest has left on the disk leads nowhere else than in it.
fn directory_inside(top: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let resolve = |path: &Path| {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(top.as_fd(), path, how)
    };
    match resolve(path) {
        Err(Errno::ENOENT) => {}
        other => return other,
    }
    let mut walked = PathBuf::from("/");
    let mut parent = resolve(&walked)?;
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        walked.push(name);
        parent = match resolve(&walked) {
            Err(Errno::ENOENT) => {
                mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o755))?;
                resolve(&walked)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// The name of the block device with this serial number.
fn find(serial: &str) -> Option<String> {
    let entries = std::fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let found = std::fs::read_to_string(entry.path().join("serial")).ok()?;
        (name.starts_with("vd") && found.trim() == serial).then_some(name)
    })
}

/// Faults that the kernel has counted in a mounted disk, in this boot or an earlier one.
fn errors_of(serial: &str) -> u64 {
    let count = find(serial).and_then(|device| {
        std::fs::read_to_string(format!("/sys/fs/ext4/{device}/errors_count")).ok()
    });
    count.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Lets the mounted file system fill a device that has become larger.
fn grow(node: &str, device: &str, top: &OwnedFd) -> nix::Result<()> {
    let sectors = std::fs::read_to_string(format!("/sys/block/{device}/size"));
    let sectors: u64 = sectors
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or(Errno::EIO)?;
    let mut superblock = [0; SUPERBLOCK];
    File::open(node)
        .and_then(|disk| disk.read_exact_at(&mut superblock, SUPERBLOCK_AT))
        .map_err(|_| Errno::EIO)?;
    let (blocks, block_size) = extent(&superblock).ok_or(Errno::EUCLEAN)?;
    let room = sectors.saturating_mul(512) / block_size;
    if room > blocks {
        sys::resize_ext4(top, room)?;
    }
    Ok(())
}

/// Where ext4 has its superblock, and how much of it is read here.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: usize = 0x154;

/// Blocks of the file system and their size, of a superblock that the kernel has accepted.
fn extent(superblock: &[u8; SUPERBLOCK]) -> Option<(u64, u64)> {
    let word = |at: usize| -> Option<u32> {
        let bytes = superblock.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let block_size = 1024u64.checked_shl(word(0x18)?)?;
    let blocks = u64::from(word(0x150)?) << 32 | u64::from(word(0x4)?);
    (block_size > 0).then_some((blocks, block_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_on_the_disk_even_over_absolute_symlinks() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("disk");
        std::fs::create_dir_all(inner.join("var")).unwrap();
        std::fs::create_dir_all(inner.join("run")).unwrap();
        std::os::unix::fs::symlink("/run", inner.join("var/run")).unwrap();
        std::os::unix::fs::symlink("../../..", inner.join("up")).unwrap();
        std::fs::write(inner.join("file"), "").unwrap();
        let top = File::open(&inner).unwrap().into();
        for (path, made) in [("/var/run/a/b", "run/a/b"), ("/up/c", "c"), ("/../d", "d")] {
            directory_inside(&top, Path::new(path)).unwrap();
            assert!(inner.join(made).is_dir(), "{path}");
        }
        let in_the_way = directory_inside(&top, Path::new("/file/sub"));
        assert_eq!(in_the_way.unwrap_err(), Errno::ENOTDIR);
    }

    #[test]
    fn a_superblock_tells_blocks_and_their_size() {
        let mut superblock = [0; SUPERBLOCK];
        superblock[0x4..0x8].copy_from_slice(&0x0008_0000u32.to_le_bytes());
        superblock[0x18] = 2;
        assert_eq!(extent(&superblock), Some((0x8_0000, 4096)));
        superblock[0x150] = 1;
        assert_eq!(extent(&superblock), Some((0x1_0008_0000, 4096)));
        superblock[0x18..0x1c].copy_from_slice(&[0xff; 4]);
        assert_eq!(extent(&superblock), None, "no shift is that wide");
    }
}
