//! `iii-super start`, `stop` and `restart`: requests about workers of a running supervisor.

use std::time::Duration;

use iii_actors::{Outcome, WorkerState};

use super::arguments::{RestartArguments, StartArguments, StopArguments};
use super::contact::{Failure, Project, block_on};
use super::say::{print, say};
use super::{FAILED, OK, TIMED_OUT};
use crate::control::client::Answer;
use crate::control::protocol::{
    Reply, Request, RestartRequest, ShutdownRequest, StartRequest, StopRequest, WorkerInfo,
};
use crate::output::{escape, json};
use crate::workers_file::format_duration;

pub(super) fn start(args: &StartArguments) -> u8 {
    block_on(async {
        let request = Request::Start(StartRequest {
            workers: args.names.clone(),
            wait: args.wait,
        });
        let answer = Project::of(&args.file)?.ask(request).await?;
        within(args.timeout, tell(answer, args.json, args.wait)).await
    })
}

pub(super) fn restart(args: &RestartArguments) -> u8 {
    block_on(async {
        let request = Request::Restart(RestartRequest {
            workers: args.names.clone(),
            scope: args.scope.into(),
            wait: args.wait,
        });
        let answer = Project::of(&args.file)?.ask(request).await?;
        within(args.timeout, tell(answer, args.json, args.wait)).await
    })
}

pub(super) fn stop(args: &StopArguments) -> u8 {
    block_on(async {
        let within_ms = args.timeout.map(milliseconds);
        let all = args.names.is_empty();
        let request = if all {
            Request::Shutdown(ShutdownRequest { within_ms })
        } else {
            Request::Stop(StopRequest {
                workers: args.names.clone(),
                within_ms,
            })
        };
        let answer = Project::of(&args.file)?.ask(request).await?;
        let code = tell(answer, args.json, false).await?;
        if all {
            say("the supervisor has ended");
        }
        Ok(code)
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Waits no longer than the user wants.
async fn within(
    time: Option<Duration>,
    work: impl Future<Output = Result<u8, Failure>>,
) -> Result<u8, Failure> {
    let Some(time) = time else {
        return work.await;
    };
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
        let message = format!(
            "not all of it within {}; it goes on, and `iii-super ps` shows how far it is",
            format_duration(time)
        );
        Err(Failure::new(TIMED_OUT, message))
    })
}

/// Prints each worker as it is told. Where it is `awaited`, one that is neither ready nor complete
/// is a failure.
async fn tell(mut answer: Answer, as_json: bool, awaited: bool) -> Result<u8, Failure> {
    let mut code = OK;
    while let Some(reply) = answer.next().await? {
        match reply {
            Reply::Worker(worker) => {
                if awaited && !is_well(&worker) {
                    code = FAILED;
                }
                let text = if as_json {
                    let text = serde_json::to_string(&worker);
                    json::escape_c1(text.map_err(|error| Failure::new(FAILED, error))?)
                } else {
                    format!("{}: {}", worker.name, sentence(&worker))
                };
                code = code.max(print(&(text + "\n")));
            }
            // How its workers had ended is the run's own exit code; that they end was asked for.
            Reply::Ended(_) => {
                answer.ended().await;
                break;
            }
            Reply::Usage(_)
            | Reply::Event(_)
            | Reply::Log(_)
            | Reply::Missed(_)
            | Reply::Reloaded(_)
            | Reply::Opened(_)
            | Reply::Done
            | Reply::Refused(_) => {}
        }
    }
    Ok(code)
}

/// Ready, or complete.
pub(super) fn is_well(worker: &WorkerInfo) -> bool {
    match (&worker.state, &worker.outcome) {
        (WorkerState::Ready, _) => true,
        (WorkerState::Done, Some(Outcome::Done(exit))) => exit.is_success(),
        _ => false,
    }
}

/// How a worker is, behind its name.
fn sentence(worker: &WorkerInfo) -> String {
    let mut text = worker.state.to_string();
    if !worker.waits_for.is_empty() {
        let names: Vec<&str> = worker.waits_for.iter().map(|name| name.as_str()).collect();
        text += &format!(" for {}", names.join(", "));
    }
    match &worker.outcome {
        Some(Outcome::Failed(reason)) => text += &format!(": {reason}"),
        Some(Outcome::Done(exit)) => text += &format!(": {exit}"),
        _ => {}
    }
    escape::text(&text).replace('\n', " ")
}
