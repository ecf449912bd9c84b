//! When saved files are acted on. Time is an argument.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// However long files go on changing, they are acted on after this long.
const LONGEST: Duration = Duration::from_secs(2);
/// A file that changes this soon after a start may have been written by what was started.
const SOON: Duration = Duration::from_secs(2);
/// So many times in a row, and it probably was.
const IN_A_ROW: u32 = 4;
/// Then the files must be quiet for this long.
const CALM: Duration = Duration::from_secs(5);

/// Gathers changes until they have been quiet for a while.
#[derive(Debug)]
pub(crate) struct Pace {
    quiet: Duration,
    changed: BTreeSet<PathBuf>,
    first: Duration,
    last: Duration,
    started: Option<Duration>,
    /// What followed the last start at once, and how many starts in a row it has.
    soon: BTreeSet<PathBuf>,
    in_a_row: u32,
}

/// What is to be acted on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// All that has changed.
    pub(crate) paths: BTreeSet<PathBuf>,
    /// It has changed after each of the last starts: for the first time said now.
    pub(crate) circle: bool,
}

impl Pace {
    /// Acts once nothing has changed for `quiet`.
    pub(crate) fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            changed: BTreeSet::new(),
            first: Duration::ZERO,
            last: Duration::ZERO,
            started: None,
            soon: BTreeSet::new(),
            in_a_row: 0,
        }
    }

    /// What the files belong to was started.
    pub(crate) fn on_start(&mut self, now: Duration) {
        self.started = Some(now);
    }

    /// Files have changed.
    pub(crate) fn on_change(&mut self, paths: impl IntoIterator<Item = PathBuf>, now: Duration) {
        if self.changed.is_empty() {
            self.first = now;
        }
        self.last = now;
        self.changed.extend(paths);
    }

    /// When [`Self::take`] is due, if anything has changed.
    pub(crate) fn due_at(&self) -> Option<Duration> {
        if self.changed.is_empty() {
            return None;
        }
        let (quiet, longest) = match self.in_a_row >= IN_A_ROW {
            true => (CALM.max(self.quiet), CALM + LONGEST),
            false => (self.quiet, LONGEST.max(self.quiet)),
        };
        Some((self.last + quiet).min(self.first + longest))
    }

    /// What has changed, once it is due.
    pub(crate) fn take(&mut self, now: Duration) -> Option<Batch> {
        if self.due_at()? > now {
            return None;
        }
        let paths = std::mem::take(&mut self.changed);
        // Once per start: what is saved later in the same life is somebody else's.
        let soon = self
            .started
            .take()
            .is_some_and(|at| self.first <= at + SOON);
        if soon && self.in_a_row > 0 && paths.is_subset(&self.soon) {
            self.in_a_row += 1;
        } else {
            self.in_a_row = u32::from(soon);
        }
        self.soon = if soon { paths.clone() } else { BTreeSet::new() };
        Some(Batch {
            paths,
            circle: self.in_a_row == IN_A_ROW,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUIET: Duration = Duration::from_millis(50);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn change(pace: &mut Pace, path: &str, now: u64) {
        pace.on_change([PathBuf::from(path)], ms(now));
    }

    fn paths(batch: Option<Batch>) -> Vec<PathBuf> {
        batch.unwrap().paths.into_iter().collect()
    }

    #[test]
    fn changes_that_follow_each_other_are_one() {
        let mut pace = Pace::new(QUIET);
        assert_eq!(pace.due_at(), None);
        change(&mut pace, "a", 1000);
        change(&mut pace, "b", 1040);
        assert_eq!(pace.due_at(), Some(ms(1090)));
        assert_eq!(pace.take(ms(1089)), None);
        assert_eq!(paths(pace.take(ms(1090))), ["a", "b"].map(PathBuf::from));
        assert_eq!((pace.due_at(), pace.take(ms(9999))), (None, None));
    }

    #[test]
    fn what_never_rests_is_acted_on_all_the_same() {
        let mut pace = Pace::new(QUIET);
        for at in (0..2000).step_by(20) {
            change(&mut pace, "log", at);
        }
        assert_eq!(pace.due_at(), Some(LONGEST));
    }

    #[test]
    fn a_worker_that_writes_what_is_watched_is_told_once_and_slowed_down() {
        let mut pace = Pace::new(QUIET);
        let mut circles = Vec::new();
        let mut now = ms(0);
        for _ in 0..5 {
            pace.on_start(now);
            pace.on_change([PathBuf::from("own.db")], now + ms(300));
            now = pace.due_at().unwrap();
            circles.push(pace.take(now).unwrap().circle);
        }
        assert_eq!(circles, [false, false, false, true, false]);
        pace.on_start(now);
        pace.on_change([PathBuf::from("own.db")], now);
        assert_eq!(pace.due_at(), Some(now + CALM), "slowly");
        // The user has taken the circle apart.
        let now = now + CALM;
        pace.take(now).unwrap();
        pace.on_start(now);
        pace.on_change([PathBuf::from("main.js")], now + ms(10_000));
        pace.take(now + ms(20_000)).unwrap();
        pace.on_change([PathBuf::from("main.js")], now + ms(30_000));
        assert_eq!(pace.due_at(), Some(now + ms(30_050)));
    }

    #[test]
    fn a_user_who_saves_often_is_not_slowed_down() {
        let mut pace = Pace::new(QUIET);
        let mut now = ms(0);
        for file in ["a", "b", "a", "b", "a", "b"] {
            pace.on_start(now);
            pace.on_change([PathBuf::from(file)], now + ms(1000));
            now = pace.due_at().unwrap();
            assert!(!pace.take(now).unwrap().circle);
        }
    }

    proptest! {
        #[test]
        fn every_change_is_in_one_batch(steps in proptest::collection::vec((0u64..3000, 0u8..4, any::<bool>()), 1..60)) {
            let mut pace = Pace::new(QUIET);
            let (mut now, mut open) = (ms(0), BTreeSet::new());
            for (after, file, start) in steps {
                now += ms(after);
                if let Some(batch) = pace.take(now) {
                    prop_assert_eq!(batch.paths, std::mem::take(&mut open));
                }
                if start { pace.on_start(now); }
                let path = PathBuf::from(file.to_string());
                open.insert(path.clone());
                pace.on_change([path], now);
                prop_assert!(pace.due_at().unwrap() <= now + CALM + LONGEST);
            }
        }
    }
}
