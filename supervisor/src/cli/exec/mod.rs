//! `iii-super exec`: a command in a running worker's guest, as if it ran here.

mod relay;
mod signals;
mod terminal;

use std::io::IsTerminal as _;

use iii_proto::restart::Exit;

use self::relay::{End, Relay};
use self::signals::Signals;
use self::terminal::Raw;
use super::TIMED_OUT;
use super::arguments::ExecArguments;
use super::contact::{Failure, Project, block_on};
use super::say::{print, say};
use crate::control::protocol::{ExecCall, Reply, Request};

/// The command was not run, or its end is not known.
const NOT_RUN: u8 = 125;
/// What a shell adds to the number of a signal.
const BY_SIGNAL: i32 = 128;

pub(super) fn run(args: &ExecArguments) -> u8 {
    block_on(async {
        let end = execute(args).await;
        // Every way to fail before or beside the command has one code, so that no other of a
        // command is mistaken for it.
        end.map_err(|failure| failure.with_code(NOT_RUN))
    })
}

async fn execute(args: &ExecArguments) -> Result<u8, Failure> {
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            NOT_RUN,
            "failed to give the command this terminal: standard input is none; leave -t out",
        ));
    }
    let project = Project::of(&args.file)?;
    let request = Request::Exec(ExecCall {
        worker: args.name.clone(),
        command: args.command.clone(),
        env: environment(args),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: args.tty.then(terminal::size),
        stdin: args.interactive,
    });
    // From here on no signal ends this program without the command.
    let signals = Signals::install().map_err(|error| {
        Failure::new(
            NOT_RUN,
            format_args!("failed to listen for signals: {error}"),
        )
    })?;
    let mut answer = project.ask(request).await?;
    match answer.next().await? {
        Some(Reply::Opened(_)) => {}
        Some(_) | None => {
            return Err(Failure::new(
                NOT_RUN,
                "failed to understand the supervisor's answer",
            ));
        }
    }
    let raw = (args.tty && args.interactive)
        .then(Raw::enter)
        .transpose()
        .map_err(|error| {
            Failure::new(
                NOT_RUN,
                format_args!("failed to set up the terminal: {error}"),
            )
        })?;
    let relay = Relay {
        interactive: args.interactive,
        terminal: args.tty,
        raw: raw.as_ref(),
        timeout: args.timeout,
        json: args.json,
    };
    let end = relay.run(answer, signals).await;
    // Messages want a terminal that breaks lines.
    drop(raw);
    let how = match &end {
        End::Exited(exit) => serde_json::json!(exit),
        End::Signal(_) => serde_json::Value::Null,
        End::TimedOut(_) => "timed-out".into(),
        End::Failed(_) => "unknown".into(),
    };
    let code = exit_code(end);
    if args.json && how != serde_json::Value::Null {
        print(&format!(
            "{}\n",
            serde_json::json!({"exit": how, "code": code})
        ));
    }
    Ok(code)
}

fn exit_code(end: End) -> u8 {
    match end {
        End::Exited(exit) => code(&exit),
        End::Signal(signal) => clamp(BY_SIGNAL + signal),
        End::TimedOut(time) => {
            let time = crate::workers_file::format_duration(time);
            say(format_args!("the command was ended: it had run for {time}"));
            TIMED_OUT
        }
        End::Failed(message) => {
            say(message);
            NOT_RUN
        }
    }
}

/// Variables as they are given; a name alone takes its value from here, if it has one.
fn environment(args: &ExecArguments) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in &args.env {
        match variable.split_once('=') {
            Some((name, value)) => env.push((name.to_owned(), value.to_owned())),
            None => env.extend(
                std::env::var(variable)
                    .ok()
                    .map(|value| (variable.clone(), value)),
            ),
        }
    }
    let given = env.iter().any(|(name, _)| name == "TERM");
    if args.tty && !given {
        // What this terminal understands; the guest's own guess otherwise.
        env.extend(
            std::env::var("TERM")
                .ok()
                .map(|term| ("TERM".to_owned(), term)),
        );
    }
    env
}

fn code(exit: &Exit) -> u8 {
    match exit {
        Exit::Code { code } => clamp(*code),
        Exit::Signal { signal } => clamp(BY_SIGNAL + signal),
        Exit::Unhealthy | Exit::Fault { .. } => {
            say(format_args!("failed to see the command's end: {exit}"));
            NOT_RUN
        }
    }
}

/// An exit code has eight bits, for a shell as well.
fn clamp(code: i32) -> u8 {
    (code & 0xff) as u8
}
