//! The way to the engine, and no other.

use std::net::{IpAddr, Ipv4Addr};

use iii_actors::spec::{NetworkMode, WorkerSpec};
use iii_integration::{Bench, worker_name};
use iii_net::config::GATEWAY_IPV4;

use super::policy::{Watched, own_address};

/// Connects to the engine by `III_URL`, then to each `HOST PORT` of its arguments.
const SCRIPT: &str = r#"
import errno, os, signal, socket, sys
from urllib.parse import urlsplit

def attempt(what, host, port):
    try:
        socket.create_connection((host, port), timeout=240).close()
        print(what, "reached", flush=True)
    except OSError as error:
        print(what, errno.errorcode.get(error.errno, error), flush=True)

print("url", os.environ.get("III_URL"), os.environ.get("III_ENGINE_URL"), flush=True)
if "III_URL" in os.environ:
    url = urlsplit(os.environ["III_URL"])
    attempt("engine", url.hostname, url.port)
for pair in sys.argv[1:]:
    host, port = pair.split(" ")
    attempt(pair, host, int(port))
print("end", flush=True)
signal.pause()
"#;

fn spec(name: &str, others: &[String]) -> WorkerSpec {
    let command = ["/usr/bin/python3", "-c", SCRIPT].map(String::from);
    let mut spec = WorkerSpec::new(worker_name(name), [&command[..], others].concat());
    spec.network.mode = NetworkMode::Engine;
    spec
}

async fn said(bench: &mut Bench, worker: &str) -> Vec<String> {
    bench.line(worker, "end").await;
    bench
        .lines
        .iter()
        .filter(|line| line.worker.as_str() == worker)
        .map(|line| String::from_utf8_lossy(&line.text).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_the_engine_at_its_address_and_nothing_else() {
    let engine = Watched::at(Ipv4Addr::new(127, 0, 0, 2));
    let port = engine.port();
    let neighbour = Watched::on(Ipv4Addr::LOCALHOST, port);
    let secret = Watched::at(Ipv4Addr::new(127, 0, 0, 2));
    let others = [
        format!("host.iii.internal {}", secret.port()),
        // The host's loopback is no address of the guest's.
        format!("127.0.0.2 {port}"),
        "1.1.1.1 443".into(),
        "10.0.0.1 80".into(),
        // No other port of the gateway.
        format!("{GATEWAY_IPV4} 80"),
    ];
    let mut near = spec("near", &others);
    near.engine = Some(format!("ws://user:word@127.0.0.2:{port}").parse().unwrap());

    // Without a network of its own the host is no remote engine to itself.
    let outside = own_address();
    let exposed = Watched::at(outside.unwrap_or(Ipv4Addr::LOCALHOST));
    let closed = Watched::at(outside.unwrap_or(Ipv4Addr::LOCALHOST));
    let remote = exposed.address();
    let others_there = [
        format!("{} {}", remote.ip(), closed.port()),
        format!("host.iii.internal {port}"),
    ];
    let mut far = spec("far", &others_there);
    far.engine = Some(format!("ws://{remote}").parse().unwrap());

    let mut none = spec("none", &[]);
    none.network.mode = NetworkMode::None;
    none.engine = near.engine.clone();
    let mut own = spec("own", &[]);
    own.engine = near.engine.clone();
    own.env.push(("III_URL".into(), "ws://mine:1".into()));

    let mut bench = Bench::start(vec![near, far, none, own]).await;
    let url = format!("ws://user:word@host.iii.internal:{port}");
    assert_eq!(
        said(&mut bench, "near").await,
        [
            format!("url {url} {url}"),
            "engine reached".into(),
            format!("{} ECONNREFUSED", others[0]),
            format!("{} ECONNREFUSED", others[1]),
            format!("{} EHOSTUNREACH", others[2]),
            format!("{} EHOSTUNREACH", others[3]),
            format!("{} ECONNREFUSED", others[4]),
            "end".into(),
        ]
    );
    assert!(engine.reached());
    assert!(!neighbour.reached(), "another address of the loopback");
    assert!(!secret.reached());

    let far = said(&mut bench, "far").await;
    if outside.is_some() {
        let url = format!("ws://{remote}");
        assert_eq!(
            far,
            [
                format!("url {url} {url}"),
                "engine reached".into(),
                format!("{} EHOSTUNREACH", others_there[0]),
                format!("{} ECONNREFUSED", others_there[1]),
                "end".into(),
            ]
        );
        assert!(exposed.reached() && !closed.reached());
        assert!(matches!(remote.ip(), IpAddr::V4(_)));
    }
    assert_eq!(said(&mut bench, "none").await, ["url None None", "end"]);
    let own = said(&mut bench, "own").await;
    assert_eq!(own[0], format!("url ws://mine:1 {url}"), "the user's own");
    bench.stop().await;
}
