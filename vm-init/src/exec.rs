//! Exec sessions: commands that the host runs beside the workload, over the exec port.
//!
//! * [`lifecycle`]: the pure core of one session, a state machine of (state, event);
//! * `start`: from a command to a process in a cgroup of its own;
//! * `streams`: its input and outputs, under the windows of [`iii_proto::exec::window`];
//! * `session`: one session, which feeds the core and does what that orders;
//! * `port`: all of them, and the port; `replies`: what goes out of it.
//!
//! It shares nothing with the workload's supervision but the loop: its processes are in cgroups of
//! their own below the one that carries the workload's limits, and a turn moves a bounded number of
//! bytes.

pub mod lifecycle;
mod port;
mod replies;
mod session;
mod start;
mod streams;

pub use port::Exec;
pub(crate) use port::{Hands, TOKENS};
