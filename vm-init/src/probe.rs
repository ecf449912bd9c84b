//! Probes of the workload over the guest's loopback, without blocking: a socket that is advanced
//! whenever epoll says so. (Exec probes are children; the event loop reaps them.)

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, getsockopt, socket,
    sockopt::SocketError,
};

/// Longest part of a response that is looked at: a workload that sends an endless status line must
/// not fill PID 1's memory.
const MAX_STATUS_LINE: usize = 256;

/// How far a probe is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Waits for its socket.
    Pending,
    /// Waits for a new socket: register [`SocketProbe::fd`] again.
    Reconnecting,
    /// The workload is healthy.
    Passed,
    /// It is not, and why.
    Failed(String),
}

/// A TCP or HTTP probe under way.
#[derive(Debug)]
pub struct SocketProbe {
    stream: TcpStream,
    port: u16,
    family: AddressFamily,
    connected: bool,
    /// `None`: the connection is all that is asked for.
    request: Option<Vec<u8>>,
    sent: usize,
    response: Vec<u8>,
}

impl SocketProbe {
    /// Begins a probe that passes when `port` accepts.
    pub fn tcp(port: u16) -> nix::Result<Self> {
        Self::begin(port, None)
    }

    /// Begins a probe that passes when a GET of `path` answers 200 to 399.
    pub fn http(port: u16, path: &str) -> nix::Result<Self> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: iii-health\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        Self::begin(port, Some(request.into_bytes()))
    }

    fn begin(port: u16, request: Option<Vec<u8>>) -> nix::Result<Self> {
        // A refusal on loopback can be known before connect(2) returns.
        let (stream, family) = match dial(port, AddressFamily::Inet) {
            Ok(stream) => (stream, AddressFamily::Inet),
            Err(Errno::ECONNREFUSED) => {
                let family = AddressFamily::Inet6;
                (dial(port, family)?, family)
            }
            Err(errno) => return Err(errno),
        };
        Ok(Self {
            stream,
            port,
            family,
            connected: false,
            request,
            sent: 0,
            response: Vec::new(),
        })
    }

    /// What to register with epoll (readable, writable, edge-triggered).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Goes on as far as the socket allows.
    pub fn advance(&mut self) -> Progress {
        match self.try_advance() {
            Ok(progress) => progress,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Pending,
            Err(error) => Progress::Failed(format!("port {}: {error}", self.port)),
        }
    }

    fn try_advance(&mut self) -> std::io::Result<Progress> {
        if !self.connected {
            let error = getsockopt(&self.stream, SocketError)?;
            if error == Errno::ECONNREFUSED as i32 && self.family == AddressFamily::Inet {
                // Some servers listen on ::1 alone.
                self.family = AddressFamily::Inet6;
                self.stream = dial(self.port, self.family)?;
                return Ok(Progress::Reconnecting);
            }
            if error != 0 {
                return Err(std::io::Error::from_raw_os_error(error));
            }
            // Without an error the connection stands or is still being made.
            self.stream
                .peer_addr()
                .map_err(|_| std::io::Error::from(ErrorKind::WouldBlock))?;
            self.connected = true;
        }
        let Some(request) = &self.request else {
            return Ok(Progress::Passed);
        };
        while self.sent < request.len() {
            self.sent += self.stream.write(&request[self.sent..])?;
        }
        loop {
            let mut buffer = [0; MAX_STATUS_LINE];
            let count = self.stream.read(&mut buffer)?;
            self.response.extend_from_slice(&buffer[..count]);
            match parse_status(&self.response) {
                Status::Code(200..=399) => return Ok(Progress::Passed),
                Status::Code(code) => {
                    return Ok(Progress::Failed(format!("HTTP status {code}")));
                }
                Status::Incomplete if count > 0 => {}
                Status::Incomplete | Status::Malformed => {
                    return Ok(Progress::Failed(String::from("no HTTP response")));
                }
            }
        }
    }
}

fn dial(port: u16, family: AddressFamily) -> nix::Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    let result = if family == AddressFamily::Inet6 {
        let to = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, port, 0, 0);
        connect(socket.as_raw_fd(), &SockaddrIn6::from(to))
    } else {
        connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))
    };
    match result {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno),
    }
}

/// What the beginning of a response says.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// The status code (RFC 9112 §4).
    Code(u16),
    /// More bytes are needed.
    Incomplete,
    /// Not HTTP/1.
    Malformed,
}

/// Reads the status line of an HTTP/1 response.
pub fn parse_status(response: &[u8]) -> Status {
    const START: &[u8] = b"HTTP/1.";
    let begun = response.len().min(START.len());
    if response[..begun] != START[..begun] {
        return Status::Malformed;
    }
    // "HTTP/1.1 200" and one more byte, so that "2000" is not taken for 200.
    let Some(head) = response.get(..13) else {
        return Status::Incomplete;
    };
    let ends = matches!(head[12], b' ' | b'\r' | b'\n');
    let digits = &head[9..12];
    if head[8] != b' ' || !ends || !digits.iter().all(u8::is_ascii_digit) {
        return Status::Malformed;
    }
    Status::Code(
        digits
            .iter()
            .fold(0, |code, digit| code * 10 + u16::from(digit - b'0')),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    /// Advances until the probe is decided; poll(2) waits for the socket, so nothing is timed.
    fn run(mut probe: SocketProbe) -> Progress {
        loop {
            match probe.advance() {
                Progress::Pending => {
                    let events = nix::poll::PollFlags::POLLIN
                        | if probe.connected {
                            nix::poll::PollFlags::empty()
                        } else {
                            nix::poll::PollFlags::POLLOUT
                        };
                    let mut fds = [nix::poll::PollFd::new(probe.fd(), events)];
                    nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(20_000u16)).unwrap();
                }
                Progress::Reconnecting => {}
                decided => return decided,
            }
        }
    }

    fn server(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /health HTTP/1.1\r\nHost: localhost:"));
            stream.write_all(answer).unwrap();
        });
        port
    }

    #[test]
    fn tcp_passes_when_accepted_and_fails_when_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(run(SocketProbe::tcp(port).unwrap()), Progress::Passed);
        drop(listener);
        let refused = match SocketProbe::tcp(port) {
            Ok(probe) => matches!(run(probe), Progress::Failed(_)),
            Err(errno) => errno == Errno::ECONNREFUSED,
        };
        assert!(refused);
    }

    #[test]
    fn http_passes_from_200_to_399() {
        let cases: [(&[u8], Progress); 4] = [
            (b"HTTP/1.1 200 OK\r\n\r\n", Progress::Passed),
            (b"HTTP/1.0 302 Found\r\n\r\n", Progress::Passed),
            (
                b"HTTP/1.1 503 Busy\r\n\r\n",
                Progress::Failed("HTTP status 503".into()),
            ),
            (
                b"SSH-2.0-OpenSSH\r\n",
                Progress::Failed("no HTTP response".into()),
            ),
        ];
        for (answer, expected) in cases {
            let probe = SocketProbe::http(server(answer), "/health").unwrap();
            assert_eq!(run(probe), expected);
        }
    }

    #[test]
    fn status_lines() {
        assert_eq!(parse_status(b""), Status::Incomplete);
        assert_eq!(parse_status(b"HTTP/1.1 20"), Status::Incomplete);
        assert_eq!(parse_status(b"HTTP/1.1 2000 "), Status::Malformed);
        assert_eq!(parse_status(b"HTTP/2 200 "), Status::Malformed);
        assert_eq!(parse_status(b"HTTP/1.1 204\r\n"), Status::Code(204));
    }

    proptest! {
        #[test]
        fn any_response_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Status::Code(code) = parse_status(&bytes) {
                prop_assert!(code <= 999);
            }
        }
    }
}
