//! `iii-super dev`: a project in a VM, restarted whenever it is saved.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iii_actors::event::EventKind;
use iii_actors::spec::PublishSpec;
use iii_firmware::home::IiiHome;
use tokio::sync::mpsc;

use super::arguments::{Colour, DevArguments};
use super::keys::{Key, Keys};
use super::progress::StderrProgress;
use super::project;
use super::run::Printer;
use super::say::{print, say};
use super::signals::Signals;
use super::{FAILED, KILLED, OK, REFUSED, engine, vmm};
use crate::dev::project::read_small;
use crate::dev::session::{DevError, Options, Plan, Request, Session};
use crate::dev::worker::Additions;
use crate::output::printer::Format;
use crate::output::screen::Screen;
use crate::state::origin::Origin;
use crate::workers_file::{EngineKey, parts};
use crate::{Shutdown, Supervisor};

/// Most bytes of a file of variables.
const MAX_ENV_FILE: u64 = 1 << 20;
/// Makes a terminal empty and puts its cursor into the corner.
const CLEAR: &str = "\x1b[2J\x1b[3J\x1b[H";

pub(super) fn run(args: &DevArguments, colour: &Colour) -> u8 {
    let made = options(args).and_then(|options| {
        let plan = Plan::make(&options).map_err(|error| error.to_string())?;
        Ok((options, plan))
    });
    let (options, plan) = match made {
        Ok(made) => made,
        Err(error) => {
            say(error);
            return REFUSED;
        }
    };
    let format = if args.json {
        Format::Json
    } else {
        Format::Human(Screen::new(
            [(&plan.spec.name, false)],
            colour.of_stdout(),
            args.verbose,
        ))
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(format_args!("failed to start threads: {error}"));
            return REFUSED;
        }
    };
    let code = runtime.block_on(develop(options, plan, args, format));
    // A write to a stalled stdout may hang in a thread of the runtime; nothing waits for it.
    runtime.shutdown_background();
    code
}

fn options(args: &DevArguments) -> Result<Options, String> {
    let engine = engine::choose(args.engine.as_ref(), &EngineKey::Absent)?;
    let mut additions = Additions {
        ports: args.port.clone(),
        name: args.name.clone(),
        engine: engine.address().cloned(),
        ..Additions::default()
    };
    for file in &args.env_file {
        for (name, value) in read_env_file(file)? {
            additions.secret.insert(name.clone());
            additions.env.retain(|(known, _)| *known != name);
            additions.env.push((name, value));
        }
    }
    Ok(Options {
        path: args.path.clone(),
        additions,
        no_restart: args.no_restart,
        fresh: args.fresh,
        quiet: args.debounce,
    })
}

/// As in the workers file.
pub(super) fn port(text: &str) -> Result<PublishSpec, String> {
    parts::parse_port(text)
}

/// As in the workers file.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parts::parse_duration(text)
}

fn read_env_file(file: &Path) -> Result<Vec<(String, String)>, String> {
    let path = file.display();
    let bytes = read_small(file, MAX_ENV_FILE);
    let bytes = bytes.map_err(|error| format!("failed to read {path}: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("failed to read {path}: not UTF-8"))?;
    let (variables, faults) = parts::parse_variables(&text);
    let fault = |fault: &parts::DotenvFault| format!("{path}:{}: {}", fault.line, fault.message);
    match faults.is_empty() {
        true => Ok(variables),
        false => Err(faults.iter().map(fault).collect::<Vec<_>>().join("\n")),
    }
}

async fn develop(options: Options, plan: Plan, args: &DevArguments, format: Format) -> u8 {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            say(format_args!("failed to listen for signals: {error}"));
            return REFUSED;
        }
    };
    let state = match IiiHome::from_env() {
        Ok(home) => project::dev_state_dir(&home, &plan.project.directory),
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let choice = match vmm::wished(args.vmm) {
        Ok(choice) => choice,
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let progress = Arc::new(StderrProgress::new());
    let builder = Supervisor::builder()
        .state_dir(state.clone())
        .forget(true)
        .take_cgroup(true)
        .vmm(choice)
        .progress(progress.clone());
    let supervisor = tokio::select! {
        started = builder.start() => started,
        name = signals.next() => {
            progress.finish();
            say(format_args!("{name}: nothing was started yet"));
            return KILLED;
        }
    };
    progress.finish();
    let supervisor = match supervisor {
        Ok(supervisor) => supervisor,
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    if let Err(error) = Origin::Developed(plan.project.directory.clone()).write(&state) {
        tracing::warn!(%error, "failed to take down whose state this is; prune will not find it");
    }
    let mut printer = Printer::start(&supervisor, format);
    let keys = Keys::read();
    supervisor.emit(&plan.spec.name, found(&plan, &options, keys.is_some()));
    let (end, code) = follow(&supervisor, options, plan, keys, &mut printer, &mut signals).await;
    if let End::Refused(error) = &end {
        say(error);
    }
    let shutdown = supervisor.shutdown(Shutdown::Graceful);
    let code = tokio::select! {
        _ = shutdown => code,
        name = signals.next() => {
            say(format_args!("{name} again: killing the worker"));
            supervisor.shutdown(Shutdown::Now).await;
            KILLED
        }
    };
    // What the session has put into the project goes once nothing sees it any more.
    drop(end);
    printer.close().await;
    code
}

/// What ended a session; what it holds is kept until the worker has ended.
enum End<'s> {
    /// It never began.
    Refused(DevError),
    /// By the user, by a fault, or since nobody reads its output.
    Over(#[expect(dead_code, reason = "it acts by its drop")] Box<Session<'s>>),
}

async fn follow<'s>(
    supervisor: &'s Supervisor,
    options: Options,
    plan: Plan,
    mut keys: Option<Keys>,
    printer: &mut Printer,
    signals: &mut Signals,
) -> (End<'s>, u8) {
    let mut session = match Session::begin(supervisor, options, plan).await {
        Ok(session) => Box::new(session),
        Err(error) => return (End::Refused(error), REFUSED),
    };
    let (request, mut requests) = mpsc::channel(4);
    let code = {
        let run = session.run(&mut requests);
        tokio::pin!(run);
        loop {
            tokio::select! {
                result = &mut run => break match result {
                    Ok(()) => OK,
                    Err(error) => {
                        say(error);
                        FAILED
                    }
                },
                name = signals.next() => {
                    say(format_args!("{name}: stopping; Ctrl-C again ends it at once"));
                    break OK;
                }
                nobody_reads = printer.ended() => break if nobody_reads { OK } else { FAILED },
                key = Keys::next(&mut keys) => match key {
                    // One that is already asked for is enough.
                    Key::Restart => request.try_send(Request::Restart).unwrap_or(()),
                    Key::Clear => drop(print(CLEAR)),
                    Key::Quit => break OK,
                },
            }
        }
    };
    (End::Over(session), code)
}

/// What was found, and how to say otherwise.
fn found(plan: &Plan, options: &Options, keys: bool) -> EventKind {
    let project = &plan.project;
    EventKind::ProjectFound {
        kind: project.kind.name().to_owned(),
        found: project.found.clone(),
        directory: project.directory.clone(),
        install: project.steps.install.clone(),
        start: project.steps.start.clone(),
        restarts: plan.restarts(options),
        watches_itself: project.watches_itself.clone(),
        keys,
    }
}
