//! The virtio-serial ports, found by name. The kernel makes them one by one while the host tells
//! it about them, so a name may be missing yet: kernel events say when to look again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nix::sys::stat::Mode;

use crate::clock;

const CLASS: &str = "/sys/class/virtio-ports";
/// How long the host's device may take to announce its ports.
const ANNOUNCE_TIME: Duration = Duration::from_secs(10);
/// Multicast group of the kernel's own events.
const KERNEL_EVENTS: u32 = 1;

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The VM has no port of this name.
    #[error("failed to find virtio-serial port {0:?}: the VM has none of this name")]
    Missing(String),
    /// It cannot be opened.
    #[error("failed to open virtio-serial port {0:?}: {1}")]
    Open(String, Errno),
    /// The kernel's events cannot be had.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
}

/// Opens the ports of these names, non-blocking, in their order.
pub fn open_all<const N: usize>(names: [&str; N]) -> Result<[OwnedFd; N], PortError> {
    let mut ports: [Option<OwnedFd>; N] = std::array::from_fn(|_| None);
    let mut events = None;
    let until = clock::uptime() + ANNOUNCE_TIME;
    loop {
        scan(names, &mut ports)?;
        if ports.iter().all(Option::is_some) {
            break;
        }
        match &events {
            // Subscribed before the second look, so that no event falls in between.
            None => events = Some(subscribe()?),
            Some(events) => {
                if !wait(events, until)? {
                    break;
                }
            }
        }
    }
    let missing = ports.iter().position(Option::is_none);
    if let Some(index) = missing {
        return Err(PortError::Missing(names[index].to_owned()));
    }
    let mut found = ports.into_iter().flatten();
    // Each of the N slots was seen to be filled above.
    Ok(std::array::from_fn(|_| {
        found.next().expect("every slot is filled")
    }))
}

fn scan<const N: usize>(
    names: [&str; N],
    ports: &mut [Option<OwnedFd>; N],
) -> Result<(), PortError> {
    let Ok(entries) = std::fs::read_dir(CLASS) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        // A console has no name, and neither has a port that is just being made.
        let Ok(name) = std::fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        let Some(index) = names.iter().position(|n| *n == name.trim_end()) else {
            continue;
        };
        if ports[index].is_some() {
            continue;
        }
        let device = std::path::Path::new("/dev").join(entry.file_name());
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let port = open(&device, flags, Mode::empty())
            .map_err(|errno| PortError::Open(names[index].to_owned(), errno))?;
        ports[index] = Some(port);
    }
    Ok(())
}

fn subscribe() -> Result<OwnedFd, PortError> {
    let failed = |errno| PortError::System("listen to kernel events", errno);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .map_err(failed)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS)).map_err(failed)?;
    Ok(socket)
}

/// Waits for any event; false when the time is over.
fn wait(events: &OwnedFd, until: Duration) -> Result<bool, PortError> {
    let left = until.saturating_sub(clock::uptime());
    if left.is_zero() {
        return Ok(false);
    }
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(PortError::System("wait for kernel events", errno)),
    }
    // What the events say does not matter; an overrun (ENOBUFS) is as good as an event.
    let mut buffer = [0; 2048];
    while recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok() {}
    Ok(true)
}
