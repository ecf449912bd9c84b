//! iii-actors
#![deny(unsafe_code)]
pub mod event;
pub mod spec;
pub mod tree;
pub mod vm;
