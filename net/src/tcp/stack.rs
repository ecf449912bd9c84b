//! smoltcp, reduced to one connection at a time: every flow has a socket set of its own, and the
//! interface they share is polled with that flow's packets and set only. So a segment costs the
//! same whether there is one connection or a thousand.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, ConnectError, ListenError};
use smoltcp::time::{Duration as StackDuration, Instant};
use smoltcp::wire::HardwareAddress;

use super::budget::Grant;
use crate::link::Transmitter;
use crate::wire::{FrameWriter, IPV4_HEADER, IPV6_HEADER, TCP_HEADER, flags};

/// A guest that has lost a connection without telling is found out so.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(120);

/// One connection's end in the gateway.
pub(crate) struct StackSocket {
    set: SocketSet<'static>,
    handle: SocketHandle,
    /// Returns the buffers to the budget.
    _grant: Grant,
}

impl StackSocket {
    fn new(grant: Grant) -> Self {
        let buffer = || tcp::SocketBuffer::new(vec![0; grant.size]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(socket);
        Self {
            set,
            handle,
            _grant: grant,
        }
    }

    /// Waits for one connection to `local`.
    pub(crate) fn listen(grant: Grant, local: SocketAddr) -> Result<Self, ListenError> {
        let mut socket = Self::new(grant);
        socket.tcp().listen(local)?;
        Ok(socket)
    }

    pub(crate) fn tcp(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> tcp::State {
        self.set.get::<tcp::Socket<'static>>(self.handle).state()
    }
}

/// What the flows share of smoltcp.
pub(crate) struct Stack {
    interface: Interface,
    capabilities: DeviceCapabilities,
}

impl Stack {
    pub(crate) fn new(mtu: u16, seed: u64, writer: &FrameWriter) -> Self {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(mtu);
        // The link is a local socket that loses and changes nothing, so only what is sent gets
        // checksums: the guest's kernel checks them.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        // Only asked what it can do.
        let mut wire = Wire {
            inbound: None,
            transmitter: &mut Transmitter::default(),
            writer,
            capabilities: &capabilities,
            refused: false,
        };
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.set_any_ip(true);
        Self {
            interface,
            capabilities,
        }
    }

    /// Begins a connection from the gateway to the guest.
    pub(crate) fn connect(
        &mut self,
        grant: Grant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<StackSocket, ConnectError> {
        let mut socket = StackSocket::new(grant);
        let context = self.interface.context();
        socket.tcp().connect(context, remote, local)?;
        Ok(socket)
    }

    /// Hands one packet to its connection.
    pub(crate) fn ingress(
        &mut self,
        socket: &mut StackSocket,
        packet: &[u8],
        transmitter: &mut Transmitter,
        writer: &FrameWriter,
        now: Duration,
    ) {
        let mut wire = Wire {
            inbound: Some(packet),
            transmitter,
            writer,
            capabilities: &self.capabilities,
            refused: false,
        };
        self.interface
            .poll_ingress_single(instant(now), &mut wire, &mut socket.set);
    }

    /// Sends what a connection has to say; `false` if the link had no room for all of it.
    pub(crate) fn egress(
        &mut self,
        socket: &mut StackSocket,
        transmitter: &mut Transmitter,
        writer: &FrameWriter,
        now: Duration,
    ) -> bool {
        let mut wire = Wire {
            inbound: None,
            transmitter,
            writer,
            capabilities: &self.capabilities,
            refused: false,
        };
        loop {
            let result = self
                .interface
                .poll_egress(instant(now), &mut wire, &mut socket.set);
            if result == PollResult::None {
                return !wire.refused;
            }
        }
    }

    /// When the connection wants [`Self::egress`] next.
    pub(crate) fn deadline(&mut self, socket: &StackSocket, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(instant(now), &socket.set)?;
        let at = Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0));
        // Everything that could be sent was sent. "At once" would mean to try the same again.
        Some(at.max(now + Duration::from_millis(1)))
    }
}

/// Takes one unit off the window that a segment offers.
///
/// smoltcp rounds the scaled window down to its unit, so the end of the window can move back by
/// less than a unit when data arrives, and data that the guest was allowed to send a moment ago is
/// cut off and has to be sent again after a time-out. The end that the guest sees is a unit
/// further back, so it never reaches what smoltcp may take away.
fn keep_window_from_shrinking(packet: &mut [u8]) {
    let header = match packet.first().map(|byte| byte >> 4) {
        Some(4) => IPV4_HEADER,
        Some(_) => IPV6_HEADER,
        None => return,
    };
    let Some(segment) = packet
        .get_mut(header..)
        .filter(|segment| segment.len() >= TCP_HEADER)
    else {
        return;
    };
    let window = u16::from_be_bytes([segment[14], segment[15]]);
    // The window of a SYN is not scaled (RFC 7323 §2.2).
    if window == 0 || segment[13] & flags::SYN != 0 {
        return;
    }
    segment[14..16].copy_from_slice(&(window - 1).to_be_bytes());
    // RFC 1624 for a field that becomes less by one: so much more is the sum's complement.
    let checksum = u16::from_be_bytes([segment[16], segment[17]]);
    let (sum, carry) = checksum.overflowing_add(1);
    let checksum = sum + u16::from(carry);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

/// Sends a FIN behind what is queued. Call it again after each acknowledgement.
///
/// In LAST-ACK smoltcp answers a segment that acknowledges nothing new with a challenge and drops
/// its window, so a guest that was slow to read would get the rest by one window probe a second.
/// Hence the FIN of a connection that the guest has half-closed waits for the data before it.
pub(crate) fn finish_sending(socket: &mut tcp::Socket<'_>) {
    let waits = socket.state() == tcp::State::CloseWait && socket.send_queue() > 0;
    if !waits {
        socket.close();
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// The link as smoltcp sees it during one call.
struct Wire<'a> {
    inbound: Option<&'a [u8]>,
    transmitter: &'a mut Transmitter,
    writer: &'a FrameWriter,
    capabilities: &'a DeviceCapabilities,
    /// A frame was not sent for want of room.
    refused: bool,
}

struct Received<'a>(&'a [u8]);

struct Sending<'a> {
    transmitter: &'a mut Transmitter,
    writer: &'a FrameWriter,
}

impl phy::Device for Wire<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let packet = self.inbound.take()?;
        let sending = Sending {
            transmitter: self.transmitter,
            writer: self.writer,
        };
        Some((Received(packet), sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        if !self.transmitter.has_room() {
            self.refused = true;
            return None;
        }
        Some(Sending {
            transmitter: self.transmitter,
            writer: self.writer,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.writer.ip_packet(self.transmitter, length, |packet| {
            let result = f(packet);
            keep_window_from_shrinking(packet);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

    use super::*;

    #[test]
    fn a_smaller_window_has_a_sound_checksum() {
        let (source, destination) = (IpAddress::v4(1, 2, 3, 4), IpAddress::v4(5, 6, 7, 8));
        // Every checksum there can be, the one that overflows included.
        for number in 0..70_000 {
            let repr = TcpRepr {
                src_port: 1,
                dst_port: 2,
                control: TcpControl::None,
                seq_number: TcpSeqNumber(number),
                ack_number: Some(TcpSeqNumber(7)),
                window_len: 1000,
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: b"",
            };
            let mut packet = vec![0x45; IPV4_HEADER + TCP_HEADER];
            let mut segment = TcpPacket::new_unchecked(&mut packet[IPV4_HEADER..]);
            let checksums = ChecksumCapabilities::default();
            repr.emit(&mut segment, &source, &destination, &checksums);
            keep_window_from_shrinking(&mut packet);
            let segment = TcpPacket::new_checked(&packet[IPV4_HEADER..]).unwrap();
            assert_eq!(segment.window_len(), 999);
            assert!(segment.verify_checksum(&source, &destination), "{number}");
        }
    }
}
