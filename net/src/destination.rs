//! Where a guest's connection leads.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::DNS_PORT;
use crate::gateway::Env;
use crate::policy::{Transport, Verdict};
use crate::tcp::is_own_address;

/// Where a guest's connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To the gateway's DNS.
    Dns,
    /// To the first of these that answers. Not empty.
    Host(Vec<SocketAddr>),
    /// Nowhere: no such port on the gateway.
    Closed,
    /// Nowhere: the policy forbids it.
    Prohibited,
}

/// Judges a destination.
pub(crate) fn resolve(
    env: &Env,
    transport: Transport,
    remote: SocketAddr,
    now: Duration,
) -> Destination {
    let (address, port) = (remote.ip(), remote.port());
    if env.link.is_gateway(address) {
        return if port == DNS_PORT {
            Destination::Dns
        } else {
            let addresses = env.policy.host_addresses(transport, port);
            match &addresses[..] {
                [] => Destination::Closed,
                [..] => Destination::Host(addresses.iter().map(|a| (*a, port).into()).collect()),
            }
        };
    }
    if env.link.is_guest(address) || is_broadcast(env, address) {
        return Destination::Prohibited;
    }
    match env.policy.judge(address, port, &env.pins, now) {
        Verdict::Named => Destination::Host(vec![remote]),
        Verdict::Public if !is_own_address(remote) => Destination::Host(vec![remote]),
        Verdict::Public | Verdict::Denied => Destination::Prohibited,
    }
}

/// The first and last address of the link's own network.
fn is_broadcast(env: &Env, address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let network = env.link.gateway_v4.to_bits() & !0b11;
    [network, network | 0b11].contains(&address.to_bits())
}
