//! What workloads write, on its way to whoever reads it: one reader of everything, who loses
//! nothing and slows the workloads when it is slow, and any number of followers of one worker, who
//! are told what they missed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iii_proto::ids::WorkerName;
use tokio::sync::{broadcast, mpsc};

use crate::event::LogLine;

/// Lines between the workloads and the reader of everything.
const QUEUE: usize = 1024;
/// Lines of each worker that a new follower is shown.
const RECENT_LINES: usize = 200;
/// Bytes of them, so that long lines do not grow the supervisor.
const RECENT_BYTES: usize = 64 * 1024;
/// Lines that a follower may be behind before it misses some.
const BACKLOG: usize = 1024;

/// The recent lines, and those to come.
pub type Followed = (Vec<Arc<LogLine>>, broadcast::Receiver<Arc<LogLine>>);

/// Where lines are put and from where they are read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogBus {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    everything: Option<mpsc::Sender<LogLine>>,
    taken: bool,
    /// Those who follow all workers, and may miss lines.
    followers: Option<broadcast::Sender<Arc<LogLine>>>,
    /// Lines so far: the order of those of different workers.
    count: u64,
    workers: BTreeMap<WorkerName, WorkerLog>,
}

#[derive(Debug, Default)]
struct WorkerLog {
    recent: VecDeque<(u64, Arc<LogLine>)>,
    bytes: usize,
    followers: Option<broadcast::Sender<Arc<LogLine>>>,
}

impl LogBus {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a line. Waits while the reader of everything is behind.
    pub async fn put(&self, line: LogLine) {
        let everything = {
            let mut inner = self.lock();
            let kept = Arc::new(line.clone());
            tell(&mut inner.followers, &kept);
            inner.count += 1;
            let count = inner.count;
            let log = inner.workers.entry(line.worker.clone()).or_default();
            log.put(count, kept);
            inner.everything.clone()
        };
        if let Some(everything) = everything
            && everything.send(line).await.is_err()
        {
            // The reader has gone: from now on nobody is waited for.
            self.lock().everything = None;
        }
    }

    /// Every line of every worker from now on; for the first caller.
    pub fn take(&self) -> Option<mpsc::Receiver<LogLine>> {
        let mut inner = self.lock();
        if inner.taken {
            return None;
        }
        inner.taken = true;
        let (sender, receiver) = mpsc::channel(QUEUE);
        inner.everything = Some(sender);
        Some(receiver)
    }

    /// The worker's recent lines, and those to come, without a gap.
    pub fn follow(&self, worker: &WorkerName) -> Followed {
        let mut inner = self.lock();
        let log = inner.workers.entry(worker.clone()).or_default();
        let followers = log
            .followers
            .get_or_insert_with(|| broadcast::Sender::new(BACKLOG));
        let recent = log.recent.iter().map(|(_, line)| Arc::clone(line));
        (recent.collect(), followers.subscribe())
    }

    /// The recent lines of all workers in their order, and those to come, also of workers that are
    /// still to be added, without a gap.
    pub fn follow_all(&self) -> Followed {
        let mut inner = self.lock();
        let workers = inner.workers.values();
        let mut recent: Vec<(u64, Arc<LogLine>)> =
            workers.flat_map(|log| log.recent.iter().cloned()).collect();
        recent.sort_unstable_by_key(|(count, _)| *count);
        let followers = &mut inner.followers;
        let live = followers
            .get_or_insert_with(|| broadcast::Sender::new(BACKLOG))
            .subscribe();
        (recent.into_iter().map(|(_, line)| line).collect(), live)
    }

    /// Forgets a worker that was removed; its followers come to their end.
    pub fn forget(&self, worker: &WorkerName) {
        self.lock().workers.remove(worker);
    }
}

impl WorkerLog {
    fn put(&mut self, count: u64, line: Arc<LogLine>) {
        self.bytes += line.text.len();
        self.recent.push_back((count, Arc::clone(&line)));
        while self.recent.len() > RECENT_LINES || self.bytes > RECENT_BYTES {
            match self.recent.pop_front() {
                Some((_, old)) => self.bytes -= old.text.len(),
                None => break,
            }
        }
        tell(&mut self.followers, &line);
    }
}

fn tell(followers: &mut Option<broadcast::Sender<Arc<LogLine>>>, line: &Arc<LogLine>) {
    if let Some(sender) = followers
        && sender.send(Arc::clone(line)).is_err()
    {
        // The last follower has gone.
        *followers = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::ids::{BootId, GuestPid};
    use iii_proto::log::Stream;

    fn line(worker: &str, text: &str) -> LogLine {
        LogLine {
            worker: WorkerName::new(worker).unwrap(),
            boot: BootId::from_random(1),
            pid: GuestPid(2),
            stream: Stream::Stdout,
            time_unix_ns: 0,
            text: text.into(),
            complete: true,
        }
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
        for n in 0..3 * QUEUE {
            bus.put(line("a", &n.to_string())).await;
        }
        let (recent, _) = bus.follow(&WorkerName::new("a").unwrap());
        assert_eq!(recent.len(), RECENT_LINES);
        assert_eq!(
            texts(&recent)[RECENT_LINES - 1],
            (3 * QUEUE - 1).to_string()
        );
        bus.put(line("a", &"x".repeat(RECENT_BYTES))).await;
        let (recent, _) = bus.follow(&WorkerName::new("a").unwrap());
        assert_eq!(recent.len(), 1);
    }

    #[tokio::test]
    async fn a_follower_sees_its_worker_alone_and_without_a_gap() {
        let bus = LogBus::default();
        bus.put(line("a", "1")).await;
        bus.put(line("b", "other")).await;
        let (recent, mut live) = bus.follow(&WorkerName::new("a").unwrap());
        bus.put(line("b", "other")).await;
        bus.put(line("a", "2")).await;
        assert_eq!(texts(&recent), ["1"]);
        assert_eq!(live.recv().await.unwrap().text, b"2");
        bus.forget(&WorkerName::new("a").unwrap());
        assert!(live.recv().await.is_err(), "it ends with its worker");
    }

    #[tokio::test]
    async fn a_follower_of_all_sees_workers_that_come_later() {
        let bus = LogBus::default();
        for (worker, text) in [("b", "1"), ("a", "2"), ("b", "3")] {
            bus.put(line(worker, text)).await;
        }
        let (recent, mut live) = bus.follow_all();
        assert_eq!(texts(&recent), ["1", "2", "3"]);
        bus.put(line("a", "4")).await;
        bus.put(line("c", "5")).await;
        assert_eq!(live.recv().await.unwrap().text, b"4");
        assert_eq!(live.recv().await.unwrap().text, b"5");
        drop(live);
        bus.put(line("b", "6")).await;
        assert!(bus.lock().followers.is_none(), "nobody is told any more");
    }

    #[tokio::test]
    async fn the_reader_of_everything_is_one_and_is_not_waited_for_once_it_is_gone() {
        let bus = LogBus::default();
        let mut all = bus.take().unwrap();
        assert!(bus.take().is_none());
        bus.put(line("a", "1")).await;
        assert_eq!(all.recv().await.unwrap().text, b"1");
        drop(all);
        for _ in 0..2 * QUEUE {
            bus.put(line("a", "2")).await;
        }
    }
}
