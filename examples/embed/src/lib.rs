//! A small engine: functions run in workers, which connect to it and answer calls, one line each.
//!
//! What an embedding program does with the library is all in [`Engine::deploy`] and
//! [`Engine::start`].
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use iii_supervisor::spec::{NetworkMode, RestartMode};
use iii_supervisor::{
    EventKind, EventStream, Outcomes, Scope, Shutdown, Supervisor, WorkerName, WorkerSpec,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};

/// Errors are for whoever runs the example.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the worker runs: says its name, then answers each line with what `answer` makes of it.
const HARNESS: &str = r#"
import os, socket
host, port = os.environ["ENGINE"].split(":")
engine = socket.create_connection((host, int(port)))
lines = engine.makefile("rw")
def say(text): lines.write(text + "\n"); lines.flush()
say(os.environ["III_WORKER_NAME"])
for line in lines: say(str(answer(line.rstrip("\n"))))
"#;

/// Time in which a call must be answered, a restart of the function's VM included.
const PATIENCE: Duration = Duration::from_secs(120);

type Connections = Arc<Mutex<HashMap<String, BufReader<TcpStream>>>>;

/// Runs functions and calls them.
#[derive(Debug)]
pub struct Engine {
    supervisor: Supervisor,
    port: u16,
    connections: Connections,
    connected: Arc<Notify>,
}

impl Engine {
    /// Listens for functions on the loopback. `helpers`: where iii-super's helper programs are.
    pub async fn start(helpers: PathBuf) -> Result<Self, Error> {
        let supervisor = Supervisor::builder().helper_dir(helpers).start().await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let connections = Connections::default();
        let connected = Arc::new(Notify::new());
        tokio::spawn(accept(
            listener,
            Arc::clone(&connections),
            Arc::clone(&connected),
        ));
        Ok(Self {
            supervisor,
            port,
            connections,
            connected,
        })
    }

    /// Runs `answer`, the source of a Python function of one argument, under `name`.
    pub async fn deploy(&self, name: &str, answer: &str) -> Result<(), Error> {
        let source = format!("{answer}\n{HARNESS}");
        let command = ["/usr/bin/python3", "-u", "-c", &source].map(String::from);
        let mut spec = WorkerSpec::new(WorkerName::new(name)?, command.to_vec());
        // It reaches this engine and nothing else.
        spec.network.mode = NetworkMode::Engine;
        spec.network.host_ports.insert(self.port);
        let engine = format!("host.iii.internal:{}", self.port);
        spec.env.push(("ENGINE".into(), engine));
        // A connection that was lost ends the function with code 0; it is wanted all the same.
        spec.restart.mode = RestartMode::Always;
        self.supervisor.add(spec).await?.ready().await?;
        Ok(())
    }

    /// Calls a function.
    pub async fn call(&self, name: &str, line: &str) -> Result<String, Error> {
        let answer = async {
            loop {
                let connected = self.connected.notified();
                let connection = self.connections.lock().await.remove(name);
                if let Some(mut connection) = connection
                    && let Some(answer) = ask(&mut connection, line).await
                {
                    let mut connections = self.connections.lock().await;
                    connections.entry(name.to_owned()).or_insert(connection);
                    return answer;
                }
                // Not connected yet, or its VM has just ended: it will connect again.
                connected.await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, answer).await?)
    }

    /// Gives a function a new VM; resolves once that has been started.
    pub async fn renew(&self, name: &str) -> Result<(), Error> {
        let worker = self.supervisor.worker(WorkerName::new(name)?);
        let mut events = self.events();
        worker.restart(Scope::Vm).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            let started = matches!(event.kind, EventKind::VmStarted { .. });
            if started && event.worker.as_ref() == Some(worker.name()) {
                return Ok(());
            }
        }
        Err("the supervisor has ended".into())
    }

    /// Stops a function and forgets it.
    pub async fn withdraw(&self, name: &str) -> Result<(), Error> {
        self.supervisor.remove(WorkerName::new(name)?).await?;
        self.connections.lock().await.remove(name);
        Ok(())
    }

    /// What the supervisor does, from now on.
    pub fn events(&self) -> EventStream {
        self.supervisor.events()
    }

    /// Stops all functions, within ten seconds.
    pub async fn stop(&self) -> Outcomes {
        let time = Duration::from_secs(10);
        self.supervisor.shutdown(Shutdown::Within(time)).await
    }
}

async fn ask(connection: &mut BufReader<TcpStream>, line: &str) -> Option<String> {
    let question = format!("{line}\n");
    connection.write_all(question.as_bytes()).await.ok()?;
    read(connection).await
}

/// A line; `None` where the connection has ended.
async fn read(connection: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    let count = connection.read_line(&mut line).await.ok()?;
    (count > 0).then(|| line.trim_end().to_owned())
}

async fn accept(listener: TcpListener, connections: Connections, connected: Arc<Notify>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut connection = BufReader::new(stream);
        if let Some(name) = read(&mut connection).await {
            connections.lock().await.insert(name, connection);
            connected.notify_waiters();
        }
    }
}
