//! A connection's socket on the host.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::gateway::{Env, Token};

/// A silent peer is asked for a sign of life after this.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A non-blocking stream socket. Unless [`Self::finish`] was called, closing it resets the
/// connection: a peer must not take a stream that was cut off for one that has ended.
#[derive(Debug)]
pub(crate) struct HostStream {
    socket: Socket,
    finished: bool,
}

impl HostStream {
    /// Begins to connect. The outcome is told by epoll.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        let stream = Self::new(socket)?;
        match stream.socket.connect(&SockAddr::from(address)) {
            Ok(()) => Ok(stream),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(stream),
            Err(error) => Err(error),
        }
    }

    /// A connection from a published port.
    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(Socket::from(stream))
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_tcp_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE_IDLE)
            .with_interval(KEEP_ALIVE_INTERVAL);
        socket.set_tcp_keepalive(&keep_alive)?;
        Ok(Self {
            socket,
            finished: false,
        })
    }

    /// Has its events told as `token`'s, once per change: what is readable stays so in the flow's
    /// own books until a read says otherwise.
    pub(crate) fn watch(&self, env: &Env, token: Token) -> io::Result<()> {
        let interest = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let event = EpollEvent::new(interest, token.encode());
        env.shared.epoll.add(&self.socket, event)?;
        Ok(())
    }

    /// Whether a connect has come to its end: `None` if not yet.
    pub(crate) fn outcome(&self) -> Option<io::Result<()>> {
        match self.socket.take_error() {
            Ok(None) => match self.socket.peer_addr() {
                Ok(_) => Some(Ok(())),
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => None,
                Err(error) => Some(Err(error)),
            },
            Ok(Some(error)) | Err(error) => Some(Err(error)),
        }
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(buffer)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    /// The guest has said all it wants to say.
    pub(crate) fn shut_down_write(&self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// Both directions have come to their proper end: the kernel may deliver what is left.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.socket.set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a connection could not be reset and ends in order instead");
        }
    }
}

/// Whether packets to `address` would stay on this host: then it is one of the host's own
/// addresses, and its services are not a part of the internet.
pub(crate) fn is_own_address(address: SocketAddr) -> bool {
    let unspecified: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connecting a datagram socket sends nothing, it looks up the route. The kernel uses the
    // destination itself as the source only if it is local.
    let source = UdpSocket::bind(unspecified).and_then(|probe| {
        probe.connect(address)?;
        probe.local_addr()
    });
    match source {
        Ok(source) => source.ip() == address.ip(),
        // Without a route it cannot be reached anyway, and the connect will say so. Any other
        // failure leaves the question open, and an open question is no permission.
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::AddrNotAvailable
        ),
    }
}
