//! A block of stored output: `cargo +nightly fuzz run log_block`.
#![no_main]

use iii_supervisor::WorkerName;
use iii_supervisor::log_store::{Step, step};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let worker = WorkerName::new("w").expect("a name");
    let mut at = 0;
    while let Step::Record(view) = step(bytes, at) {
        assert!(view.length() > 0 && at + view.length() <= bytes.len());
        at += view.length();
        drop(view.record(&worker));
    }
});
