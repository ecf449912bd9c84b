//! The loop from outside: on its link sits a second smoltcp stack as the guest, behind it are
//! real servers on the host's loopback.

// Helpers of tests are tests to clippy only within `cfg(test)` or `#[test]`.
#![allow(clippy::unwrap_used)]

mod backpressure;
mod dns;
mod flood;
mod guest;
mod lifecycle;
mod policy;
mod published;
mod servers;
mod tcp;
mod udp;
