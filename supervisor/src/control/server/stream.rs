//! Events and output, told as fast as a client reads them.

use std::sync::Arc;

use iii_actors::event::{Event, LogLine};
use iii_proto::ids::WorkerName;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::connection::{Answer, Broken};
use super::{Shared, until};
use crate::control::line::LineReader;
use crate::control::protocol::{EventsRequest, LogsRequest, Reply};
use crate::output::json;

/// Something that is told.
pub(super) trait Item: Clone {
    /// About whom.
    fn worker(&self) -> Option<&WorkerName>;
    /// As it is told.
    fn reply(&self) -> Result<Reply, serde_json::Error>;
}

impl Item for Event {
    fn worker(&self) -> Option<&WorkerName> {
        self.worker.as_ref()
    }

    fn reply(&self) -> Result<Reply, serde_json::Error> {
        Ok(Reply::Event(RawValue::from_string(json::event(self)?)?))
    }
}

impl Item for Arc<LogLine> {
    fn worker(&self) -> Option<&WorkerName> {
        Some(&self.worker)
    }

    fn reply(&self) -> Result<Reply, serde_json::Error> {
        Ok(Reply::Log(RawValue::from_string(json::log(self)?)?))
    }
}

/// Whether it is one of the workers that are asked for.
fn is_wanted(item: &impl Item, workers: &[WorkerName]) -> bool {
    workers.is_empty() || item.worker().is_some_and(|name| workers.contains(name))
}

pub(super) async fn events(
    wanted: &EventsRequest,
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<(), Broken> {
    let (recent, live) = shared.supervisor.follow_events();
    let since = wanted.since_unix_ms.unwrap_or(0);
    for event in recent.iter().filter(|event| event.time_unix_ms >= since) {
        tell(event, &wanted.workers, answer).await?;
    }
    answer.flush().await?;
    if wanted.follow {
        follow(live, &wanted.workers, reader, answer, shared).await?;
    }
    Ok(())
}

pub(super) async fn logs(
    wanted: &LogsRequest,
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<(), Broken> {
    let (recent, live) = shared.supervisor.follow_logs();
    if wanted.recent {
        for line in &recent {
            tell(line, &wanted.workers, answer).await?;
        }
    }
    answer.flush().await?;
    if wanted.follow {
        follow(live, &wanted.workers, reader, answer, shared).await?;
    }
    Ok(())
}

async fn tell(item: &impl Item, workers: &[WorkerName], answer: &mut Answer) -> Result<(), Broken> {
    if is_wanted(item, workers) {
        answer.put(&item.reply()?)?;
        if answer.is_full() {
            answer.flush().await?;
        }
    }
    Ok(())
}

/// Tells what comes until the supervisor's end, or until the client hangs up.
async fn follow<T: Item>(
    mut live: Receiver<T>,
    workers: &[WorkerName],
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<(), Broken> {
    let mut ended = shared.ended.clone();
    let mut hangs_up = std::pin::pin!(end_of(reader));
    loop {
        let item = tokio::select! {
            biased;
            item = live.recv() => item,
            read = &mut hangs_up => return Err(read.into()),
            () = until(&mut ended, Option::is_some) => break,
        };
        match item {
            Ok(item) => tell(&item, workers, answer).await?,
            Err(RecvError::Lagged(missed)) => answer.put(&Reply::Missed(missed))?,
            Err(RecvError::Closed) => break,
        }
        // What is there already goes with the same write.
        while !answer.is_full() {
            match live.try_recv() {
                Ok(item) => tell(&item, workers, answer).await?,
                Err(TryRecvError::Lagged(missed)) => answer.put(&Reply::Missed(missed))?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        answer.flush().await?;
    }
    // The last words: what was said before the end and is still to be told.
    loop {
        match live.try_recv() {
            Ok(item) => tell(&item, workers, answer).await?,
            Err(TryRecvError::Lagged(missed)) => answer.put(&Reply::Missed(missed))?,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    answer.flush().await
}

/// Resolves when the client hangs up. It has nothing more to say: what says something is broken.
pub(super) async fn end_of(reader: LineReader<OwnedReadHalf>) -> std::io::Error {
    match reader.into_inner().read_u8().await {
        Ok(_) => std::io::ErrorKind::InvalidData.into(),
        Err(error) => error,
    }
}
