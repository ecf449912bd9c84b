//! TCP: a flow table of our own around smoltcp, which sees one connection at a time.
//!
//! A connection of the guest's begins [`flow::Held`]: its SYN is kept until the host's connect has
//! come to its end. Then, or for a published port at once, it is [`flow::Open`]: smoltcp's socket
//! on the guest's side and a [`relay`] to the host's.

mod budget;
mod flow;
mod host;
mod listener;
mod opening;
mod relay;
mod stack;
mod table;
mod timers;

pub(crate) use host::is_own_address;
pub(crate) use table::{TcpLimits, TcpTable};

use std::net::SocketAddr;

/// A connection, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}
