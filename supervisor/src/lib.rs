//! What users and embedding programs touch: the workers file, the supervisor, the program
//! `iii-super`.
//!
//! * [`Supervisor`]: runs workers and keeps them running, for any program to embed;
//! * [`workers_file`]: `iii.workers.yaml`, checked whole, every fault with its place;
//! * behind the feature `cli`: [`cli`], the program's commands, with [`output`], what `run` prints,
//!   and [`doctor`], what this host can run and why.
//!
//! May depend on everything below it: `actors`, `vmm`, `net`, `vfs`, `firmware`, `image`, `proto`.
//! Must never be in it: how a VM, a network or a file system works; an actix type in the public
//! API; code that runs in the guest.
#![deny(unsafe_code)]

#[cfg(feature = "cli")]
mod accounts;
pub mod cli;
#[cfg(feature = "cli")]
pub mod doctor;
#[cfg(feature = "cli")]
pub mod output;
mod prepare;
mod supervisor;
pub mod workers_file;

pub use iii_actors::event::{ActorKind, Event, EventKind, LogLine};
pub use iii_actors::spec::{self, WorkerSpec};
pub use iii_actors::{AddError, Fault, InjectError, Outcome, Outcomes, SystemError};
pub use prepare::{PrepareError, PrepareFault, PreparedWorker};
pub use supervisor::{Shutdown, StartError, Supervisor, SupervisorBuilder, VmmChoice};
