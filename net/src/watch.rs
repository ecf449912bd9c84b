//! Notices loops that make no progress.
//!
//! One thread looks at all loops of the program with one system call, so that a thousand idle loops
//! cost next to nothing and none of them is woken for it. A loop that waits with nothing ready has
//! nothing to show; from the moment that something is ready, it is owed a round. The thread ends
//! with the last loop.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::NetError;
use crate::handle::Shared;

/// Called once on the watching thread; it must not block, since all loops wait for it.
pub(crate) type StallCallback = Box<dyn FnOnce() + Send>;

/// What there is to see of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds of the loop so far.
    pub ticks: u64,
    /// The loop is within a round.
    pub busy: bool,
    /// Frames, host sockets or commands are ready and wait for the loop.
    pub pending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// It makes progress, or has nothing to do.
    Healthy,
    /// It had something to do and made no round for the whole limit.
    Stalled,
}

/// The judgement of one loop.
#[derive(Clone, Debug)]
struct Watchdog {
    limit: Duration,
    /// Rounds when it was first seen to owe one, and how long it has owed it since.
    owed: Option<(u64, Duration)>,
    looked: Option<Instant>,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            owed: None,
            looked: None,
        }
    }

    fn judge(&mut self, now: Instant, progress: Progress) -> Health {
        let since = self
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if !progress.pending && !progress.busy {
            self.owed = None;
            return Health::Healthy;
        }
        let owed = match self.owed {
            // Whoever did not look for so long was stopped himself, and the loop with him.
            Some((ticks, owed)) if ticks == progress.ticks && since < self.limit => owed + since,
            Some(_) | None => Duration::ZERO,
        };
        self.owed = Some((progress.ticks, owed));
        if owed < self.limit {
            Health::Healthy
        } else {
            Health::Stalled
        }
    }
}

/// A loop under watch.
struct Post {
    id: u64,
    shared: Arc<Shared>,
    watchdog: Watchdog,
    on_stall: StallCallback,
}

struct Posts {
    list: Vec<Post>,
    next_id: u64,
    /// The thread runs.
    manned: bool,
}

static POSTS: Mutex<Posts> = Mutex::new(Posts {
    list: Vec::new(),
    next_id: 0,
    manned: false,
});
/// A loop has come, or the last one has gone.
static CHANGED: Condvar = Condvar::new();

/// A loop is under watch for as long as this lives.
pub(crate) struct Watched {
    id: u64,
}

/// Begins to watch a loop.
pub(crate) fn watch(
    shared: Arc<Shared>,
    limit: Duration,
    on_stall: StallCallback,
) -> Result<Watched, NetError> {
    let mut posts = posts();
    if !posts.manned {
        thread::Builder::new()
            .name("net-watch".into())
            .spawn(patrol)
            .map_err(NetError::io("start the network loops' watchdog"))?;
        posts.manned = true;
    }
    posts.next_id += 1;
    let id = posts.next_id;
    posts.list.push(Post {
        id,
        shared,
        watchdog: Watchdog::new(limit),
        on_stall,
    });
    // Its limit may be shorter than those before.
    CHANGED.notify_one();
    Ok(Watched { id })
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut posts = posts();
        let at = posts.list.iter().position(|post| post.id == self.id);
        let post = at.map(|at| posts.list.swap_remove(at));
        if posts.list.is_empty() {
            CHANGED.notify_one();
        }
        drop(posts);
        // Not under the lock: the callback may hold whatever its owner likes.
        drop(post);
    }
}

fn posts() -> MutexGuard<'static, Posts> {
    POSTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn patrol() {
    let mut posts = posts();
    let mut looked = Instant::now();
    loop {
        // Twice per limit.
        let Some(interval) = posts.list.iter().map(|p| p.watchdog.limit / 2).min() else {
            posts.manned = false;
            return;
        };
        let wait = interval.saturating_sub(looked.elapsed());
        if !wait.is_zero() {
            let waited = CHANGED.wait_timeout(posts, wait);
            posts = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        looked = Instant::now();
        let stalled = posts.look(looked);
        drop(posts);
        for post in stalled {
            // A fault of one loop's owner is not the others'.
            if catch_unwind(AssertUnwindSafe(post.on_stall)).is_err() {
                tracing::error!("the stall callback of a network loop panicked");
            }
        }
        posts = self::posts();
    }
}

impl Posts {
    /// Takes out those that are stalled.
    fn look(&mut self, now: Instant) -> Vec<Post> {
        let pending = match pending(self.list.iter().map(|post| &*post.shared)) {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(%error, "failed to look at the network loops");
                return Vec::new();
            }
        };
        let mut pending = pending.into_iter();
        self.list
            .extract_if(.., |post| {
                let progress = post.shared.progress(pending.next().unwrap_or(false));
                let health = post.watchdog.judge(now, progress);
                health == Health::Stalled && !post.shared.ended.load(Ordering::SeqCst)
            })
            .collect()
    }
}

/// Which of these have something ready, in their order.
pub(crate) fn pending<'a>(loops: impl Iterator<Item = &'a Shared>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = loops
        .map(|shared| PollFd::new(shared.epoll.0.as_fd(), PollFlags::POLLIN))
        .collect();
    while let Err(errno) = poll(&mut fds, PollTimeout::ZERO) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    Ok(fds.iter().map(|fd| fd.any().unwrap_or(false)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(ticks: u64, busy: bool, pending: bool) -> Progress {
        Progress {
            ticks,
            busy,
            pending,
        }
    }

    #[test]
    fn only_work_without_rounds_is_a_stall() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watchdog = Watchdog::new(Duration::from_secs(10));
        for (seconds, ticks, busy, pending, health) in [
            (0, 1, false, false, Health::Healthy),
            (60, 1, false, false, Health::Healthy),
            (65, 1, false, true, Health::Healthy),
            (70, 1, false, true, Health::Healthy),
            (74, 1, true, false, Health::Healthy),
            (75, 2, false, true, Health::Healthy),
            (80, 2, true, false, Health::Healthy),
            (85, 2, true, false, Health::Stalled),
            (86, 3, false, false, Health::Healthy),
        ] {
            let seen = watchdog.judge(at(seconds), progress(ticks, busy, pending));
            assert_eq!(seen, health, "at {seconds} s");
        }
    }

    #[test]
    fn a_watchdog_that_was_stopped_itself_begins_anew() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(10));
        let mut judge = |seconds| {
            let now = start + Duration::from_secs(seconds);
            watchdog.judge(now, progress(1, true, true))
        };
        assert_eq!(judge(0), Health::Healthy);
        assert_eq!(judge(5), Health::Healthy);
        assert_eq!(judge(3600), Health::Healthy, "the host was suspended");
        assert_eq!(judge(3605), Health::Healthy);
        assert_eq!(judge(3610), Health::Stalled);
    }
}
