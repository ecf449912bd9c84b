//! PID 1 of the guest; everything is in the library.
#![deny(unsafe_code)]

fn main() {}
