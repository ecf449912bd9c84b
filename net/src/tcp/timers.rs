//! Deadlines of flows, in a heap. A flow has at most one entry that counts; others are skipped
//! when their time comes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A flow's place in the heap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TimerSlot {
    deadline: Option<Duration>,
    /// The entry in the heap that stands for this flow; never later than `deadline`.
    queued: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Duration, u64)>>,
}

impl Timers {
    /// Sets or clears a flow's deadline. Postponing one costs nothing.
    pub(crate) fn set(&mut self, slot: &mut TimerSlot, flow: u64, deadline: Option<Duration>) {
        slot.deadline = deadline;
        if let Some(deadline) = deadline
            && slot.queued.is_none_or(|queued| deadline < queued)
        {
            slot.queued = Some(deadline);
            self.heap.push(Reverse((deadline, flow)));
        }
    }

    /// The next flow whose entry is due. [`Self::is_due`] says whether it counts.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<(Duration, u64)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Whether a popped entry means that the flow's deadline has passed. If it was postponed, it
    /// is queued anew.
    pub(crate) fn is_due(
        &mut self,
        slot: &mut TimerSlot,
        flow: u64,
        at: Duration,
        now: Duration,
    ) -> bool {
        if slot.queued != Some(at) {
            return false;
        }
        slot.queued = None;
        match slot.deadline {
            Some(deadline) if deadline <= now => {
                slot.deadline = None;
                true
            }
            later @ Some(_) => {
                self.set(slot, flow, later);
                false
            }
            None => false,
        }
    }

    pub(crate) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn clear(&mut self) {
        self.heap.clear();
    }

    pub(crate) fn release(&mut self) {
        self.heap.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(timers: &mut Timers, slot: &mut TimerSlot, now: u64) -> Vec<u64> {
        let now = Duration::from_secs(now);
        let mut flows = Vec::new();
        while let Some((at, flow)) = timers.pop(now) {
            if timers.is_due(slot, flow, at, now) {
                flows.push(flow);
            }
        }
        flows
    }

    #[test]
    fn postponed_advanced_and_cleared() {
        let at = |seconds| Some(Duration::from_secs(seconds));
        let mut timers = Timers::default();
        let mut slot = TimerSlot::default();
        timers.set(&mut slot, 7, at(10));
        timers.set(&mut slot, 7, at(20));
        assert_eq!(timers.next(), at(10));
        assert!(due(&mut timers, &mut slot, 15).is_empty());
        assert_eq!(timers.next(), at(20));
        timers.set(&mut slot, 7, at(16));
        assert_eq!(due(&mut timers, &mut slot, 16), [7]);
        assert!(due(&mut timers, &mut slot, 30).is_empty());
        timers.set(&mut slot, 7, at(40));
        timers.set(&mut slot, 7, None);
        assert!(due(&mut timers, &mut slot, 50).is_empty());
        assert_eq!(timers.next(), None);
    }
}
