//! Messages between the actors of a tree. What an actor alone is told stands beside it.

use actix::Message;

use crate::death_watch::Death;
use crate::event::ActorKind;

/// Called by a child, once, when it is up.
pub(crate) type OnUp = Box<dyn FnOnce() + Send>;

/// To a child: end.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Halt {
    /// At once: what it requires is gone, or the user is tired of waiting.
    pub(crate) urgent: bool,
}

/// To any actor: panic, so that its repair can be seen.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InjectPanic;

/// To a WorkerSupervisor: a child runs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ChildUp {
    pub(crate) child: ActorKind,
    pub(crate) life: u64,
}

/// To a WorkerSupervisor: a child has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ChildDown {
    pub(crate) child: ActorKind,
    pub(crate) life: u64,
    pub(crate) death: Death,
}
