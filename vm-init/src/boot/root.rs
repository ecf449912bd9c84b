//! The root file system: an overlay of the boot medium's skeleton and read-only exports below a
//! writable upper, with everything else mounted into it, and then the switch to it.
//!
//! One file system on `/run` of the boot medium carries all that is volatile: the uppers (unless
//! they are on a disk) and the new root's `/run`, `/tmp` and `/dev/shm`. So one limit holds for
//! all of them, and a full disk comes before out-of-memory.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use iii_proto::SKELETON_PATH;
use iii_proto::guest::{GuestSpec, Lower, Mount, MountSource, Upper};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, pivot_root};

use super::disks::{self, DiskError, Disks};
use super::filesystem::{
    Filesystem, FilesystemError, NewRoot, by_descriptor, make_directory, remount_read_only,
};
use super::network::{self, NetworkError};

const VOLATILE: &str = "/run";
const NEW_ROOT: &str = "/run/root";

/// Why the root cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A mount failed.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// The spec names nothing to make a root of.
    #[error("failed to assemble root: it has neither a skeleton nor an export")]
    NoLayer,
    /// The boot medium lacks the skeleton.
    #[error("failed to assemble root: the boot medium has no {SKELETON_PATH}")]
    NoSkeleton,
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

/// Assembles the spec's root and everything that is mounted in it.
pub fn assemble(spec: &GuestSpec) -> Result<Assembled, RootError> {
    let mut disks = Disks::default();
    let base = mount_upper(&spec.root.upper, &mut disks)?;
    mount_overlay(spec, &base)?;
    let root = NewRoot::open(Path::new(NEW_ROOT))?;
    mount_base(&root)?;
    for (index, entry) in spec.mounts.iter().enumerate() {
        mount_entry(&root, index, entry, &base, &mut disks)?;
    }
    Ok(Assembled { disks })
}

/// Mounts what holds the changes; the directory below which uppers are made.
fn mount_upper(upper: &Upper, disks: &mut Disks) -> Result<PathBuf, RootError> {
    let size = match upper {
        Upper::Tmpfs { size_bytes } => format!("mode=0755,size={size_bytes}"),
        Upper::Disk { .. } => String::from("mode=0755,size=25%"),
    };
    make_directory(Path::new(VOLATILE), 0o755)?;
    tmpfs(&size).mount(Path::new(VOLATILE))?;
    match upper {
        Upper::Tmpfs { .. } => Ok(PathBuf::from(VOLATILE)),
        Upper::Disk { serial } => Ok(disks.mount(serial)?.to_owned()),
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

fn mount_overlay(spec: &GuestSpec, base: &Path) -> Result<(), RootError> {
    let root = &spec.root;
    let mut lowers = Vec::new();
    if root.skeleton {
        if !Path::new(SKELETON_PATH).is_dir() {
            return Err(RootError::NoSkeleton);
        }
        lowers.push(SKELETON_PATH.to_owned());
    }
    for (index, source) in root.lowers.iter().enumerate() {
        let lower = format!("{VOLATILE}/lower{index}");
        make_directory(Path::new(&lower), 0o755)?;
        mount_lower(source, Path::new(&lower))?;
        lowers.push(lower);
    }
    if lowers.is_empty() {
        return Err(RootError::NoLayer);
    }
    make_directory(Path::new(NEW_ROOT), 0o755)?;
    let changes = base.join("changes");
    let options = overlay_options(&lowers.join(":"), &changes)?;
    let etc = changes.join("upper/etc");
    prepare_etc(&lowers, &etc)?;
    network::write_names(&etc, &spec.worker, spec.network.as_ref())?;
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
fn overlay_options(lower: &str, changes: &Path) -> Result<String, RootError> {
    let (upper, work) = (changes.join("upper"), changes.join("work"));
    for directory in [changes, &upper, &work] {
        make_directory(directory, 0o755)?;
    }
    Ok(format!(
        "lowerdir={lower},upperdir={},workdir={},redirect_dir=on",
        upper.display(),
        work.display()
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

/// The kernel's file systems and the volatile directories.
fn mount_base(root: &NewRoot) -> Result<(), RootError> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let kernel = |kind, flags, options| Filesystem {
        kind,
        source: kind,
        flags,
        options,
    };
    root.mount(&kernel("proc", safe, ""), "/proc")?;
    root.mount(&kernel("sysfs", safe, ""), "/sys")?;
    root.mount(&kernel("cgroup2", safe, "nsdelegate"), "/sys/fs/cgroup")?;
    root.mount(&kernel("devtmpfs", MsFlags::MS_NOSUID, ""), "/dev")?;
    let no_device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    root.mount(
        &kernel("devpts", no_device, "mode=0620,gid=5,ptmxmode=0666"),
        "/dev/pts",
    )?;
    for (name, target, mode) in [
        ("shm", "/dev/shm", 0o1777),
        ("tmp", "/tmp", 0o1777),
        ("run", "/run", 0o755),
    ] {
        let source = format!("{VOLATILE}/{name}");
        make_directory(Path::new(&source), mode)?;
        // mkdir(2) applies the umask.
        std::fs::set_permissions(&source, Permissions::from_mode(mode))
            .map_err(|error| RootError::Prepare(PathBuf::from(&source), error))?;
        root.bind(&source, target)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        // devtmpfs is one file system wherever it is mounted.
        let link = Path::new("/dev").join(name);
        match std::os::unix::fs::symlink(target, &link) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(RootError::Prepare(link, error)),
        }
    }
    Ok(())
}

fn mount_entry(
    root: &NewRoot,
    index: usize,
    entry: &Mount,
    base: &Path,
    disks: &mut Disks,
) -> Result<(), RootError> {
    match &entry.source {
        MountSource::Export { tag, read_only } => {
            root.mount(&export(tag, *read_only), &entry.target)?;
        }
        MountSource::Overlay { tag } => {
            let lower = format!("{VOLATILE}/mount{index}");
            make_directory(Path::new(&lower), 0o755)?;
            export(tag, true).mount(Path::new(&lower))?;
            // Named by its target: on a disk, changes stay with it when mounts are added.
            let changes = base.join(format!("changes-{}", escape(&entry.target)));
            let options = overlay_options(&lower, &changes)?;
            root.mount(&overlay(&options, MsFlags::MS_NODEV), &entry.target)?;
        }
        MountSource::Tmpfs { size_bytes } => {
            let options = format!("mode=1777,size={size_bytes}");
            root.mount(&tmpfs(&options), &entry.target)?;
        }
        MountSource::Disk {
            serial,
            directory,
            uid,
            gid,
        } => {
            let source = disks.directory(serial, directory, *uid, *gid)?;
            let source = by_descriptor(&source);
            root.bind(&source.to_string_lossy(), &entry.target)?;
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

/// Makes the assembled root the root of this process and of all that it starts.
pub fn switch() -> Result<(), RootError> {
    let failed = |what| move |errno| RootError::System(what, errno);
    chdir(NEW_ROOT).map_err(failed("enter the new root"))?;
    match pivot_root(".", ".") {
        // The old root is now mounted over the new one, in the same place.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the old root"))?,
        // An initramfs cannot be left: it is emptied of what is ours, then covered.
        Err(Errno::EINVAL) => {
            // Kept by this running process; a failure only leaves it in memory.
            std::fs::remove_file("/init").unwrap_or(());
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .map_err(failed("move the new root"))?;
            chroot(".").map_err(failed("change the root"))?;
        }
        Err(errno) => return Err(RootError::System("change the root", errno)),
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
