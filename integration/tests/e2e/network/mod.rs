//! What a guest sends and receives, by its own Linux and real sockets of the host.

mod engine;
mod policy;
mod published;
mod repair;
mod transfer;

/// Python that the tests share; runs in the guest.
const SHARED: &str = r#"
import errno, hashlib, socket

HOST = "host.iii.internal"

def dial(port, address=HOST):
    return socket.create_connection((address, port), timeout=240)

def read_all(connection):
    data = bytearray()
    while piece := connection.recv(1 << 18):
        data += piece
    return data

def sha256(data):
    return hashlib.sha256(data).hexdigest()

def outcome(action):
    try:
        return action() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
"#;

/// So many bytes that no pattern repeats in.
fn random(length: usize) -> Vec<u8> {
    use std::io::Read;

    let mut data = vec![0; length];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut data))
        .expect("Linux has random bytes");
    data
}

/// Compares without printing megabytes.
fn assert_same(what: &str, got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "bytes of {what}");
    let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first different byte of {what}");
}
