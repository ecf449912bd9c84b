//! One socket of one worker.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;

use super::Shared;
use super::registry::{Happened, Order};

/// Where workers connect to.
const WORKERS: &str = "/";
/// Where their telemetry does.
const TELEMETRY: &str = "/otel";

/// Takes connections until it is dropped.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // Whoever has gone before it was accepted is not missed.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, shared.clone()));
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut path = String::new();
    // The error's size is the library's choice.
    #[allow(clippy::result_large_err)]
    let look = |request: &Request, response: Response| {
        path = request.uri().path().to_owned();
        match path.as_str() {
            WORKERS | TELEMETRY => Ok(response),
            _ => {
                let mut refusal = ErrorResponse::new(None);
                *refusal.status_mut() = StatusCode::NOT_FOUND;
                Err(refusal)
            }
        }
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, look).await else {
        return;
    };
    if path == TELEMETRY {
        shared.with(|registry| registry.happened(Happened::Telemetry));
        drain(&mut socket).await;
    } else {
        worker(socket, &shared).await;
    }
}

async fn drain(socket: &mut WebSocketStream<TcpStream>) {
    while let Some(Ok(_)) = socket.next().await {}
}

async fn worker(mut socket: WebSocketStream<TcpStream>, shared: &Shared) {
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let connection = shared.with(|registry| registry.connected(orders));
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    shared.with(|registry| registry.heard(connection, &text));
                }
                // The library answers it.
                Some(Ok(Message::Ping(_))) => {
                    shared.with(|registry| registry.happened(Happened::Pinged(connection)));
                }
                Some(Ok(Message::Binary(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => {}
                // It is closed, in order or not.
                Some(Err(_)) | None => break,
            },
            order = ordered.recv() => match order {
                Some(Order::Say(message)) => {
                    // Then reading fails too, and ends this.
                    drop(socket.send(Message::text(message.to_string())).await);
                }
                Some(Order::Close) | None => {
                    drop(socket.close(None).await);
                    // Closed before all is read, it would take back what was said last.
                    drain(&mut socket).await;
                    break;
                }
            },
        }
    }
    shared.with(|registry| registry.closed(connection));
}
