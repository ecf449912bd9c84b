//! lo and eth0, and the files in `/etc` that speak of names and addresses.

use std::ffi::CStr;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use iii_proto::guest::GuestNetwork;
use iii_proto::ids::WorkerName;
use nix::errno::Errno;

use super::early::{EarlyError, write_file};
use super::netlink::{self, Batch, NetlinkError};
use crate::sys;

const INTERFACE: &CStr = c"eth0";

/// Why the network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The VM has no network device.
    #[error("failed to find network interface eth0: {0}")]
    NoInterface(Errno),
    /// A request to the kernel failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A switch of the kernel's cannot be set.
    #[error(transparent)]
    Setting(#[from] EarlyError),
    /// The host name cannot be set.
    #[error("failed to set host name {0}: {1}")]
    HostName(String, Errno),
    /// A file cannot be written.
    #[error("failed to write {0:?}: {1}")]
    File(PathBuf, std::io::Error),
}

/// Brings the interfaces up. Call it in the new root. The socket that is returned can be closed
/// whenever there is time for it.
pub fn bring_up(network: Option<&GuestNetwork>) -> Result<OwnedFd, NetworkError> {
    let socket = netlink::open()?;
    let refused = |what| move |errno| NetlinkError::Refused { what, errno };
    // The kernel gives lo its two addresses itself.
    sys::interface::up(&socket, c"lo", libc::IFF_UP).map_err(refused("bring lo up"))?;
    if let Some(network) = network {
        let index = sys::interface::index(&socket, INTERFACE).map_err(NetworkError::NoInterface)?;
        // There is one other end on this wire, the gateway, which takes every frame: nothing is to
        // be resolved, no router to be looked for, and no link-local address to be announced.
        write_file("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1")?;
        sys::interface::set_mtu(&socket, INTERFACE, network.mtu)
            .map_err(refused("set the MTU of eth0"))?;
        let flags = libc::IFF_UP | libc::IFF_MULTICAST | libc::IFF_NOARP;
        sys::interface::up(&socket, INTERFACE, flags).map_err(refused("bring eth0 up"))?;
        let mut batch = Batch::default();
        address(
            &mut batch,
            "set the IPv4 address",
            index,
            network.ipv4.into(),
            network.ipv4_prefix,
        );
        address(
            &mut batch,
            "set the IPv6 address",
            index,
            network.ipv6.into(),
            network.ipv6_prefix,
        );
        for (route, gateway) in [
            ("set the IPv4 route", IpAddr::from(network.ipv4_gateway)),
            ("set the IPv6 route", IpAddr::from(network.ipv6_gateway)),
        ] {
            default_route(&mut batch, route, index, gateway);
        }
        batch.execute(&socket)?;
    }
    // The workload's user may bind any port of its own VM, and ping.
    write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    Ok(socket)
}

const CREATE: u16 = libc::NLM_F_CREATE as u16 | libc::NLM_F_REPLACE as u16;

fn family(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

fn address(batch: &mut Batch, what: &'static str, index: u32, address: IpAddr, prefix: u8) {
    let (family, octets) = family(address);
    let mut fixed = vec![family, prefix, 0, libc::RT_SCOPE_UNIVERSE];
    fixed.extend(index.to_ne_bytes());
    // Nobody else is on this wire: without duplicate address detection it is usable at once.
    let flags = (libc::IFA_F_PERMANENT | libc::IFA_F_NODAD).to_ne_bytes();
    batch.add(
        what,
        libc::RTM_NEWADDR,
        CREATE,
        &fixed,
        &[
            (libc::IFA_LOCAL, &octets),
            (libc::IFA_ADDRESS, &octets),
            (libc::IFA_FLAGS, &flags),
        ],
    );
}

fn default_route(batch: &mut Batch, what: &'static str, index: u32, gateway: IpAddr) {
    let (family, octets) = family(gateway);
    let mut fixed = vec![
        family,
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    fixed.extend([0; 4]);
    batch.add(
        what,
        libc::RTM_NEWROUTE,
        CREATE,
        &fixed,
        &[
            (libc::RTA_GATEWAY, &octets),
            (libc::RTA_OIF, &index.to_ne_bytes()),
        ],
    );
}

/// Sets the host name, and writes hostname, hosts and resolv.conf into this `/etc`.
pub fn write_names(
    etc: &Path,
    name: &WorkerName,
    network: Option<&GuestNetwork>,
) -> Result<(), NetworkError> {
    nix::unistd::sethostname(name.as_str())
        .map_err(|errno| NetworkError::HostName(name.to_string(), errno))?;
    replace(&etc.join("hostname"), &format!("{name}\n"))?;
    replace(&etc.join("hosts"), &hosts(name, network))?;
    replace(
        &etc.join("resolv.conf"),
        &network.map_or(String::new(), resolver),
    )
}

/// Writes a new file in place of whatever has the name, which may be a symlink that leads nowhere.
fn replace(path: &Path, content: &str) -> Result<(), NetworkError> {
    let failed = |error| NetworkError::File(path.to_owned(), error);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    fs::write(path, content).map_err(failed)
}

fn hosts(name: &WorkerName, network: Option<&GuestNetwork>) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    // Writing to a String cannot fail.
    match network {
        Some(network) => {
            write!(text, "{} {name}\n{} {name}\n", network.ipv4, network.ipv6).unwrap_or(());
            for (host, address) in &network.hosts {
                writeln!(text, "{address} {host}").unwrap_or(());
            }
        }
        None => writeln!(text, "127.0.1.1 {name}").unwrap_or(()),
    }
    text
}

/// Without a network the file is empty: a resolver then asks this machine, where nobody listens,
/// and fails at once. The gateway answers every query, its failures included; a lost one is asked again early.
fn resolver(network: &GuestNetwork) -> String {
    format!(
        "nameserver {}\noptions timeout:2 attempts:3\n",
        network.ipv4_gateway
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_localhost_the_guest_and_what_the_spec_adds() {
        let name = WorkerName::new("api").unwrap();
        assert_eq!(
            hosts(&name, None),
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 api\n"
        );
        let network = GuestNetwork {
            mtu: 1500,
            ipv4: [100, 96, 0, 2].into(),
            ipv4_prefix: 30,
            ipv4_gateway: [100, 96, 0, 1].into(),
            ipv6: "fd00::2".parse().unwrap(),
            ipv6_prefix: 64,
            ipv6_gateway: "fd00::1".parse().unwrap(),
            hosts: vec![(
                String::from("host.iii.internal"),
                [100, 96, 0, 1].map(u8::from).into(),
            )],
        };
        assert!(
            hosts(&name, Some(&network))
                .ends_with("\n100.96.0.2 api\nfd00::2 api\n100.96.0.1 host.iii.internal\n")
        );
        assert!(resolver(&network).starts_with("nameserver 100.96.0.1\n"));
    }
}
