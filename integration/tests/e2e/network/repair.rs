//! Connections across the death of what carries them.

use std::net::SocketAddr;

use iii_actors::spec::PublishSpec;
use iii_integration::agent::AgentHost;
use iii_integration::{Bench, is};
use iii_supervisor::{ActorKind, EventKind, Fault};
use tokio::net::TcpStream;

use super::SHARED;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vms_connections_are_closed_before_its_successor_connects() {
    let agents = AgentHost::bind().await;
    let mut bench = Bench::start(vec![agents.spec("mortal")]).await;
    let mut first = agents.accept(&mut bench).await;
    bench.hurt("mortal", Fault::KillVmm).await;
    // A peer that keeps the half-open connection might refuse the successor.
    let successor = tokio::select! {
        biased;
        () = first.closed() => None,
        stream = agents.knock() => Some(stream),
    };
    assert!(successor.is_none(), "the old connection is still open");
    let mut second = agents.accept(&mut bench).await;
    assert_ne!(first.boot, second.boot);
    assert_eq!(second.run("result = 6 * 7").await, 42);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_network_loop_takes_over_under_the_running_vm() {
    let agents = AgentHost::bind().await;
    let mut spec = agents.spec("survivor");
    spec.ports.push(PublishSpec::loopback(0, 7000));
    let mut bench = Bench::start(vec![spec]).await;
    let (server, _): (SocketAddr, _) = bench
        .event(0, "publication", |event| match &event.kind {
            EventKind::Published { host, .. } => Some(*host),
            _ => None,
        })
        .await;
    let mut agent = agents.accept(&mut bench).await;
    let (boot, pid) = (agent.boot.clone(), agent.pid);
    agent.run(SHARED).await;
    agent
        .run("listener = socket.create_server(('0.0.0.0', 7000))")
        .await;
    let faults = [
        Fault::PanicActor(ActorKind::NetPoll),
        Fault::PanicNetworkLoop,
        Fault::StallNetworkLoop,
    ];
    for fault in faults {
        let mark = bench.mark();
        let said = bench.lines.len();
        bench.hurt("survivor", fault).await;
        let restarted = |event: &iii_supervisor::Event| match &event.kind {
            EventKind::ActorRestarted { actor, .. } if is(event, "survivor") => Some(*actor),
            _ => None,
        };
        let (actor, _) = bench.event(mark, "restart of the loop", restarted).await;
        assert_eq!(actor, ActorKind::NetPoll, "{fault:?}");
        // The host's side is closed, the guest's is reset, and a new one works.
        agent.closed().await;
        let (line, _) = bench.line_from(said, "survivor", "agent: ").await;
        assert_eq!(line, "agent: ECONNRESET", "{fault:?}");
        agent = agents.accept(&mut bench).await;
        assert_eq!((&agent.boot, agent.pid), (&boot, pid), "{fault:?}");
        let greeting = agent.run(
            "connection, _ = listener.accept()\nconnection.sendall(b'alive')\nconnection.close()",
        );
        let client = async {
            use tokio::io::AsyncReadExt;
            let mut stream = TcpStream::connect(server).await.expect("it is published");
            let mut words = String::new();
            stream
                .read_to_string(&mut words)
                .await
                .expect("an orderly end");
            words
        };
        let (_, words) = tokio::join!(greeting, client);
        assert_eq!(words, "alive", "{fault:?}");
    }
    bench.stop().await;
}
