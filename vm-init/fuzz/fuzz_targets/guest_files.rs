//! What PID 1 reads of an image's own files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_init::boot::users::{group_entries, passwd_entries};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for entry in passwd_entries(&text) {
        assert!(!entry.name.contains([':', '\n']));
    }
    for entry in group_entries(&text) {
        entry.has("worker");
    }
    vm_init::program::parse_interpreter(bytes);
});
