//! What a scripted VMM's guest says on its network: enough for the loop behind the link to have
//! worked, and to hold what it holds for a guest that has said something and is idle now.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use iii_net::config::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long an answer may take before the measurement has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH: u8 = 8;
const ACK: u8 = 16;
const PORT: u16 = 40_000;
const WINDOW: u16 = 65_000;

/// The guest's end of the link.
pub(crate) struct Guest {
    link: OwnedFd,
}

struct Connection {
    remote: u16,
    sequence: u32,
    acknowledged: u32,
}

impl Guest {
    pub(crate) fn new(link: OwnedFd) -> Result<Self, String> {
        let text = |e: nix::errno::Errno| e.to_string();
        let patience = TimeVal::seconds(PATIENCE.as_secs() as i64);
        setsockopt(&link, sockopt::ReceiveTimeout, &patience).map_err(text)?;
        let flags = nix::fcntl::OFlag::empty();
        nix::fcntl::fcntl(&link, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(text)?;
        Ok(Self { link })
    }

    /// Finds the gateway and pings it.
    pub(crate) fn greet(&self) -> Result<(), String> {
        let mut arp = header([0xff; 6], 0x0806);
        arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(GUEST_MAC);
        arp.extend(GUEST_IPV4.octets());
        arp.extend([0; 6]);
        arp.extend(GATEWAY_IPV4.octets());
        self.send(&arp)?;
        self.receive(|frame| (frame[12..14] == [8, 6]).then_some(()))?;
        self.send(&packet(1, &[8, 0, 0, 0, 0, 7, 0, 1]))?;
        self.receive(|frame| {
            let reply = ip_payload(frame, 1)?;
            (reply.first() == Some(&0) && reply.get(4..8) == Some(&[0, 7, 0, 1])).then_some(())
        })
    }

    /// Opens a connection to a port of the host's and has a word sent back to it.
    pub(crate) fn connect(&self, remote: u16) -> Result<(), String> {
        let mut connection = Connection {
            remote,
            sequence: 1000,
            acknowledged: 0,
        };
        self.send(&connection.segment(SYN, b""))?;
        let (sequence, _, _) = self.segment(remote, SYN | ACK)?;
        connection.sequence += 1;
        connection.acknowledged = sequence.wrapping_add(1);
        self.send(&connection.segment(ACK, b""))?;
        let word = b"hello";
        self.send(&connection.segment(PUSH | ACK, word))?;
        connection.sequence += word.len() as u32;
        while connection
            .acknowledged
            .wrapping_sub(sequence.wrapping_add(1))
            < word.len() as u32
        {
            let (_, _, length) = self.segment(remote, ACK)?;
            connection.acknowledged = connection.acknowledged.wrapping_add(length);
        }
        self.send(&connection.segment(ACK, b""))
    }

    /// Sequence, acknowledgement and data length of the next segment with these flags.
    fn segment(&self, remote: u16, flags: u8) -> Result<(u32, u32, u32), String> {
        let found = self.receive(|frame| {
            let segment = ip_payload(frame, 6)?;
            let head = segment.get(..TCP)?;
            if head[..2] != remote.to_be_bytes() {
                return None;
            }
            let number = |at: usize| {
                u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let length = segment.len() - usize::from(head[12] >> 4) * 4;
            Some((head[13], number(4), number(8), length as u32))
        })?;
        match found {
            (is, ..) if is & (RST | FIN) != 0 => Err("the connection was closed".into()),
            (is, sequence, acknowledged, length) if is & flags == flags => {
                Ok((sequence, acknowledged, length))
            }
            (is, ..) => Err(format!("flags {is:#x} where {flags:#x} were due")),
        }
    }

    fn send(&self, frame: &[u8]) -> Result<(), String> {
        send(self.link.as_raw_fd(), frame, MsgFlags::empty())
            .map(drop)
            .map_err(|e| format!("failed to send a frame: {e}"))
    }

    fn receive<T>(&self, wanted: impl Fn(&[u8]) -> Option<T>) -> Result<T, String> {
        let mut buffer = [0; 2048];
        loop {
            let length = recv(self.link.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|e| format!("the gateway does not answer: {e}"))?;
            if length < ETHERNET {
                continue;
            }
            if let Some(found) = wanted(&buffer[..length]) {
                return Ok(found);
            }
        }
    }
}

impl Connection {
    /// The link changes nothing, so the gateway checks no checksums.
    fn segment(&self, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(PORT.to_be_bytes());
        segment.extend(self.remote.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([((TCP / 4) << 4) as u8, flags]);
        segment.extend(WINDOW.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(data);
        packet(6, &segment)
    }
}

fn header(destination: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend(GUEST_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(GATEWAY_MAC, 0x0800);
    frame.extend([0x45, 0]);
    frame.extend(((IP + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(GUEST_IPV4.octets());
    frame.extend(GATEWAY_IPV4.octets());
    frame.extend(payload);
    frame
}

fn ip_payload(frame: &[u8], protocol: u8) -> Option<&[u8]> {
    let packet = frame.get(ETHERNET..)?;
    let is = frame[12..14] == [8, 0] && packet.get(9) == Some(&protocol);
    let source = packet.get(12..16)?;
    let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    if is && source == GATEWAY_IPV4.octets() {
        packet.get(IP..length)
    } else {
        None
    }
}
