//! What workloads write, on its way to whoever reads it:
//!
//! * one reader of everything ([`LogReader`]), who loses nothing and slows a workload when it is
//!   slow;
//! * one store ([`LogStoreFeed`]), which is waited for before the guest is told that it may forget;
//! * any number of followers of one worker or of all, who are told what they missed.
//!
//! Reader and store have a queue each with a lane per worker ([`lanes`], [`channel`]): a worker
//! that floods waits alone. No file is touched in here.

mod channel;
mod lanes;
mod recent;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iii_proto::ids::WorkerName;
use tokio::sync::broadcast;

use self::channel::Channel;
use self::recent::{Followers, Recent, subscribe, tell};
use crate::event::LogLine;

/// Lines of one worker that the reader takes before it is another's turn: enough to keep what
/// belongs together in one place.
const READER_TURN: usize = 32;

/// The recent lines, and those to come.
pub type Followed = (Vec<Arc<LogLine>>, broadcast::Receiver<Arc<LogLine>>);

/// Where lines are put and from where they are read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogBus {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reader: Option<Arc<Channel>>,
    store: Option<Arc<Channel>>,
    /// Those who follow all workers, and may miss lines.
    followers: Followers,
    /// Lines so far: the order of those of different workers.
    count: u64,
    workers: BTreeMap<WorkerName, Recent>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for channel in [&state.reader, &state.store].into_iter().flatten() {
            channel.end();
        }
    }
}

impl LogBus {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Option<Arc<Channel>> {
        self.lock().store.clone()
    }

    /// Puts a line that a workload wrote. Waits while this worker's lines fill its lane of the
    /// store or of the reader of everything.
    pub async fn put(&self, line: LogLine) {
        let line = Arc::new(line);
        let (store, reader) = {
            let mut state = self.lock();
            tell(&mut state.followers, &line);
            state.count += 1;
            let place = state.count;
            if !state.workers.contains_key(&line.worker) {
                state.workers.insert(line.worker.clone(), Recent::default());
            }
            if let Some(recent) = state.workers.get_mut(&line.worker) {
                recent.put(place, Arc::clone(&line));
            }
            (state.store.clone(), state.reader.clone())
        };
        if let Some(store) = store {
            store.put(Arc::clone(&line)).await;
        }
        if let Some(reader) = reader {
            reader.put(line).await;
        }
    }

    /// Puts a line that no workload wrote: for the store alone, and at once. Only for what is
    /// bounded by its maker.
    pub fn put_aside(&self, line: LogLine) {
        if let Some(store) = self.store() {
            store.put_now(Arc::new(line));
        }
    }

    /// Resolves once the store has what this worker has put until now; at once without one.
    pub async fn stored(&self, worker: &WorkerName) {
        if let Some(store) = self.store() {
            store.done(worker).await;
        }
    }

    /// Resolves once the store has everything; at once without one.
    pub async fn all_stored(&self) {
        if let Some(store) = self.store() {
            store.all_done().await;
        }
    }

    /// Every line of every worker from now on; for the first caller.
    pub fn take(&self) -> Option<LogReader> {
        let mut state = self.lock();
        if state.reader.is_some() {
            return None;
        }
        let channel = Arc::new(Channel::default());
        state.reader = Some(Arc::clone(&channel));
        Some(LogReader {
            channel,
            turn: VecDeque::new(),
        })
    }

    /// Every line from now on, for a store; for the first caller.
    pub fn feed_store(&self) -> Option<LogStoreFeed> {
        let mut state = self.lock();
        if state.store.is_some() {
            return None;
        }
        let channel = Arc::new(Channel::default());
        state.store = Some(Arc::clone(&channel));
        Some(LogStoreFeed { channel })
    }

    /// Nothing more is put for the store: its feed ends behind what waits in it.
    pub fn end_store(&self) {
        if let Some(store) = self.store() {
            store.end();
        }
    }

    /// The worker's recent lines, and those to come, without a gap.
    pub fn follow(&self, worker: &WorkerName) -> Followed {
        let mut state = self.lock();
        state.workers.entry(worker.clone()).or_default().follow()
    }

    /// The recent lines of all workers in their order, and those to come, also of workers that are
    /// still to be added, without a gap.
    pub fn follow_all(&self) -> Followed {
        let mut state = self.lock();
        let workers = state.workers.values();
        let mut recent: Vec<(u64, Arc<LogLine>)> =
            workers.flat_map(|recent| recent.lines().cloned()).collect();
        recent.sort_unstable_by_key(|(place, _)| *place);
        let live = subscribe(&mut state.followers);
        (recent.into_iter().map(|(_, line)| line).collect(), live)
    }

    /// Forgets a worker that was removed; its followers come to their end.
    pub fn forget(&self, worker: &WorkerName) {
        let mut state = self.lock();
        state.workers.remove(worker);
        for channel in [&state.reader, &state.store].into_iter().flatten() {
            channel.forget(worker);
        }
    }
}

/// The output of all workloads. Dropped, it slows nobody any more.
#[derive(Debug)]
pub struct LogReader {
    channel: Arc<Channel>,
    turn: VecDeque<Arc<LogLine>>,
}

impl LogReader {
    /// The next line; `None` at the supervisor's end. May be dropped at any time without loss.
    pub async fn recv(&mut self) -> Option<Arc<LogLine>> {
        if self.turn.is_empty() {
            self.turn = self.channel.take(READER_TURN).await.into();
        }
        self.turn.pop_front()
    }

    /// The next line, if it is there already.
    pub fn try_recv(&mut self) -> Option<Arc<LogLine>> {
        if self.turn.is_empty() {
            self.turn = self.channel.try_take(READER_TURN).into();
        }
        self.turn.pop_front()
    }

    /// Lines that are there already.
    pub fn len(&self) -> usize {
        self.turn.len() + self.channel.len()
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.channel.abandon();
    }
}

/// Lines on their way into a store. Dropped, it is waited for no more.
#[derive(Debug)]
pub struct LogStoreFeed {
    channel: Arc<Channel>,
}

/// What a store gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Everything that waits of the worker whose turn it is. [`LogStoreFeed::stored`] must follow.
    Lines(Vec<Arc<LogLine>>),
    /// There was nothing for as long as it was to wait.
    Nothing,
    /// Nothing more comes.
    End,
}

impl LogStoreFeed {
    /// Blocks until there is something; with a time, at most so long.
    pub fn next_batch(&self, wait: Option<Duration>) -> Batch {
        self.channel.take_blocking(wait)
    }

    /// A batch of so many lines is dealt with: its guest may forget them.
    pub fn stored(&self, worker: &WorkerName, lines: usize) {
        self.channel.mark_done(worker, lines);
    }
}

impl Drop for LogStoreFeed {
    fn drop(&mut self) {
        self.channel.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::lanes::LANE_LINES;
    use super::recent::{RECENT_BYTES, RECENT_LINES};
    use super::*;
    use crate::event::LogSource;
    use futures_util::FutureExt as _;
    use iii_proto::ids::{BootId, GuestPid};

    pub(super) fn line(worker: &str, text: &str) -> Arc<LogLine> {
        Arc::new(plain(worker, text))
    }

    fn plain(worker: &str, text: &str) -> LogLine {
        LogLine {
            worker: WorkerName::new(worker).unwrap(),
            boot: BootId::from_random(1),
            pid: GuestPid(2),
            stream: LogSource::Stdout,
            time_unix_ns: 0,
            received_unix_ns: 0,
            text: text.into(),
            complete: true,
        }
    }

    fn name(text: &str) -> WorkerName {
        WorkerName::new(text).unwrap()
    }

    fn texts(lines: &[Arc<LogLine>]) -> Vec<String> {
        lines
            .iter()
            .map(|l| String::from_utf8_lossy(&l.text).into_owned())
            .collect()
    }

    #[tokio::test]
    async fn without_a_reader_nothing_waits_and_the_recent_lines_are_kept() {
        let bus = LogBus::default();
        for n in 0..3 * LANE_LINES {
            bus.put(plain("a", &n.to_string())).await;
        }
        let (recent, _) = bus.follow(&name("a"));
        assert_eq!(recent.len(), RECENT_LINES);
        assert_eq!(
            texts(&recent)[RECENT_LINES - 1],
            (3 * LANE_LINES - 1).to_string()
        );
        bus.put(plain("a", &"x".repeat(RECENT_BYTES))).await;
        let (recent, _) = bus.follow(&name("a"));
        assert_eq!(recent.len(), 1);
        bus.stored(&name("a")).await;
    }

    #[tokio::test]
    async fn a_follower_sees_its_worker_alone_and_without_a_gap() {
        let bus = LogBus::default();
        bus.put(plain("a", "1")).await;
        bus.put(plain("b", "other")).await;
        let (recent, mut live) = bus.follow(&name("a"));
        bus.put(plain("b", "other")).await;
        bus.put(plain("a", "2")).await;
        assert_eq!(texts(&recent), ["1"]);
        assert_eq!(live.recv().await.unwrap().text, b"2");
        bus.forget(&name("a"));
        assert!(live.recv().await.is_err(), "it ends with its worker");
    }

    #[tokio::test]
    async fn a_follower_of_all_sees_workers_that_come_later() {
        let bus = LogBus::default();
        for (worker, text) in [("b", "1"), ("a", "2"), ("b", "3")] {
            bus.put(plain(worker, text)).await;
        }
        let (recent, mut live) = bus.follow_all();
        assert_eq!(texts(&recent), ["1", "2", "3"]);
        bus.put(plain("a", "4")).await;
        bus.put(plain("c", "5")).await;
        assert_eq!(live.recv().await.unwrap().text, b"4");
        assert_eq!(live.recv().await.unwrap().text, b"5");
        drop(live);
        bus.put(plain("b", "6")).await;
        assert!(bus.lock().followers.is_none(), "nobody is told any more");
    }

    #[tokio::test]
    async fn the_reader_of_everything_is_one_and_is_not_waited_for_once_it_is_gone() {
        let bus = LogBus::default();
        let mut all = bus.take().unwrap();
        assert!(bus.take().is_none());
        bus.put(plain("a", "1")).await;
        assert_eq!(all.recv().await.unwrap().text, b"1");
        drop(all);
        for _ in 0..2 * LANE_LINES {
            bus.put(plain("a", "2")).await;
        }
    }

    #[tokio::test]
    async fn a_worker_whose_lane_is_full_waits_alone() {
        let bus = LogBus::default();
        let mut all = bus.take().unwrap();
        for _ in 0..LANE_LINES {
            bus.put(plain("flood", "x")).await;
        }
        let mut waiting = std::pin::pin!(bus.put(plain("flood", "last")));
        assert!(waiting.as_mut().now_or_never().is_none(), "it waits");
        bus.put(plain("neighbour", "y")).await;
        assert_eq!(all.len(), LANE_LINES + 1);
        let first: Vec<_> = (0..READER_TURN + 1)
            .filter_map(|_| all.try_recv())
            .collect();
        let turns = texts(&first);
        assert_eq!(turns[READER_TURN - 1..], ["x", "y"], "it is served in turn");
        waiting.await;
        let mut rest = 0;
        let mut last = None;
        while let Some(line) = all.try_recv() {
            rest += 1;
            last = Some(line);
        }
        assert_eq!(rest, LANE_LINES - READER_TURN + 1);
        assert_eq!(last.unwrap().text, b"last");
    }

    fn batch(feed: &LogStoreFeed) -> Vec<String> {
        match feed.next_batch(None) {
            Batch::Lines(lines) => texts(&lines),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_was_put_is_waited_for_until_the_store_has_it() {
        let bus = LogBus::default();
        let feed = bus.feed_store().unwrap();
        assert!(bus.feed_store().is_none());
        bus.put(plain("a", "1")).await;
        let a = name("a");
        let mut stored = std::pin::pin!(bus.stored(&a));
        assert!(stored.as_mut().now_or_never().is_none());
        bus.stored(&name("b")).await;
        bus.put(plain("a", "2")).await;
        assert_eq!(batch(&feed), ["1", "2"]);
        assert_eq!(feed.next_batch(Some(Duration::ZERO)), Batch::Nothing);
        assert!(stored.as_mut().now_or_never().is_none(), "taken, not kept");
        feed.stored(&a, 1);
        stored.await;
        let mut all = std::pin::pin!(bus.all_stored());
        assert!(all.as_mut().now_or_never().is_none());
        feed.stored(&a, 1);
        all.await;
        bus.put_aside(plain("a", "console"));
        bus.end_store();
        bus.put(plain("a", "too late")).await;
        assert_eq!(batch(&feed), ["console"]);
        assert_eq!(feed.next_batch(None), Batch::End);
        drop(feed);
        bus.stored(&a).await;
    }

    #[tokio::test]
    async fn a_reader_comes_to_its_end_with_the_bus() {
        let bus = LogBus::default();
        let mut all = bus.take().unwrap();
        bus.put(plain("a", "1")).await;
        drop(bus);
        assert_eq!(all.recv().await.unwrap().text, b"1");
        assert!(all.recv().await.is_none());
    }
}
