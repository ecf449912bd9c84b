//! Requests about workers: start, stop, restart, and the end of all.
//!
//! What was asked for goes on when the client hangs up; only its waiting ends.

use std::time::Duration;

use iii_actors::{RequestError, Scope, WorkerStatus};
use iii_proto::ids::WorkerName;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use super::connection::{Answer, Broken, Done, End, known, refusal};
use super::stream::end_of;
use super::{Order, Shared, until};
use crate::control::line::LineReader;
use crate::control::protocol::{
    Refusal, RefusalKind, Reply, RestartRequest, RestartScope, ShutdownRequest, StartRequest,
    StopRequest, WorkerInfo,
};
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
    let workers = match start_all(workers, shared).await {
        Ok(workers) => workers,
        Err(error) => return Ok(Err(refusal(&error))),
    };
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
    // Either all of them or none: a part of what does not run cannot be restarted.
    if wanted.scope != RestartScope::All {
        for worker in &workers {
            let status = match worker.status().await {
                Ok(status) => status,
                Err(error) => return Ok(Err(refusal(&error))),
            };
            if !status.state.holds_resources() {
                return Ok(Err(refusal(&RequestError::NotRunning {
                    worker: status.name,
                    state: status.state,
                })));
            }
        }
    }
    let (scope, wait) = (Scope::from(wanted.scope), wanted.wait);
    let results = each(workers, move |worker| async move {
        if wait {
            worker.restart_until_ready(scope).await
        } else {
            worker.restart(scope).await?;
            worker.status().await
        }
    });
    shared.touched.notify_one();
    tell(results, reader, answer, shared).await
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
fn each<F>(workers: Vec<Worker>, what: impl Fn(Worker) -> F) -> mpsc::UnboundedReceiver<Outcome>
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
