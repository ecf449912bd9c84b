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
//! `docs/supervision.md` says the same for users, and shows the table of states, which a test
//! compares with the code.
//!
//! **States of a worker** ([`WorkerState`], table in [`root::lifecycle`]): stopped, waiting,
//! starting, started, ready, repairing, stopping, replacing, done, failed. *Started* is a process
//! that runs, *ready* one whose probe has passed.
//!
//! **Start order.** Workers: each once those that it depends on are as it demands
//! ([`root::fleet`]). Children of a worker: DnsActor, NetPollActor, FsActor, VmActor, each once
//! what it requires is up ([`tree`]). **Stop order:** the reverse, one at a time. A successor is
//! started only after its predecessor's processes are reaped.
//!
//! **Restart types** ([`iii_proto::restart::RestartMode`]): `always` (OTP: permanent) after any
//! exit; `on-failure` (transient) after any but exit code 0; `never` (temporary). Exit code 78
//! (sysexits' EX_CONFIG), or those that the policy names, are final in every mode.
//!
//! **Arithmetic** ([`iii_proto::restart`], one tracker for workloads, VMs and actors): the n-th
//! restart in a row waits `min(initial × factor^(n-1), max)`, spread by ±jitter; a run of
//! `reset_after` begins a new row; at most `limit` restarts are granted in any window.
//!
//! | what | initial | factor | max | limit | new row after |
//! | --- | --- | --- | --- | --- | --- |
//! | workload | 100 ms | 2 | 30 s | 10 in 5 min | 60 s |
//! | VM | 200 ms | 2 | 30 s | 5 in 5 min | 60 s |
//! | actor | 10 ms | 2 | 5 s | 10 in 1 min | 30 s |
//! | WorkerSupervisor | 100 ms | 2 | 30 s | 3 in 1 min | 60 s |
//!
//! **What fails together.** A child and all that transitively requires it are stopped and started
//! again (`rest_for_one`, by declared dependency); only the one that failed is counted. Neighbours
//! and other workers go on, except those that depend on the worker with `restart: true`.
//!
//! **What escalates.** A workload that uses up its limit: the guest powers off, which is a failure
//! of the VM. A VM or an actor that uses up its limit: the worker is `failed`. A WorkerSupervisor
//! that uses up its limit: the same. Nothing above a worker is touched.
//!
//! **After `failed`** the reason, the counters and the status are kept; nothing of it runs. A
//! request starts it with fresh counters.
//!
//! **Requests** are answered in every state: see the table. **What persists** beyond the
//! supervisor: [`memory`], through a [`memory::Keeper`] that the embedding program gives.
//!
//! **Panics.** A panic anywhere in an actor is seen by its guard (`death_watch`), reported with its
//! message, and repaired like any other failure.
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
pub mod logs;
pub mod memory;
mod messages;
mod net_poll;
pub mod plan;
mod processes;
pub mod root;
mod runtime;
pub mod spec;
mod system;
mod tail;
pub mod tree;
pub mod usage;
pub mod vm;
mod worker;

pub use fs::VFS_HELPER;
pub use root::{
    AddError, InjectError, Outcomes, ReplaceError, RequestError, WorkerState, WorkerStatus,
};
pub use system::{ActorSystem, SystemError};
pub use worker::{Fault, Outcome, Scope};
