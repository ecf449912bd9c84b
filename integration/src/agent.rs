//! A guest that does what the test says: a Python program at the far end of a connection through
//! the guest's network, which runs the code that it is sent and answers with what came of it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use iii_actors::spec::{MountSpec, WorkerSpec};
use iii_proto::restart::{RestartMode, RestartPolicy};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::{Bench, PATIENCE, worker_name};

/// Where the program lies in the guest.
const DIRECTORY: &str = "/agent";

/// Keepalive is how an idle client learns that its connection is gone: the network's successor
/// answers the probe with RST. The pause paces attempts, nothing waits for it.
const PROGRAM: &str = r#"
import errno, json, os, socket, sys, time, traceback

def connect(port):
    connection = socket.create_connection(("host.iii.internal", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_NODELAY", 1)):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection

def serve(stream, space):
    def say(message):
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()

    say({"boot": os.environ["III_BOOT_ID"], "pid": os.getpid()})
    for line in stream:
        space.pop("result", None)
        try:
            exec(json.loads(line), space)
            answer = {"result": space.get("result")}
        except Exception:
            answer = {"error": traceback.format_exc()}
        say(answer)

space = {}
while True:
    try:
        serve(connect(int(sys.argv[1])).makefile("rwb"), space)
        print("agent: connection closed", flush=True)
    except OSError as error:
        print("agent:", errno.errorcode.get(error.errno, repr(error)), flush=True)
        time.sleep(0.1)
"#;

/// Where agents report to.
pub struct AgentHost {
    listener: TcpListener,
    program: TempDir,
}

impl AgentHost {
    /// Listens on the host's loopback.
    pub async fn bind() -> Self {
        let program = tempfile::tempdir().expect("the host has room for a directory");
        std::fs::write(program.path().join("agent.py"), PROGRAM).expect("it has room for a file");
        let listener = listener().await;
        Self { listener, program }
    }

    /// A worker that runs the program.
    pub fn spec(&self, name: &str) -> WorkerSpec {
        let port = port(&self.listener);
        let script = format!("{DIRECTORY}/agent.py");
        let command = ["/usr/bin/python3", "-u", &script, &port.to_string()];
        let command = command.map(String::from).to_vec();
        let mut spec = WorkerSpec::new(worker_name(name), command);
        spec.allow_faults = true;
        spec.network.host_ports.insert(port);
        spec.mounts
            .push(mount(self.program.path(), DIRECTORY, true));
        spec.vm_restart = RestartPolicy {
            mode: RestartMode::OnFailure,
            initial: Duration::from_millis(10),
            ..spec.vm_restart
        };
        spec
    }

    /// Where the program lies on the host. A supervisor that runs as root serves the mounts of a
    /// worker as their owner, so they must have one.
    pub fn directory(&self) -> &Path {
        self.program.path()
    }

    /// The next agent that reports.
    pub async fn accept(&self, bench: &mut Bench) -> Agent {
        let reporting = async {
            let (stream, _) = self.listener.accept().await.expect("the listener is open");
            let mut agent = Agent {
                stream: BufReader::new(stream),
                boot: String::new(),
                pid: 0,
            };
            let hello = agent.answer().await?;
            agent.boot = hello["boot"].as_str()?.to_owned();
            agent.pid = hello["pid"].as_u64()?;
            Some(agent)
        };
        match tokio::time::timeout(PATIENCE, reporting).await {
            Ok(Some(agent)) => agent,
            Ok(None) => panic!("an agent broke off; seen:\n{}", bench.whole_story()),
            Err(_) => panic!("no agent in {PATIENCE:?}; seen:\n{}", bench.whole_story()),
        }
    }

    /// Resolves when an agent knocks.
    pub async fn knock(&self) -> TcpStream {
        self.listener
            .accept()
            .await
            .expect("the listener is open")
            .0
    }
}

/// One connection of one agent.
pub struct Agent {
    stream: BufReader<TcpStream>,
    /// The guest's `III_BOOT_ID`.
    pub boot: String,
    /// The program's process id.
    pub pid: u64,
}

impl Agent {
    /// Runs Python code in the guest; resolves to what it leaves in `result`. Names that it
    /// defines stay for the next call.
    pub async fn run(&mut self, code: &str) -> Value {
        let line = Value::from(code).to_string() + "\n";
        self.stream
            .write_all(line.as_bytes())
            .await
            .unwrap_or_else(|error| panic!("the agent is gone: {error}; it was to run:\n{code}"));
        let answer = tokio::time::timeout(4 * PATIENCE, self.answer())
            .await
            .unwrap_or_else(|_| panic!("no answer of the guest to:\n{code}"))
            .unwrap_or_else(|| panic!("the agent broke off in:\n{code}"));
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            panic!("in the guest: {error}\nin:\n{code}");
        }
        answer["result"].clone()
    }

    /// Runs code whose result is a text.
    pub async fn text(&mut self, code: &str) -> String {
        match self.run(code).await {
            Value::String(text) => text,
            other => panic!("no text but {other} of:\n{code}"),
        }
    }

    async fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Resolves once the connection has ended, in order or by reset.
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        if let Ok(count) = self.stream.read_to_end(&mut rest).await {
            assert_eq!(count, 0, "it says what it was not asked");
        }
    }
}

/// A listener on a free port of the host's loopback.
pub async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("the host has a free port")
}

/// The port of a listener.
pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("it is bound").port()
}

/// A host directory in a guest.
pub fn mount(host: &Path, guest: &str, read_only: bool) -> MountSpec {
    MountSpec {
        host: host.to_owned(),
        guest: guest.to_owned(),
        read_only,
    }
}
