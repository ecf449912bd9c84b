//! [`Lanes`] between the workloads, who wait for room in their own, and one taker: a task or a
//! thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iii_proto::ids::WorkerName;
use tokio::sync::Notify;

use super::Batch;
use super::lanes::Lanes;
use crate::event::LogLine;

/// Shared by both ends.
#[derive(Debug, Default)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// For a taker that is a task.
    filled: Notify,
    /// For a taker that is a thread.
    filled_thread: Condvar,
    /// For who waits for all lanes: some lines are done with.
    any_done: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    lanes: Lanes,
    /// Nothing more comes.
    ended: bool,
    /// Nobody takes any more.
    abandoned: bool,
}

// A `Notified` hears of everything from its making on: made under the lock, it misses nothing that
// happens behind the look.
impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a line once its worker's lane has room.
    pub(super) async fn put(&self, line: Arc<LogLine>) {
        loop {
            let moved = {
                let mut state = self.lock();
                if state.abandoned || state.ended {
                    return;
                }
                if !state.lanes.is_full(&line.worker) {
                    state.lanes.put(line);
                    break;
                }
                state.lanes.moved(&line.worker).notified_owned()
            };
            moved.await;
        }
        self.wake_taker();
    }

    /// Puts a line, room or not.
    pub(super) fn put_now(&self, line: Arc<LogLine>) {
        {
            let mut state = self.lock();
            if state.abandoned || state.ended {
                return;
            }
            state.lanes.put(line);
        }
        self.wake_taker();
    }

    fn wake_taker(&self) {
        self.filled.notify_one();
        self.filled_thread.notify_one();
    }

    /// Resolves once the taker is done with everything that this worker has put until now.
    pub(super) async fn done(&self, worker: &WorkerName) {
        let lines = self.lock().lanes.put_of(worker);
        loop {
            let moved = {
                let mut state = self.lock();
                if state.abandoned || state.lanes.is_done(worker, lines) {
                    return;
                }
                state.lanes.moved(worker).notified_owned()
            };
            moved.await;
        }
    }

    /// Resolves once the taker is done with everything.
    pub(super) async fn all_done(&self) {
        loop {
            let done = {
                let state = self.lock();
                if state.abandoned || state.lanes.all_done() {
                    return;
                }
                Arc::clone(&self.any_done).notified_owned()
            };
            done.await;
        }
    }

    /// One worker's turn: at most so many lines. Empty if there are none.
    pub(super) fn try_take(&self, most: usize) -> Vec<Arc<LogLine>> {
        self.lock().lanes.take(most)
    }

    /// The same; waits for lines. Empty at the end.
    pub(super) async fn take(&self, most: usize) -> Vec<Arc<LogLine>> {
        loop {
            let (taken, over) = {
                let mut state = self.lock();
                (state.lanes.take(most), state.ended)
            };
            if !taken.is_empty() || over {
                return taken;
            }
            // It remembers one call, so that none between the look and here is missed.
            self.filled.notified().await;
        }
    }

    /// The same for a thread, everything of a worker at once. With a time it waits at most so long.
    pub(super) fn take_blocking(&self, wait: Option<Duration>) -> Batch {
        let end = wait.map(|wait| Instant::now() + wait);
        let mut state = self.lock();
        loop {
            let taken = state.lanes.take(usize::MAX);
            if !taken.is_empty() {
                return Batch::Lines(taken);
            }
            if state.ended {
                return Batch::End;
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            state = match left {
                None => self
                    .filled_thread
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Batch::Nothing,
                Some(left) => {
                    self.filled_thread
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// The taker is done with so many lines of the worker.
    pub(super) fn mark_done(&self, worker: &WorkerName, lines: usize) {
        self.lock().lanes.mark_done(worker, lines);
        self.any_done.notify_waiters();
    }

    /// Lines that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().lanes.len()
    }

    /// Forgets a worker that was removed.
    pub(super) fn forget(&self, worker: &WorkerName) {
        self.lock().lanes.forget(worker);
    }

    /// Nothing more comes; what waits can still be taken.
    pub(super) fn end(&self) {
        {
            let mut state = self.lock();
            state.ended = true;
            state.lanes.wake_all();
        }
        self.wake_taker();
    }

    /// Nobody takes any more: nobody is to wait.
    pub(super) fn abandon(&self) {
        {
            let mut state = self.lock();
            state.abandoned = true;
            state.lanes.clear();
        }
        self.any_done.notify_waiters();
    }
}
