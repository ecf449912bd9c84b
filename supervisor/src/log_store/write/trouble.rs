//! What to do about a disk that does not take what is written: nobody waits for it, what is lost is
//! counted, and a user is told once, and again when it is over. Pure: `now` is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use iii_proto::ids::WorkerName;

/// Between two attempts: lines that come meanwhile are lost without one.
const RETRY: Duration = Duration::from_secs(1);

/// What is lost and not told yet.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    lost: BTreeMap<WorkerName, Lost>,
    /// What was lost by those that are over it, since trouble began.
    over: BTreeMap<WorkerName, u64>,
    told: bool,
}

#[derive(Debug)]
struct Lost {
    lines: u64,
    retry_at: Duration,
}

impl Trouble {
    /// Whether an attempt to write for this worker is due.
    pub(super) fn may_try(&self, worker: &WorkerName, now: Duration) -> bool {
        self.lost
            .get(worker)
            .is_none_or(|lost| lost.retry_at <= now)
    }

    /// Lines of this worker that were lost since something was last written for it.
    pub(super) fn lost_of(&self, worker: &WorkerName) -> u64 {
        self.lost.get(worker).map_or(0, |lost| lost.lines)
    }

    /// Workers for whom nothing could be written, and when to try again.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&WorkerName, Duration)> {
        self.lost
            .iter()
            .map(|(worker, lost)| (worker, lost.retry_at))
    }

    /// Lines are lost without an attempt.
    pub(super) fn lose(&mut self, worker: &WorkerName, lines: u64) {
        if let Some(lost) = self.lost.get_mut(worker) {
            lost.lines += lines;
        }
    }

    /// An attempt has failed, and so many lines are lost. Whether that is news.
    pub(super) fn failed(&mut self, worker: &WorkerName, lines: u64, now: Duration) -> bool {
        let lost = self.lost.entry(worker.clone()).or_insert(Lost {
            lines: 0,
            retry_at: now,
        });
        lost.lines += lines;
        lost.retry_at = now + RETRY;
        !std::mem::replace(&mut self.told, true)
    }

    /// The number of its lost lines was written for this worker, but not all that came behind.
    pub(super) fn wrote_in_part(&mut self, worker: &WorkerName) {
        if let Some(lost) = self.lost.get_mut(worker) {
            *self.over.entry(worker.clone()).or_default() += std::mem::take(&mut lost.lines);
        }
    }

    /// Everything was written for this worker, the number of its lost lines first. If that ends the
    /// trouble: what all have lost.
    pub(super) fn wrote(&mut self, worker: &WorkerName) -> Option<BTreeMap<WorkerName, u64>> {
        let lost = self.lost.remove(worker)?;
        *self.over.entry(worker.clone()).or_default() += lost.lines;
        if !self.lost.is_empty() {
            return None;
        }
        self.told = false;
        Some(std::mem::take(&mut self.over))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::worker;
    use super::*;

    #[test]
    fn it_is_told_once_counted_and_told_when_it_is_over_for_all() {
        let (a, b) = (worker("a"), worker("b"));
        let at = Duration::from_millis;
        let mut trouble = Trouble::default();
        assert!(trouble.may_try(&a, at(0)));
        assert_eq!(trouble.wrote(&a), None, "no trouble, no news");
        assert!(trouble.failed(&a, 10, at(0)));
        assert!(!trouble.failed(&b, 1, at(500)), "one disk, one warning");
        assert!(!trouble.may_try(&a, at(999)));
        trouble.lose(&a, 5);
        assert!(trouble.may_try(&a, at(1000)));
        assert!(!trouble.failed(&a, 2, at(1000)));
        assert_eq!(trouble.lost_of(&a), 17);
        let waiting: Vec<_> = trouble.waiting().collect();
        assert_eq!(waiting, [(&a, at(2000)), (&b, at(1500))]);
        assert_eq!(trouble.wrote(&b), None, "a still waits");
        assert_eq!(trouble.lost_of(&b), 0);
        trouble.wrote_in_part(&a);
        assert!(!trouble.failed(&a, 3, at(1500)));
        assert_eq!(trouble.lost_of(&a), 3);
        let all = trouble.wrote(&a).unwrap();
        assert_eq!(
            all.into_iter().collect::<Vec<_>>(),
            [(a.clone(), 20), (b, 1)]
        );
        assert!(trouble.failed(&a, 1, at(9000)), "trouble anew is news");
    }
}
