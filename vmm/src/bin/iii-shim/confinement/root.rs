//! A root directory of its own: a small tmpfs with binds of what the program may reach, read-only
//! but for what it may change, in a mount namespace of its own. What is not in it has no name for the
//! program at all.
//!
//! All is done on detached mounts (the kernel's newer mount calls), so that it needs no directory of
//! the host to work in, and the host's mounts never see any of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use iii_proto::shim::Confinement;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use crate::sys;

/// Directories and empty files to mount on are all that is in it.
const SIZE: &str = "1m";

/// What a program may do with what it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Read,
    Write,
    /// Of a device, which nothing else is.
    Device,
}

/// A subtree of the host that the new root will show, under its own path, which holds no link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    path: PathBuf,
    is_directory: bool,
    access: Access,
}

struct Source {
    wanted: Wanted,
    tree: OwnedFd,
}

/// Makes the root and enters it. Where it fails the old one is still there and whole for this
/// process, which then goes on in it.
pub(super) fn enter(confinement: &Confinement) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Nothing that is mounted from here on may reach the host, nor the other way round.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let mut sources = Vec::new();
    for wanted in arranged(find(confinement)?) {
        let tree = open_source(&wanted)?;
        sources.push(Source { wanted, tree });
    }
    let processes = match new_filesystem("proc", &[("subset", "pid")], true) {
        Ok(own) => own,
        // A container that covers parts of /proc must not uncover them this way.
        Err(_) => clone_tree(Path::new("/proc"))?,
    };
    // Sorted by path: where the whole of the host is shown, it comes first.
    let whole = sources
        .first()
        .map(|first| first.wanted.path == Path::new("/"));
    let (root, is_changed) = if whole == Some(true) {
        let first = sources.remove(0);
        (first.tree, first.wanted.access == Access::Write)
    } else {
        let own = new_filesystem("tmpfs", &[("size", SIZE), ("mode", "755")], false)?;
        (own, false)
    };
    // Everything from the host is held by descriptor by now, so that it does not matter what this
    // covers. /proc is there in every process' view that the shim can have been started in.
    attach(root.as_fd(), CWD, "/proc")?;
    let root = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    sources.push(Source {
        wanted: Wanted {
            path: "/proc".into(),
            is_directory: true,
            access: Access::Read,
        },
        tree: processes,
    });
    for Source { wanted, tree } in &sources {
        let target = make_target(root.as_fd(), &wanted.path, wanted.is_directory)?;
        attach(tree.as_fd(), target.as_fd(), "")?;
    }
    make_links(root.as_fd(), &sources)?;
    fchdir(root.as_fd())?;
    // The old root lands on top of the new one, and is taken away from there.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    if is_changed {
        return Ok(());
    }
    sys::restrict_mount(CWD, "/", libc::MOUNT_ATTR_RDONLY, false)
}

/// What of the listed is there.
fn find(confinement: &Confinement) -> io::Result<Vec<Wanted>> {
    let mut found = Vec::new();
    for (paths, access) in [
        (&confinement.read, Access::Read),
        (&confinement.execute, Access::Read),
        (&confinement.write, Access::Write),
        (&confinement.devices, Access::Device),
    ] {
        for path in paths {
            let path = Path::new(OsStr::from_bytes(path));
            let Ok(stat) = rustix::fs::stat(path) else {
                continue;
            };
            found.push(Wanted {
                // A link is made anew (see `make_links`); what it leads to is on the list under its
                // own name.
                path: path.canonicalize()?,
                is_directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                access,
            });
        }
    }
    Ok(found)
}

/// In the order in which they are mounted: what contains others before them. What something above
/// shows already, with the same or more access, is left out.
fn arranged(mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    wanted.sort_by(|a, b| a.path.cmp(&b.path).then(b.access.cmp(&a.access)));
    let mut kept: Vec<Wanted> = Vec::new();
    for one in wanted {
        let shown = kept.iter().any(|other| {
            let same = one.path == other.path;
            let below = one.access != Access::Device && one.path.starts_with(&other.path);
            same || below && other.access >= one.access
        });
        if !shown {
            kept.push(one);
        }
    }
    kept
}

fn open_source(wanted: &Wanted) -> io::Result<OwnedFd> {
    let tree = clone_tree(&wanted.path)?;
    let no_devices = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    match wanted.access {
        Access::Read => {
            let attributes = libc::MOUNT_ATTR_RDONLY | no_devices;
            sys::restrict_mount(tree.as_fd(), "", attributes, true)?;
        }
        Access::Write => sys::restrict_mount(tree.as_fd(), "", no_devices, true)?,
        Access::Device => {}
    }
    Ok(tree)
}

fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    // With all below it: in a user namespace the kernel does not show what a mount covers.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn new_filesystem(kind: &str, options: &[(&str, &str)], no_execution: bool) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, no_execution);
    Ok(rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn attach(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", directory, path, flags)?)
}

/// Makes what `path` needs below the new root, and opens it.
fn make_target(root: BorrowedFd<'_>, path: &Path, is_directory: bool) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone_to_owned()?;
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect();
    let path_only = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for (index, name) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        // In a directory of the host that is mounted already it is there, and is not to be made.
        match rustix::fs::openat(&directory, *name, path_only, Mode::empty()) {
            Ok(there) => {
                directory = there;
                continue;
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if last && !is_directory {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            drop(rustix::fs::openat(&directory, *name, flags, Mode::RUSR)?);
        } else {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            rustix::fs::mkdirat(&directory, *name, mode)?;
        }
        directory = rustix::fs::openat(&directory, *name, path_only, Mode::empty())?;
    }
    Ok(directory)
}

/// The host's links at the top (`/lib64` to `usr/lib64`), by which programs name their interpreter.
fn make_links(root: BorrowedFd<'_>, sources: &[Source]) -> io::Result<()> {
    // The old root is still this process' own, so that "/" is the host's.
    for entry in std::fs::read_dir("/")? {
        let entry = entry?;
        if !entry.file_type()?.is_symlink() {
            continue;
        }
        let Ok(target) = entry.path().canonicalize() else {
            continue;
        };
        let shown = sources.iter().any(|source| {
            let path = &source.wanted.path;
            path.starts_with(&target) || target.starts_with(path)
        });
        if !shown {
            continue;
        }
        let link = std::fs::read_link(entry.path())?;
        match rustix::fs::symlinkat(&link, root, entry.file_name()) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: &str, access: Access) -> Wanted {
        Wanted {
            path: path.into(),
            is_directory: true,
            access,
        }
    }

    #[test]
    fn what_contains_others_is_mounted_first_and_shows_what_is_below_it() {
        use Access::{Device, Read, Write};
        let list = [
            wanted("/usr/lib", Read),
            wanted("/home/me/project/data", Read),
            wanted("/dev/null", Device),
            wanted("/usr", Read),
            wanted("/home/me/project", Write),
            wanted("/usr/local/share/mine", Write),
            wanted("/usr-of-mine", Read),
        ];
        let expected = [
            wanted("/dev/null", Device),
            wanted("/home/me/project", Write),
            wanted("/usr", Read),
            wanted("/usr/local/share/mine", Write),
            wanted("/usr-of-mine", Read),
        ];
        assert_eq!(arranged(list.into()), expected);
    }

    #[test]
    fn a_directory_that_is_listed_twice_has_the_greater_access() {
        let list = [wanted("/a", Access::Read), wanted("/a", Access::Write)];
        assert_eq!(arranged(list.into()), [wanted("/a", Access::Write)]);
    }

    #[test]
    fn a_device_is_shown_also_below_what_is_shown() {
        let list = [
            wanted("/dev/kvm", Access::Device),
            wanted("/", Access::Read),
        ];
        let expected = [
            wanted("/", Access::Read),
            wanted("/dev/kvm", Access::Device),
        ];
        assert_eq!(arranged(list.into()), expected);
    }
}
