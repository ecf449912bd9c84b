//! What the server tells the supervisor: a bounded queue that no worker thread ever waits for,
//! and the counters of refused requests.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use iii_proto::vfs::VfsEvent;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Events that wait for a slow supervisor. What comes on top is dropped: every event carries
/// totals, so that the next one makes good for it. Without the bound a guest that provokes events
/// could grow the server's memory while the supervisor is busy.
const QUEUE: usize = 256;

/// The workers' end. Cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct EventSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<VfsEvent>>,
    signal: EventFd,
}

/// The end of the thread that writes them out.
#[derive(Debug)]
pub struct EventQueue {
    shared: Arc<Shared>,
}

/// Both ends of a new queue.
pub fn event_queue() -> std::io::Result<(EventSink, EventQueue)> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let shared = Arc::new(Shared {
        queue: Mutex::new(VecDeque::new()),
        signal: EventFd::from_value_and_flags(0, flags)?,
    });
    let sink = EventSink {
        shared: Arc::clone(&shared),
    };
    Ok((sink, EventQueue { shared }))
}

impl EventSink {
    /// Queues an event; drops it when the supervisor is that far behind.
    pub fn send(&self, event: VfsEvent) {
        let mut queue = self
            .shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if queue.len() < QUEUE {
            queue.push_back(event);
        }
        drop(queue);
        self.wake();
    }

    /// Wakes the reader without an event.
    pub fn wake(&self) {
        if let Err(error) = self.shared.signal.write(1) {
            // The counter of an eventfd is full only if it is readable anyway.
            tracing::debug!(%error, "event notification not counted");
        }
    }
}

impl EventQueue {
    /// All that is queued.
    pub fn take(&self) -> VecDeque<VfsEvent> {
        match self.shared.signal.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => tracing::warn!(%errno, "failed to reset the event notification"),
        }
        std::mem::take(
            &mut *self
                .shared
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Polls readable when there is something to take.
impl AsFd for EventQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

/// A kind of request that no honest guest kernel sends, or that policy refuses for safety.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A name that is not one path component.
    Name,
    /// mknod of a device, or a rename that would leave a whiteout device.
    DeviceNode,
    /// Open flags that mean something else than opening a file.
    OpenFlags,
    /// A request that is no FUSE message.
    Message,
    /// A descriptor chain that does not lie in guest memory or exceeds the size of a request.
    Descriptor,
}

impl Refusal {
    const COUNT: usize = 5;

    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::DeviceNode => "device-node",
            Self::OpenFlags => "open-flags",
            Self::Message => "message",
            Self::Descriptor => "descriptor",
        }
    }
}

/// Counts refusals by kind; each kind is logged once and reported at 1, 10, 100…
#[derive(Debug)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::COUNT],
    events: EventSink,
}

impl Refusals {
    /// All counts at zero.
    pub fn new(events: EventSink) -> Self {
        Self {
            counts: Default::default(),
            events,
        }
    }

    /// Counts one.
    pub fn count(&self, refusal: Refusal) {
        let count = self.counts[refusal as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if count == 1 {
            tracing::warn!(kind = refusal.word(), "refused a request of the guest");
        }
        if is_power_of_ten(count) {
            self.events.send(VfsEvent::Refused {
                kind: refusal.word().to_owned(),
                count,
            });
        }
    }

    /// How often one was refused.
    pub fn total(&self, refusal: Refusal) -> u64 {
        self.counts[refusal as usize].load(Ordering::Relaxed)
    }
}

fn is_power_of_ten(mut count: u64) -> bool {
    while count >= 10 && count.is_multiple_of(10) {
        count /= 10;
    }
    count == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_reported_at_powers_of_ten() {
        let (sink, queue) = event_queue().unwrap();
        let refusals = Refusals::new(sink);
        for _ in 0..150 {
            refusals.count(Refusal::Name);
        }
        refusals.count(Refusal::Message);
        let counts: Vec<(String, u64)> = queue
            .take()
            .into_iter()
            .map(|event| match event {
                VfsEvent::Refused { kind, count } => (kind, count),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            counts,
            [
                ("name".to_owned(), 1),
                ("name".to_owned(), 10),
                ("name".to_owned(), 100),
                ("message".to_owned(), 1)
            ]
        );
        assert_eq!(refusals.total(Refusal::Name), 150);
    }

    #[test]
    fn a_slow_supervisor_costs_bounded_memory() {
        let (sink, queue) = event_queue().unwrap();
        for refused in 0..10_000 {
            sink.send(VfsEvent::InodesExhausted { refused });
        }
        assert_eq!(queue.take().len(), QUEUE);
        assert!(queue.take().is_empty());
    }
}
