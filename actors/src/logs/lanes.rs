//! A queue with a lane of its own for each worker: bounded per lane and taken from in turn, so that
//! a worker that floods its lane fills no other's and is not served more often. No waiting in here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use iii_proto::ids::WorkerName;
use tokio::sync::Notify;

use crate::event::LogLine;

/// Lines of one worker that wait at most.
pub(super) const LANE_LINES: usize = 1024;
/// Bytes of them, so that long lines do not grow the supervisor; the last line may go beyond.
pub(super) const LANE_BYTES: usize = 256 * 1024;
/// Capacity that an empty lane may keep: a thousand workers that flooded once would otherwise hold
/// it for ever.
const KEPT_CAPACITY: usize = 64;

#[derive(Debug, Default)]
struct Lane {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    /// Lines that were ever put here.
    put: u64,
    /// Lines that whoever takes them is done with.
    done: u64,
    /// Told when lines were taken or are done with; the worker's own, so that a thousand who wait
    /// are not woken by each other.
    moved: Arc<Notify>,
}

impl Lane {
    fn has_room(&self) -> bool {
        self.lines.len() < LANE_LINES && self.bytes < LANE_BYTES
    }
}

/// The lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<WorkerName, Lane>,
    /// Workers whose lanes are not empty, in the order of their turns.
    turns: VecDeque<WorkerName>,
    lines: usize,
}

impl Lanes {
    fn lane(&mut self, worker: &WorkerName) -> &mut Lane {
        // Not `entry`, which would take a copy of the name for each line.
        if !self.lanes.contains_key(worker) {
            self.lanes.insert(worker.clone(), Lane::default());
        }
        self.lanes
            .get_mut(worker)
            .expect("it was there or has just been made")
    }

    /// What is told when lines of this worker were taken or are done with.
    pub(super) fn moved(&mut self, worker: &WorkerName) -> Arc<Notify> {
        Arc::clone(&self.lane(worker).moved)
    }

    /// Wakes everybody who waits for any lane.
    pub(super) fn wake_all(&self) {
        for lane in self.lanes.values() {
            lane.moved.notify_waiters();
        }
    }

    /// Whether this worker has to wait for room.
    pub(super) fn is_full(&self, worker: &WorkerName) -> bool {
        self.lanes.get(worker).is_some_and(|lane| !lane.has_room())
    }

    /// Puts a line, room or not.
    pub(super) fn put(&mut self, line: Arc<LogLine>) {
        let lane = self.lane(&line.worker);
        let first = lane.lines.is_empty().then(|| line.worker.clone());
        lane.bytes += line.text.len();
        lane.put += 1;
        lane.lines.push_back(line);
        self.turns.extend(first);
        self.lines += 1;
    }

    /// The next turn: at most so many lines of one worker. Empty if nobody has any.
    pub(super) fn take(&mut self, most: usize) -> Vec<Arc<LogLine>> {
        let Some(worker) = self.turns.pop_front() else {
            return Vec::new();
        };
        let Some(lane) = self.lanes.get_mut(&worker) else {
            return Vec::new();
        };
        let count = lane.lines.len().min(most);
        let taken: Vec<Arc<LogLine>> = lane.lines.drain(..count).collect();
        lane.bytes -= taken.iter().map(|line| line.text.len()).sum::<usize>();
        self.lines -= count;
        if lane.lines.is_empty() {
            lane.lines.shrink_to(KEPT_CAPACITY);
        } else {
            self.turns.push_back(worker);
        }
        lane.moved.notify_waiters();
        taken
    }

    /// Whoever took this many lines of the worker is done with them.
    pub(super) fn mark_done(&mut self, worker: &WorkerName, lines: usize) {
        if let Some(lane) = self.lanes.get_mut(worker) {
            lane.done += lines as u64;
            lane.moved.notify_waiters();
        }
    }

    /// How many lines of this worker were ever put.
    pub(super) fn put_of(&self, worker: &WorkerName) -> u64 {
        self.lanes.get(worker).map_or(0, |lane| lane.put)
    }

    /// Whether the first `lines` of this worker are done with; those of one that was forgotten are.
    pub(super) fn is_done(&self, worker: &WorkerName, lines: u64) -> bool {
        self.lanes.get(worker).is_none_or(|lane| lane.done >= lines)
    }

    /// Whether every line of every worker is done with.
    pub(super) fn all_done(&self) -> bool {
        self.lanes.values().all(|lane| lane.done >= lane.put)
    }

    /// Lines that wait, of all workers.
    pub(super) fn len(&self) -> usize {
        self.lines
    }

    /// Forgets a worker that was removed, unless lines of it wait.
    pub(super) fn forget(&mut self, worker: &WorkerName) {
        if self
            .lanes
            .get(worker)
            .is_some_and(|lane| lane.lines.is_empty())
        {
            self.lanes.remove(worker);
        }
    }

    /// Forgets everything: nobody takes lines any more.
    pub(super) fn clear(&mut self) {
        self.wake_all();
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;
    use proptest::prelude::*;

    fn texts(lines: &[Arc<LogLine>]) -> Vec<String> {
        lines
            .iter()
            .map(|l| format!("{}{}", l.worker, String::from_utf8_lossy(&l.text)))
            .collect()
    }

    #[test]
    fn a_flood_fills_its_own_lane_and_others_are_served_in_turn() {
        let mut lanes = Lanes::default();
        let (a, b) = (WorkerName::new("a").unwrap(), WorkerName::new("b").unwrap());
        let mut n = 0;
        while !lanes.is_full(&a) {
            lanes.put(line("a", &n.to_string()));
            n += 1;
        }
        assert_eq!(n, LANE_LINES);
        assert!(!lanes.is_full(&b));
        lanes.put(line("b", "x"));
        assert_eq!(texts(&lanes.take(2)), ["a0", "a1"]);
        assert_eq!(texts(&lanes.take(2)), ["bx"]);
        assert_eq!(texts(&lanes.take(2)), ["a2", "a3"]);
        assert_eq!(lanes.len(), LANE_LINES - 4);
    }

    #[test]
    fn long_lines_fill_a_lane_by_their_bytes() {
        let mut lanes = Lanes::default();
        let long = "x".repeat(LANE_BYTES / 4);
        let mut n = 0;
        while !lanes.is_full(&WorkerName::new("a").unwrap()) {
            lanes.put(line("a", &long));
            n += 1;
        }
        assert_eq!(n, 4);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(usize),
        Take(usize),
    }

    proptest! {
        #[test]
        fn each_workers_lines_come_out_whole_and_in_order(
            steps in prop::collection::vec(
                prop_oneof![(0usize..4).prop_map(Step::Put), (1usize..5).prop_map(Step::Take)],
                0..200,
            ),
        ) {
            let names = ["a", "b", "c", "d"];
            let mut lanes = Lanes::default();
            let mut put = [0u32; 4];
            let mut taken = [0u32; 4];
            for step in steps {
                match step {
                    Step::Put(who) => {
                        lanes.put(line(names[who], &put[who].to_string()));
                        put[who] += 1;
                    }
                    Step::Take(most) => {
                        for got in lanes.take(most) {
                            let who = names.iter().position(|n| *n == got.worker.as_str()).unwrap();
                            prop_assert_eq!(got.text.clone(), taken[who].to_string().into_bytes());
                            taken[who] += 1;
                            lanes.mark_done(&got.worker, 1);
                        }
                    }
                }
                let waiting: u32 = put.iter().sum::<u32>() - taken.iter().sum::<u32>();
                prop_assert_eq!(lanes.len(), waiting as usize);
                prop_assert_eq!(lanes.all_done(), waiting == 0);
            }
        }
    }
}
