//! Bytes between this program's streams and a command in a guest.
//!
//! The same windows as at the other ends: what this program may hold is bounded, and the connection
//! is always read, so that the command's end and room for its input are heard of while nobody reads
//! what it writes.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iii_proto::codec::{FrameReader, encode_frame};
use iii_proto::exec::window::{ReceiveWindow, SendWindow};
use iii_proto::exec::{GuestFrame, HostFrame};
use iii_proto::log::Stream;
use iii_proto::restart::Exit;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};

use super::signals::{Happened, Signals};
use super::terminal::{self, Raw};
use crate::control::client::Answer;
use crate::control::protocol::SESSION;
use crate::output::json;

const READ_SIZE: usize = 64 * 1024;
/// Frames that are made before the one before them is written.
const OUTBOX: usize = 4;
/// Between the signal that asks a command to end and the end of its connection, which kills it.
const GRACE: Duration = Duration::from_secs(2);
/// So many presses of Ctrl-C end a command that does not care for them.
const IMPATIENT: u32 = 3;

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// The command did.
    Exited(Exit),
    /// This program was told to, or nobody reads what the command writes.
    Signal(i32),
    /// Its time was up.
    TimedOut(Duration),
    /// It is not known how the command ended.
    Failed(String),
}

/// What there is at this end.
pub(super) struct Relay<'a> {
    /// Standard input goes to the command.
    pub(super) interactive: bool,
    /// It has a terminal, whose size follows ours.
    pub(super) terminal: bool,
    /// Ours is raw.
    pub(super) raw: Option<&'a Raw>,
    /// How long it may run.
    pub(super) timeout: Option<Duration>,
    /// What it writes goes to standard output as JSON, whichever stream it is of.
    pub(super) json: bool,
}

#[derive(Default)]
struct Windows {
    input: Mutex<SendWindow>,
    output: Mutex<ReceiveWindow>,
    /// The command has taken input.
    room: Notify,
    /// It takes no more.
    closed: Notify,
}

fn lock<T>(window: &Mutex<T>) -> MutexGuard<'_, T> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay<'_> {
    /// Until the command's end, or this program's.
    pub(super) async fn run(self, answer: Answer, mut signals: Signals) -> End {
        let (reader, writer) = answer.into_parts();
        let windows = Windows::default();
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (pieces, output) = mpsc::unbounded_channel();
        let time_is_up = Cell::new(None);
        let told = async {
            // The command's end comes behind its output.
            let heard = async { Ok(hear(reader, pieces, &windows).await) };
            match tokio::try_join!(heard, put(output, self.json, &windows, &outbox)) {
                Ok((end, ())) => time_is_up.get().map_or(end, End::TimedOut),
                Err(end) => end,
            }
        };
        tokio::select! {
            biased;
            end = told => end,
            end = self.attend(&mut signals, &outbox, &time_is_up) => end,
            // Neither has an end of its own.
            never = speak(outgoing, writer) => match never {},
            never = take(self.interactive, &windows, &outbox) => match never {},
        }
    }

    /// Signals, the terminal's size, the time.
    async fn attend(
        &self,
        signals: &mut Signals,
        outbox: &mpsc::Sender<HostFrame>,
        time_is_up: &Cell<Option<Duration>>,
    ) -> End {
        let mut presses = 0;
        let mut clock = std::pin::pin!(sleep(self.timeout));
        loop {
            let happened = tokio::select! {
                happened = signals.next() => happened,
                () = &mut clock => match time_is_up.get() {
                    None => {
                        time_is_up.set(self.timeout);
                        clock.set(sleep(Some(GRACE)));
                        Happened::Signal(nix::libc::SIGTERM)
                    }
                    Some(time) => return End::TimedOut(time),
                },
            };
            let frame = match happened {
                Happened::Signal(signal) => {
                    presses += u32::from(time_is_up.get().is_none());
                    if presses == IMPATIENT {
                        return End::Signal(signal);
                    }
                    HostFrame::Signal {
                        session: SESSION,
                        signal,
                    }
                }
                Happened::HangUp => return End::Signal(nix::libc::SIGHUP),
                Happened::Resumed | Happened::Resize => {
                    if let (Happened::Resumed, Some(raw)) = (happened, self.raw) {
                        raw.again();
                    }
                    if !self.terminal {
                        continue;
                    }
                    HostFrame::Resize {
                        session: SESSION,
                        size: terminal::size(),
                    }
                }
            };
            tell(outbox, frame).await;
        }
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Takes what the supervisor says, until the command's end.
async fn hear(
    mut reader: impl AsyncRead + Unpin,
    pieces: mpsc::UnboundedSender<(Stream, Vec<u8>)>,
    windows: &Windows,
) -> End {
    let mut frames = FrameReader::new();
    let mut buffer = vec![0; READ_SIZE];
    let broken = |error: &dyn std::fmt::Display| {
        End::Failed(format!("failed to understand the supervisor: {error}"))
    };
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                let message = "failed to see the command's end: the supervisor has ended, or was \
                               killed";
                return End::Failed(message.to_owned());
            }
            Ok(count) => frames.feed(&buffer[..count]),
        }
        loop {
            let frame = match frames.next::<GuestFrame>() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return broken(&error),
            };
            match frame {
                GuestFrame::Output { stream, bytes, .. } => {
                    let received = lock(&windows.output).receive(bytes.len());
                    if let Err(error) = received {
                        return broken(&error);
                    }
                    // Who writes it out has failed, and says so.
                    pieces.send((stream, bytes)).unwrap_or(());
                }
                GuestFrame::StdinCredit { credit, .. } => {
                    let refilled = lock(&windows.input).refill(credit);
                    if let Err(error) = refilled {
                        return broken(&error);
                    }
                    windows.room.notify_one();
                }
                GuestFrame::StdinClosed { .. } => windows.closed.notify_one(),
                GuestFrame::Exited { exit, .. } => return End::Exited(exit),
                GuestFrame::Refused { message, .. } => return End::Failed(message),
                GuestFrame::Opened { .. } => return broken(&"it opens the command twice"),
            }
        }
    }
}

/// Writes out what the command writes, and lets more come.
async fn put(
    mut output: mpsc::UnboundedReceiver<(Stream, Vec<u8>)>,
    json: bool,
    windows: &Windows,
    outbox: &mpsc::Sender<HostFrame>,
) -> Result<(), End> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some((stream, bytes)) = output.recv().await {
        let written = match (json, stream) {
            (true, stream) => match json::piece(stream, &bytes) {
                Ok(line) => write(&mut stdout, (line + "\n").as_bytes()).await,
                Err(error) => Err(io::Error::other(error)),
            },
            (false, Stream::Stdout) => write(&mut stdout, &bytes).await,
            (false, Stream::Stderr) => write(&mut stderr, &bytes).await,
        };
        match written {
            Ok(()) => {}
            // As a command that runs here would end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(End::Signal(nix::libc::SIGPIPE));
            }
            Err(error) => {
                return Err(End::Failed(format!(
                    "failed to write what the command writes: {error}"
                )));
            }
        }
        let credit = lock(&windows.output).consume(bytes.len());
        if let Some(credit) = credit {
            let session = SESSION;
            tell(outbox, HostFrame::OutputCredit { session, credit }).await;
        }
    }
    Ok(())
}

async fn write(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}

/// Passes our input on, as far as the command takes it.
async fn take(
    interactive: bool,
    windows: &Windows,
    outbox: &mpsc::Sender<HostFrame>,
) -> Infallible {
    if interactive {
        tokio::select! {
            () = windows.closed.notified() => {}
            () = read_all(windows, outbox) => {
                tell(outbox, HostFrame::StdinEnd { session: SESSION }).await;
            }
        }
    }
    std::future::pending().await
}

async fn read_all(windows: &Windows, outbox: &mpsc::Sender<HostFrame>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; READ_SIZE];
    // What cannot be read any more has ended.
    while let Ok(count) = stdin.read(&mut buffer).await
        && count > 0
    {
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let room = {
                let mut window = lock(&windows.input);
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
            let (session, bytes) = (SESSION, now.to_vec());
            tell(outbox, HostFrame::Stdin { session, bytes }).await;
            rest = later;
        }
    }
}

/// The other end of the queue is dropped with the relay alone.
async fn tell(outbox: &mpsc::Sender<HostFrame>, frame: HostFrame) {
    outbox.send(frame).await.unwrap_or(());
}

/// Writes what the supervisor is told.
async fn speak(mut outgoing: mpsc::Receiver<HostFrame>, mut writer: OwnedWriteHalf) -> Infallible {
    let mut listens = true;
    while let Some(frame) = outgoing.recv().await {
        if !listens {
            continue;
        }
        let written = match encode_frame(&frame) {
            Ok(bytes) => writer.write_all(&bytes).await,
            Err(error) => Err(io::Error::other(error)),
        };
        // Why nobody listens any more is heard at the other half.
        if let Err(error) = written {
            tracing::debug!(%error, "failed to speak to the supervisor");
            listens = false;
        }
    }
    std::future::pending().await
}
