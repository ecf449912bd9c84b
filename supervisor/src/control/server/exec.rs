//! One command of a client in a guest: frames between the client's connection and the session.
//!
//! Both directions flow under the windows of [`iii_proto::exec::window`], so the connection is always
//! read: a signal reaches a command that reads none of its input, and a client that reads no output
//! stops its command alone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iii_actors::exec::{ExecError, ExecOutput, ExecReceiver, ExecRequest, ExecSession, ExecStdin};
use iii_proto::codec::{CodecError, FrameReader, encode_frame};
use iii_proto::exec::window::{ReceiveWindow, SendWindow, WindowError};
use iii_proto::exec::{GuestFrame, HostFrame};
use iii_proto::log::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::Shared;
use super::connection::{Answer, Broken, Done, End, known};
use crate::control::line::LineReader;
use crate::control::protocol::{ExecCall, Opened, Refusal, RefusalKind, Reply, SESSION};

/// Bytes of one read.
const READ_SIZE: usize = 64 * 1024;
/// Frames to a client that are made before the one before them is written.
const OUTBOX: usize = 4;
/// Signals and sizes of a terminal that are passed on at once, and how long each takes after that.
/// They are outside of every window, and the queue towards a guest has no bound: a client that says
/// nothing else would make it grow.
const BURST: u32 = 64;
const PACE: Duration = Duration::from_millis(10);

/// Why a command's conversation ended before the command.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The client is gone.
    #[error("the client is gone: {0}")]
    Gone(#[from] std::io::Error),
    /// What it sends is no frame.
    #[error(transparent)]
    Frame(#[from] CodecError),
    /// It sends more than it may.
    #[error("the client breaks its window: {0}")]
    Window(#[from] WindowError),
    /// It sends what it must not.
    #[error("the client sends {0}")]
    Unexpected(&'static str),
}

/// How much may be under way.
#[derive(Default)]
struct Windows {
    input: Mutex<ReceiveWindow>,
    output: Mutex<SendWindow>,
    /// The client has made room for output.
    room: Notify,
}

fn lock<T>(window: &Mutex<T>) -> MutexGuard<'_, T> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command for a client.
pub(super) async fn run(
    call: ExecCall,
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let name = call.worker;
    if let Err(refusal) = known(shared, std::slice::from_ref(&name)).await {
        return Ok(Err(refusal));
    }
    let mut request = ExecRequest::new(call.command);
    request.env = call.env;
    request.cwd = call.cwd;
    request.user = call.user;
    request.terminal = call.terminal;
    request.stdin = call.stdin;
    let session = match shared.supervisor.exec(name, request).await {
        Ok(session) => session,
        Err(error) => {
            let message = format!("{error}{}", remedy(&error));
            return Ok(Err(Refusal::new(RefusalKind::Failed, message)));
        }
    };
    answer.put(&Reply::Opened(Opened { pid: session.pid() }))?;
    answer.flush_soon().await?;
    relay(session, reader.into_inner(), answer.stream()).await?;
    Ok(Ok(End::Frames))
}

/// What the user can do about it.
fn remedy(error: &ExecError) -> String {
    match error {
        ExecError::NotRunning {
            worker,
            state: "complete" | "stopped" | "failed",
        } => format!("; start it with `iii-super start {worker}`"),
        ExecError::NotRunning { worker, .. } => {
            format!("; `iii-super start --wait {worker}` returns when it is ready")
        }
        _ => String::new(),
    }
}

/// Serves the client until the command has ended and this is told, or the client is gone: then the
/// session's drop ends the command.
pub(super) async fn relay(
    mut session: ExecSession,
    reader: BufReader<OwnedReadHalf>,
    out: &mut OwnedWriteHalf,
) -> Result<(), Fault> {
    let (stdin, output) = (session.stdin.take(), session.output.take());
    let session = session;
    let windows = Windows::default();
    let (input, to_command) = mpsc::unbounded_channel();
    let (outbox, outgoing) = mpsc::channel(OUTBOX);
    let command = async {
        let to_client = outbox;
        let end = async {
            drain(output, &windows, &to_client).await;
            let frame = match session.wait().await {
                Ok(exit) => GuestFrame::Exited {
                    session: SESSION,
                    exit,
                },
                Err(error) => GuestFrame::Refused {
                    session: SESSION,
                    message: error.to_string(),
                },
            };
            send(&to_client, frame).await;
        };
        tokio::select! {
            () = feed(stdin, to_command, &windows, &to_client) => {}
            () = end => {}
        }
    };
    let talk = async { tokio::join!(command, speak(outgoing, out)).1 };
    tokio::select! {
        fault = hear(reader, &session, input, &windows) => Err(fault),
        spoken = talk => spoken,
    }
}

/// Takes what the client says.
async fn hear(
    mut reader: BufReader<OwnedReadHalf>,
    session: &ExecSession,
    input: mpsc::UnboundedSender<Vec<u8>>,
    windows: &Windows,
) -> Fault {
    let mut frames = FrameReader::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut input = Some(input);
    let mut pace = Pace::new();
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return gone(),
            Ok(count) => frames.feed(&buffer[..count]),
            Err(error) => return error.into(),
        }
        loop {
            let frame = match frames.next::<HostFrame>() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            if frame.session() != SESSION {
                return Fault::Unexpected("a frame of a session that it has not");
            }
            match frame {
                HostFrame::Stdin { bytes, .. } => {
                    let received = lock(&windows.input).receive(bytes.len());
                    if let Err(error) = received {
                        return error.into();
                    }
                    match &input {
                        // What a command does not read any more is thrown away.
                        Some(input) => input.send(bytes).unwrap_or(()),
                        None => return Fault::Unexpected("input behind its end"),
                    }
                }
                HostFrame::StdinEnd { .. } => input = None,
                HostFrame::OutputCredit { credit, .. } => {
                    let refilled = lock(&windows.output).refill(credit);
                    if let Err(error) = refilled {
                        return error.into();
                    }
                    windows.room.notify_one();
                }
                HostFrame::Resize { size, .. } => {
                    pace.wait().await;
                    session.resize(size);
                }
                HostFrame::Signal { signal, .. } => {
                    pace.wait().await;
                    session.signal(signal);
                }
                HostFrame::Close { .. } => return gone(),
                HostFrame::Open { .. } => return Fault::Unexpected("a second command"),
            }
        }
    }
}

fn gone() -> Fault {
    Fault::Gone(std::io::ErrorKind::ConnectionAborted.into())
}

/// How fast a client may say what no window bounds.
struct Pace {
    at_once: u32,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            at_once: BURST,
            since: Instant::now(),
        }
    }

    async fn wait(&mut self) {
        if self.since.elapsed() > PACE * BURST {
            *self = Self::new();
        }
        match self.at_once.checked_sub(1) {
            Some(left) => self.at_once = left,
            None => tokio::time::sleep(PACE).await,
        }
    }
}

/// Passes the client's input on, as fast as the command reads it; never ends.
async fn feed(
    stdin: Option<ExecStdin>,
    mut input: mpsc::UnboundedReceiver<Vec<u8>>,
    windows: &Windows,
    to_client: &mpsc::Sender<Vec<u8>>,
) {
    if let Some(mut stdin) = stdin {
        while let Some(bytes) = input.recv().await {
            if stdin.write_all(&bytes).await.is_err() {
                send(to_client, GuestFrame::StdinClosed { session: SESSION }).await;
                break;
            }
            let credit = lock(&windows.input).consume(bytes.len());
            if let Some(credit) = credit {
                let session = SESSION;
                send(to_client, GuestFrame::StdinCredit { session, credit }).await;
            }
        }
    }
    drop(input);
    std::future::pending().await
}

/// Passes the command's output on, as far as the client has room.
async fn drain(output: Option<ExecReceiver>, windows: &Windows, to_client: &mpsc::Sender<Vec<u8>>) {
    let Some(mut output) = output else {
        return;
    };
    while let Some(piece) = output.recv().await {
        let (stream, bytes) = match piece {
            ExecOutput::Stdout(bytes) => (Stream::Stdout, bytes),
            ExecOutput::Stderr(bytes) => (Stream::Stderr, bytes),
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let room = {
                let mut window = lock(&windows.output);
                let room = window.room(rest.len());
                if room > 0 {
                    window.spend(room);
                }
                room
            };
            if room == 0 {
                windows.room.notified().await;
                continue;
            }
            let (now, later) = rest.split_at(room);
            let frame = GuestFrame::Output {
                session: SESSION,
                stream,
                bytes: now.to_vec(),
            };
            send(to_client, frame).await;
            rest = later;
        }
    }
}

async fn send(to_client: &mpsc::Sender<Vec<u8>>, frame: GuestFrame) {
    match encode_frame(&frame) {
        // Whoever has stopped writing knows that the client is gone.
        Ok(frame) => to_client.send(frame).await.unwrap_or(()),
        Err(error) => tracing::error!(%error, "failed to tell a client"),
    }
}

/// Writes what the client is told.
async fn speak(
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    out: &mut OwnedWriteHalf,
) -> Result<(), Fault> {
    while let Some(frame) = outgoing.recv().await {
        out.write_all(&frame).await?;
    }
    Ok(())
}
