//! The gateway's DNS.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iii_net::config::{GATEWAY_IPV4, GATEWAY_IPV6, HOST_NAME};
use iii_net::hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use iii_net::hickory_proto::rr::rdata::A;
use iii_net::hickory_proto::rr::{Name, RData, Record, RecordType};
use iii_net::{DnsBusy, DnsQuery, DnsReply, DnsService, NetworkConfig, Policy, PolicyMode};
use smoltcp::iface::SocketHandle;

use crate::guest::{Scripted, World, gateway, gateway_v6, no_dns};
use crate::policy::is_denied;

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x4321, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

fn addresses(name: &Name, count: u8) -> Vec<Record> {
    (0..count)
        .map(|last| Record::from_rdata(name.clone(), 60, RData::A(A::new(10, 7, 0, last))))
        .collect()
}

/// Answers by the first label: a number is so many addresses, others are what they say.
fn scripted() -> Arc<dyn DnsService> {
    Arc::new(Scripted(|query: DnsQuery| {
        let name = query.name.to_ascii();
        let reply = match name.split('.').next().unwrap() {
            "nx" => DnsReply::code(ResponseCode::NXDomain),
            "busy" => return Err(DnsBusy),
            "dropped" => {
                drop(query);
                return Ok(());
            }
            count => DnsReply::answer(addresses(&query.name, count.parse().unwrap())),
        };
        query.replier.reply(reply);
        Ok(())
    }))
}

fn ask_udp(world: &mut World, socket: SocketHandle, message: &Message) -> Message {
    let reply = world
        .guest
        .ask(socket, gateway(53), &message.to_vec().unwrap());
    Message::from_vec(&reply).unwrap()
}

fn code(world: &mut World, socket: SocketHandle, name: &str) -> ResponseCode {
    let reply = ask_udp(world, socket, &query(name, RecordType::A));
    assert_eq!(reply.metadata.id, 0x4321);
    assert_eq!(reply.queries.len(), 1);
    reply.metadata.response_code
}

#[test]
fn every_question_has_an_answer() {
    let mut world = World::with_dns(NetworkConfig::default(), scripted());
    let socket = world.guest.udp_socket();
    let reply = ask_udp(&mut world, socket, &query("3.example.com.", RecordType::A));
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers.len(), 3);
    assert_eq!(
        code(&mut world, socket, "nx.example.com."),
        ResponseCode::NXDomain
    );
    assert_eq!(
        code(&mut world, socket, "busy.example.com."),
        ResponseCode::ServFail
    );
    assert_eq!(
        code(&mut world, socket, "dropped.example.com."),
        ResponseCode::ServFail
    );
    assert_eq!(
        code(&mut world, socket, "x.iii.internal."),
        ResponseCode::NXDomain
    );
    for record_type in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
        let reply = ask_udp(&mut world, socket, &query("3.example.com.", record_type));
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    }
    let reply = world.guest.ask(
        socket,
        gateway_v6(53),
        &query("1.a.", RecordType::A).to_vec().unwrap(),
    );
    assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
}

#[test]
fn the_gateway_knows_its_own_names() {
    let mut world = World::with_dns(NetworkConfig::default(), no_dns());
    let socket = world.guest.udp_socket();
    let name = format!("{HOST_NAME}.");
    let reply = ask_udp(&mut world, socket, &query(&name, RecordType::A));
    assert_eq!(reply.answers[0].data, RData::A(A(GATEWAY_IPV4)));
    let reply = ask_udp(
        &mut world,
        socket,
        &query("Host.III.internal.", RecordType::AAAA),
    );
    let RData::AAAA(address) = &reply.answers[0].data else {
        panic!("{reply}");
    };
    assert_eq!(address.0, GATEWAY_IPV6);
    let reply = ask_udp(&mut world, socket, &query(&name, RecordType::MX));
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    let reply = ask_udp(&mut world, socket, &query("localhost.", RecordType::A));
    assert_eq!(reply.answers[0].data, RData::A(A(Ipv4Addr::LOCALHOST)));
    let reverse = Name::from(IpAddr::V4(GATEWAY_IPV4)).to_ascii();
    let reply = ask_udp(&mut world, socket, &query(&reverse, RecordType::PTR));
    assert_eq!(reply.answers.len(), 1);
}

#[test]
fn nonsense_gets_its_code() {
    let mut world = World::with_dns(NetworkConfig::default(), scripted());
    let socket = world.guest.udp_socket();
    let good = query("1.example.com.", RecordType::A).to_vec().unwrap();
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(Spoil, ResponseCode); 4] = [
        (|bytes| bytes.truncate(20), ResponseCode::FormErr),
        (|bytes| bytes[5] = 2, ResponseCode::FormErr),
        (|bytes| bytes[2] |= 4 << 3, ResponseCode::NotImp),
        (|bytes| bytes.truncate(3), ResponseCode::FormErr),
    ];
    for (spoil, expected) in cases {
        let mut bytes = good.clone();
        spoil(&mut bytes);
        let reply = world.guest.ask(socket, gateway(53), &bytes);
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.id, 0x4321);
        assert_eq!(reply.metadata.response_code, expected);
    }
    // An answer is not answered; the next question is.
    let mut answer = good.clone();
    answer[2] |= 0x80;
    world
        .guest
        .udp(socket)
        .send_slice(&answer, gateway(53))
        .unwrap();
    assert_eq!(code(&mut world, socket, "nx.a."), ResponseCode::NXDomain);
    assert_eq!(world.net.stats().refused.dns_malformed, 5);
}

/// Sends questions over one connection, all at once, and reads as many answers.
fn ask_tcp(world: &mut World, questions: &[Vec<u8>]) -> Vec<Message> {
    let connection = world.guest.connect(gateway(53));
    let mut bytes = Vec::new();
    for question in questions {
        bytes.extend((question.len() as u16).to_be_bytes());
        bytes.extend(question);
    }
    // Cut where it hurts.
    let (first, rest) = bytes.split_at(1);
    world.guest.send(connection, first);
    world.guest.send(connection, rest);
    let replies = questions
        .iter()
        .map(|_| {
            let length = world.guest.receive(connection, 2);
            let length = u16::from_be_bytes([length[0], length[1]]);
            let reply = world.guest.receive(connection, usize::from(length));
            Message::from_vec(&reply).unwrap()
        })
        .collect();
    world.guest.tcp(connection).close();
    assert!(world.guest.receive_all(connection).1);
    replies
}

#[test]
fn truncated_over_udp_whole_over_tcp() {
    let mut world = World::with_dns(NetworkConfig::default(), scripted());
    let socket = world.guest.udp_socket();
    let long = query("100.example.com.", RecordType::A);
    let reply = ask_udp(&mut world, socket, &long);
    assert!(reply.metadata.truncation);
    assert!(reply.answers.is_empty());
    let mut roomy = query("50.example.com.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(1200);
    roomy.set_edns(edns);
    let reply = ask_udp(&mut world, socket, &roomy);
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 50);

    let replies = ask_tcp(
        &mut world,
        &[
            long.to_vec().unwrap(),
            query("nx.example.com.", RecordType::A).to_vec().unwrap(),
            vec![1, 2, 0],
            query("1.example.com.", RecordType::A).to_vec().unwrap(),
        ],
    );
    let mut counts: Vec<_> = replies
        .iter()
        .map(|reply| (reply.metadata.response_code.low(), reply.answers.len()))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [(0, 1), (0, 100), (1, 0), (3, 0)]);
    assert!(replies.iter().all(|reply| !reply.metadata.truncation));
}

#[test]
fn many_questions_on_one_connection() {
    let mut world = World::with_dns(NetworkConfig::default(), scripted());
    let questions: Vec<_> = (0..200)
        .map(|number| {
            let mut message = query("5.example.com.", RecordType::A);
            message.metadata.id = number;
            message.to_vec().unwrap()
        })
        .collect();
    let replies = ask_tcp(&mut world, &questions);
    let mut ids: Vec<_> = replies.iter().map(|reply| reply.metadata.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
}

#[test]
fn silence_and_floods_end_in_servfail() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeper = Arc::clone(&kept);
    let silent = Arc::new(Scripted(move |query: DnsQuery| {
        keeper.lock().unwrap().push(query);
        Ok(())
    }));
    let config = NetworkConfig {
        max_dns_in_flight: 2,
        dns_deadline: Duration::from_millis(200),
        ..NetworkConfig::default()
    };
    let mut world = World::with_dns(config, silent);
    let socket = world.guest.udp_socket();
    for id in 0..3 {
        let mut message = query("a.b.", RecordType::A);
        message.metadata.id = id;
        world
            .guest
            .udp(socket)
            .send_slice(&message.to_vec().unwrap(), gateway(53))
            .unwrap();
    }
    let mut ids = Vec::new();
    world.guest.run("three answers", |guest| {
        while let Ok((bytes, _)) = guest.udp(socket).recv() {
            let reply = Message::from_vec(bytes).unwrap();
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
            ids.push(reply.metadata.id);
        }
        (ids.len() == 3).then_some(())
    });
    // The one over the cap is not kept waiting.
    assert_eq!(ids, [2, 0, 1]);
    assert_eq!(world.net.stats().refused.dns_unavailable, 3);
    // Answers that come too late find nobody.
    for query in kept.lock().unwrap().drain(..) {
        query.replier.reply(DnsReply::code(ResponseCode::NoError));
    }
    assert_eq!(world.net.stats().traffic.dns_in_flight, 0);
}

#[test]
fn a_reply_by_token() {
    let token = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&token);
    let service = Arc::new(Scripted(move |query: DnsQuery| {
        *slot.lock().unwrap() = Some(query.replier.into_token());
        Ok(())
    }));
    let mut world = World::with_dns(NetworkConfig::default(), service);
    let socket = world.guest.udp_socket();
    let question = query("a.b.", RecordType::A).to_vec().unwrap();
    world
        .guest
        .udp(socket)
        .send_slice(&question, gateway(53))
        .unwrap();
    let token = world
        .guest
        .run("the question", |_| token.lock().unwrap().take());
    world
        .net
        .dns_reply(token, DnsReply::code(ResponseCode::NXDomain));
    let reply = world.guest.run("the answer", |guest| {
        guest
            .udp(socket)
            .recv()
            .ok()
            .map(|(bytes, _)| bytes.to_vec())
    });
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn the_policy_judges_names_and_pins_their_addresses() {
    let config = NetworkConfig {
        policy: Policy {
            mode: PolicyMode::Engine,
            allow: vec!["*.good.example:81".parse().unwrap()],
            ..Policy::default()
        },
        connect_deadline: Duration::from_millis(200),
        ..NetworkConfig::default()
    };
    let mut world = World::with_dns(config, scripted());
    let socket = world.guest.udp_socket();
    assert_eq!(
        code(&mut world, socket, "1.bad.example."),
        ResponseCode::Refused
    );
    assert_eq!(world.net.stats().refused.dns_policy, 1);
    let pinned = "10.7.0.0:81".parse().unwrap();
    assert!(is_denied(&mut world, pinned));
    assert_eq!(
        code(&mut world, socket, "1.good.example."),
        ResponseCode::NoError
    );
    assert!(!is_denied(&mut world, pinned));
}

#[test]
fn a_closed_network_resolves_nothing() {
    let config = NetworkConfig {
        policy: Policy {
            mode: PolicyMode::None,
            ..Policy::default()
        },
        ..NetworkConfig::default()
    };
    let mut world = World::with_dns(config, scripted());
    let socket = world.guest.udp_socket();
    assert_eq!(
        code(&mut world, socket, "1.example.com."),
        ResponseCode::Refused
    );
    assert_eq!(
        code(&mut world, socket, "host.iii.internal."),
        ResponseCode::Refused
    );
}
