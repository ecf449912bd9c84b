//! How the processes of a VM are started and stopped.
//!
//! * [`process`]: the [`Spawner`](process::Spawner), the one thread that starts every child, and
//!   the handles of its children; each child runs below the helper binary `iii-shim`
//!   (`src/bin/iii-shim`), which keeps it from outliving us;
//! * [`helpers`]: finds helper binaries and checks that they are of this build;
//! * [`confinement`]: what a VMM's process is held to;
//! * [`cgroup`]: the limits that the host keeps for the processes of one VM together;
//! * [`vmm`]: the trait [`Vmm`](vmm::Vmm) and what a launch is made of; [`qemu`] and [`krun`]: its
//!   implementations; `machine`: what they have in common; [`guest`]: the architectures of guests;
//! * [`host`]: what kind of virtualisation this host has, decided from facts; [`choice`]: which VMM
//!   runs there and how; [`vmms`]: that VMM, and the way back to software where a VM has shown that
//!   the facts deceive; [`verdict`]: what is remembered of that; [`tsc`]: the frequency of the host's
//!   time-stamp counter.
//!
//! May depend on `iii-proto`. Must never be in it: actors, policy about restarts, anything that
//! decides *whether* a VM runs; an asynchronous runtime; reading what a guest sends.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod choice;
pub mod confinement;
pub mod guest;
pub mod helpers;
pub mod host;
pub mod krun;
mod machine;
pub mod process;
pub mod qemu;
mod sys;
mod trust;
pub mod tsc;
pub mod verdict;
pub mod vmm;
pub mod vmms;
