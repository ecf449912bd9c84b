//! The guest kernel, taken out of libkrunfw and put into the form that a VMM boots.

mod cache;
mod extract;
mod pvh;

pub use cache::{Kernel, KernelFormat};
pub(crate) use cache::{PrepareError, inspect, prepare};
pub use extract::KernelError;
