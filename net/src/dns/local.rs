//! Names that the gateway knows itself.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::service::DnsReply;
use crate::config::{GATEWAY_NAME, HOST_NAME};
use crate::wire::LinkAddresses;

/// The gateway's addresses do not change while the guest runs.
const TTL: u32 = 3600;
/// The zone of the gateway's names. Nothing below it is asked upstream.
const ZONE: &str = "iii.internal";

/// The gateway's own answer to a question, if it has one. `text` is the name in lower case
/// without its final dot.
pub(super) fn local_answer(
    link: &LinkAddresses,
    name: &Name,
    text: &str,
    record_type: RecordType,
) -> Option<DnsReply> {
    // RFC 6761 §6.3.
    let loopback = text == "localhost" || text.ends_with(".localhost");
    let record = |data| DnsReply::answer(vec![Record::from_rdata(name.clone(), TTL, data)]);
    let address = |v4: std::net::Ipv4Addr, v6: std::net::Ipv6Addr| match record_type {
        RecordType::A => record(RData::A(A(v4))),
        RecordType::AAAA => record(RData::AAAA(AAAA(v6))),
        _ => DnsReply::code(ResponseCode::NoError),
    };
    if loopback {
        return Some(address(
            std::net::Ipv4Addr::LOCALHOST,
            std::net::Ipv6Addr::LOCALHOST,
        ));
    }
    if text == HOST_NAME || text == GATEWAY_NAME {
        return Some(address(link.gateway_v4, link.gateway_v6));
    }
    if text == ZONE {
        return Some(DnsReply::code(ResponseCode::NoError));
    }
    if text
        .strip_suffix(ZONE)
        .is_some_and(|rest| rest.ends_with('.'))
    {
        return Some(DnsReply::code(ResponseCode::NXDomain));
    }
    let reversed = record_type == RecordType::PTR
        && [IpAddr::V4(link.gateway_v4), IpAddr::V6(link.gateway_v6)]
            .into_iter()
            .any(|address| Name::from(address).to_ascii().trim_end_matches('.') == text);
    if reversed {
        let target = Name::from_ascii(format!("{HOST_NAME}.")).ok()?;
        return Some(record(RData::PTR(PTR(target))));
    }
    None
}
