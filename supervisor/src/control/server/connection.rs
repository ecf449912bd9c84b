//! One client: greeting, request, answer.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use iii_actors::RequestError;
use iii_proto::ids::WorkerName;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;

use super::{Shared, exec, requests, stream};
use crate::control::line::{self, LineError, LineReader, MAX_REQUEST};
use crate::control::protocol::{
    Call, CallHead, Ended, PROTOCOL, Refusal, RefusalKind, Reply, Request, WorkerInfo,
};
use crate::control::socket;
use crate::workers_file::did_you_mean;

/// How long a client may take to say what it wants, and to read a short answer: one that connects
/// and says nothing must not keep a place for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are put together before they are written.
const BATCH: usize = 64 * 1024;

/// A client that is told of the supervisor's end by the end of its connection.
#[derive(Debug)]
pub(super) struct Parked(#[expect(dead_code, reason = "it acts by its drop")] OwnedWriteHalf);

/// Why a conversation ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The client is gone, or reads no more.
    #[error("the client is gone: {0}")]
    Gone(#[from] std::io::Error),
    /// It was too slow.
    #[error("the client did not speak or read in time")]
    Slow(#[from] tokio::time::error::Elapsed),
    /// A reply could not be written down.
    #[error("failed to write a reply: {0}")]
    Reply(#[from] serde_json::Error),
    /// A command's conversation ended before the command.
    #[error(transparent)]
    Exec(#[from] exec::Fault),
}

/// What is answered, as it is written.
pub(super) struct Answer {
    out: OwnedWriteHalf,
    text: Vec<u8>,
}

impl Answer {
    fn new(out: OwnedWriteHalf) -> Self {
        Self {
            out,
            text: Vec::new(),
        }
    }

    /// Adds a line.
    pub(super) fn put(&mut self, reply: &Reply) -> Result<(), Broken> {
        Ok(line::write(reply, &mut self.text)?)
    }

    /// Whether so much has come together that it should be written.
    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= BATCH
    }

    /// Writes what there is, as slowly as the client reads.
    pub(super) async fn flush(&mut self) -> Result<(), Broken> {
        self.out.write_all(&self.text).await?;
        self.text.clear();
        Ok(())
    }

    /// The same for a client from which it is expected that it reads.
    pub(super) async fn flush_soon(&mut self) -> Result<(), Broken> {
        tokio::time::timeout(PATIENCE, self.flush()).await?
    }

    /// The connection itself.
    pub(super) fn stream(&mut self) -> &mut OwnedWriteHalf {
        &mut self.out
    }

    async fn refuse(&mut self, refusal: Refusal) -> Result<(), Broken> {
        self.put(&Reply::Refused(refusal))?;
        self.flush_soon().await
    }
}

/// Sees to one client.
pub(super) async fn serve(stream: UnixStream, shared: Arc<Shared>) -> Option<Parked> {
    match converse(stream, &shared).await {
        Ok(parked) => parked,
        Err(broken) => {
            tracing::debug!(%broken, "a client's conversation ended early");
            None
        }
    }
}

async fn converse(stream: UnixStream, shared: &Shared) -> Result<Option<Parked>, Broken> {
    let allowed = socket::is_allowed(&stream)?;
    let (read, write) = stream.into_split();
    let mut answer = Answer::new(write);
    line::write(&shared.greeting, &mut answer.text)?;
    if let Err(uid) = allowed {
        tracing::warn!(%uid, "a process of another user was refused at the control socket");
        let message = "failed to speak to the supervisor: it belongs to another user";
        let refusal = Refusal::new(RefusalKind::NotAllowed, message);
        answer.refuse(refusal).await?;
        end_of_reading(read.as_ref());
        return Ok(None);
    }
    let Ok(_place) = Arc::clone(&shared.clients).try_acquire_owned() else {
        answer.refuse(busy()).await?;
        end_of_reading(read.as_ref());
        return Ok(None);
    };
    answer.flush_soon().await?;
    let mut reader = LineReader::new(read, MAX_REQUEST);
    let line = tokio::time::timeout(PATIENCE, reader.bytes()).await?;
    let request = match line {
        Ok(Some(line)) => request(&line),
        Ok(None) => return Ok(None),
        Err(LineError::Io(error)) => return Err(error.into()),
        Err(error) => Err(Refusal::new(
            RefusalKind::BadRequest,
            format_args!("failed to read the request: {error}"),
        )),
    };
    let done = match request {
        Ok(request) => handle(request, reader, &mut answer, shared).await?,
        Err(refusal) => Err(refusal),
    };
    let ended = matches!(done, Ok(End::Ended(_)));
    match done {
        Ok(End::Done) => answer.put(&Reply::Done)?,
        Ok(End::Ended(code)) => answer.put(&Reply::Ended(Ended { code }))?,
        Ok(End::Frames) => return Ok(None),
        Err(refusal) => answer.put(&Reply::Refused(refusal))?,
    }
    answer.flush_soon().await?;
    Ok(ended.then_some(Parked(answer.out)))
}

/// Takes no more from a client, so that a request which nobody has read does not reset the connection
/// and with it the answer.
fn end_of_reading(stream: &UnixStream) {
    if let Err(error) = shutdown(stream.as_raw_fd(), Shutdown::Read) {
        tracing::debug!(%error, "a client was not told that nobody reads");
    }
    let mut unread = [0; 4096];
    // Not more than the socket's buffer holds: nothing comes any more.
    while matches!(nix::unistd::read(stream, &mut unread), Ok(1..)) {}
}

fn busy() -> Refusal {
    Refusal::new(
        RefusalKind::Busy,
        "failed to take the request: the supervisor has as many clients as it takes; end some \
         of them",
    )
}

/// What the client wants.
fn request(line: &[u8]) -> Result<Request, Refusal> {
    let malformed = |error: serde_json::Error| {
        Refusal::new(
            RefusalKind::BadRequest,
            format_args!("failed to understand the request: {error}"),
        )
    };
    let head: CallHead = serde_json::from_slice(line).map_err(malformed)?;
    if head.protocol != PROTOCOL {
        return Err(Refusal::new(
            RefusalKind::Protocol,
            format_args!(
                "failed to understand the request: it is of protocol {}, this supervisor is \
                 iii-super {} and speaks {PROTOCOL}",
                head.protocol,
                env!("CARGO_PKG_VERSION"),
            ),
        ));
    }
    let call: Call = serde_json::from_slice(line).map_err(malformed)?;
    Ok(call.request)
}

/// How a request's answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// That was all.
    Done,
    /// The run has ended with this exit code; the connection ends with the supervisor.
    Ended(u8),
    /// With frames, which are written.
    Frames,
}

pub(super) type Done = Result<End, Refusal>;

/// Does what is asked. What it returns is the last line of the answer.
async fn handle(
    request: Request,
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    match request {
        Request::Status => {
            let workers = match shared.supervisor.workers().await {
                Ok(workers) => workers,
                Err(error) => return Ok(Err(refusal(&error))),
            };
            for worker in workers {
                answer.put(&Reply::Worker(Box::new(WorkerInfo::from(worker))))?;
            }
            answer.flush_soon().await?;
            Ok(Ok(End::Done))
        }
        Request::Usage(wanted) => requests::usage(&wanted, answer, shared).await,
        Request::Events(wanted) => {
            let known = known(shared, &wanted.workers).await;
            let place = match known.and_then(|()| place(shared, wanted.follow)) {
                Ok(place) => place,
                Err(refusal) => return Ok(Err(refusal)),
            };
            stream::events(&wanted, reader, answer, shared).await?;
            drop(place);
            Ok(Ok(End::Done))
        }
        Request::Logs(wanted) => {
            let known = known(shared, &wanted.workers).await;
            let place = match known.and_then(|()| place(shared, wanted.follow)) {
                Ok(place) => place,
                Err(refusal) => return Ok(Err(refusal)),
            };
            stream::logs(&wanted, reader, answer, shared).await?;
            drop(place);
            Ok(Ok(End::Done))
        }
        Request::Attach(wanted) => {
            let place = match place(shared, true) {
                Ok(place) => place,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let done = stream::attach(wanted, reader, answer, shared).await;
            drop(place);
            done
        }
        Request::Start(wanted) => requests::start(wanted, reader, answer, shared).await,
        Request::Stop(wanted) => requests::stop(wanted, reader, answer, shared).await,
        Request::Restart(wanted) => requests::restart(wanted, reader, answer, shared).await,
        Request::Shutdown(wanted) => requests::shutdown(wanted, reader, answer, shared).await,
        Request::Reload(wanted) => requests::reload(wanted, reader, answer, shared).await,
        Request::Exec(call) => {
            let place = match place(shared, true) {
                Ok(place) => place,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let done = exec::run(call, reader, answer, shared).await;
            drop(place);
            done
        }
    }
}

/// A place among those who stay.
fn place(shared: &Shared, follows: bool) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
    if !follows {
        return Ok(None);
    }
    let place = Arc::clone(&shared.followers).try_acquire_owned();
    place.map(Some).map_err(|_| busy())
}

/// Whether all of these are there: nothing is done for some of them if one is not.
pub(super) async fn known(shared: &Shared, names: &[WorkerName]) -> Result<(), Refusal> {
    if names.is_empty() {
        return Ok(());
    }
    let present = shared.supervisor.workers().await;
    let present = present.map_err(|error| refusal(&error))?;
    let known = || present.iter().map(|worker| worker.name.as_str());
    match names
        .iter()
        .find(|name| !known().any(|k| k == name.as_str()))
    {
        None => Ok(()),
        Some(name) => Err(unknown(name, known())),
    }
}

pub(super) fn unknown<'a>(
    name: &WorkerName,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Refusal {
    let hint = match did_you_mean(name.as_str(), known.clone()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("it runs: {}.", known.collect::<Vec<_>>().join(", ")),
    };
    let way_in = format!("`iii-super run --reload {name}` takes it in, if the workers file has it");
    Refusal::new(
        RefusalKind::UnknownWorker,
        format_args!(
            "failed to find worker {name}: the supervisor has none of that name; {hint} {way_in}"
        ),
    )
}

pub(super) fn refusal(error: &RequestError) -> Refusal {
    let kind = match error {
        RequestError::Unknown(_) => RefusalKind::UnknownWorker,
        RequestError::Ended => RefusalKind::Ended,
        _ => RefusalKind::Failed,
    };
    Refusal::new(kind, error)
}
