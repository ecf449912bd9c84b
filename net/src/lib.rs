//! The network of one microVM, without privileges on the host.
//!
//! Ethernet frames come and go on a datagram socket, one frame per datagram. Behind it stands a
//! gateway in user space: smoltcp ends the guest's TCP connections, and their bytes go on through
//! ordinary host sockets; UDP and ICMP echo are translated likewise; DNS questions to the gateway
//! go to a [`DnsService`]. A [`Policy`] says what the guest may reach.
//!
//! One thread per guest with one epoll instance ([`NetLoop`]); no task and no channel per
//! connection. Everything a guest can make the host hold is capped. The logic takes the time as
//! an argument.
//!
//! It depends on no other crate of the workspace. It must never hold actors, an async runtime,
//! name resolution itself (only its wire format), or anything that needs root.

#![deny(unsafe_code)]

pub mod config;
mod datagram;
mod destination;
pub mod dns;
mod driver;
mod error;
mod gateway;
mod handle;
mod link;
pub mod policy;
mod refusal;
mod stats;
mod sys;
mod tcp;
mod watch;
pub mod wire;

pub use config::{NetworkConfig, PublishedPort};
pub use dns::{DnsBusy, DnsQuery, DnsReplier, DnsReply, DnsService, DnsToken, DnsTransport};
pub use driver::{ExitCallback, NetLoop, NetLoopBuilder};
pub use error::NetError;
pub use handle::{Fault, LoopExit, NetHandle};
/// The DNS types in this crate's interface.
pub use hickory_proto;
pub use link::link_pair;
pub use policy::{Policy, PolicyMode, Rule};
pub use refusal::{RefusalCallback, Refused};
pub use stats::{NetStats, Refusals, StatsReader, Traffic};
pub use watch::Progress;
