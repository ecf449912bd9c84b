//! Requests about workers: start, stop, restart, and the end of all.
//!
//! What was asked for goes on when the client hangs up; only its waiting ends.

use std::time::Duration;

use iii_actors::{RequestError, WorkerStatus};
use iii_proto::ids::WorkerName;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use super::connection::{Answer, Broken, Done, End, known, refusal};
use super::stream::end_of;
use super::{Order, Shared, until};
use crate::control::line::LineReader;
use crate::control::protocol::{
    Refusal, RefusalKind, ReloadRequest, Reloaded, Reply, RestartRequest, RestartScope,
    ShutdownRequest, StartRequest, StopRequest, UsageRequest, WorkerInfo, WorkerUsage,
};
use crate::reload::ReloadError;
use crate::{Shutdown, Worker};

type Reader = LineReader<OwnedReadHalf>;

/// Starts workers; each is told as it is now, or with `wait` once it is ready or will not be.
pub(super) async fn start(
    wanted: StartRequest,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let workers = match select(&wanted.workers, shared).await {
        Ok(workers) => workers,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some(entered) = shared.gate.enter().await else {
        return Ok(Err(refusal(&RequestError::Ended)));
    };
    let workers = match start_all(workers, shared).await {
        Ok(workers) => workers,
        Err(error) => return Ok(Err(refusal(&error))),
    };
    drop(entered);
    shared.touched.notify_one();
    let wait = wanted.wait;
    let results = each(workers, move |worker| async move {
        if wait {
            worker.ready().await
        } else {
            worker.status().await
        }
    });
    tell(results, reader, answer, shared).await
}

/// Starts these, and what they wait for and nobody has started; returns all of them.
async fn start_all(workers: Vec<Worker>, shared: &Shared) -> Result<Vec<Worker>, RequestError> {
    let mut todo = workers;
    let mut started: Vec<Worker> = Vec::new();
    while let Some(worker) = todo.pop() {
        if started.iter().any(|other| other.name() == worker.name()) {
            continue;
        }
        worker.start().await?;
        for name in worker.status().await?.waits_for {
            let other = shared.supervisor.worker(name);
            if other.status().await?.state.is_at_rest() {
                todo.push(other);
            }
        }
        started.push(worker);
    }
    Ok(started)
}

/// Stops workers; each is told once nothing of it runs.
pub(super) async fn stop(
    wanted: StopRequest,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    if wanted.workers.is_empty() {
        let message = "failed to stop workers: none is named; a shutdown stops all";
        return Ok(Err(Refusal::new(RefusalKind::BadRequest, message)));
    }
    let workers = match select(&wanted.workers, shared).await {
        Ok(workers) => workers,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let how = how(wanted.within_ms);
    if how != Shutdown::Now {
        let names = workers.iter().map(|worker| worker.name().clone());
        shared.supervisor.stop(names.collect());
    }
    let results = each(workers, move |worker| async move { worker.stop(how).await });
    tell(results, reader, answer, shared).await
}

/// Restarts workers or a part of them; each is told as it is now, or with `wait` once it is ready
/// again or will not be.
pub(super) async fn restart(
    wanted: RestartRequest,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let workers = match select(&wanted.workers, shared).await {
        Ok(workers) => workers,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some(entered) = shared.gate.enter().await else {
        return Ok(Err(refusal(&RequestError::Ended)));
    };
    let started = match restart_all(&workers, wanted.scope).await {
        Ok(started) => started,
        Err(error) => return Ok(Err(refusal(&error))),
    };
    drop(entered);
    shared.touched.notify_one();
    let wait = wanted.wait;
    let results = each(started, move |(worker, starts)| async move {
        if wait {
            worker.ready_after(starts).await
        } else {
            worker.status().await
        }
    });
    tell(results, reader, answer, shared).await
}

/// Restarts all of them, or none: a part of what does not run cannot be restarted. Returns each with
/// the starts of its workload before.
async fn restart_all(
    workers: &[Worker],
    scope: RestartScope,
) -> Result<Vec<(Worker, u64)>, RequestError> {
    let mut started = Vec::new();
    for worker in workers {
        let status = worker.status().await?;
        if scope != RestartScope::All && !status.state.holds_resources() {
            return Err(RequestError::NotRunning {
                worker: status.name,
                state: status.state,
            });
        }
        started.push((worker.clone(), status.workload_starts));
    }
    for worker in workers {
        worker.restart(scope.into()).await?;
    }
    Ok(started)
}

/// Ends the run; each worker is told once nothing of it runs, and then the run's exit code.
pub(super) async fn shutdown(
    wanted: ShutdownRequest,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let workers = match select(&[], shared).await {
        Ok(workers) => workers,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let order = Order::Shutdown(how(wanted.within_ms));
    if shared.orders.send(order).await.is_err() {
        return Ok(Err(refusal(&RequestError::Ended)));
    }
    let results = each(workers, |worker| async move { worker.at_rest().await });
    // The supervisor may end before it has told the last of them.
    match tell(results, reader, answer, shared).await? {
        Ok(_) => {}
        Err(refusal) if refusal.kind == RefusalKind::Ended => {}
        Err(refusal) => return Ok(Err(refusal)),
    }
    let mut ended = shared.ended.clone();
    until(&mut ended, Option::is_some).await;
    let code = *ended.borrow();
    Ok(Ok(End::Ended(code.unwrap_or_default())))
}

/// Reads the workers file again.
pub(super) async fn reload(
    wanted: ReloadRequest,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let changes = tokio::select! {
        changes = shared.reloader.reload(wanted.names) => changes,
        gone = end_of(reader) => return Err(gone.into()),
    };
    shared.touched.notify_one();
    let changes = match changes {
        Ok(changes) => changes,
        Err(error) => {
            let kind = match &error {
                ReloadError::Faults(_) => RefusalKind::Faults,
                ReloadError::Add(_)
                | ReloadError::Replace(_)
                | ReloadError::Request(_)
                | ReloadError::Read(_) => RefusalKind::Failed,
                ReloadError::Ended => RefusalKind::Ended,
            };
            return Ok(Err(Refusal::new(kind, error)));
        }
    };
    answer.put(&Reply::Reloaded(Reloaded {
        started: changes.started,
        restarted: changes.restarted,
        removed: changes.removed,
        unchanged: changes.unchanged,
    }))?;
    Ok(Ok(End::Done))
}

/// Tells what workers use. They are asked all at once: a guest that does not answer is waited for.
pub(super) async fn usage(
    wanted: &UsageRequest,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let workers = match select(&wanted.workers, shared).await {
        Ok(workers) => workers,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let asked = workers.into_iter().map(|worker| {
        tokio::spawn(async move {
            let (status, usage) = tokio::join!(worker.status(), worker.usage());
            Ok::<_, RequestError>(WorkerUsage {
                worker: status?.into(),
                usage: usage?,
            })
        })
    });
    // Each goes on by itself; they are told in order.
    for told in asked.collect::<Vec<_>>() {
        match told.await {
            Ok(Ok(usage)) => answer.put(&Reply::Usage(Box::new(usage)))?,
            // It was removed meanwhile.
            Ok(Err(RequestError::Unknown(_))) => {}
            Ok(Err(error)) => return Ok(Err(refusal(&error))),
            Err(error) => return Ok(Err(Refusal::new(RefusalKind::Failed, error))),
        }
    }
    answer.flush_soon().await?;
    Ok(Ok(End::Done))
}

fn how(within_ms: Option<u64>) -> Shutdown {
    match within_ms.map(Duration::from_millis) {
        None => Shutdown::Graceful,
        Some(Duration::ZERO) => Shutdown::Now,
        Some(time) => Shutdown::Within(time),
    }
}

/// The workers of these names; all, if none is named.
async fn select(names: &[WorkerName], shared: &Shared) -> Result<Vec<Worker>, Refusal> {
    known(shared, names).await?;
    let mut names = names.to_vec();
    if names.is_empty() {
        let all = shared.supervisor.workers().await;
        let all = all.map_err(|error| refusal(&error))?;
        names = all.into_iter().map(|status| status.name).collect();
    }
    names.sort();
    names.dedup();
    let worker = |name| shared.supervisor.worker(name);
    Ok(names.into_iter().map(worker).collect())
}

type Outcome = Result<WorkerStatus, RequestError>;

/// Does something with each of them, all at once. It goes on when nobody waits for it any more.
fn each<T, F>(workers: Vec<T>, what: impl Fn(T) -> F) -> mpsc::UnboundedReceiver<Outcome>
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let (results, receiver) = mpsc::unbounded_channel();
    for worker in workers {
        let (work, results) = (what(worker), results.clone());
        tokio::spawn(async move {
            // The client may have stopped waiting.
            results.send(work.await).unwrap_or(());
        });
    }
    receiver
}

/// Tells each result as it comes.
async fn tell(
    mut results: mpsc::UnboundedReceiver<Outcome>,
    reader: Reader,
    answer: &mut Answer,
    shared: &Shared,
) -> Result<Done, Broken> {
    let mut hangs_up = std::pin::pin!(end_of(reader));
    let mut ended = shared.ended.clone();
    let mut refused = None;
    loop {
        let result = tokio::select! {
            biased;
            result = results.recv() => match result {
                Some(result) => result,
                None => break,
            },
            gone = &mut hangs_up => return Err(gone.into()),
            () = until(&mut ended, Option::is_some) => Err(RequestError::Ended),
        };
        match result {
            Ok(status) => {
                answer.put(&Reply::Worker(Box::new(WorkerInfo::from(status))))?;
                answer.flush_soon().await?;
            }
            Err(RequestError::Ended) => return Ok(Err(refusal(&RequestError::Ended))),
            // The others are told all the same.
            Err(error) => refused = Some(refusal(&error)),
        }
    }
    Ok(match refused {
        Some(refusal) => Err(refusal),
        None => Ok(End::Done),
    })
}
