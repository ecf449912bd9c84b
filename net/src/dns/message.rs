//! DNS messages on the wire (RFC 1035, RFC 6891).

use hickory_proto::op::{
    DEFAULT_MAX_PAYLOAD_LEN, Edns, Message, MessageType, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::DNSClass;

use super::service::{DnsReply, DnsTransport};

const HEADER: usize = 12;
/// What any client takes over UDP (RFC 1035 §4.2.1).
const CLASSIC_LIMIT: usize = 512;
/// Offered to clients over UDP.
const OWN_PAYLOAD: u16 = DEFAULT_MAX_PAYLOAD_LEN;

/// One question of a guest's, and what its answer must repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    id: u16,
    recursion_desired: bool,
    /// RFC 4035 §3.2.2.
    pub checking_disabled: bool,
    /// Name, type and class.
    pub query: Query,
    edns: Option<ClientEdns>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClientEdns {
    max_payload: u16,
    dnssec_ok: bool,
}

/// What came of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A question to be answered.
    Question(Question),
    /// No question; this is the answer to it.
    Refused(Vec<u8>),
    /// Nothing that may be answered: too short for an id, or itself an answer (two servers could
    /// keep each other busy for ever).
    Ignored,
}

/// Reads a message.
pub fn parse_query(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return match bytes {
            [high, low, rest @ ..] if rest.first().is_none_or(|flags| flags & 0x80 == 0) => {
                Parsed::Refused(bare_answer([*high, *low], 0, ResponseCode::FormErr))
            }
            _ => Parsed::Ignored,
        };
    };
    let id = [header[0], header[1]];
    // Opcode and "recursion desired" are repeated.
    let flags = header[2] & 0x79;
    if header[2] & 0x80 != 0 {
        return Parsed::Ignored;
    }
    if header[2] & 0x78 != 0 {
        return Parsed::Refused(bare_answer(id, flags, ResponseCode::NotImp));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // Checked before the counts are believed. A query has one question, no answers, and at most
    // EDNS and a signature as additions.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
        return Parsed::Refused(bare_answer(id, flags, ResponseCode::FormErr));
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Parsed::Refused(bare_answer(id, flags, ResponseCode::FormErr));
    };
    let [query] = message.queries.as_slice() else {
        return Parsed::Refused(bare_answer(id, flags, ResponseCode::FormErr));
    };
    let question = Question {
        id: message.metadata.id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        query: query.clone(),
        edns: message.edns.as_ref().map(|edns| ClientEdns {
            max_payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
    };
    if message.edns.is_some_and(|edns| edns.version() > 0) {
        return Parsed::Refused(question.code(ResponseCode::BADVERS));
    }
    if question.query.query_class() != DNSClass::IN {
        return Parsed::Refused(question.code(ResponseCode::Refused));
    }
    Parsed::Question(question)
}

/// An answer that consists of a header.
fn bare_answer(id: [u8; 2], flags: u8, code: ResponseCode) -> Vec<u8> {
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&id);
    answer[2] = 0x80 | flags;
    // "Recursion available".
    answer[3] = 0x80 | code.low();
    answer
}

impl Question {
    /// The client asked for DNSSEC records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// An answer without records, small enough for any transport.
    pub(crate) fn code(&self, code: ResponseCode) -> Vec<u8> {
        self.answer(&DnsReply::code(code), DnsTransport::Tcp)
    }

    /// The answer on the wire. Over UDP, one that is too long for the client is cut to its
    /// question with the TC bit, and the client asks again over TCP.
    pub(crate) fn answer(&self, reply: &DnsReply, transport: DnsTransport) -> Vec<u8> {
        let limit = match transport {
            DnsTransport::Tcp => usize::from(u16::MAX),
            DnsTransport::Udp => self.edns.map_or(CLASSIC_LIMIT, |edns| {
                usize::from(edns.max_payload.min(OWN_PAYLOAD)).max(CLASSIC_LIMIT)
            }),
        };
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = reply.authentic_data && self.dnssec_ok();
        message.metadata.response_code = reply.rcode;
        message.add_query(self.query.clone());
        message.answers = reply.answers.clone();
        message.authorities = reply.authorities.clone();
        if let Some(client) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OWN_PAYLOAD)
                .set_dnssec_ok(client.dnssec_ok)
                .set_rcode_high(reply.rcode.high());
            message.set_edns(edns);
        }
        let fitting = |message: &Message| {
            message
                .to_vec()
                .ok()
                .filter(|bytes| bytes.len() <= limit && !is_truncated(bytes))
        };
        if let Some(bytes) = fitting(&message) {
            return bytes;
        }
        match transport {
            DnsTransport::Udp => message.truncate().to_vec().ok(),
            // Nothing is longer than TCP takes; the encoder refused the records.
            DnsTransport::Tcp => None,
        }
        .unwrap_or_else(|| {
            let flags = u8::from(self.recursion_desired);
            bare_answer(self.id.to_be_bytes(), flags, ResponseCode::ServFail)
        })
    }
}

/// Whether the encoder has left records out.
fn is_truncated(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    fn query(name: &str, record_type: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
        message
    }

    fn question(message: &Message) -> Question {
        match parse_query(&message.to_vec().unwrap()) {
            Parsed::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(bytes: &[u8]) -> Message {
        match parse_query(bytes) {
            Parsed::Refused(answer) => Message::from_vec(&answer).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn addresses(count: u8) -> DnsReply {
        DnsReply::answer(
            (0..count)
                .map(|last| {
                    Record::from_rdata(
                        Name::from_ascii("example.com.").unwrap(),
                        60,
                        RData::A(A::new(192, 0, 2, last)),
                    )
                })
                .collect(),
        )
    }

    #[test]
    fn golden_query() {
        let bytes = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";
        let Parsed::Question(question) = parse_query(bytes) else {
            panic!("no question");
        };
        assert_eq!(question.query.name().to_ascii(), "example.com.");
        assert_eq!(question.query.query_type(), RecordType::A);
        let answer = question.answer(&DnsReply::code(ResponseCode::NXDomain), DnsTransport::Udp);
        assert_eq!(
            answer,
            b"\x12\x34\x81\x83\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"
        );
    }

    #[test]
    fn what_is_no_question_gets_its_code() {
        let good = query("example.com.", RecordType::A).to_vec().unwrap();
        let code = |bytes: &[u8]| refusal(bytes).metadata.response_code;
        assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
        assert_eq!(code(&good[..5]), ResponseCode::FormErr);
        assert_eq!(code(&good[..2]), ResponseCode::FormErr);
        assert_eq!(parse_query(&good[..1]), Parsed::Ignored);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut none = good.clone();
        none[5] = 0;
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut update = good.clone();
        update[2] |= 5 << 3;
        let refused = refusal(&update);
        assert_eq!(refused.metadata.response_code, ResponseCode::NotImp);
        assert_eq!(refused.metadata.id, 0x1234);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(parse_query(&answer), Parsed::Ignored);
        let mut chaos = query("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos.to_vec().unwrap()), ResponseCode::Refused);
        let mut version = query("example.com.", RecordType::A);
        version.set_edns(Edns::new());
        version.edns.as_mut().unwrap().set_version(1);
        // 16 is BADSIG in a signature and BADVERS here (RFC 6895 §2.3).
        let refused = code(&version.to_vec().unwrap());
        assert_eq!(u16::from(refused), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn long_answers_are_truncated_over_udp_only() {
        let plain = question(&query("example.com.", RecordType::A));
        let short = Message::from_vec(&plain.answer(&addresses(20), DnsTransport::Udp)).unwrap();
        assert!(!short.metadata.truncation);
        assert_eq!(short.answers.len(), 20);
        let long = plain.answer(&addresses(60), DnsTransport::Udp);
        assert!(long.len() <= 512);
        let long = Message::from_vec(&long).unwrap();
        assert!(long.metadata.truncation);
        assert_eq!(long.queries.len(), 1);
        let tcp = Message::from_vec(&plain.answer(&addresses(60), DnsTransport::Tcp)).unwrap();
        assert!(!tcp.metadata.truncation);
        assert_eq!(tcp.answers.len(), 60);

        let mut with_edns = query("example.com.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        with_edns.set_edns(edns);
        let with_edns = question(&with_edns);
        let roomy = with_edns.answer(&addresses(60), DnsTransport::Udp);
        assert!(roomy.len() > 512);
        let roomy = Message::from_vec(&roomy).unwrap();
        assert!(!roomy.metadata.truncation);
        assert!(roomy.edns.is_some());
        assert!(with_edns.answer(&addresses(200), DnsTransport::Udp).len() <= 1232);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Parsed::Question(question) = parse_query(&bytes) {
                question.answer(&addresses(3), DnsTransport::Udp);
            }
        }

        #[test]
        fn mutated_queries_never_panic(
            position in 0usize..40,
            value: u8,
            cut in 0usize..60,
        ) {
            let mut bytes = query("a.example.com.", RecordType::A).to_vec().unwrap();
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.truncate(cut.max(1));
            match parse_query(&bytes) {
                Parsed::Question(question) => {
                    question.answer(&addresses(3), DnsTransport::Udp);
                }
                Parsed::Refused(answer) => prop_assert!(answer.len() >= HEADER),
                Parsed::Ignored => prop_assert!(bytes.len() < 2 || bytes[2] & 0x80 != 0),
            }
        }
    }
}
