//! What lies between the network loop and whoever resolves names.

use std::fmt;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};

/// Names one question of one loop; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsToken(pub u64);

/// How the guest asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsTransport {
    /// Answers may have to be truncated.
    Udp,
    /// Answers up to 65,535 bytes.
    Tcp,
}

/// A question that the front end has checked: one question, class IN, an ordinary type, a name
/// that the policy allows.
#[derive(Debug)]
pub struct DnsQuery {
    /// Names the question in [`crate::NetHandle::dns_reply`].
    pub token: DnsToken,
    /// As the guest wrote it.
    pub name: Name,
    /// Asked type.
    pub record_type: RecordType,
    /// How the guest asked.
    pub transport: DnsTransport,
    /// The guest wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
    /// The guest checks signatures itself (RFC 4035 §3.2.2).
    pub checking_disabled: bool,
    /// Brings the answer back.
    pub replier: DnsReplier,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsReply {
    /// NOERROR, NXDOMAIN, SERVFAIL, REFUSED…
    pub rcode: ResponseCode,
    /// The answer section, CNAMEs included.
    pub answers: Vec<Record>,
    /// The authority section: the SOA that lets the guest cache a negative answer (RFC 2308).
    pub authorities: Vec<Record>,
    /// The resolver has verified the signatures.
    pub authentic_data: bool,
}

impl DnsReply {
    /// An answer without records.
    pub fn code(rcode: ResponseCode) -> Self {
        Self {
            rcode,
            answers: Vec::new(),
            authorities: Vec::new(),
            authentic_data: false,
        }
    }

    /// A positive answer.
    pub fn answer(answers: Vec<Record>) -> Self {
        Self {
            answers,
            ..Self::code(ResponseCode::NoError)
        }
    }
}

/// The service takes no more questions now; the guest gets SERVFAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to submit the DNS question: the service is busy or down")]
pub struct DnsBusy;

/// Whoever resolves names.
pub trait DnsService: Send + Sync {
    /// Takes a question. Called on the loop's thread: it must not block.
    fn submit(&self, query: DnsQuery) -> Result<(), DnsBusy>;
}

/// Where answers are taken in.
pub(crate) trait DnsSink: Send + Sync {
    fn deliver(&self, token: DnsToken, reply: DnsReply);
}

/// Answers one question, once. Dropped without an answer, it answers SERVFAIL: a resolver that
/// dies with questions in its queue leaves no guest waiting.
pub struct DnsReplier {
    token: DnsToken,
    sink: Option<Arc<dyn DnsSink>>,
}

impl DnsReplier {
    pub(crate) fn new(token: DnsToken, sink: Arc<dyn DnsSink>) -> Self {
        Self {
            token,
            sink: Some(sink),
        }
    }

    /// Sends the answer.
    pub fn reply(mut self, reply: DnsReply) {
        if let Some(sink) = self.sink.take() {
            sink.deliver(self.token, reply);
        }
    }

    /// Gives up the replier; the answer will come by [`crate::NetHandle::dns_reply`], or the
    /// loop's deadline answers.
    pub fn into_token(mut self) -> DnsToken {
        self.sink = None;
        self.token
    }
}

impl Drop for DnsReplier {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.deliver(self.token, DnsReply::code(ResponseCode::ServFail));
        }
    }
}

impl fmt::Debug for DnsReplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DnsReplier").field(&self.token.0).finish()
    }
}
