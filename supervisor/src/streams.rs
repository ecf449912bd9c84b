//! What a supervisor tells, as [`Stream`]s.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use iii_actors::event::{Event, LogLine};
use iii_actors::logs::Followed;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// The reader was too slow: this many items were not kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missed {0} items: read faster, or less")]
pub struct Missed(pub u64);

fn missed(BroadcastStreamRecvError::Lagged(count): BroadcastStreamRecvError) -> Missed {
    Missed(count)
}

/// Every event from its making on. Ends with the supervisor.
#[derive(Debug)]
pub struct EventStream(BroadcastStream<Event>);

impl EventStream {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self(BroadcastStream::new(receiver))
    }

    /// The next event; `None` at the supervisor's end.
    pub async fn next(&mut self) -> Option<Result<Event, Missed>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Result<Event, Missed>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(self).poll_next(&mut cx) {
            Poll::Ready(item) => item,
            Poll::Pending => None,
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Missed>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.0).poll_next(cx);
        next.map(|item| item.map(|item| item.map_err(missed)))
    }
}

/// The lines of one worker: the recent ones, then those to come. Ends when the worker is removed.
#[derive(Debug)]
pub struct LogStream {
    recent: VecDeque<Arc<LogLine>>,
    live: BroadcastStream<Arc<LogLine>>,
}

impl LogStream {
    pub(crate) fn new((recent, live): Followed) -> Self {
        Self {
            recent: recent.into(),
            live: BroadcastStream::new(live),
        }
    }

    /// The next line; `None` when the worker was removed.
    pub async fn next(&mut self) -> Option<Result<Arc<LogLine>, Missed>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for LogStream {
    type Item = Result<Arc<LogLine>, Missed>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(line) = self.recent.pop_front() {
            return Poll::Ready(Some(Ok(line)));
        }
        let next = Pin::new(&mut self.live).poll_next(cx);
        next.map(|item| item.map(|item| item.map_err(missed)))
    }
}
