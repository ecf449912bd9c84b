//! What a guest may reach, and how it is told that it may not.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use iii_actors::spec::NetworkMode;
use iii_integration::Bench;
use iii_integration::agent::{AgentHost, listener, port};
use iii_net::config::{GATEWAY_IPV4, GATEWAY_IPV6};
use iii_supervisor::EventKind;
use nix::ifaddrs::getifaddrs;
use tokio::net::UdpSocket;

use super::SHARED;

/// Ways of the guest outwards.
const ATTEMPTS: &str = r#"
def tcp(address, port):
    return outcome(lambda: dial(port, address).close())

def udp(address, port):
    def exchange():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        peer = socket.socket(family, socket.SOCK_DGRAM)
        peer.settimeout(240)
        peer.connect((address, port))
        peer.send(b"ping")
        return peer.recv(100).decode()
    return outcome(exchange)
"#;

/// An address of this host that is not its loopback.
pub(crate) fn own_address() -> Option<Ipv4Addr> {
    getifaddrs()
        .expect("Linux lists its interfaces")
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .find(|address| !address.is_loopback())
}

/// A listener that nobody may reach.
pub(crate) struct Watched(TcpListener);

impl Watched {
    pub(crate) fn at(address: Ipv4Addr) -> Self {
        Self::on(address, 0)
    }

    pub(crate) fn on(address: Ipv4Addr, port: u16) -> Self {
        let listener = TcpListener::bind((address, port)).expect("the host has a free port");
        listener.set_nonblocking(true).expect("it is a socket");
        Self(listener)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// Whether somebody has come.
    pub(crate) fn reached(&self) -> bool {
        self.0.accept().is_ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_what_its_policy_names_and_is_told_about_the_rest() {
    let agents = AgentHost::bind().await;
    // Its backlog takes connections without an accept.
    let open = listener().await;
    let dead = port(&listener().await);
    let secret = Watched::at(Ipv4Addr::LOCALHOST);
    let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("the host has a free port");
    let echo_port = echo.local_addr().expect("it is bound").port();
    let outside = own_address();
    let exposed = Watched::at(outside.unwrap_or(Ipv4Addr::LOCALHOST));

    let mut spec = agents.spec("curious");
    let named = [port(&open), dead, echo_port];
    spec.network.host_ports.extend(named);
    let mut bench = Bench::start(vec![spec]).await;
    let mut agent = agents.accept(&mut bench).await;
    agent.run(SHARED).await;
    agent.run(ATTEMPTS).await;
    let (open, secret_port, exposed_port) = (port(&open), secret.port(), exposed.port());

    let cases = [
        (format!("tcp(HOST, {open})"), "done"),
        (format!("tcp('{GATEWAY_IPV4}', {open})"), "done"),
        (format!("tcp('{GATEWAY_IPV6}', {open})"), "done"),
        // Named, and nobody listens.
        (format!("tcp(HOST, {dead})"), "ECONNREFUSED"),
        (format!("udp(HOST, {dead})"), "ECONNREFUSED"),
        // Somebody listens, and it is not named.
        (format!("tcp(HOST, {secret_port})"), "ECONNREFUSED"),
        (format!("udp(HOST, {secret_port})"), "ECONNREFUSED"),
        // The host's loopback is no address of the guest's.
        (format!("tcp('127.0.0.1', {open})"), "ECONNREFUSED"),
        // Private networks, cloud metadata, link-local.
        ("tcp('10.0.0.1', 80)".into(), "EHOSTUNREACH"),
        ("tcp('172.16.0.1', 80)".into(), "EHOSTUNREACH"),
        ("tcp('192.168.1.1', 80)".into(), "EHOSTUNREACH"),
        ("tcp('169.254.169.254', 80)".into(), "EHOSTUNREACH"),
        ("tcp('fd00::1', 80)".into(), "EACCES"),
        ("udp('10.0.0.1', 53)".into(), "EHOSTUNREACH"),
        ("udp('169.254.169.254', 53)".into(), "EHOSTUNREACH"),
    ];
    let outside =
        outside.map(|address| (format!("tcp('{address}', {exposed_port})"), "EHOSTUNREACH"));
    for (call, wanted) in cases.iter().chain(&outside) {
        let outcome = agent.text(&format!("result = {call}")).await;
        assert_eq!(&outcome, wanted, "{call}");
    }
    assert!(!secret.reached() && !exposed.reached());
    // Whoever runs it learns what it wanted; once, though it was tried twice.
    agent.text("result = tcp('10.0.0.1', 80)").await;
    for wanted in [
        ("tcp", "10.0.0.1:80".to_owned()),
        ("tcp", "[fd00::1]:80".to_owned()),
        ("udp", "169.254.169.254:53".to_owned()),
        ("tcp", format!("host.iii.internal:{secret_port}")),
    ] {
        let is_it = |kind: &EventKind| {
            matches!(kind, EventKind::NetworkRefused { protocol, destination }
                if (&**protocol, destination) == (wanted.0, &wanted.1))
        };
        bench
            .event(0, "a refusal", |event| is_it(&event.kind).then_some(()))
            .await;
        let times = bench.seen.iter().filter(|event| is_it(&event.kind)).count();
        assert_eq!(times, 1, "{wanted:?}");
    }

    let answering = async {
        let mut word = [0; 100];
        let (length, guest) = echo.recv_from(&mut word).await.expect("it is bound");
        let answer = [&word[..length], b" pong"].concat();
        echo.send_to(&answer, guest).await.expect("it is bound");
    };
    let code = format!("result = udp(HOST, {echo_port})");
    let ((), answer) = tokio::join!(answering, agent.text(&code));
    assert_eq!(answer, "ping pong");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_modes_open_less_or_what_they_name() {
    // Without a network of its own there is nothing to open it to, and the rest still holds.
    let outside = own_address();
    let exposed = Watched::at(outside.unwrap_or(Ipv4Addr::LOCALHOST));
    let agents = AgentHost::bind().await;
    let mut opened = agents.spec("opened");
    opened.network.mode = NetworkMode::Engine;
    if let Some(address) = outside {
        let rule = format!("{address}/32:{}", exposed.port());
        opened.network.allow.push(rule);
    }
    let mut cut_off = agents.spec("cut-off");
    cut_off.network.mode = NetworkMode::None;
    let script = "import socket, sys\n\
        print('interfaces', *[name for _, name in socket.if_nameindex()])\n\
        for address in sys.argv[1:]:\n\
        \x20   try:\n\
        \x20       socket.create_connection((address, 53), timeout=240)\n\
        \x20       print('reached', address)\n\
        \x20   except OSError as error:\n\
        \x20       print('refused', address, error.errno)\n\
        try:\n\
        \x20   print('resolved', socket.getaddrinfo('host.iii.internal.', 80))\n\
        except OSError as error:\n\
        \x20   print('unresolved', error.errno)\n\
        print('end', flush=True)\n\
        import signal; signal.pause()\n";
    let gateway = GATEWAY_IPV4.to_string();
    let command = ["/usr/bin/python3", "-c", script, &gateway, "1.1.1.1"];
    cut_off.command = command.map(String::from).to_vec();
    let mut bench = Bench::start(vec![opened, cut_off]).await;

    bench.line("cut-off", "end").await;
    let said: Vec<String> = bench
        .lines
        .iter()
        .filter(|line| line.worker.as_str() == "cut-off")
        .map(|line| String::from_utf8_lossy(&line.text).into_owned())
        .collect();
    let unreachable = 101;
    let wanted = [
        "interfaces lo".to_owned(),
        format!("refused {gateway} {unreachable}"),
        format!("refused 1.1.1.1 {unreachable}"),
        // EAI_AGAIN: nobody could be asked.
        "unresolved -3".to_owned(),
        "end".to_owned(),
    ];
    assert_eq!(said, wanted);

    let mut agent = agents.accept(&mut bench).await;
    agent.run(SHARED).await;
    agent.run(ATTEMPTS).await;
    let outcome = agent.text("result = tcp('1.1.1.1', 80)").await;
    assert_eq!(outcome, "EHOSTUNREACH", "only the engine and what is named");
    if let Some(address) = outside {
        let call = format!("result = tcp('{address}', {})", exposed.port());
        assert_eq!(agent.text(&call).await, "done");
        assert!(exposed.reached());
    }
    bench.stop().await;
}
