//! Questions on their way: bounded, each answered once, none for ever.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use super::local::local_answer;
use super::message::{Parsed, Question, parse_query};
use super::service::{DnsQuery, DnsReplier, DnsReply, DnsService, DnsSink, DnsToken, DnsTransport};
use crate::policy::{Pins, Policy, PortRange};
use crate::refusal::Refused;
use crate::stats::LiveStats;
use crate::wire::LinkAddresses;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// A datagram's two ends.
    Udp {
        guest: SocketAddr,
        gateway: SocketAddr,
    },
    /// A TCP connection, by its id.
    Tcp(u64),
}

impl Client {
    fn transport(self) -> DnsTransport {
        match self {
            Self::Udp { .. } => DnsTransport::Udp,
            Self::Tcp(_) => DnsTransport::Tcp,
        }
    }
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// This is the answer.
    Answer(Vec<u8>),
    /// The answer will come.
    Pending,
    /// There will be none.
    Ignored,
}

struct Pending {
    client: Client,
    question: Question,
    /// What an allowed name's addresses are opened for.
    ports: Vec<PortRange>,
}

/// Questions of one guest.
pub(crate) struct DnsFrontend {
    service: Arc<dyn DnsService>,
    sink: Arc<dyn DnsSink>,
    link: LinkAddresses,
    limit: usize,
    patience: Duration,
    next_token: u64,
    pending: HashMap<DnsToken, Pending>,
    /// In the order of their deadlines, since all questions have the same patience. Holds
    /// answered ones too until their time.
    deadlines: VecDeque<(Duration, DnsToken)>,
}

impl DnsFrontend {
    pub(crate) fn new(
        service: Arc<dyn DnsService>,
        sink: Arc<dyn DnsSink>,
        link: LinkAddresses,
        limit: usize,
        patience: Duration,
    ) -> Self {
        Self {
            service,
            sink,
            link,
            limit,
            patience,
            next_token: 0,
            pending: HashMap::new(),
            deadlines: VecDeque::new(),
        }
    }

    /// Takes a message from the guest.
    pub(crate) fn query(
        &mut self,
        policy: &Policy,
        stats: &LiveStats,
        client: Client,
        bytes: &[u8],
        now: Duration,
    ) -> Disposition {
        stats.traffic.dns_queries.add(1);
        let question = match parse_query(bytes) {
            Parsed::Question(question) => question,
            Parsed::Refused(answer) => {
                if stats.refused.dns_malformed.count() {
                    tracing::warn!(
                        bytes = bytes.len(),
                        "the guest sends malformed DNS messages"
                    );
                }
                return Disposition::Answer(answer);
            }
            Parsed::Ignored => {
                stats.refused.dns_malformed.add(1);
                return Disposition::Ignored;
            }
        };
        let text = question.query.name().to_lowercase().to_ascii();
        let text = text.trim_end_matches('.');
        let record_type = question.query.query_type();
        let ports = match policy.allows_name(text) {
            // A closed network resolves nothing; the engine's name is asked for in any other.
            None if policy.mode == crate::policy::PolicyMode::None => None,
            allowed => {
                if let Some(reply) =
                    local_answer(&self.link, question.query.name(), text, record_type)
                {
                    return Disposition::Answer(question.answer(&reply, client.transport()));
                }
                allowed
            }
        };
        let Some(ports) = ports else {
            stats.refused.dns_policy.add(1);
            stats.notices.add(Refused::Name(text.to_owned()));
            return Disposition::Answer(question.code(ResponseCode::Refused));
        };
        if !is_resolvable(record_type) {
            return Disposition::Answer(question.code(ResponseCode::Refused));
        }
        self.submit(stats, client, question, ports, now)
    }

    fn submit(
        &mut self,
        stats: &LiveStats,
        client: Client,
        question: Question,
        ports: Vec<PortRange>,
        now: Duration,
    ) -> Disposition {
        let unavailable = |question: &Question, reason| {
            if stats.refused.dns_unavailable.count() {
                tracing::warn!(reason, "a DNS question is answered SERVFAIL");
            }
            Disposition::Answer(question.code(ResponseCode::ServFail))
        };
        // Answered ones leave `deadlines` only at their time, so it is bounded as well: a service
        // that answers at once lets many more through within the patience.
        if self.pending.len() >= self.limit || self.deadlines.len() >= 64 * self.limit {
            return unavailable(&question, "too many questions are waiting");
        }
        let token = DnsToken(self.next_token);
        self.next_token += 1;
        let query = DnsQuery {
            token,
            name: question.query.name().clone(),
            record_type: question.query.query_type(),
            transport: client.transport(),
            dnssec_ok: question.dnssec_ok(),
            checking_disabled: question.checking_disabled,
            replier: DnsReplier::new(token, Arc::clone(&self.sink)),
        };
        if self.service.submit(query).is_err() {
            return unavailable(&question, "the service is busy or down");
        }
        self.pending.insert(
            token,
            Pending {
                client,
                question,
                ports,
            },
        );
        self.deadlines.push_back((now + self.patience, token));
        stats.traffic.dns_in_flight.set(self.pending.len() as u64);
        Disposition::Pending
    }

    /// Takes the service's answer; `None` for one that came too late or twice.
    pub(crate) fn reply(
        &mut self,
        pins: &mut Pins,
        stats: &LiveStats,
        token: DnsToken,
        reply: &DnsReply,
        now: Duration,
    ) -> Option<(Client, Vec<u8>)> {
        let pending = self.pending.remove(&token)?;
        stats.traffic.dns_in_flight.set(self.pending.len() as u64);
        for record in &reply.answers {
            let address = match &record.data {
                RData::A(address) => IpAddr::V4(address.0),
                RData::AAAA(address) => IpAddr::V6(address.0),
                _ => continue,
            };
            pins.pin(address, &pending.ports, record.ttl, now);
        }
        let answer = pending.question.answer(reply, pending.client.transport());
        Some((pending.client, answer))
    }

    /// Answers one question whose time is up.
    pub(crate) fn expire(&mut self, stats: &LiveStats, now: Duration) -> Option<(Client, Vec<u8>)> {
        while let Some((deadline, token)) = self.deadlines.front().copied() {
            let waiting = self.pending.contains_key(&token);
            if waiting && now < deadline {
                return None;
            }
            self.deadlines.pop_front();
            if let Some(pending) = self.pending.remove(&token) {
                stats.refused.dns_unavailable.add(1);
                stats.traffic.dns_in_flight.set(self.pending.len() as u64);
                return Some((
                    pending.client,
                    pending.question.code(ResponseCode::ServFail),
                ));
            }
        }
        None
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Gives back what is not in use.
    pub(crate) fn release(&mut self) {
        self.pending.shrink_to_fit();
        self.deadlines.shrink_to_fit();
    }

    /// The guest that asked is gone.
    pub(crate) fn clear(&mut self, stats: &LiveStats) {
        self.pending.clear();
        self.deadlines.clear();
        stats.traffic.dns_in_flight.set(0);
    }
}

/// Whether a resolver can be asked for this type: not for transfers, "anything" (RFC 8482) or
/// what is no record at all.
fn is_resolvable(record_type: RecordType) -> bool {
    match record_type {
        RecordType::ANY
        | RecordType::AXFR
        | RecordType::IXFR
        | RecordType::OPT
        | RecordType::TSIG
        | RecordType::ZERO
        // MAILB, MAILA, TKEY.
        | RecordType::Unknown(249 | 253 | 254) => false,
        _ => true,
    }
}
