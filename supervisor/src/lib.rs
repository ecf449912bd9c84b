//! What users and embedding programs touch: the workers file, the supervisor, the program
//! `iii-super`.
//!
//! * [`Supervisor`]: runs workers and keeps them running, for any program to embed;
//! * [`log_store`]: the output that is kept, and its readers;
//! * [`workers_file`]: `iii.workers.yaml`, checked whole, every fault with its place;
//! * behind the feature `cli`: [`cli`], the program's commands, with [`output`], what `run` prints,
//!   [`control`], how they speak to a running supervisor, and [`doctor`], what this host can run and
//!   why.
//!
//! May depend on everything below it: `actors`, `vmm`, `net`, `vfs`, `firmware`, `image`, `proto`.
//! Must never be in it: how a VM, a network or a file system works; an actix type in the public
//! API; code that runs in the guest.
#![deny(unsafe_code)]

#[cfg(feature = "cli")]
mod accounts;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod control;
#[cfg(feature = "cli")]
mod descriptors;
#[cfg(feature = "cli")]
mod dev;
mod disks;
#[cfg(feature = "cli")]
pub mod doctor;
mod embedded;
#[cfg(feature = "cli")]
mod gate;
mod guests;
mod host_vmms;
mod images;
pub mod log_store;
mod order;
#[cfg(feature = "cli")]
pub mod output;
mod prepare;
#[cfg(feature = "cli")]
mod reload;
mod state;
mod streams;
mod supervisor;
mod usage;
mod worker;
pub mod workers_file;

pub use disks::{DiskError, DiskUse};
pub use guests::{GuestError, GuestFault};
pub use iii_actors::event::{ActorKind, Event, EventKind, LogLine, LogSource};
pub use iii_actors::exec::{self, ExecError, ExecOutput, ExecRequest, ExecSession};
pub use iii_actors::logs::LogReader;
pub use iii_actors::spec::{self, WorkerSpec};
pub use iii_actors::tree::ChildState;
pub use iii_actors::usage::NetworkUsage;
pub use iii_actors::{
    AddError, Fault, InjectError, Outcome, Outcomes, ReplaceError, RequestError, Scope,
    SystemError, WorkerState, WorkerStatus,
};
pub use iii_image::registry;
pub use iii_proto::control::GuestMemory;
pub use iii_proto::ids::WorkerName;
pub use iii_vmm::choice::AccelerationWish;
pub use prepare::{PrepareError, PrepareFault, PreparedWorker};
pub use state::StateError;
pub use streams::{EventStream, LogStream, Missed};
pub use supervisor::{
    AddWorkerError, Shutdown, StartError, Supervisor, SupervisorBuilder, VmmChoice,
};
pub use usage::{Part, Usage};
pub use worker::Worker;
