//! `iii-super run --attach`: a run in the background back in this terminal.

use tokio::signal::unix::{SignalKind, signal};

use super::super::contact::{Failure, Project};
use super::super::say::say;
use super::super::signals::Signals;
use super::super::{FAILED, OK};
use crate::control::client::{Answer, ClientError};
use crate::control::protocol::{AttachRequest, Ended, Reply, Request, ShutdownRequest};
use crate::output::lines::Lines;
use crate::output::printer::Format;

/// What a shell adds to the number of a signal.
const BY_SIGNAL: u8 = 128;

/// Shows what the run prints, and ends it by Ctrl-C, as if it had been started here. Everything else
/// that ends this program leaves the run as it is.
pub(super) async fn run(project: &Project, format: Format) -> Result<u8, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(FAILED, format_args!("failed to attach: {error}"));
    let mut signals = Signals::install().map_err(failed)?;
    let mut leave = signal(SignalKind::quit()).map_err(failed)?;
    let client = project.connect().await?;
    let pid = client.greeting.pid;
    let answer = client
        .ask(Request::Attach(AttachRequest {
            logs: true,
            ..AttachRequest::default()
        }))
        .await?;
    let states: Vec<String> = project
        .workers()
        .await?
        .iter()
        .map(|worker| format!("{} is {}", worker.name, worker.state))
        .collect();
    say(format_args!(
        "attached to process {pid}: {}; Ctrl-C stops all workers, Ctrl-\\ leaves them running",
        states.join(", ")
    ));
    // A task of its own: a terminal that stalls must not keep Ctrl-C from being heard.
    let mut printing = tokio::spawn(print(answer, Lines::new(format)));
    let mut asked = false;
    loop {
        let name = tokio::select! {
            printed = &mut printing => {
                return printed.unwrap_or_else(|error| Err(Failure::new(FAILED, error)));
            }
            name = signals.next() => name,
            _ = leave.recv() => {
                say("left; the supervisor goes on in the background");
                return Ok(OK);
            }
        };
        match name {
            "SIGHUP" => return Ok(BY_SIGNAL + 1),
            "SIGTERM" => return Ok(BY_SIGNAL + 15),
            _ if asked => {
                say(format_args!("{name} again: killing all workers"));
                ask_to_end(project, Some(0)).await?;
            }
            _ => {
                say(format_args!(
                    "{name}: stopping all workers; Ctrl-C again ends them at once"
                ));
                ask_to_end(project, None).await?;
                asked = true;
            }
        }
    }
}

/// On a connection of its own, whose answer nobody needs: the end is seen on the other one.
async fn ask_to_end(project: &Project, within_ms: Option<u64>) -> Result<(), Failure> {
    let request = Request::Shutdown(ShutdownRequest { within_ms });
    let mut answer = project.ask(request).await?;
    tokio::spawn(async move { while let Ok(Some(_)) = answer.next().await {} });
    Ok(())
}

/// Prints until the run's end, or until nobody reads; the exit code.
async fn print(mut answer: Answer, mut lines: Lines) -> Result<u8, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(FAILED, format_args!("failed to print: {error}"));
    loop {
        let reply = match answer.next().await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(OK),
            Err(ClientError::Ended) => {
                return Err(Failure::new(
                    FAILED,
                    "the supervisor was killed, and its workers with it",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        if let Reply::Ended(Ended { code }) = reply {
            lines.flush().map_err(failed)?;
            answer.ended().await;
            return Ok(code);
        }
        lines.put(&reply).map_err(failed)?;
        let wait = !answer.has_more() || lines.is_full();
        if wait && !lines.flush().map_err(failed)? {
            return Ok(OK);
        }
    }
}
