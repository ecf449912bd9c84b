//! Who ended, and why.
//!
//! A panic in a handler or in a future of an actor's context unwinds through that actor alone and
//! drops it; nobody is told by actix. So each child carries a [`DeathGuard`] as its *last* field:
//! by the time the guard drops, everything else that the child held is released, and the parent
//! hears of the end however it came about.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use iii_proto::restart::Exit;

use crate::tree::ChildEnd;

/// How a child ended, as its guard saw it.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// For the tree.
    pub(crate) end: ChildEnd,
    /// It was a panic.
    pub(crate) panicked: bool,
}

type Report = Box<dyn FnOnce(Death) + Send>;

/// Tells the parent when it is dropped.
pub(crate) struct DeathGuard {
    report: Option<Report>,
    end: Option<ChildEnd>,
}

impl DeathGuard {
    /// `report` is called once, on the thread where the child ends; it must not panic.
    pub(crate) fn new(report: impl FnOnce(Death) + Send + 'static) -> Self {
        watch_panics();
        Self {
            report: Some(Box::new(report)),
            end: None,
        }
    }

    /// Why the child is going to end; the first reason stands.
    pub(crate) fn set(&mut self, end: ChildEnd) {
        self.end.get_or_insert(end);
    }
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        let Some(report) = self.report.take() else {
            return;
        };
        let panicked = std::thread::panicking();
        let end = if panicked {
            let text = LAST_PANIC.with_borrow_mut(Option::take);
            let text = text.unwrap_or_else(|| "no message".into());
            ChildEnd::Failed(Exit::Fault {
                cause: format!("it panicked: {text}"),
            })
        } else {
            self.end.take().unwrap_or_else(|| {
                ChildEnd::Failed(Exit::Fault {
                    cause: "it ended without a reason".into(),
                })
            })
        };
        report(Death { end, panicked });
    }
}

thread_local! {
    /// The message of the panic that is unwinding on this thread.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the message of a panic, which is out of reach for a destructor. The hook that was there
/// before is called as ever.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned());
            // A thread that is being torn down has no such cell any more, and no guard either.
            if LAST_PANIC
                .try_with(|last| *last.borrow_mut() = text)
                .is_err()
            {
                tracing::debug!("a panic on a thread that is ending");
            }
            previous(info);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn guard() -> (DeathGuard, mpsc::Receiver<Death>) {
        let (tx, rx) = mpsc::channel();
        (DeathGuard::new(move |death| tx.send(death).unwrap()), rx)
    }

    #[test]
    fn a_panic_is_reported_with_its_message() {
        let (guard, rx) = guard();
        let thread = std::thread::spawn(move || {
            let _held = guard;
            panic!("number {}", 7);
        });
        assert!(thread.join().is_err());
        let death = rx.recv().unwrap();
        assert!(death.panicked);
        let cause = "it panicked: number 7".into();
        assert_eq!(death.end, ChildEnd::Failed(Exit::Fault { cause }));
    }

    #[test]
    fn the_first_reason_stands() {
        let (mut guard, rx) = guard();
        guard.set(ChildEnd::Stopped);
        guard.set(ChildEnd::Done(Exit::Code { code: 0 }));
        drop(guard);
        assert_eq!(rx.recv().unwrap().end, ChildEnd::Stopped);
    }

    #[test]
    fn an_end_without_a_reason_is_a_failure() {
        let (guard, rx) = guard();
        drop(guard);
        let death = rx.recv().unwrap();
        assert!(!death.panicked && matches!(death.end, ChildEnd::Failed(_)));
    }
}
