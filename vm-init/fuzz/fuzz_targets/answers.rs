//! What PID 1 hears: a workload's HTTP response, the kernel's netlink answers, the host's spec.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    vm_init::probe::parse_status(bytes);
    assert!(vm_init::boot::netlink::answers(bytes).count() <= bytes.len());
    drop(vm_init::boot::spec::decode(bytes));
});
