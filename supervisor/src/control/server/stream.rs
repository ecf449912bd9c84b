//! Events and output, told as fast as a client reads them.

use std::future::pending;
use std::sync::Arc;

use iii_actors::event::{Event, LogLine};
use iii_proto::ids::WorkerName;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;

use super::connection::{Answer, Broken, Done, End, refusal};
use super::{Shared, until};
use crate::WorkerState;
use crate::control::line::LineReader;
use crate::control::protocol::{AttachRequest, EventsRequest, LogsRequest, Reply, WorkerInfo};
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
    let chosen: Vec<&Event> = recent
        .iter()
        .filter(|event| event.time_unix_ms >= since && is_wanted(*event, &wanted.workers))
        .collect();
    let last = wanted.last.unwrap_or(chosen.len()).min(chosen.len());
    for event in &chosen[chosen.len() - last..] {
        tell(*event, &wanted.workers, answer).await?;
    }
    answer.flush().await?;
    if wanted.follow {
        let feed = Feed {
            events: Some(live),
            logs: None,
        };
        feed.follow(&wanted.workers, reader, answer, shared, pending())
            .await?;
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
        let feed = Feed {
            events: None,
            logs: Some(live),
        };
        feed.follow(&wanted.workers, reader, answer, shared, pending())
            .await?;
    }
    Ok(())
}

/// Tells all that a foreground run would print, until the run's end, or until all workers have been
/// ready or have ended: then how they are.
pub(super) async fn attach(
    wanted: AttachRequest,
    reader: LineReader<OwnedReadHalf>,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let (recent, events) = shared.supervisor.follow_events();
    let logs = wanted.logs.then(|| shared.supervisor.follow_logs().1);
    if wanted.recent {
        for event in &recent {
            tell(event, &[], answer).await?;
        }
    }
    answer.flush().await?;
    let feed = Feed {
        events: Some(events),
        logs,
    };
    let settled = async {
        match wanted.until_settled {
            true => settled(shared).await,
            false => pending().await,
        }
    };
    feed.follow(&[], reader, answer, shared, settled).await?;
    let code = *shared.ended.borrow();
    if let Some(code) = code {
        return Ok(Ok(End::Ended(code)));
    }
    let workers = match shared.supervisor.workers().await {
        Ok(workers) => workers,
        Err(error) => return Ok(Err(refusal(&error))),
    };
    for worker in workers {
        answer.put(&Reply::Worker(Box::new(WorkerInfo::from(worker))))?;
    }
    Ok(Ok(End::Done))
}

/// Resolves once each worker has been ready or has ended, or waits for one that nobody starts.
async fn settled(shared: &Shared) {
    let mut waiting = JoinSet::new();
    // Where nothing answers any more, nothing is to be waited for.
    let workers = shared.supervisor.workers().await.unwrap_or_default();
    for worker in workers {
        let worker = shared.supervisor.worker(worker.name);
        waiting.spawn(async move { worker.ready().await });
    }
    loop {
        let workers = shared.supervisor.workers().await.unwrap_or_default();
        let stands_still = |state: WorkerState| {
            state.is_at_rest() || matches!(state, WorkerState::Ready | WorkerState::Waiting)
        };
        if workers.iter().all(|worker| stands_still(worker.state)) {
            return;
        }
        if waiting.join_next().await.is_none() {
            return;
        }
    }
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

/// What comes, as it comes.
struct Feed {
    events: Option<Receiver<Event>>,
    logs: Option<Receiver<Arc<LogLine>>>,
}

/// One thing that has come.
enum Came {
    Event(Box<Event>),
    Line(Arc<LogLine>),
    Missed(u64),
    /// Nothing more will.
    Nothing,
}

async fn receive<T: Clone>(from: &mut Option<Receiver<T>>) -> Result<T, RecvError> {
    match from {
        Some(from) => from.recv().await,
        None => pending().await,
    }
}

impl Feed {
    /// Tells what comes until the supervisor's end, until `over`, or until the client hangs up.
    async fn follow(
        mut self,
        workers: &[WorkerName],
        reader: LineReader<OwnedReadHalf>,
        answer: &mut Answer,
        shared: &Shared,
        over: impl Future<Output = ()>,
    ) -> Result<(), Broken> {
        let mut ended = shared.ended.clone();
        let mut hangs_up = std::pin::pin!(end_of(reader));
        let mut over = std::pin::pin!(over);
        loop {
            let came = tokio::select! {
                biased;
                came = self.next() => came,
                gone = &mut hangs_up => return Err(gone.into()),
                () = until(&mut ended, Option::is_some) => break,
                () = &mut over => break,
            };
            if !self.tell(came, workers, answer).await? {
                break;
            }
            // What is there already goes with the same write.
            while !answer.is_full()
                && let Some(came) = self.there()
            {
                self.tell(came, workers, answer).await?;
            }
            answer.flush().await?;
        }
        // The last words: what was said before the end and is still to be told.
        while let Some(came) = self.there() {
            self.tell(came, workers, answer).await?;
        }
        answer.flush().await
    }

    async fn next(&mut self) -> Came {
        tokio::select! {
            // Events first: they are few, and a flood of output must not hide them.
            biased;
            event = receive(&mut self.events) => came(event, |event| Came::Event(Box::new(event))),
            line = receive(&mut self.logs) => came(line, Came::Line),
        }
    }

    /// What has come already.
    fn there(&mut self) -> Option<Came> {
        let event = self.events.as_mut().map(Receiver::try_recv);
        if let Some(came) =
            event.and_then(|event| came_already(event, |event| Came::Event(Box::new(event))))
        {
            return Some(came);
        }
        let line = self.logs.as_mut().map(Receiver::try_recv);
        line.and_then(|line| came_already(line, Came::Line))
    }

    /// `false`: nothing more will come.
    async fn tell(
        &mut self,
        came: Came,
        workers: &[WorkerName],
        answer: &mut Answer,
    ) -> Result<bool, Broken> {
        match came {
            Came::Event(event) => {
                // What a workload wrote before it ended is told before its end is.
                if let Some(logs) = &mut self.logs {
                    for _ in 0..logs.len() {
                        match logs.try_recv() {
                            Ok(line) => tell(&line, workers, answer).await?,
                            Err(TryRecvError::Lagged(missed)) => {
                                answer.put(&Reply::Missed(missed))?;
                            }
                            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        }
                    }
                }
                tell(&*event, workers, answer).await?;
            }
            Came::Line(line) => tell(&line, workers, answer).await?,
            Came::Missed(missed) => answer.put(&Reply::Missed(missed))?,
            Came::Nothing => return Ok(false),
        }
        Ok(true)
    }
}

fn came<T>(item: Result<T, RecvError>, of: impl FnOnce(T) -> Came) -> Came {
    match item {
        Ok(item) => of(item),
        Err(RecvError::Lagged(missed)) => Came::Missed(missed),
        Err(RecvError::Closed) => Came::Nothing,
    }
}

fn came_already<T>(item: Result<T, TryRecvError>, of: impl FnOnce(T) -> Came) -> Option<Came> {
    match item {
        Ok(item) => Some(of(item)),
        Err(TryRecvError::Lagged(missed)) => Some(Came::Missed(missed)),
        Err(TryRecvError::Empty | TryRecvError::Closed) => None,
    }
}

/// Resolves when the client hangs up. It has nothing more to say: what says something is broken.
pub(super) async fn end_of(reader: LineReader<OwnedReadHalf>) -> std::io::Error {
    match reader.into_inner().read_u8().await {
        Ok(_) => std::io::ErrorKind::InvalidData.into(),
        Err(error) => error,
    }
}
