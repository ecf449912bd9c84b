//! The root file system: an overlay of the boot medium's skeleton and read-only exports below a
//! writable upper, with everything else mounted into it, and then the switch to it.
//!
//! One file system on `/run` of the boot medium carries all that is volatile: the uppers (unless
//! they are on a disk) and the new root's `/run`, `/tmp` and `/dev/shm`. So one limit holds for
//! all of them, and a full disk comes before out-of-memory.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use iii_proto::SKELETON_PATH;
use iii_proto::guest::{GuestSpec, Lower, Mount, MountSource, Root, Upper};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, pivot_root};

use super::disks::{self, DiskError, Disks};
use super::filesystem::{
    Filesystem, FilesystemError, by_descriptor, make_directory, remount_read_only,
};
use super::network::{self, NetworkError};

const VOLATILE: &str = "/run";
const NEW_ROOT: &str = "root";
/// Where the boot medium's image of the skeleton is mounted.
const SKELETON: &str = "skeleton";

/// Why the root cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A mount failed.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// The spec names nothing to make a root of.
    #[error("failed to assemble root: it has neither a skeleton nor an export")]
    NoLayer,
    /// The names of hosts cannot be written.
    #[error(transparent)]
    Names(#[from] NetworkError),
    /// `/etc` is a symlink or a file.
    #[error("failed to assemble root: its /etc is no directory")]
    OddEtc,
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A call failed.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
    /// A directory cannot be prepared.
    #[error("failed to prepare {0:?}: {1}")]
    Prepare(PathBuf, std::io::Error),
}

/// A root that can be switched to.
#[derive(Debug)]
pub struct Assembled {
    /// The disks that it writes to.
    pub disks: Disks,
}

/// Assembles the spec's root and everything that is mounted in it, and stays inside: absolute paths
/// are the new root's from here on. Relative ones lead from the boot medium's [`VOLATILE`] until
/// [`switch`].
pub fn assemble(spec: &GuestSpec) -> Result<Assembled, RootError> {
    let failed = |what| move |errno| RootError::System(what, errno);
    let mut disks = Disks::default();
    let base = mount_upper(&spec.root.upper, &mut disks)?;
    mount_overlay(spec, &base)?;
    // In here the kernel itself resolves what is mounted on: an absolute symlink of an image
    // (`/var/run → /run`) never leads out of it.
    chroot(NEW_ROOT).map_err(failed("enter the new root"))?;
    mount_kernel()?;
    mount_volatile(&spec.root)?;
    for (index, entry) in spec.mounts.iter().enumerate() {
        mount_entry(index, entry, &base, &mut disks)?;
    }
    Ok(Assembled { disks })
}

/// Mounts what holds the changes, and makes the volatile file system the directory from which
/// relative paths lead; the prefix of the uppers in it.
fn mount_upper(upper: &Upper, disks: &mut Disks) -> Result<String, RootError> {
    let size = match upper {
        Upper::Tmpfs { size_bytes } => format!("mode=0755,size={size_bytes}"),
        Upper::Disk { .. } => String::from("mode=0755,size=25%"),
    };
    make_directory(Path::new(VOLATILE), 0o755)?;
    tmpfs(&size).mount(Path::new(VOLATILE))?;
    chdir(VOLATILE).map_err(|errno| RootError::System("enter the volatile directory", errno))?;
    match upper {
        Upper::Tmpfs { .. } => Ok(String::new()),
        Upper::Disk { serial } => Ok(format!("{}/", disks.mount(serial)?.display())),
    }
}

fn tmpfs(options: &str) -> Filesystem<'_> {
    Filesystem {
        kind: "tmpfs",
        source: "tmpfs",
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        options,
    }
}

fn mount_overlay(spec: &GuestSpec, base: &str) -> Result<(), RootError> {
    let root = &spec.root;
    let mut lowers = Vec::new();
    if root.skeleton {
        make_directory(Path::new(SKELETON), 0o755)?;
        let image = Filesystem {
            kind: "erofs",
            source: SKELETON_PATH,
            flags: MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            options: "",
        };
        image.mount(Path::new(SKELETON))?;
        lowers.push(SKELETON.to_owned());
    }
    for (index, source) in root.lowers.iter().enumerate() {
        let lower = format!("lower{index}");
        make_directory(Path::new(&lower), 0o755)?;
        mount_lower(source, Path::new(&lower))?;
        lowers.push(lower);
    }
    if lowers.is_empty() {
        return Err(RootError::NoLayer);
    }
    make_directory(Path::new(NEW_ROOT), 0o755)?;
    let changes = format!("{base}changes");
    let options = overlay_options(&lowers.join(":"), &changes)?;
    let etc = format!("{changes}/upper/etc");
    let etc = Path::new(&etc);
    prepare_etc(&lowers, etc)?;
    network::write_names(etc, &spec.worker, spec.network.as_ref())?;
    // Set-user-id programs of an image (sudo) work; device nodes come from /dev alone.
    overlay(&options, MsFlags::MS_NODEV).mount(Path::new(NEW_ROOT))?;
    Ok(())
}

fn mount_lower(lower: &Lower, target: &Path) -> Result<(), RootError> {
    match lower {
        Lower::Export { tag } => export(tag, true).mount(target)?,
        Lower::Disk { serial } => Filesystem {
            kind: "erofs",
            source: &disks::device(serial)?,
            flags: MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
            options: "",
        }
        .mount(target)?,
    }
    Ok(())
}

/// Makes the upper's `/etc`: a file that is put there before the overlay is mounted costs a tenth
/// of what replacing a lower's file through the overlay costs.
fn prepare_etc(lowers: &[String], etc: &Path) -> Result<(), RootError> {
    let lower = lowers
        .iter()
        .find_map(|lower| std::fs::symlink_metadata(Path::new(lower).join("etc")).ok());
    match lower {
        // Anything else would be hidden by our directory, and with it what it leads to.
        Some(found) if !found.is_dir() => Err(RootError::OddEtc),
        Some(_) | None => Ok(make_directory(etc, 0o755)?),
    }
}

/// Makes `changes` with its two directories and names them. `redirect_dir` lets directories of the
/// lower be renamed.
fn overlay_options(lower: &str, changes: &str) -> Result<String, RootError> {
    let (upper, work) = (format!("{changes}/upper"), format!("{changes}/work"));
    for directory in [changes, &upper, &work] {
        make_directory(Path::new(directory), 0o755)?;
    }
    Ok(format!(
        "lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on"
    ))
}

fn overlay(options: &str, flags: MsFlags) -> Filesystem<'_> {
    Filesystem {
        kind: "overlay",
        source: "overlay",
        flags,
        options,
    }
}

fn export(tag: &str, read_only: bool) -> Filesystem<'_> {
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    Filesystem {
        kind: "virtiofs",
        source: tag,
        flags,
        options: "",
    }
}

/// The kernel's file systems.
fn mount_kernel() -> Result<(), RootError> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let no_device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let terminals = "mode=0620,gid=5,ptmxmode=0666";
    for (kind, target, flags, options) in [
        ("proc", "/proc", safe, ""),
        ("sysfs", "/sys", safe, ""),
        ("cgroup2", "/sys/fs/cgroup", safe, "nsdelegate"),
        // The boot medium's, with the links that were made in it.
        ("none", "/dev", MsFlags::MS_MOVE, ""),
        ("devpts", "/dev/pts", no_device, terminals),
    ] {
        let filesystem = Filesystem {
            kind,
            source: if kind == "none" { "../dev" } else { kind },
            flags,
            options,
        };
        filesystem.mount_made(Path::new(target))?;
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        match std::os::unix::fs::symlink(target, link) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(RootError::Prepare(PathBuf::from(link), error)),
        }
    }
    Ok(())
}

/// The directories that are fresh at every boot. Of an image, what it holds there is seen: entry
/// points find in `/run` what they were built with, such as the directory of a socket.
fn mount_volatile(spec: &Root) -> Result<(), RootError> {
    for (name, target, mode) in [
        ("shm", "/dev/shm", 0o1777),
        ("tmp", "/tmp", 0o1777),
        ("run", "/run", 0o755),
    ] {
        let is_images = name != "shm" && !spec.lowers.is_empty();
        let lower = format!("lower0{target}");
        match (is_images, &spec.upper) {
            // The whole root is fresh.
            (true, Upper::Tmpfs { .. }) => {}
            // A link in its place is followed, and what it leads to is covered by the one below.
            (true, Upper::Disk { .. }) if is_directory(&lower) => {
                let changes = format!("{name}-changes");
                let options = overlay_options(&lower, &changes)?;
                alike(Path::new(&lower), Path::new(&format!("{changes}/upper")))?;
                overlay(&options, MsFlags::MS_NODEV).mount_made(Path::new(target))?;
            }
            (true, Upper::Disk { .. }) | (false, _) => {
                make_directory(Path::new(name), mode)?;
                set_mode(Path::new(name), mode)?;
                bind(name).mount_made(Path::new(target))?;
            }
        }
    }
    Ok(())
}

fn is_directory(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Gives a directory the owner and the mode of another.
fn alike(from: &Path, to: &Path) -> Result<(), RootError> {
    let failed = |error| RootError::Prepare(to.to_owned(), error);
    let found = std::fs::metadata(from).map_err(failed)?;
    chown(to, Some(found.uid()), Some(found.gid())).map_err(failed)?;
    set_mode(to, found.mode() & 0o7777)
}

/// mkdir(2) applies the umask.
fn set_mode(path: &Path, mode: u32) -> Result<(), RootError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| RootError::Prepare(path.to_owned(), error))
}

/// Shows the directory `source` in another place, with its mount's flags.
fn bind(source: &str) -> Filesystem<'_> {
    Filesystem {
        kind: "none",
        source,
        flags: MsFlags::MS_BIND,
        options: "",
    }
}

fn mount_entry(
    index: usize,
    entry: &Mount,
    base: &str,
    disks: &mut Disks,
) -> Result<(), RootError> {
    let target = Path::new(&entry.target);
    match &entry.source {
        MountSource::Export { tag, read_only } => {
            export(tag, *read_only).mount_made(target)?;
        }
        MountSource::Overlay { tag } => {
            let lower = format!("mount{index}");
            make_directory(Path::new(&lower), 0o755)?;
            export(tag, true).mount(Path::new(&lower))?;
            // Named by its target: on a disk, changes stay with it when mounts are added.
            let changes = format!("{base}changes-{}", escape(&entry.target));
            let options = overlay_options(&lower, &changes)?;
            overlay(&options, MsFlags::MS_NODEV).mount_made(target)?;
        }
        MountSource::Tmpfs { size_bytes } => {
            let options = format!("mode=1777,size={size_bytes}");
            tmpfs(&options).mount_made(target)?;
        }
        MountSource::Disk {
            serial,
            directory,
            uid,
            gid,
        } => {
            let source = disks.directory(serial, directory, *uid, *gid)?;
            let source = by_descriptor(&source);
            bind(&source.to_string_lossy()).mount_made(target)?;
        }
    }
    Ok(())
}

/// A file name that stands for `path` alone and has no meaning in overlay options.
fn escape(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => name.push(byte.into()),
            byte => {
                name.push('%');
                name.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
                name.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            }
        }
    }
    name
}

/// Makes the assembled root the root of the mount namespace, and what was before it unreachable.
/// `in_memory`: the boot medium is an initramfs.
pub fn switch(in_memory: bool) -> Result<(), RootError> {
    let failed = |what| move |errno| RootError::System(what, errno);
    if in_memory {
        // An initramfs cannot be left: it is emptied of what is ours, then covered. The file is
        // kept by this running process; a failure only leaves it in memory.
        std::fs::remove_file("../init").unwrap_or(());
        let moved = mount(
            Some(NEW_ROOT),
            "..",
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        );
        moved.map_err(failed("move the new root"))?;
    } else {
        chroot("..").map_err(failed("leave the new root"))?;
        chdir(NEW_ROOT).map_err(failed("enter the new root"))?;
        pivot_root(".", ".").map_err(failed("change the root"))?;
        // The old root is now mounted over the new one, in the same place.
        umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the old root"))?;
    }
    chdir("/").map_err(failed("enter the new root"))
}

/// Leaves the disks clean: nothing can be written to them after this.
pub fn close(disks: &Disks) -> Result<(), RootError> {
    if disks.is_empty() {
        return Ok(());
    }
    remount_read_only(Path::new("/"))
        .map_err(|errno| RootError::System("close the root", errno))?;
    Ok(disks.close()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_names_are_different_for_different_paths() {
        assert_eq!(escape("/usr"), "%2fusr");
        assert_eq!(escape("/a b,c:d%"), "%2fa%20b%2cc%3ad%25");
        assert_ne!(escape("/a/b"), escape("/a%2fb"));
    }
}
