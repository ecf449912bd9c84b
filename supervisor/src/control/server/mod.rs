//! The supervisor's end of the control socket.
//!
//! * this file accepts clients and bounds their number;
//! * [`connection`] greets one, reads what it wants and sees to it;
//! * [`stream`] tells events and output, [`requests`] sees to workers, [`exec`] to commands in guests.
//!
//! Each client is a task. What a client does not read stays in its socket's buffer, then its task
//! waits; nobody waits for the task.

mod connection;
mod exec;
mod requests;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::protocol::{Greeting, PROTOCOL};
use super::socket::ControlSocket;
use crate::gate::Gate;
use crate::output::words::now_unix_ms;
use crate::reload::Reloader;
use crate::{Shutdown, Supervisor};
use connection::Parked;

/// Clients at once. A program that opens connections and never closes them costs no more than these.
const MAX_CLIENTS: usize = 256;
/// Those of them that follow something for as long as they like, and may have stopped reading. So
/// that there is always a place for one who wants a short answer, or a stop.
const MAX_FOLLOWERS: usize = 128;
/// How long clients may take to read what they are told at the supervisor's end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Before the next try to accept: without descriptors the next one fails as well, at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Orders that wait until the run takes them; those who give more wait.
const ORDERS: usize = 8;

/// What a client asks of the run as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stop all workers and end.
    Shutdown(Shutdown),
}

/// What clients ask, for the run.
#[derive(Debug)]
pub struct Requests {
    /// One after the other.
    pub orders: mpsc::Receiver<Order>,
    /// Somebody has asked for workers that were at rest.
    pub touched: Arc<Notify>,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    supervisor: Arc<Supervisor>,
    gate: Arc<Gate>,
    reloader: Arc<Reloader>,
    greeting: Greeting,
    clients: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// The run's exit code, once it has one.
    ended: watch::Receiver<Option<u8>>,
    orders: mpsc::Sender<Order>,
    touched: Arc<Notify>,
}

/// Answers clients until it is closed.
#[derive(Debug)]
pub struct ControlServer {
    ended: watch::Sender<Option<u8>>,
    accepting: JoinHandle<JoinSet<Option<Parked>>>,
    stop: watch::Sender<bool>,
}

/// Clients that wait for the end of the supervisor's process, which closes their connections.
#[derive(Debug)]
#[must_use = "its drop tells clients that the supervisor has gone"]
pub struct LastClients {
    _parked: Vec<Parked>,
}

impl ControlServer {
    /// Answers for this supervisor.
    pub(crate) fn start(
        socket: ControlSocket,
        supervisor: Arc<Supervisor>,
        gate: Arc<Gate>,
        reloader: Arc<Reloader>,
    ) -> (Self, Requests) {
        let (order, orders) = mpsc::channel(ORDERS);
        let touched = Arc::new(Notify::new());
        let (ended, watch_end) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            greeting: Greeting {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                file: reloader.file().to_owned(),
                started_unix_ms: now_unix_ms(),
            },
            supervisor,
            gate,
            reloader,
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
            ended: watch_end,
            orders: order,
            touched: Arc::clone(&touched),
        };
        let accepting = tokio::spawn(accept(socket, Arc::new(shared), stopped));
        let server = Self {
            ended,
            accepting,
            stop,
        };
        (server, Requests { orders, touched })
    }

    /// Tells all clients that the run has ended, with this exit code, and lets go of the supervisor.
    /// The socket is gone afterwards.
    pub async fn close(self, code: u8) -> LastClients {
        self.ended.send_replace(Some(code));
        self.stop.send_replace(true);
        let mut parked = Vec::new();
        match self.accepting.await {
            Ok(mut clients) => {
                let last_words = async {
                    while let Some(client) = clients.join_next().await {
                        parked.extend(client.ok().flatten());
                    }
                };
                // Who has not read until now is not waited for.
                drop(tokio::time::timeout(LAST_WORDS, last_words).await);
                clients.shutdown().await;
            }
            Err(error) => tracing::error!(%error, "the control socket's task failed"),
        }
        LastClients { _parked: parked }
    }
}

async fn accept(
    socket: ControlSocket,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> JoinSet<Option<Parked>> {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(stream) => {
                    clients.spawn(connection::serve(stream, Arc::clone(&shared)));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = clients.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a client's task failed");
            },
            () = until(&mut stopped, |stop| *stop) => return clients,
        }
    }
}

/// Resolves once it is so, or once nobody is left who could make it so.
async fn until<T>(watched: &mut watch::Receiver<T>, fact: impl FnMut(&T) -> bool) {
    drop(watched.wait_for(fact).await);
}
