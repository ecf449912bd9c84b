//! The supervision tree, on actix.
//!
//! ```text
//! RootSupervisor
//!  └─ WorkerSupervisor "api"
//!      ├─ DnsActor      resolves the guest's questions
//!      ├─ NetPollActor  owns the network loop's thread
//!      ├─ FsActor       owns the process iii-vfs
//!      └─ VmActor       owns the VMM's process; requires FsActor
//! ```
//!
//! # Contract
//!
//! * Start order: DnsActor, NetPollActor, FsActor, VmActor; stop order: the reverse. A child is
//!   started only once what it requires is up.
//! * A child that fails is started again together with all that transitively requires it
//!   (`rest_for_one` by declared dependency, [`tree`]); its neighbours and other workers go on. A
//!   successor starts only after its predecessor's processes are reaped.
//! * Restarts follow [`iii_proto::restart`]: VMs by the spec's `vm_restart` (default: 200 ms
//!   doubling to 30 s, 5 within 5 minutes), actors by 10 ms doubling to 5 s, 10 within a minute.
//! * What escalates: a VM or an actor that uses up its limit makes the worker `failed`, with the
//!   reason kept; nothing above it is touched. A WorkerSupervisor that itself panics is replaced,
//!   3 times within a minute, with a new VM.
//! * A panic anywhere in an actor is seen by its guard, reported with its message,
//!   and repaired like any other failure.
//!
//! May depend on `net`, `vfs`, `vmm`, `firmware`, `image`, `proto`. Must never be in it: files of
//! the user, the command line, printing; and no actix type leaves it.
#![deny(unsafe_code)]

#[cfg(panic = "abort")]
compile_error!("iii-actors needs panic = \"unwind\": death-watch repairs actors that panic");

mod death_watch;
mod dns;
pub mod event;
pub mod exec;
mod fs;
pub mod lines;
mod messages;
mod net_poll;
pub mod plan;
mod processes;
mod root;
mod runtime;
pub mod spec;
mod system;
mod tail;
pub mod tree;
pub mod vm;
mod worker;

pub use root::{AddError, InjectError, Outcomes};
pub use system::{ActorSystem, SystemError};
pub use worker::{Fault, Outcome};
