//! Whether workers may still be asked for: once the end has begun, a start that came late would keep
//! the supervisor from ending.

use tokio::sync::{RwLock, RwLockReadGuard};

/// Open until it is closed for good.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: RwLock<bool>,
}

/// While this is held the gate stays open.
#[derive(Debug)]
#[must_use = "what is asked for afterwards may come too late"]
pub(crate) struct Entered<'a>(
    #[expect(dead_code, reason = "it acts by its drop")] RwLockReadGuard<'a, bool>,
);

impl Gate {
    /// To ask for workers; `None`: too late.
    pub(crate) async fn enter(&self) -> Option<Entered<'_>> {
        let closed = self.closed.read().await;
        (!*closed).then_some(Entered(closed))
    }

    /// Resolves when all that had entered have asked.
    pub(crate) async fn close(&self) {
        *self.closed.write().await = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn who_has_entered_is_waited_for_and_nobody_enters_later() {
        let gate = Gate::default();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(entered)) = pin!(gate.enter()).poll(&mut cx) else {
            panic!("it is open");
        };
        let mut closing = pin!(gate.close());
        assert_eq!(closing.as_mut().poll(&mut cx), Poll::Pending);
        drop(entered);
        assert_eq!(closing.as_mut().poll(&mut cx), Poll::Ready(()));
        assert!(matches!(
            pin!(gate.enter()).poll(&mut cx),
            Poll::Ready(None)
        ));
    }
}
