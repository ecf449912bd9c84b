//! The gateway's DNS front end: questions in, answers out, never silence.
//!
//! Resolution is somebody else's: a [`DnsService`] gets the questions, and each comes with a
//! [`DnsReplier`] that brings the answer back.

mod frontend;
mod local;
mod message;
mod service;
mod stream;

pub(crate) use frontend::{Client, Disposition, DnsFrontend};
pub use message::{Parsed, Question, parse_query};
pub(crate) use service::DnsSink;
pub use service::{DnsBusy, DnsQuery, DnsReplier, DnsReply, DnsService, DnsToken, DnsTransport};
pub(crate) use stream::DnsStream;
