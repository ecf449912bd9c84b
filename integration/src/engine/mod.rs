//! A stand-in for the iii engine on the host's loopback: enough of it for the SDKs' workers to
//! register and to be called, and as strict as it is about names.
//!
//! What the SDKs (npm 0.22, PyPI 0.25, crates.io 0.25) say and expect, by their sources: a
//! WebSocket at `/`, each message one JSON object with a `type`; the engine greets with
//! `workerregistered`; a worker says its name by invoking `engine::workers::register`, its
//! functions with `registerfunction`, in any order; calls are `invokefunction`, answered by
//! `invocationresult`. A name whose socket is still open is refused by `registrationrejected` and a
//! close, and a function's id likewise, without a close. A worker that reconnects proves by its token
//! that it is its own predecessor. Telemetry goes to `/otel`, and is not looked at.
//!
//! It runs on a thread of its own, so that tests may block, and its messages are read in the order
//! in which the kernel has them: what was closed before is seen as closed before.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod connection;
mod registry;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use self::registry::Registry;
pub use self::registry::{Happened, ID};
use crate::PATIENCE;

/// A running engine.
pub struct Engine {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// What the connections and the test share.
struct Shared {
    registry: Mutex<Registry>,
    /// How much has happened.
    news: watch::Sender<usize>,
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap()
    }

    /// Does something to the registry, and tells those who wait if anything has happened by it.
    fn with<T>(&self, action: impl FnOnce(&mut Registry) -> T) -> T {
        let (result, count) = {
            let mut registry = self.registry();
            (action(&mut registry), registry.history.len())
        };
        self.news.send_if_modified(|known| {
            let more = *known != count;
            *known = count;
            more
        });
        result
    }
}

impl Engine {
    /// Listens on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::listen(
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            Registry::default(),
        )
    }

    /// Ends, with all connections, as a crash of it would.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            // It waits for nothing else.
            stop.send(()).unwrap();
            thread.join().unwrap();
        }
    }

    /// Listens again where it did, and knows nobody, nor any token.
    pub fn restart(&mut self) {
        self.kill();
        let registry = std::mem::take(&mut *self.shared.registry()).forgetful();
        *self = Self::listen(self.address, registry);
    }

    fn listen(address: SocketAddr, registry: Registry) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let news = watch::Sender::new(registry.history.len());
        let shared = Arc::new(Shared {
            registry: Mutex::new(registry),
            news,
        });
        let (stop, stopped) = oneshot::channel();
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = connection::accept(listener, for_thread) => {}
                    // With the runtime end all its connections.
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            shared,
            thread: Some((stop, thread)),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a user writes it.
    pub fn url(&self) -> String {
        format!("ws://localhost:{}", self.address.port())
    }

    /// Everything that has happened, in order.
    pub fn history(&self) -> Vec<Happened> {
        self.shared.registry().history.clone()
    }

    /// Where the next thing that happens will be put.
    pub fn mark(&self) -> usize {
        self.shared.registry().history.len()
    }

    /// The first thing at or behind position `from` that satisfies `fact`, and the position behind
    /// it.
    pub async fn until<T>(
        &self,
        from: usize,
        what: &str,
        fact: impl Fn(&Happened) -> Option<T>,
    ) -> (T, usize) {
        let mut news = self.shared.news.subscribe();
        let mut at = from;
        let waiting = async {
            loop {
                let fresh = self.history();
                while let Some(happened) = fresh.get(at) {
                    at += 1;
                    if let Some(found) = fact(happened) {
                        return (found, at);
                    }
                }
                news.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!(
                "no {what} at the engine within {PATIENCE:?}:\n{}",
                self.story()
            ),
        }
    }

    /// Waits until this worker has registered, looking from position `from` on; its connection and
    /// the position behind it.
    pub async fn registered(&self, from: usize, worker: &str) -> (u64, usize) {
        self.until(
            from,
            &format!("worker {worker}"),
            |happened| match happened {
                Happened::Registered { connection, name } if name == worker => Some(*connection),
                _ => None,
            },
        )
        .await
    }

    /// Waits until somebody serves this function.
    pub async fn serves(&self, from: usize, function: &str) -> usize {
        let serves = |happened: &Happened| {
            matches!(happened, Happened::Serves { id, .. } if id == function).then_some(())
        };
        self.until(from, &format!("function {function}"), serves)
            .await
            .1
    }

    /// Calls a function and returns its result, or its error with `code` and `message`.
    pub async fn call(&self, function: &str, data: Value) -> Result<Value, Value> {
        let (answer, mut answered) = mpsc::unbounded_channel();
        self.shared.with(|registry| {
            registry.invoke(function, data, registry::Caller::Test(answer));
        });
        match tokio::time::timeout(PATIENCE, answered.recv()).await {
            Ok(Some(result)) => result,
            Ok(None) => panic!("{function} was lost with its worker:\n{}", self.story()),
            Err(_) => panic!("no answer of {function} in {PATIENCE:?}:\n{}", self.story()),
        }
    }

    /// Everything that has happened, for a failure's message.
    pub fn story(&self) -> String {
        let history = self.history();
        let lines: Vec<String> = history.iter().map(|h| format!("engine: {h:?}")).collect();
        lines.join("\n")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
