//! Servers on the host's loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use sha2::{Digest, Sha256};

/// Serves each connection on a thread of its own until the test's process ends.
pub(crate) fn serve(handler: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    serve_on(listener, handler)
}

pub(crate) fn serve_on(
    listener: TcpListener,
    handler: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let handler = handler.clone();
            let stream = stream.unwrap();
            thread::spawn(move || handler(stream));
        }
    });
    address
}

/// Serves one connection and returns what the handler returns.
pub(crate) fn serve_once<T: Send + 'static>(
    handler: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        handler(stream)
    });
    (address, thread)
}

pub(crate) fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

/// Bytes that differ everywhere.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
