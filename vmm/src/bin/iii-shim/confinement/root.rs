//! A root directory of its own: a small tmpfs with read-only binds of what the program may reach,
//! in a mount namespace of its own. What is not in it has no name for the program at all.
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

/// A subtree of the host that the new root will show.
struct Source {
    path: PathBuf,
    is_directory: bool,
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
    for (paths, read_only) in [
        (&confinement.read, true),
        (&confinement.execute, true),
        (&confinement.devices, false),
    ] {
        for path in paths {
            sources.extend(open_source(Path::new(OsStr::from_bytes(path)), read_only)?);
        }
    }
    let processes = match new_filesystem("proc", &[("subset", "pid")], true) {
        Ok(own) => own,
        // A container that covers parts of /proc must not uncover them this way.
        Err(_) => clone_tree(Path::new("/proc"))?,
    };
    let root = new_filesystem("tmpfs", &[("size", SIZE), ("mode", "755")], false)?;
    // Everything from the host is held by descriptor by now, so that it does not matter what this
    // covers. /proc is there in every process' view that the shim can have been started in.
    attach(root.as_fd(), CWD, "/proc")?;
    let root = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    sources.push(Source {
        path: "/proc".into(),
        is_directory: true,
        tree: processes,
    });
    for source in &sources {
        let target = make_target(root.as_fd(), &source.path, source.is_directory)?;
        attach(source.tree.as_fd(), target.as_fd(), "")?;
    }
    make_links(root.as_fd(), &sources)?;
    fchdir(root.as_fd())?;
    // The old root lands on top of the new one, and is taken away from there.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    sys::make_read_only(CWD, "/", false)
}

/// `None`: it is not there.
fn open_source(path: &Path, read_only: bool) -> io::Result<Option<Source>> {
    let Ok(found) = rustix::fs::stat(path) else {
        return Ok(None);
    };
    // A link is made anew (see `make_links`); what it leads to is on the list under its own name.
    let path = path.canonicalize()?;
    let tree = clone_tree(&path)?;
    if read_only {
        sys::make_read_only(tree.as_fd(), "", true)?;
    }
    let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    Ok(Some(Source {
        path,
        is_directory,
        tree,
    }))
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
    let existing = |result: rustix::io::Result<()>| match result {
        Err(error) if error != rustix::io::Errno::EXIST => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    for (index, name) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        if last && !is_directory {
            let flags = OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            drop(rustix::fs::openat(&directory, *name, flags, Mode::RUSR)?);
        } else {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            existing(rustix::fs::mkdirat(&directory, *name, mode))?;
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        directory = rustix::fs::openat(&directory, *name, flags, Mode::empty())?;
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
        let shown = sources
            .iter()
            .any(|source| source.path.starts_with(&target) || target.starts_with(&source.path));
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
