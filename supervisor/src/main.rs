//! The program `iii-super`.
#![deny(unsafe_code)]
fn main() {}
