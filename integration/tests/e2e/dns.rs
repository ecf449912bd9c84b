//! Names as the guest resolves them, against a real server on the host's loopback.

use iii_actors::spec::WorkerSpec;
use iii_integration::Bench;
use iii_integration::agent::{Agent, AgentHost};
use iii_integration::upstream::Upstream;
use iii_net::config::{GATEWAY_IPV4, GATEWAY_IPV6};
use iii_supervisor::{ActorKind, EventKind, Fault};
use serde_json::{Value, json};

/// DNS by hand (RFC 1035), so that the guest's own resolver hides nothing.
const CLIENT: &str = r#"
import os, socket, struct

TYPES = {"A": 1, "CNAME": 5, "PTR": 12, "TXT": 16, "AAAA": 28}
NAMES = {number: name for name, number in TYPES.items()}
GATEWAY = "GATEWAY_ADDRESS"

def encode(name):
    labels = [label.encode() for label in name.strip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"

def query(name, kind, edns=None):
    extra = b""
    if edns:
        extra = b"\0" + struct.pack(">HHIH", 41, edns, 0, 0)
    header = struct.pack(">HHHHHH", 0x6969, 0x0100, 1, 0, 0, 1 if edns else 0)
    return header + encode(name) + struct.pack(">HH", TYPES[kind], 1) + extra

def read_name(message, at):
    labels, behind = [], None
    while message[at]:
        if message[at] >= 0xC0:
            behind = behind or at + 2
            at = struct.unpack_from(">H", message, at)[0] & 0x3FFF
            continue
        labels.append(message[at + 1:at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels), behind or at + 1

def texts(data):
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 1:at + 1 + data[at]].decode())
        at += 1 + data[at]
    return "".join(found)

def read(message):
    number, flags, questions, answers = struct.unpack_from(">HHHH", message)
    assert number == 0x6969 and flags & 0x8000, message
    at, records = 12, []
    for _ in range(questions):
        at = read_name(message, at)[1] + 4
    for _ in range(answers):
        name, at = read_name(message, at)
        kind, _, _, length = struct.unpack_from(">HHIH", message, at)
        at += 10
        data = message[at:at + length]
        kind = NAMES.get(kind, kind)
        value = {
            "A": lambda: socket.inet_ntop(socket.AF_INET, data),
            "AAAA": lambda: socket.inet_ntop(socket.AF_INET6, data),
            "CNAME": lambda: read_name(message, at)[0],
            "PTR": lambda: read_name(message, at)[0],
            "TXT": lambda: texts(data),
        }.get(kind, data.hex)()
        records.append([name, kind, value])
        at += length
    return {"rcode": flags & 15, "truncated": bool(flags & 0x0200), "answers": records}

def exchange_udp(message):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(240)
        peer.connect((GATEWAY, 53))
        peer.send(message)
        return read(peer.recv(65535))

def exchange_tcp(*messages):
    with socket.create_connection((GATEWAY, 53), timeout=240) as peer:
        stream = peer.makefile("rwb")
        for message in messages:
            stream.write(struct.pack(">H", len(message)) + message)
        stream.flush()
        return [read(stream.read(struct.unpack(">H", stream.read(2))[0])) for _ in messages]

def udp(name, kind, edns=None):
    return exchange_udp(query(name, kind, edns))

def tcp(name, kind):
    return exchange_tcp(query(name, kind))[0]
"#;

const NOERROR: u64 = 0;
const FORMERR: u64 = 1;
const SERVFAIL: u64 = 2;
const NXDOMAIN: u64 = 3;
const NOTIMP: u64 = 4;
const REFUSED: u64 = 5;

/// What the server knows, in dnsmasq's words.
fn records() -> String {
    let mut records = "local=/lab.example/\nlocal-ttl=3600\n\
        host-record=www.lab.example,192.0.2.1,2001:db8::1\n\
        host-record=four.lab.example,192.0.2.4\n\
        host-record=late.lab.example,192.0.2.5\n\
        host-record=again.lab.example,192.0.2.6\n\
        cname=alias.lab.example,www.lab.example\n\
        cname=chain.lab.example,alias.lab.example\n"
        .to_owned();
    // Together more than the 1232 bytes that anybody takes over UDP.
    for number in 0..LONG_RECORDS {
        records += &format!("txt-record=long.lab.example,{}\n", long_text(number));
    }
    records
}

const LONG_RECORDS: usize = 12;

fn long_text(number: usize) -> String {
    format!("{number:03}").repeat(66)
}

struct Scene {
    bench: Bench,
    agent: Agent,
    upstream: Upstream,
}

impl Scene {
    async fn open(name: &str, adjust: impl FnOnce(&mut WorkerSpec)) -> Self {
        let upstream = Upstream::start(&records()).await;
        let agents = AgentHost::bind().await;
        let mut spec = agents.spec(name);
        spec.network.dns = vec![upstream.address];
        adjust(&mut spec);
        let mut bench = Bench::start(vec![spec]).await;
        let mut agent = agents.accept(&mut bench).await;
        let client = CLIENT.replace("GATEWAY_ADDRESS", &GATEWAY_IPV4.to_string());
        agent.run(&client).await;
        Self {
            bench,
            agent,
            upstream,
        }
    }

    /// What an exchange brought.
    async fn ask(&mut self, call: &str) -> Value {
        self.agent.run(&format!("result = {call}")).await
    }

    /// The answer's code, and its answers in their order.
    async fn expect(&mut self, call: &str, rcode: u64, answers: Value) {
        let answer = self.ask(call).await;
        assert_eq!(answer["rcode"], rcode, "{call}: {answer}");
        assert_eq!(answer["answers"], answers, "{call}");
        assert_eq!(answer["truncated"], false, "{call}");
    }

    async fn expect_code(&mut self, call: &str, rcode: u64) {
        self.expect(call, rcode, json!([])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_upstream_reach_the_guest() {
    let mut scene = Scene::open("asker", |_| {}).await;
    let four = |name: &str| json!([name, "A", "192.0.2.1"]);
    let www = "www.lab.example";
    for how in ["udp", "tcp"] {
        scene
            .expect(&format!("{how}('{www}', 'A')"), NOERROR, json!([four(www)]))
            .await;
        scene
            .expect(
                &format!("{how}('{www}', 'AAAA')"),
                NOERROR,
                json!([[www, "AAAA", "2001:db8::1"]]),
            )
            .await;
        let alias = "alias.lab.example";
        scene
            .expect(
                &format!("{how}('chain.lab.example', 'A')"),
                NOERROR,
                json!([
                    ["chain.lab.example", "CNAME", alias],
                    [alias, "CNAME", www],
                    four(www)
                ]),
            )
            .await;
        // A name that there is, and no such record of it.
        scene
            .expect_code(&format!("{how}('four.lab.example', 'AAAA')"), NOERROR)
            .await;
        scene
            .expect_code(&format!("{how}('nobody.lab.example', 'A')"), NXDOMAIN)
            .await;
    }

    // Too long for a datagram, to the upstream and to the guest alike.
    for edns in ["None", "1232"] {
        let call = format!("udp('long.lab.example', 'TXT', {edns})");
        let cut = scene.ask(&call).await;
        assert_eq!(cut["truncated"], true, "{call}: {cut}");
        assert_eq!(cut["rcode"], NOERROR, "{call}");
    }
    let whole = scene.ask("tcp('long.lab.example', 'TXT')").await;
    assert_eq!(whole["truncated"], false);
    let mut texts: Vec<&str> = whole["answers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|record| record[2].as_str().expect("a text"))
        .collect();
    texts.sort_unstable();
    let wanted: Vec<String> = (0..LONG_RECORDS).map(long_text).collect();
    assert_eq!(texts, wanted);

    // The guest's own resolver takes the same way.
    let resolved = scene
        .ask("sorted({place[4][0] for place in socket.getaddrinfo('chain.lab.example', 80)})")
        .await;
    assert_eq!(resolved, json!(["192.0.2.1", "2001:db8::1"]));

    // The gateway's own names never leave the host.
    for name in ["host.iii.internal", "gateway.iii.internal"] {
        scene
            .expect(
                &format!("udp('{name}', 'A')"),
                NOERROR,
                json!([[name, "A", GATEWAY_IPV4.to_string()]]),
            )
            .await;
        scene
            .expect(
                &format!("udp('{name}', 'AAAA')"),
                NOERROR,
                json!([[name, "AAAA", GATEWAY_IPV6.to_string()]]),
            )
            .await;
    }
    scene
        .expect_code("udp('other.iii.internal', 'A')", NXDOMAIN)
        .await;
    scene.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_question_is_answered_with_its_fault() {
    let mut scene = Scene::open("mumbler", |spec| {
        spec.network.mode = iii_actors::spec::NetworkMode::Engine;
        spec.network.allow.push("www.lab.example:80".into());
    })
    .await;
    let good = "query('www.lab.example', 'A')";
    let cases = [
        // Cut short; its name runs over the end; a label of the reserved kind; a pointer to
        // itself; two questions; none; an answer in a question.
        (format!("{good}[:-1]"), FORMERR),
        (format!("{good}[:20]"), FORMERR),
        (format!("{good}[:5]"), FORMERR),
        (format!("{good}[:12] + b'\\x80' + {good}[13:]"), FORMERR),
        (format!("{good}[:12] + b'\\xc0\\x0c\\0\\1\\0\\1'"), FORMERR),
        (format!("{good}[:5] + b'\\2' + {good}[6:]"), FORMERR),
        (format!("{good}[:5] + b'\\0' + {good}[6:]"), FORMERR),
        (format!("{good}[:7] + b'\\1' + {good}[8:]"), FORMERR),
        // An update, a zone transfer, another class, and a name outside the policy.
        (format!("{good}[:2] + b'\\x28' + {good}[3:]"), NOTIMP),
        (format!("{good}[:-3] + b'\\xfc\\0\\1'"), REFUSED),
        (format!("{good}[:-1] + b'\\3'"), REFUSED),
        ("query('four.lab.example', 'A')".into(), REFUSED),
    ];
    for (message, rcode) in &cases {
        for call in [
            format!("exchange_udp({message})"),
            format!("exchange_tcp({message})[0]"),
        ] {
            scene.expect_code(&call, *rcode).await;
        }
    }
    // What follows a bad question on its connection is still answered.
    let both = scene
        .ask(&format!("exchange_tcp({good}[:-1], {good})"))
        .await;
    let mut codes: Vec<u64> = both
        .as_array()
        .expect("two answers")
        .iter()
        .filter_map(|answer| answer["rcode"].as_u64())
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, [NOERROR, FORMERR]);
    scene.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_upstream_is_told_and_its_recovery_is_used() {
    let mut scene = Scene::open("patient", |_| {}).await;
    let www = json!([["www.lab.example", "A", "192.0.2.1"]]);
    scene
        .expect("udp('www.lab.example', 'A')", NOERROR, www.clone())
        .await;

    // It takes questions and never answers.
    scene.upstream.freeze();
    for how in ["udp", "tcp"] {
        scene
            .expect_code(&format!("{how}('late.lab.example', 'A')"), SERVFAIL)
            .await;
    }
    // What is known is still answered, and so is what the gateway knows itself.
    scene
        .expect("udp('www.lab.example', 'A')", NOERROR, www.clone())
        .await;
    scene
        .expect(
            "udp('host.iii.internal', 'A')",
            NOERROR,
            json!([["host.iii.internal", "A", GATEWAY_IPV4.to_string()]]),
        )
        .await;
    scene.upstream.thaw();
    scene
        .expect(
            "udp('late.lab.example', 'A')",
            NOERROR,
            json!([["late.lab.example", "A", "192.0.2.5"]]),
        )
        .await;

    // Its port is closed.
    scene.upstream.kill().await;
    for how in ["udp", "tcp"] {
        scene
            .expect_code(&format!("{how}('again.lab.example', 'A')"), SERVFAIL)
            .await;
    }
    scene.upstream.restart().await;
    scene
        .expect(
            "udp('again.lab.example', 'A')",
            NOERROR,
            json!([["again.lab.example", "A", "192.0.2.6"]]),
        )
        .await;

    // The actor that asks it panics.
    let boot = scene.agent.boot.clone();
    let mark = scene.bench.mark();
    scene
        .bench
        .hurt("patient", Fault::PanicActor(ActorKind::Dns))
        .await;
    let restarted = |event: &iii_supervisor::Event| match &event.kind {
        EventKind::ActorRestarted { actor, .. } => Some(*actor),
        _ => None,
    };
    let (actor, _) = scene
        .bench
        .event(mark, "restart of the resolver", restarted)
        .await;
    assert_eq!(actor, ActorKind::Dns);
    // The same connection of the same boot: nothing else was touched.
    scene
        .expect("udp('www.lab.example', 'A')", NOERROR, www)
        .await;
    assert_eq!(
        scene.ask("os.environ['III_BOOT_ID']").await,
        Value::from(boot)
    );
    scene.bench.stop().await;
}
