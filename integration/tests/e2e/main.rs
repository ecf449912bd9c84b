//! iii-super from end to end, on real VMs: a module per subject, one program for all of them, since
//! each program that the library is linked into takes as long to build as a module takes to run.
//! `cargo test -p iii-integration --test e2e repair::` runs one module.
//!
//! What looks at the whole of its own process (`embedding`), or hurts whatever it finds (`chaos`), is
//! a program of its own beside this one.

// In a test, an unwrap is an assertion; the lint knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod acceleration;
mod arrows;
mod background;
mod boot;
mod cli;
mod confinement;
mod conformance;
mod control;
mod dev;
mod disks;
mod dist;
mod dns;
mod docs;
mod doctor;
mod edit;
mod engine;
mod exec;
mod exec_command;
mod failures;
mod files;
mod foreign;
mod host_cgroups;
mod images;
mod logs;
mod memory;
mod network;
mod repair;
mod requests;
mod secrets;
mod service;
mod single;
mod state;
mod top;
