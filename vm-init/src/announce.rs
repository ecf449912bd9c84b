//! Tells those who watch files in the guest what the host has changed.
//!
//! The guest's kernel raises no event for a change that it has not made. What it raises one for,
//! and what changes nothing, is a change of a file's mode to the mode that it has: watchers of the
//! file and of its directory see `IN_ATTRIB`, look, and find the new content. For a file that is
//! gone its directory is named, which watchers then read again.
//!
//! It is done by a child: a call into a file server may hang, and PID 1 must not.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;

use iii_proto::control::{MAX_CHANGED_PATHS, MAX_PATH_BYTES};
use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat};

use crate::boot::filesystem::by_descriptor;
use crate::sys;

/// Paths that wait while a child is at work. More are forgotten: whoever watches so much looks at
/// the files anyway.
const MOST_WAITING: usize = 4096;

/// What is still to be told.
#[derive(Debug, Default)]
pub struct Announcer {
    waiting: VecDeque<String>,
    child: Option<GuestPid>,
}

impl Announcer {
    /// Takes paths in; those that no host of ours sends are left out.
    pub fn add(&mut self, paths: Vec<String>) {
        let sound = |path: &String| path.starts_with('/') && path.len() <= MAX_PATH_BYTES;
        let paths = paths.into_iter().take(MAX_CHANGED_PATHS).filter(sound);
        let room = MOST_WAITING.saturating_sub(self.waiting.len());
        self.waiting.extend(paths.take(room));
    }

    /// Starts a child, unless one is at work or there is nothing to do.
    pub fn turn(&mut self) -> nix::Result<()> {
        if self.child.is_some() || self.waiting.is_empty() {
            return Ok(());
        }
        let paths = std::mem::take(&mut self.waiting);
        let pid = sys::in_child(move || {
            for path in paths {
                // A file that cannot be told of is one that cannot be watched.
                announce(Path::new(&path)).unwrap_or(());
            }
        })?;
        self.child = Some(GuestPid(pid.as_raw()));
        Ok(())
    }

    /// Whether the child that ended was ours.
    pub fn on_child_end(&mut self, pid: GuestPid) -> bool {
        self.child.take_if(|child| *child == pid).is_some()
    }
}

/// Raises an event for a file or directory, or for what is left of the way to it.
fn announce(path: &Path) -> nix::Result<()> {
    for existing in path.ancestors() {
        match open(existing) {
            Ok(file) => return touch(&file),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The file itself: no symlink on the way to it may lead root, which this is, to another.
fn open(path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
}

/// Gives the open file the mode that it has.
fn touch(file: &OwnedFd) -> nix::Result<()> {
    let found = fstat(file)?;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
        return Ok(());
    }
    let mode = Mode::from_bits_truncate(found.st_mode);
    // A descriptor without access rights has its mode changed only by a name; this one leads to
    // the very file.
    fchmodat(
        AT_FDCWD,
        &by_descriptor(file),
        mode,
        FchmodatFlags::FollowSymlink,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_file_keeps_its_mode_and_its_inode_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().join("file");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let watch = inotify(path.parent().unwrap());
        announce(&path).unwrap();
        assert_eq!(names(&watch), ["file"]);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        // One that is gone: its directory is told of.
        announce(&path.parent().unwrap().join("gone/deep/file")).unwrap();
        assert_eq!(names(&watch), [""]);
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/secret"), "").unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("real/secret", root.join("file")).unwrap();
        let watch = inotify(&root.join("real"));
        assert_eq!(announce(&root.join("link/secret")), Err(Errno::ELOOP));
        announce(&root.join("file")).unwrap_or(());
        assert_eq!(names(&watch), [""; 0]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut announcer = Announcer::default();
        announcer.add(vec![
            String::from("relative"),
            format!("/{}", "x".repeat(MAX_PATH_BYTES)),
        ]);
        assert_eq!(announcer.waiting.len(), 0);
        for _ in 0..2 * MOST_WAITING / MAX_CHANGED_PATHS {
            announcer.add(vec![String::from("/nowhere"); 2 * MAX_CHANGED_PATHS]);
        }
        assert_eq!(announcer.waiting.len(), MOST_WAITING);
    }

    fn inotify(path: &Path) -> nix::sys::inotify::Inotify {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        inotify.add_watch(path, AddWatchFlags::IN_ATTRIB).unwrap();
        inotify
    }

    fn names(inotify: &nix::sys::inotify::Inotify) -> Vec<String> {
        let name =
            |name: Option<std::ffi::OsString>| name.unwrap_or_default().into_string().unwrap();
        match inotify.read_events() {
            Ok(events) => events.into_iter().map(|event| name(event.name)).collect(),
            Err(Errno::EAGAIN) => Vec::new(),
            Err(errno) => panic!("{errno}"),
        }
    }
}
