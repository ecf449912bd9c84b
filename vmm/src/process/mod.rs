//! Child processes that never outlive the supervisor.
//!
//! One thread, the [`Spawner`], starts every child and lives as long as the process, because the
//! parent-death signal of a child fires when the *thread* that forked it ends. It waits for its
//! children by pidfd and epoll, never by `waitpid(-1)`: the host program may have children of its
//! own.
//!
//! A child is three processes:
//!
//! ```text
//! supervisor ── iii-shim ── iii-shim (init) ── the program
//!               lifeline    PID 1 of the        ordinary signal behaviour,
//!               and status  pid namespace       since it is not PID 1
//! ```
//!
//! Each has its parent-death signal set to SIGKILL, and the shim's standard input is a socket whose
//! end-of-file means that the supervisor is gone. Where the kernel allows it, the init is PID 1 of a
//! pid namespace, so that its end is the end of everything that the program has forked.
//!
//! A child counts as reaped only when all three are gone: a successor that is started from
//! `on_exit` finds the predecessor's memory, sockets and locks released, also if somebody killed
//! the shim.

mod child;
mod error;
mod handle;
mod lifecycle;
mod link;
mod request;
mod spawner;
mod spec;
mod worker;

pub use error::SpawnError;
pub use handle::{ChildExit, ChildHandle, KillOnDrop};
pub use iii_proto::shim::{Isolation, Layer, Layers, Namespace};
pub use nix::sys::signal::Signal;
pub use spawner::{OnExit, OnStart, SHIM, Spawner};
pub use spec::{ChildSpec, ResourceLimit, Stdio};
