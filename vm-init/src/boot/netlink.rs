//! rtnetlink(7) messages, as many as wanted in one send. Own code, since the crates that speak
//! rtnetlink bring an async runtime or a model of the whole protocol; we need five messages, and
//! their cost before the workload's start counts.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused one of the requests.
    #[error("failed to {what}: {errno}")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The socket does not work.
    #[error("failed to {0}: {1}")]
    Socket(&'static str, Errno),
    /// An answer that makes no sense.
    #[error("failed to read the kernel's answer about the network")]
    Malformed,
}

/// A socket to speak to the kernel's network over; it takes the older ioctls too.
pub fn open() -> Result<OwnedFd, NetlinkError> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(|errno| NetlinkError::Socket("open a netlink socket", errno))
}

/// Requests to be sent together; each is acknowledged or refused by itself.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    what: Vec<&'static str>,
}

impl Batch {
    /// Adds a request: its type, flags beside REQUEST and ACK, fixed part and attributes.
    pub fn add(
        &mut self,
        what: &'static str,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) {
        let start = self.bytes.len();
        // Sequence numbers are places in `what`, counted from 1.
        self.what.push(what);
        let sequence = self.what.len() as u32;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes
            .extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        self.pad();
        for (kind, value) in attributes {
            // Attributes here are addresses and numbers, of at most 16 bytes.
            self.bytes.extend((4 + value.len() as u16).to_ne_bytes());
            self.bytes.extend(kind.to_ne_bytes());
            self.bytes.extend(*value);
            self.pad();
        }
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Sends all and waits for all answers; the first refusal is returned.
    pub fn execute(self, socket: &OwnedFd) -> Result<(), NetlinkError> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &self.bytes, &kernel, MsgFlags::empty())
            .map_err(|errno| NetlinkError::Socket("send to the kernel's network", errno))?;
        let mut answered = 0;
        let mut refused = None;
        let mut buffer = [0; 8192];
        while answered < self.what.len() {
            let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| NetlinkError::Socket("hear from the kernel's network", errno))?;
            for answer in answers(&buffer[..count]) {
                let (sequence, errno) = answer?;
                answered += 1;
                let what = self.what.get((sequence as usize).wrapping_sub(1));
                let what = what.ok_or(NetlinkError::Malformed)?;
                if errno != 0 && refused.is_none() {
                    let errno = Errno::from_raw(-errno);
                    refused = Some(NetlinkError::Refused { what, errno });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// The acknowledgements in what one receive returned: sequence number and negative errno, or 0.
pub fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u32, i32), NetlinkError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match answer(bytes) {
            Some((value, length)) => {
                bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                Some(Ok(value))
            }
            None => {
                bytes = &[];
                Some(Err(NetlinkError::Malformed))
            }
        }
    })
}

fn answer(bytes: &[u8]) -> Option<((u32, i32), usize)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let message = bytes.get(..length)?;
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
    let errno = i32::from_ne_bytes(*message.get(HEADER..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then_some(((sequence, errno), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn golden_bytes_of_a_request() {
        let mut batch = Batch::default();
        batch.add("test", 16, 0x400, &[1, 2], &[(4, &[9, 8, 7, 6, 5])]);
        assert_eq!(
            batch.bytes,
            [
                32, 0, 0, 0, 16, 0, 5, 4, 1, 0, 0, 0, 0, 0, 0, 0, // header
                1, 2, 0, 0, // fixed part, padded
                9, 0, 4, 0, 9, 8, 7, 6, 5, 0, 0, 0, // attribute, padded
            ]
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn acknowledgements_and_refusals_are_told_apart() {
        let mut bytes = vec![20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([20, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend((-17i32).to_le_bytes());
        let seen: Vec<_> = answers(&bytes).map(|a| a.unwrap()).collect();
        assert_eq!(seen, [(1, 0), (2, -17)]);
    }

    #[test]
    fn an_unknown_interface_is_refused_by_name_of_the_request() {
        let mut batch = Batch::default();
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&0x7fff_fff0i32.to_ne_bytes());
        batch.add("bring nothing up", libc::RTM_NEWLINK, 0, &fixed, &[]);
        let error = batch.execute(&open().unwrap()).unwrap_err();
        assert!(
            error.to_string().starts_with("failed to bring nothing up"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let count = answers(&bytes).count();
            prop_assert!(count <= 200);
        }
    }
}
