//! Ports of the guest that the host publishes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iii_actors::event::EventKind;
use iii_actors::spec::PublishSpec;
use iii_integration::agent::AgentHost;
use iii_integration::http::HttpConnection;
use iii_integration::{Bench, is};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{SHARED, assert_same, random};

const REQUESTS: usize = 1000;
const AT_ONCE: usize = 32;

const HTTP_SERVER: &str = r#"
import http.server, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        number = int(self.path.removeprefix("/item/"))
        body = b"item %d\n" % number * (number % 97 + 1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

server = Server(("0.0.0.0", 8080), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"#;

async fn published(bench: &mut Bench, worker: &str, port: u16) -> SocketAddr {
    let what = format!("publication of {worker}'s port {port}");
    let published = |event: &iii_actors::event::Event| match &event.kind {
        EventKind::Published { host, guest_port } if is(event, worker) && *guest_port == port => {
            Some(*host)
        }
        _ => None,
    };
    bench.event(0, &what, published).await.0
}

fn body(number: usize) -> Vec<u8> {
    format!("item {number}\n")
        .repeat(number % 97 + 1)
        .into_bytes()
}

/// Takes numbers until there are none left.
async fn client(server: SocketAddr, next: Arc<AtomicUsize>, keep: bool) {
    let mut kept = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= REQUESTS {
            return;
        }
        let path = format!("/item/{number}");
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => HttpConnection::open(server).await,
        };
        let (status, answer) = if keep {
            let answer = connection.get(&path).await;
            kept = Some(connection);
            answer
        } else {
            connection.get_and_close(&path).await
        };
        assert_eq!(status, 200, "{path}");
        assert_same(&path, &answer, &body(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_the_guest_answers_a_thousand_requests_each_way() {
    let agents = AgentHost::bind().await;
    let mut spec = agents.spec("web");
    spec.ports.push(PublishSpec::loopback(0, 8080));
    let mut bench = Bench::start(vec![spec]).await;
    let server = published(&mut bench, "web", 8080).await;
    let mut agent = agents.accept(&mut bench).await;
    agent.run(HTTP_SERVER).await;
    for keep in [true, false] {
        let next = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..AT_ONCE)
            .map(|_| tokio::spawn(client(server, Arc::clone(&next), keep)))
            .collect();
        for client in clients {
            client
                .await
                .unwrap_or_else(|error| panic!("keep-alive {keep}: {error}"));
        }
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closes_pass_to_the_guest_and_back() {
    let agents = AgentHost::bind().await;
    let mut spec = agents.spec("halves");
    spec.ports.push(PublishSpec::loopback(0, 7000));
    spec.resources.memory = 384 << 20;
    let mut bench = Bench::start(vec![spec]).await;
    let server = published(&mut bench, "halves", 7000).await;
    let mut agent = agents.accept(&mut bench).await;
    agent.run(SHARED).await;
    agent
        .run("listener = socket.create_server(('0.0.0.0', 7000))")
        .await;

    // The client ends its request before the guest's reply; the reply comes back whole.
    let data = random(8 << 20);
    let guest = agent.run(
        "connection, _ = listener.accept()\n\
         data = read_all(connection)\n\
         connection.sendall(data)\n\
         connection.close()",
    );
    let host = async {
        let mut stream = TcpStream::connect(server).await.expect("it is published");
        stream.write_all(&data).await.expect("the guest reads");
        stream.shutdown().await.expect("the connection is open");
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await.expect("an orderly end");
        assert_same("the echo", &echo, &data);
    };
    tokio::join!(guest, host);

    // The guest ends its half first and still reads what follows.
    let guest = agent.text(
        "connection, _ = listener.accept()\n\
         connection.sendall(b'your turn')\n\
         connection.shutdown(socket.SHUT_WR)\n\
         result = 'same' if read_all(connection) == data else 'different'\n\
         connection.close()",
    );
    let host = async {
        let mut stream = TcpStream::connect(server).await.expect("it is published");
        let mut words = Vec::new();
        stream.read_to_end(&mut words).await.expect("a half-close");
        assert_eq!(words, b"your turn");
        stream.write_all(&data).await.expect("the guest reads");
        stream.shutdown().await.expect("the connection is open");
    };
    let (verdict, ()) = tokio::join!(guest, host);
    assert_eq!(verdict, "same");

    // Nobody listens: the client is told so, by a reset or an end, and not left waiting.
    agent.run("listener.close()").await;
    let mut stream = TcpStream::connect(server).await.expect("it is published");
    let mut nothing = Vec::new();
    let ended = stream.read_to_end(&mut nothing).await;
    assert!(ended.is_err() || nothing.is_empty(), "{nothing:?}");
    bench.stop().await;
}
