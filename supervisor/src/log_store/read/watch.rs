//! Waits, without looking again and again, until something was written into directories, some of
//! which may not be there yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something may have been written.
    Written,
    /// Whoever reads what we write has gone.
    ReaderGone,
    /// The time is over.
    Timeout,
}

#[derive(Debug)]
pub(super) struct Watch(Inotify);

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Inotify::init(
            InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC,
        )?))
    }

    /// Wakes for what is written into the files of this directory, and for new ones. False if it
    /// is not there.
    pub(super) fn files_of(&self, directory: &Path) -> io::Result<bool> {
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
        self.add(directory, flags)
    }

    /// Wakes for new entries of this directory, or until it is there of the nearest one above it.
    pub(super) fn entries_of(&self, directory: &Path) -> io::Result<()> {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        for ancestor in directory.ancestors() {
            if self.add(ancestor, flags)? {
                // The next one down may have been made just before.
                let child = directory
                    .ancestors()
                    .take_while(|path| *path != ancestor)
                    .last();
                return match child {
                    Some(child) if child.exists() => self.entries_of(directory),
                    Some(_) | None => Ok(()),
                };
            }
        }
        Ok(())
    }

    fn add(&self, directory: &Path, flags: AddWatchFlags) -> io::Result<bool> {
        let flags = flags | AddWatchFlags::IN_ONLYDIR;
        match self.0.add_watch(directory, flags) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(Errno::ENOSPC) => Err(io::Error::other(
                "no more directories can be watched: raise fs.inotify.max_user_watches",
            )),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until something was written, `out` has lost its reader, or the time is over.
    pub(super) fn wait(
        &self,
        out: Option<BorrowedFd<'_>>,
        time: Option<Duration>,
    ) -> io::Result<Wake> {
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        // An error or a hang-up is told without being asked for.
        fds.extend(out.map(|out| PollFd::new(out, PollFlags::empty())));
        let timeout = match time {
            None => PollTimeout::NONE,
            // Rounded up, so that it is over then; longer ones are waited for again.
            Some(time) => PollTimeout::try_from(time.as_millis().saturating_add(1))
                .unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(Wake::Timeout),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let gone = fds.get(1).and_then(PollFd::revents);
        if gone.is_some_and(|events| !events.is_empty()) {
            return Ok(Wake::ReaderGone);
        }
        loop {
            match self.0.read_events() {
                // What happened does not matter: everything is looked at.
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Wake::Written),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
