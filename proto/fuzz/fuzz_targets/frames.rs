//! A port's byte stream from a hostile other end, in reads of any length: the first byte chooses
//! whose frames are expected, the second how long a read is.
#![no_main]

use iii_proto::codec::{FrameReader, MAX_FRAME, Wire, encode_frame};
use iii_proto::control::{GuestMessage, HostMessage};
use iii_proto::exec::{GuestFrame, HostFrame};
use iii_proto::log::LogFrame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [port, pace, stream @ ..] = data else {
        return;
    };
    let pace = usize::from(*pace) + 1;
    match port % 5 {
        0 => read::<GuestMessage>(stream, pace),
        1 => read::<HostMessage>(stream, pace),
        2 => read::<LogFrame>(stream, pace),
        3 => read::<GuestFrame>(stream, pace),
        _ => read::<HostFrame>(stream, pace),
    }
});

fn read<T: Wire>(stream: &[u8], pace: usize) {
    let mut reader = FrameReader::new();
    for chunk in stream.chunks(pace) {
        reader.feed(chunk);
        loop {
            match reader.next::<T>() {
                Ok(Some(frame)) => {
                    // What could be read can be said again, and has one meaning.
                    let again = encode_frame(&frame).expect("it came in a frame");
                    let mut second = FrameReader::new();
                    second.feed(&again);
                    assert!(matches!(second.next::<T>(), Ok(Some(_))));
                    assert_eq!(second.pending(), 0);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(reader.pending() <= MAX_FRAME + 4 + pace);
    }
}
