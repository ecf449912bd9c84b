//! The one cap on all TCP buffers of a guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Buffer sizes per direction. A connection gets the largest that leaves room for many more: one
/// download has a window that fills the link, a thousand connections share what there is.
const SIZES: [usize; 3] = [512 << 10, 128 << 10, 16 << 10];

/// Bytes of buffers that may still be handed out.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    total: usize,
    /// Changed by the loop's thread alone.
    used: Arc<AtomicUsize>,
}

/// Buffers of one connection; returned when dropped.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Bytes of each of the two buffers.
    pub(crate) size: usize,
    used: Arc<AtomicUsize>,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            used: Arc::default(),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.size().is_none()
    }

    /// Half of the budget goes to large buffers, a quarter to middle ones, the rest to small ones.
    fn size(&self) -> Option<usize> {
        let free = self.total.saturating_sub(self.used.load(Relaxed));
        let reserves = [self.total / 2, self.total / 4, 0];
        SIZES
            .into_iter()
            .zip(reserves)
            .find(|(size, reserve)| free >= reserve + 2 * size)
            .map(|(size, _)| size)
    }

    pub(crate) fn grant(&self) -> Option<Grant> {
        let size = self.size()?;
        self.used.fetch_add(2 * size, Relaxed);
        Some(Grant {
            size,
            used: Arc::clone(&self.used),
        })
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.used.fetch_sub(2 * self.size, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_shrink_and_return() {
        let budget = Budget::new(8 << 20);
        let mut grants = Vec::new();
        while let Some(grant) = budget.grant() {
            grants.push(grant);
            assert!(budget.used() <= 8 << 20);
        }
        assert!(budget.is_exhausted());
        assert_eq!(grants[0].size, SIZES[0]);
        assert_eq!(grants.last().map(|grant| grant.size), Some(SIZES[2]));
        assert!(grants.len() > 64);
        drop(grants);
        assert_eq!(budget.used(), 0);
    }
}
