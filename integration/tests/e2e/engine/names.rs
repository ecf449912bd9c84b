//! A name is free for a worker's successor, however the worker ended.

use iii_actors::spec::{NetworkMode, WorkerSpec};
use iii_integration::agent::mount;
use iii_integration::engine::{Engine, Happened};
use iii_integration::{Bench, worker_name};
use iii_proto::restart::{RestartMode, RestartPolicy};
use iii_supervisor::{Fault, Scope, Shutdown};
use serde_json::Value;
use std::time::Duration;

use super::assert_no_refusal;

/// A client of the engine without any patience: it tries once, and says what came of it. What the
/// engine sends later it does not read.
const PROGRAM: &str = r#"
import base64, json, os, signal, socket, struct
from urllib.parse import urlsplit

def frame(opcode, data):
    mask = os.urandom(4)
    head = bytes([0x80 | opcode])
    size = len(data)
    head += bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))

def read(stream):
    opcode, size = stream.read(2)
    if size == 126:
        size, = struct.unpack("!H", stream.read(2))
    return opcode & 15, stream.read(size)

def say(**message):
    connection.sendall(frame(1, json.dumps(message).encode()))

url = urlsplit(os.environ["III_URL"])
connection = socket.create_connection((url.hostname, url.port))
connection.sendall((
    f"GET / HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
).encode())
stream = connection.makefile("rb")
status = stream.readline()
assert b" 101 " in status, status
while stream.readline() != b"\r\n":
    pass
assert json.loads(read(stream)[1])["type"] == "workerregistered"
name = os.environ["III_WORKER_NAME"]
say(type="registerfunction", id=name + "::sink")
say(type="invokefunction", function_id="engine::workers::register", data={"name": name})
connection.sendall(frame(9, b"are you there?"))
opcode, data = read(stream)
print("pong" if opcode == 10 else data.decode(), flush=True)
signal.pause()
"#;

/// More than what the buffers between the engine and the guest hold as they begin.
const FLOOD: usize = 8 << 20;

fn quick(policy: &RestartPolicy) -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_millis(1),
        limit: None,
        ..policy.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_has_the_name_at_its_first_attempt_however_its_predecessor_ended() {
    let engine = Engine::start();
    let program = tempfile::tempdir().unwrap();
    std::fs::write(program.path().join("client.py"), PROGRAM).unwrap();
    let command = ["/usr/bin/python3", "/client/client.py"].map(String::from);
    let mut spec = WorkerSpec::new(worker_name("once"), command.to_vec());
    spec.mounts.push(mount(program.path(), "/client", true));
    spec.network.mode = NetworkMode::Engine;
    spec.engine = Some(engine.url().parse().unwrap());
    spec.allow_faults = true;
    spec.restart = quick(&spec.restart);
    spec.vm_restart = quick(&spec.vm_restart);
    let mut bench = Bench::start(vec![spec]).await;
    let mut from = 0;
    let mut lines = 0;
    let faults = [
        Fault::KillVmm,
        Fault::KillWorkload,
        Fault::KillFileServer,
        Fault::GuestPanic,
        Fault::PanicWorkerSupervisor,
    ];
    let scopes = [Scope::Workload, Scope::Vm, Scope::All];
    let hurts = faults.into_iter().map(End::Fault);
    let asked = scopes.into_iter().map(End::Restart);
    for end in hurts.chain(asked).chain([End::Stop, End::Kill]) {
        let (said, read) = bench.line_from(lines, "once", "").await;
        let (connection, behind) = engine.registered(from, "once").await;
        assert_eq!(said, "pong", "before {end:?}: {}", engine.story());
        (from, lines) = (behind, read);
        // Bytes that the guest has not taken keep no socket open.
        let flood = Value::from("x".repeat(FLOOD));
        let flooding = engine.call("once::sink", flood);
        let mut flooding = std::pin::pin!(flooding);
        tokio::select! {
            biased;
            answer = &mut flooding => panic!("it does not answer: {answer:?}"),
            () = tokio::task::yield_now() => {}
        }
        match end {
            End::Fault(fault) => bench.hurt("once", fault).await,
            End::Restart(scope) => bench.worker("once").restart(scope).await.unwrap(),
            End::Stop => stop(&bench, Shutdown::Graceful).await,
            End::Kill => stop(&bench, Shutdown::Now).await,
        }
        let closed =
            |happened: &Happened| (*happened == Happened::Closed(connection)).then_some(());
        engine
            .until(from, &format!("the end by {end:?}"), closed)
            .await;
    }
    let (said, _) = bench.line_from(lines, "once", "").await;
    assert_eq!(said, "pong", "{}", engine.story());
    engine.registered(from, "once").await;
    assert_no_refusal(&engine);
    bench.stop().await;
}

#[derive(Debug)]
enum End {
    Fault(Fault),
    Restart(Scope),
    Stop,
    Kill,
}

async fn stop(bench: &Bench, how: Shutdown) {
    let worker = bench.worker("once");
    worker.stop(how).await.unwrap();
    worker.start().await.unwrap();
}
