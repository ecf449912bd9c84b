//! What comes out of a VM's ports, and what goes in. All of it is hostile until decoded.

use std::time::Instant;

use futures_util::Stream as AsyncStream;
use futures_util::stream;
use iii_proto::codec::{FrameReader, encode_frame};
use iii_proto::control::{GuestMessage, HostMessage};
use iii_proto::ids::{BootId, WorkerName};
use iii_proto::log::{LogFrame, MAX_CHUNK};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::event::unix_ns;
use crate::lines::LineCutter;
use crate::logs::LogBus;

/// A port, for messages about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port {
    Control,
    Log,
    Exec,
    Console,
    Stderr,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Console => "console",
            Self::Stderr => "standard error",
        })
    }
}

/// Messages that a guest may have waiting before it is slowed down: a full burst of restarts.
const MESSAGE_BURST: f64 = 1000.0;
/// Messages per second that are taken from a guest for ever. A guest that floods its control port
/// would otherwise fill every subscriber's queue and starve its neighbours of the actors' thread.
const MESSAGE_RATE: f64 = 500.0;

struct Incoming {
    port: OwnedReadHalf,
    reader: FrameReader,
    buffer: Vec<u8>,
    tokens: f64,
    refilled: Instant,
    over: bool,
}

/// The guest's messages, at a bounded rate; after an error nothing more comes.
pub(super) fn messages(
    port: OwnedReadHalf,
) -> impl AsyncStream<Item = Result<GuestMessage, String>> {
    let incoming = Incoming {
        port,
        reader: FrameReader::new(),
        buffer: vec![0; 16 * 1024],
        tokens: MESSAGE_BURST,
        refilled: Instant::now(),
        over: false,
    };
    stream::unfold(incoming, |mut incoming| async move {
        let item = incoming.next().await?;
        incoming.over = item.is_err();
        Some((item, incoming))
    })
}

impl Incoming {
    async fn next(&mut self) -> Option<Result<GuestMessage, String>> {
        if self.over {
            return None;
        }
        self.pace().await;
        loop {
            match self.reader.next::<GuestMessage>() {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(error) => return Some(Err(error.to_string())),
            }
            match self.port.read(&mut self.buffer).await {
                // A reset is the end of the VMM, as an end of file is.
                Ok(0) | Err(_) => return None,
                Ok(n) => self.reader.feed(&self.buffer[..n]),
            }
        }
    }

    /// The port itself is the queue of a guest that says too much: it is read no faster.
    async fn pace(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.refilled).as_secs_f64() * MESSAGE_RATE;
        self.tokens = (self.tokens + earned).min(MESSAGE_BURST);
        self.refilled = now;
        if self.tokens < 1.0 {
            let wait = (1.0 - self.tokens) / MESSAGE_RATE;
            tokio::time::sleep(std::time::Duration::from_secs_f64(wait)).await;
        }
        self.tokens -= 1.0;
    }
}

/// Writes frames until the port or the queue ends.
pub(super) async fn write(mut port: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        // The end of the VMM, which the spawner reports.
        if port.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Cuts the workload's output into lines until the port ends. Waits while the reader of the lines
/// or their store is behind, so that the port, and in the end the workload, waits too. The guest may
/// forget a frame once every byte of it is stored. Returns what is wrong with the guest's frames, if
/// that is why it ended.
pub(super) async fn read_log(
    mut port: UnixStream,
    worker: WorkerName,
    boot: BootId,
    logs: LogBus,
    to_guest: mpsc::UnboundedSender<Vec<u8>>,
) -> Option<String> {
    let mut reader = FrameReader::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut cutter = LineCutter::new(worker.clone(), boot);
    let mut last_seq = 0;
    let mut acknowledged = 0;
    let mut lines: u64 = 0;
    let mut broken = None;
    while broken.is_none() {
        let n = match port.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        reader.feed(&buffer[..n]);
        let received = unix_ns();
        loop {
            let frame = match frame_behind(last_seq, &mut reader) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(cause) => {
                    broken = Some(cause);
                    break;
                }
            };
            last_seq = frame.seq;
            for line in cutter.cut(frame, received) {
                lines += 1;
                logs.put(line).await;
            }
        }
        logs.stored(&worker).await;
        // What the cutter holds is stored only with the end of its line.
        let stored = cutter.holds_from().map_or(last_seq, |seq| seq - 1);
        if stored > acknowledged {
            acknowledged = stored;
            tracing::trace!(%worker, seq = stored, lines, "log frames are taken over");
            acknowledge(stored, &to_guest);
        }
    }
    // What came before a fault is not to be lost by it.
    for line in cutter.rest() {
        logs.put(line).await;
    }
    broken
}

/// The next whole frame, which must be the one behind `last_seq`; or what is wrong with it.
fn frame_behind(last_seq: u64, reader: &mut FrameReader) -> Result<Option<LogFrame>, String> {
    let Some(frame) = reader.next::<LogFrame>().map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    if frame.bytes.len() > MAX_CHUNK {
        return Err(format!("a chunk of {} bytes", frame.bytes.len()));
    }
    // A guest that has sent as many frames as there are numbers has no next one.
    if last_seq.checked_add(1) != Some(frame.seq) {
        return Err(format!("frame {} follows frame {last_seq}", frame.seq));
    }
    Ok(Some(frame))
}

fn acknowledge(seq: u64, to_guest: &mpsc::UnboundedSender<Vec<u8>>) {
    match encode_frame(&HostMessage::LogAck { seq }) {
        // The writer is gone when the VMM is; nobody waits for the acknowledgement then.
        Ok(frame) => drop(to_guest.send(frame)),
        Err(error) => tracing::error!(%error, "failed to acknowledge log frames"),
    }
}
