//! `iii-super run --detach`: a run in the background, watched until its workers are ready.

use std::io;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::super::arguments::{IN_BACKGROUND, RunArguments};
use super::super::contact::{Failure, Project};
use super::super::say::say;
use super::super::workers::is_well;
use super::super::{FAILED, KILLED, OK, REFUSED};
use super::background::LOG;
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{AttachRequest, Ended, Reply, Request};
use crate::output::lines::Lines;
use crate::output::printer::Format;
use crate::workers_file::EngineKey;

/// Starts the run and, unless told otherwise, waits until its workers are ready.
pub(super) async fn run(
    args: &RunArguments,
    project: &Project,
    format: Format,
) -> Result<u8, Failure> {
    let mut child = command(args, project)
        .and_then(|mut command| command.spawn())
        .map_err(failed)?;
    if !relay(&mut child).await.map_err(failed)? {
        return Ok(KILLED);
    }
    let client = match project.client().await {
        Ok(client) => client,
        // It has said why.
        Err(ClientError::NotRunning) => {
            let status = child.wait().await.map_err(failed)?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.unwrap_or(FAILED));
        }
        Err(error) => return Err(error.into()),
    };
    if args.no_wait {
        let pid = client.greeting.pid;
        say(format_args!("started in the background, process {pid}"));
        return Ok(OK);
    }
    watch(client, project, format).await
}

fn failed(error: io::Error) -> Failure {
    Failure::new(
        REFUSED,
        format_args!("failed to start in the background: {error}"),
    )
}

/// This program again, with what it was asked for.
fn command(args: &RunArguments, project: &Project) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // Its lines go into a file; a relative file would mean another one from another directory.
    command.args(["--no-color", "run", IN_BACKGROUND, "--file"]);
    command.arg(std::path::absolute(project.file())?);
    if let Some(vmm) = args.vmm {
        command.args(["--vmm", vmm.word()]);
    }
    for (flag, wanted) in [
        ("--reset-failed", args.reset_failed),
        ("--verbose", args.verbose),
        ("--json", args.file.json),
    ] {
        if wanted {
            command.arg(flag);
        }
    }
    if let Some(engine) = args.engine.as_ref().and_then(EngineKey::as_given) {
        command.args(["--engine", engine]);
    }
    command.arg("--").args(&args.file.names);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Passes on what it says until it has begun, or has ended. `false`: the user wants neither.
async fn relay(child: &mut Child) -> io::Result<bool> {
    let Some(mut said) = child.stderr.take() else {
        return Ok(true);
    };
    let mut stderr = tokio::io::stderr();
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            count = said.read(&mut buffer) => match count? {
                0 => return Ok(true),
                count => {
                    stderr.write_all(&buffer[..count]).await?;
                    stderr.flush().await?;
                }
            },
            pressed = tokio::signal::ctrl_c() => {
                pressed?;
                if let Some(pid) = child.id() {
                    kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
                }
                child.wait().await?;
                say("nothing was started");
                return Ok(false);
            }
        }
    }
}

/// Shows what happens until every worker has been ready or has ended.
async fn watch(client: Client, project: &Project, format: Format) -> Result<u8, Failure> {
    let pid = client.greeting.pid;
    let mut answer = client
        .ask(Request::Attach(AttachRequest {
            logs: false,
            recent: true,
            until_settled: true,
        }))
        .await?;
    let mut lines = Lines::new(format);
    let (mut ready, mut others) = (0, Vec::new());
    loop {
        let reply = tokio::select! {
            reply = answer.next() => reply?,
            pressed = tokio::signal::ctrl_c() => {
                pressed.map_err(failed)?;
                say(format_args!(
                    "it goes on in the background, process {pid}; `iii-super stop` ends it"
                ));
                return Ok(KILLED);
            }
        };
        match reply {
            None => break,
            Some(Reply::Ended(Ended { code })) => {
                lines.flush().map_err(failed)?;
                answer.ended().await;
                say(format_args!(
                    "all workers have ended, and the supervisor with them; its messages are in {}",
                    project.directory().join(LOG).display()
                ));
                if code != OK {
                    say("`iii-super logs` shows what they wrote");
                }
                return Ok(code);
            }
            Some(Reply::Worker(worker)) if is_well(&worker) => ready += 1,
            Some(Reply::Worker(worker)) => {
                others.push((worker.name, worker.state));
            }
            Some(reply) => lines.put(&reply).map_err(failed)?,
        }
        if !answer.has_more() || lines.is_full() {
            // That nobody reads changes nothing for the workers.
            lines.flush().map_err(failed)?;
        }
    }
    lines.flush().map_err(failed)?;
    let workers = if ready == 1 {
        "worker is"
    } else {
        "workers are"
    };
    let mut text = format!("{ready} {workers} ready");
    for (name, state) in &others {
        text += &format!(", {name} is {state}");
    }
    say(format_args!(
        "{text}; the supervisor goes on in the background, process {pid}"
    ));
    say(
        "`iii-super ps` shows it, `iii-super run --attach` brings it back, `iii-super stop` ends it",
    );
    if others.is_empty() {
        return Ok(OK);
    }
    let names: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
    say(format_args!(
        "`iii-super logs {}` shows what {} wrote",
        names.join(" "),
        if let [_] = names[..] { "it" } else { "they" }
    ));
    Ok(FAILED)
}
