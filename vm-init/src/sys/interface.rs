//! Network interfaces by name (netdevice(7)). The same can be said in rtnetlink(7), at the price of
//! several times as much code of the kernel's, which a guest runs for the first time.

use std::ffi::{CStr, c_int, c_short};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

/// The interface's number.
pub(crate) fn index(socket: &OwnedFd, name: &CStr) -> nix::Result<u32> {
    let mut request = request(name)?;
    call(socket, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX has filled this member in, and any bits are a number.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| Errno::ENODEV)
}

/// Sets all flags that can be set, IFF_UP among them.
pub(crate) fn up(socket: &OwnedFd, name: &CStr, flags: c_int) -> nix::Result<()> {
    let mut request = request(name)?;
    // The flags that can be set are the lower 16.
    request.ifr_ifru.ifru_flags = flags as c_short;
    call(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Sets the bytes of the largest IP packet.
pub(crate) fn set_mtu(socket: &OwnedFd, name: &CStr, mtu: u32) -> nix::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::try_from(mtu).map_err(|_| Errno::EINVAL)?;
    call(socket, libc::SIOCSIFMTU, &mut request)
}

fn request(name: &CStr) -> nix::Result<libc::ifreq> {
    // SAFETY: an ifreq is numbers and arrays of them, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = name.to_bytes_with_nul();
    if name.len() > request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as _;
    }
    Ok(request)
}

fn call(socket: &OwnedFd, number: libc::c_ulong, request: &mut libc::ifreq) -> nix::Result<()> {
    // SAFETY: each `number` of this module reads an ifreq and writes at most one, which `request`
    // is, for the length of the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw mut *request) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::netlink;

    #[test]
    fn lo_is_the_first_and_a_missing_one_is_an_error() {
        let socket = netlink::open().unwrap();
        assert_eq!(index(&socket, c"lo"), Ok(1));
        assert_eq!(index(&socket, c"none0"), Err(Errno::ENODEV));
        assert_eq!(
            index(&socket, c"a-name-that-is-too-long"),
            Err(Errno::ENODEV)
        );
    }
}
