//! DNS messages from the guest: `cargo +nightly fuzz run dns_query`.
#![no_main]

use iii_net::dns::parse_query;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(parse_query(bytes));
});
