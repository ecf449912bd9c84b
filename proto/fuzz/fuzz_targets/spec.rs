//! What vm-init reads from its boot medium, and the launcher and the file server from theirs.
#![no_main]

use iii_proto::codec::{Wire, decode_spec, encode_spec};
use iii_proto::guest::GuestSpec;
use iii_proto::krun::KrunLaunch;
use iii_proto::shim::ShimRequest;
use iii_proto::vfs::VfsConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => decode::<GuestSpec>(bytes),
        1 => decode::<VfsConfig>(bytes),
        2 => decode::<ShimRequest>(bytes),
        _ => decode::<KrunLaunch>(bytes),
    }
});

fn decode<T: Wire>(bytes: &[u8]) {
    if let Ok(value) = decode_spec::<T>(bytes) {
        let again = encode_spec(&value).expect("it came from as many bytes");
        assert!(decode_spec::<T>(&again).is_ok());
    }
}
