//! The threads that the actors live on: no thread per worker, and none of the embedding program's.

use std::sync::atomic::{AtomicUsize, Ordering};

use actix::{Arbiter, ArbiterHandle};

/// Arbiters for the actors of workers. Workers share them: an actor that panics ends alone, its
/// neighbours on the same thread go on.
#[derive(Debug)]
pub(crate) struct Arbiters {
    pool: Vec<ArbiterHandle>,
    next: AtomicUsize,
}

impl Arbiters {
    /// Starts `count` threads within the current actix system.
    pub(crate) fn start(count: usize) -> Self {
        let pool = (0..count.max(1)).map(|_| Arbiter::new().handle()).collect();
        Self {
            pool,
            next: AtomicUsize::new(0),
        }
    }

    /// The next thread in turn.
    pub(crate) fn pick(&self) -> &ArbiterHandle {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        &self.pool[n % self.pool.len()]
    }
}
