//! A guest without a VM: smoltcp with Ethernet, driven by the test's thread.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iii_net::config::{
    GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, GUEST_MAC, IPV4_PREFIX, IPV6_PREFIX,
};
use iii_net::{
    DnsBusy, DnsQuery, DnsService, NetHandle, NetLoop, NetworkConfig, Policy, link_pair,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// Bounds a test that waits for something that will not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's end of the link.
pub(crate) struct Wire {
    fd: OwnedFd,
    mtu: usize,
}

pub(crate) struct Frame(Vec<u8>);

pub(crate) struct Out<'a>(&'a OwnedFd);

impl Wire {
    pub(crate) fn receive_frame(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    pub(crate) fn send_frame(&self, frame: &[u8]) {
        send_whole(&self.fd, frame);
    }
}

/// Waits while the link is full, as a VMM's device does. A link without another end takes all.
fn send_whole(fd: &OwnedFd, frame: &[u8]) {
    loop {
        match send(fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EAGAIN) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(100u16)).unwrap();
            }
            _ => return,
        }
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Frame, Out<'_>)> {
        let frame = self.receive_frame()?;
        Some((Frame(frame), Out(&self.fd)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Out<'_>> {
        Some(Out(&self.fd))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        send_whole(self.0, &frame);
        result
    }
}

pub(crate) struct Guest {
    pub(crate) wire: Wire,
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    pub(crate) fn new(fd: OwnedFd, mtu: u16) -> Self {
        let mut wire = Wire {
            fd,
            mtu: usize::from(mtu),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        config.random_seed = u64::from(std::process::id());
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(GUEST_IPV4.into(), IPV4_PREFIX))
                .unwrap();
            addresses
                .push(IpCidr::new(GUEST_IPV6.into(), IPV6_PREFIX))
                .unwrap();
        });
        interface
            .routes_mut()
            .add_default_ipv4_route(GATEWAY_IPV4)
            .unwrap();
        interface
            .routes_mut()
            .add_default_ipv6_route(GATEWAY_IPV6)
            .unwrap();
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            next_port: 40000,
        }
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(self.start.elapsed().as_micros() as i64)
    }

    pub(crate) fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Runs the guest until `done` says so.
    pub(crate) fn run<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if let Some(result) = done(self) {
                // What `done` has put into sockets leaves the guest too.
                self.poll();
                return result;
            }
            assert!(Instant::now() < deadline, "timed out: {what}");
            let delay = self
                .interface
                .poll_delay(self.now(), &self.sockets)
                .map_or(5, |delay| delay.total_millis().min(5));
            let mut fds = [PollFd::new(self.wire.fd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(delay as u16)).unwrap();
        }
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn new_socket() -> tcp::Socket<'static> {
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        // A larger window would be scaled, and smoltcp moves the end of a scaled window back,
        // which no kernel does.
        let mut socket = tcp::Socket::new(buffer(65535), buffer(256 << 10));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket
    }

    pub(crate) fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// Begins to connect.
    pub(crate) fn connect(&mut self, remote: SocketAddr) -> SocketHandle {
        let port = self.port();
        self.connect_from(port, remote)
    }

    pub(crate) fn connect_from(&mut self, port: u16, remote: SocketAddr) -> SocketHandle {
        let mut socket = Self::new_socket();
        socket
            .connect(self.interface.context(), remote, port)
            .unwrap();
        self.sockets.add(socket)
    }

    /// Connects; `false` if the other side refused.
    pub(crate) fn connected(&mut self, handle: SocketHandle) -> bool {
        self.run("connect", |guest| match guest.tcp(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = Self::new_socket();
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends all bytes.
    pub(crate) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut rest = bytes;
        self.run("send", |guest| {
            while !rest.is_empty() && guest.tcp(handle).can_send() {
                let sent = guest.tcp(handle).send_slice(rest).unwrap();
                rest = &rest[sent..];
            }
            rest.is_empty().then_some(())
        });
    }

    /// Receives until the other side's FIN (`true`) or reset (`false`).
    pub(crate) fn receive_all(&mut self, handle: SocketHandle) -> (Vec<u8>, bool) {
        let mut received = Vec::new();
        let orderly = self.run("receive", |guest| {
            let socket = guest.tcp(handle);
            if matches!(
                socket.state(),
                tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived
            ) {
                return None;
            }
            while socket.can_recv() {
                let part = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
                received.extend(part);
            }
            match socket.recv(|_| (0, ())) {
                Ok(()) => None,
                Err(tcp::RecvError::Finished) => Some(true),
                Err(tcp::RecvError::InvalidState) => Some(false),
            }
        });
        (received, orderly)
    }

    /// Receives exactly so many bytes.
    pub(crate) fn receive(&mut self, handle: SocketHandle, count: usize) -> Vec<u8> {
        let mut received = Vec::new();
        self.run("receive", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() && received.len() < count {
                let part = socket
                    .recv(|bytes| {
                        let take = bytes.len().min(count - received.len());
                        (take, bytes[..take].to_vec())
                    })
                    .unwrap();
                received.extend(part);
            }
            (received.len() == count).then_some(())
        });
        received
    }

    pub(crate) fn udp_socket(&mut self) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let port = self.port();
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends a datagram and waits for the next one.
    pub(crate) fn ask(&mut self, handle: SocketHandle, to: SocketAddr, data: &[u8]) -> Vec<u8> {
        self.udp(handle).send_slice(data, to).unwrap();
        self.run("a datagram", |guest| {
            let (data, _) = guest.udp(handle).recv().ok()?;
            Some(data.to_vec())
        })
    }

    pub(crate) fn icmp_socket(&mut self, identifier: u16) -> SocketHandle {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 64 << 10]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(identifier)).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn icmp(&mut self, handle: SocketHandle) -> &mut icmp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }
}

/// A service that answers as its function does.
pub(crate) struct Scripted<F>(pub(crate) F);

impl<F: Fn(DnsQuery) -> Result<(), DnsBusy> + Send + Sync> DnsService for Scripted<F> {
    fn submit(&self, query: DnsQuery) -> Result<(), DnsBusy> {
        (self.0)(query)
    }
}

/// A service that is always busy.
pub(crate) fn no_dns() -> Arc<dyn DnsService> {
    Arc::new(Scripted(|_| Err(DnsBusy)))
}

/// A loop, its guest, and the caller's duplicate of the loop's end.
pub(crate) struct World {
    pub(crate) guest: Guest,
    pub(crate) net: NetHandle,
    pub(crate) link: OwnedFd,
}

impl World {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        Self::with_dns(config, no_dns())
    }

    pub(crate) fn with_dns(config: NetworkConfig, dns: Arc<dyn DnsService>) -> Self {
        let (host, guest) = link_pair().unwrap();
        let link = host.try_clone().unwrap();
        let guest = Guest::new(guest, config.mtu);
        let net = NetLoop::start(config, host, dns, "test").unwrap();
        Self { guest, net, link }
    }

    /// With these ports of the host's loopback open to the guest.
    pub(crate) fn with_host_ports(ports: &[u16]) -> Self {
        Self::new(config_with_host_ports(ports))
    }
}

pub(crate) fn config_with_host_ports(ports: &[u16]) -> NetworkConfig {
    NetworkConfig {
        policy: Policy {
            host_ports: BTreeSet::from_iter(ports.iter().copied()),
            ..Policy::default()
        },
        ..NetworkConfig::default()
    }
}

pub(crate) fn gateway(port: u16) -> SocketAddr {
    (IpAddr::V4(GATEWAY_IPV4), port).into()
}

pub(crate) fn gateway_v6(port: u16) -> SocketAddr {
    (IpAddr::V6(GATEWAY_IPV6), port).into()
}

/// Waits for a fact that another thread brings about.
pub(crate) fn wait_for(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}
