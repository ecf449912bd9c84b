//! `iii-vfs`: serves one worker's exports; see the library.
#![deny(unsafe_code)]

fn main() {}
