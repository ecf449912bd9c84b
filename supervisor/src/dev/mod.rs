//! `iii-super dev`: one project in a microVM, restarted whenever it is saved.
//!
//! * [`detect`] finds out what a directory holds and how it is installed and started; a
//!   [`manifest`] says so instead;
//! * [`script`] is what runs in the guest: install if what is to be installed has changed, then
//!   start;
//! * [`worker`] makes a [`WorkerSpec`](crate::WorkerSpec) of both: the project's directory at
//!   `/app`, and a disk for what is installed, so that the host's own is neither used nor changed;
//! * [`watch`] tells which files were saved; [`pace`] when that is acted on;
//! * [`session`] is the loop.
//!
//! May depend on the supervisor's own API. Must never be in it: arguments of the command line,
//! which are [`crate::cli`]'s.

pub(crate) mod detect;
pub(crate) mod manifest;
pub(crate) mod pace;
pub(crate) mod project;
pub(crate) mod script;
pub(crate) mod session;
pub(crate) mod watch;
pub(crate) mod worker;
