//! Bytes from the guest to a service of the host and back.

use std::time::Duration;

use iii_integration::Bench;
use iii_integration::agent::{Agent, AgentHost, listener, port};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{SHARED, assert_same, random};

/// Of no progress, after which a side counts as stalled. The stall is what is tested.
const STALL: Duration = Duration::from_secs(3);

struct Pair {
    bench: Bench,
    agent: Agent,
    service: TcpListener,
}

/// A guest that may reach a service of the host.
async fn pair(name: &str, memory: u64) -> Pair {
    let agents = AgentHost::bind().await;
    let service = listener().await;
    let mut spec = agents.spec(name);
    spec.resources.memory = memory;
    spec.network.host_ports.insert(port(&service));
    let mut bench = Bench::start(vec![spec]).await;
    let mut agent = agents.accept(&mut bench).await;
    agent.run(SHARED).await;
    agent.run(&format!("PORT = {}", port(&service))).await;
    Pair {
        bench,
        agent,
        service,
    }
}

async fn accept(service: &TcpListener) -> TcpStream {
    service.accept().await.expect("the listener is open").0
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).await.expect("an orderly end");
    data
}

fn sha256(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_come_and_go_unchanged() {
    let Pair {
        bench,
        mut agent,
        service,
    } = pair("hauler", 768 << 20).await;
    let data = random(100_000_000);
    let digest = sha256(&data);

    let serve = async {
        let mut stream = accept(&service).await;
        stream.write_all(&data).await.expect("the guest reads");
        stream.shutdown().await.expect("the connection is open");
    };
    let download = agent.text("data = read_all(dial(PORT))\nresult = sha256(data)");
    let ((), in_guest) = tokio::join!(serve, download);
    assert_eq!(in_guest, digest);

    let serve = async {
        let mut stream = accept(&service).await;
        let back = read_all(&mut stream).await;
        assert_same("the upload", &back, &data);
        // The guest's half is closed by now, and its reply is still to come.
        let reply = sha256(&back);
        stream.write_all(reply.as_bytes()).await.expect("it reads");
    };
    let upload = agent.text(
        "connection = dial(PORT)\n\
         connection.sendall(data)\n\
         connection.shutdown(socket.SHUT_WR)\n\
         result = read_all(connection).decode()",
    );
    let ((), reply) = tokio::join!(serve, upload);
    assert_eq!(reply, digest);
    bench.stop().await;
}

/// Writes until the other side takes nothing for a while. Returns how much it has taken.
async fn write_until_stalled(stream: &mut TcpStream, data: &[u8]) -> usize {
    let mut taken = 0;
    while taken < data.len() {
        match timeout(STALL, stream.write(&data[taken..])).await {
            Ok(written) => taken += written.expect("the connection is open"),
            Err(_) => break,
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_loses_nothing_and_stops_the_writer() {
    let Pair {
        bench,
        mut agent,
        service,
    } = pair("staller", 512 << 20).await;
    let data = random(64 << 20);

    // The guest does not read: the host's writes stop. Meanwhile the guest's other
    // connections go on, or the agent could not be told to go on.
    let begin = agent.run("connection = dial(PORT)");
    let (_, mut stream) = tokio::join!(begin, accept(&service));
    let taken = write_until_stalled(&mut stream, &data).await;
    assert!(taken < data.len(), "{taken} bytes without a reader");
    let rest = async {
        stream.write_all(&data[taken..]).await.expect("it reads on");
        stream.shutdown().await.expect("the connection is open");
    };
    let finish = agent.text("data = read_all(connection)\nresult = sha256(data)");
    let ((), digest) = tokio::join!(rest, finish);
    assert_eq!(digest, sha256(&data));

    // The host reads a little and stops: the guest's writes stop.
    let code = format!(
        "connection = dial(PORT)\n\
         connection.settimeout({})\n\
         sent = 0\n\
         try:\n\
         \x20   while sent < len(data):\n\
         \x20       sent += connection.send(memoryview(data)[sent:])\n\
         except TimeoutError:\n\
         \x20   pass\n\
         result = sent",
        STALL.as_secs()
    );
    let begin = agent.run(&code);
    let read = async {
        let mut stream = accept(&service).await;
        let mut start = vec![0; 1 << 16];
        stream
            .read_exact(&mut start)
            .await
            .expect("the guest sends");
        (stream, start)
    };
    let (sent, (mut stream, mut back)) = tokio::join!(begin, read);
    let sent = sent.as_u64().expect("a count");
    assert!(sent < data.len() as u64, "{sent} bytes without a reader");
    let finish = agent.run(
        "connection.settimeout(240)\n\
         connection.sendall(memoryview(data)[sent:])\n\
         connection.shutdown(socket.SHUT_WR)\n\
         connection.recv(1)",
    );
    let read = async {
        back.extend(read_all(&mut stream).await);
        drop(stream);
    };
    tokio::join!(finish, read);
    assert_same("the upload", &back, &data);
    bench.stop().await;
}
