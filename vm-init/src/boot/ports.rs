//! The virtio-serial ports. The VMM, which numbers them, names their devices on the kernel's command
//! line ([`iii_proto::PORTS_VARIABLE`]). Without that, or where one is not there yet, they are found
//! by name: the kernel makes them one by one while the host tells it about them, and its events say
//! when to look again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nix::sys::stat::Mode;

use super::early::EarlyError;
use crate::clock;

const CLASS: &str = "/sys/class/virtio-ports";
const FLAGS: OFlag = OFlag::O_RDWR
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_CLOEXEC);
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
    /// The kernel's list of ports cannot be seen.
    #[error(transparent)]
    Early(#[from] EarlyError),
    /// The kernel's events cannot be had.
    #[error("failed to {0}: {1}")]
    System(&'static str, Errno),
}

/// Opens the ports of these names, non-blocking, in their order. `announced` is what the command
/// line says of them.
pub fn open_all<const N: usize>(
    names: [&str; N],
    announced: &str,
) -> Result<[OwnedFd; N], PortError> {
    let mut ports: [Option<OwnedFd>; N] = std::array::from_fn(|index| {
        let device = device_of(names[index], announced)?;
        open(&Path::new("/dev").join(device), FLAGS, Mode::empty()).ok()
    });
    if ports.iter().any(Option::is_none) {
        super::early::mount_sys()?;
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

/// The device of the port `name` in a list of `name:device` with commas between.
fn device_of<'a>(name: &str, announced: &'a str) -> Option<&'a str> {
    let rest = |entry: &'a str| entry.strip_prefix(name)?.strip_prefix(':');
    announced.split(',').find_map(rest)
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
        let device = Path::new("/dev").join(entry.file_name());
        let port = open(&device, FLAGS, Mode::empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_that_of_its_whole_name() {
        let announced = "iii.control:vport0p1,iii.log:vport0p2";
        assert_eq!(device_of("iii.control", announced), Some("vport0p1"));
        assert_eq!(device_of("iii.log", announced), Some("vport0p2"));
        for name in ["iii.lo", "iii.exec", "log", ""] {
            assert_eq!(device_of(name, announced), None, "{name}");
        }
        assert_eq!(device_of("iii.log", ""), None);
    }
}
