//! The threads that the actors live on: no thread per worker, and none of the embedding program's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use actix::{Arbiter, ArbiterHandle};

/// Arbiters for the actors of workers. Workers share them: an actor that panics ends alone, its
/// neighbours on the same thread go on.
#[derive(Debug)]
pub(crate) struct Arbiters {
    pool: Vec<ArbiterHandle>,
    next: AtomicUsize,
    threads: Mutex<Vec<Arbiter>>,
}

impl Arbiters {
    /// Starts `count` threads within the current actix system.
    pub(crate) fn start(count: usize) -> Self {
        let threads: Vec<Arbiter> = (0..count.max(1)).map(|_| Arbiter::new()).collect();
        Self {
            pool: threads.iter().map(Arbiter::handle).collect(),
            next: AtomicUsize::new(0),
            threads: Mutex::new(threads),
        }
    }

    /// Ends the threads, and with them every actor on them, and waits for that.
    pub(crate) fn end(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // One that has stopped already needs no telling.
            thread.stop();
            if thread.join().is_err() {
                tracing::error!("a thread of the actors panicked");
            }
        }
    }

    /// The next thread in turn.
    pub(crate) fn pick(&self) -> &ArbiterHandle {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        &self.pool[n % self.pool.len()]
    }
}
