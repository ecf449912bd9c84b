//! The recent lines of one worker, and who follows it or all.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::Followed;
use crate::event::LogLine;

/// Lines that a new follower is shown.
pub(super) const RECENT_LINES: usize = 200;
/// Bytes of them, so that long lines do not grow the supervisor.
pub(super) const RECENT_BYTES: usize = 64 * 1024;
/// Lines that a follower may be behind before it misses some.
const BACKLOG: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Recent {
    /// With their places among those of all workers.
    lines: VecDeque<(u64, Arc<LogLine>)>,
    bytes: usize,
    followers: Followers,
}

impl Recent {
    pub(super) fn put(&mut self, place: u64, line: Arc<LogLine>) {
        self.bytes += line.text.len();
        self.lines.push_back((place, Arc::clone(&line)));
        while self.lines.len() > RECENT_LINES || self.bytes > RECENT_BYTES {
            match self.lines.pop_front() {
                Some((_, old)) => self.bytes -= old.text.len(),
                None => break,
            }
        }
        tell(&mut self.followers, &line);
    }

    /// What is there.
    pub(super) fn lines(&self) -> impl Iterator<Item = &(u64, Arc<LogLine>)> {
        self.lines.iter()
    }

    /// What is there, and what will come, without a gap.
    pub(super) fn follow(&mut self) -> Followed {
        let lines = self.lines.iter().map(|(_, line)| Arc::clone(line));
        (lines.collect(), subscribe(&mut self.followers))
    }
}

/// Those who follow, if there are any.
pub(super) type Followers = Option<broadcast::Sender<Arc<LogLine>>>;

pub(super) fn subscribe(followers: &mut Followers) -> broadcast::Receiver<Arc<LogLine>> {
    followers
        .get_or_insert_with(|| broadcast::Sender::new(BACKLOG))
        .subscribe()
}

pub(super) fn tell(followers: &mut Followers, line: &Arc<LogLine>) {
    if let Some(sender) = followers
        && sender.send(Arc::clone(line)).is_err()
    {
        // The last follower has gone.
        *followers = None;
    }
}
