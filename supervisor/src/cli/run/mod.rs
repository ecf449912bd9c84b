//! `iii-super run`: file → checks → start → print until all is done.
//!
//! * this file: what is asked for, and what must be so before anything starts;
//! * [`course`]: from workers that can be started to the end of all; [`printer`] puts out what it
//!   says, [`background`] where there is no terminal;
//! * [`detach`] starts a run in the background, [`attach`] brings it back;
//! * [`reload`] has a run read its file again.

mod attach;
mod background;
mod course;
mod detach;
mod printer;
mod reload;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::background::BackgroundLog;
use self::course::Run;
pub(super) use self::printer::Printer;
use super::arguments::{Colour, RunArguments};
use super::config::load;
use super::contact::{Failure, Project};
use super::progress::StderrProgress;
use super::say::say;
use super::signals::Signals;
use super::{KILLED, REFUSED, vmm};
use crate::control::client::ClientError;
use crate::control::socket::ControlSocket;
use crate::gate::Gate;
use crate::output::printer::Format;
use crate::output::screen::Screen;
use crate::reload::Reloader;
use crate::state::origin::Origin;
use crate::workers_file::WorkersFile;
use crate::{PrepareError, PreparedWorker, StartError, StateError, Supervisor, WorkerSpec};

pub(super) fn run(args: &RunArguments, colour: &Colour) -> u8 {
    if args.in_background
        && let Err(error) = background::leave_session()
    {
        say(format_args!(
            "failed to leave the terminal's session: {error}"
        ));
        return REFUSED;
    }
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
    let code = runtime
        .block_on(do_as_asked(args, colour))
        .unwrap_or_else(Failure::say);
    // A write to a stalled stdout may hang in a thread of the runtime; nothing waits for it.
    runtime.shutdown_background();
    code
}

async fn do_as_asked(args: &RunArguments, colour: &Colour) -> Result<u8, Failure> {
    if args.attach {
        let project = Project::of(&args.file.file)?;
        let format = match args.file.json {
            true => Format::Json,
            false => Format::Human(project.screen(colour.of_stdout(), args.verbose).await?),
        };
        return attach::run(&project, format).await;
    }
    if args.reload {
        return reload::run(args).await;
    }
    let Some((file, selected)) = load(&args.file, args.engine.as_ref()) else {
        return Ok(REFUSED);
    };
    let project = Project::new(&file.path)?;
    refuse_a_second(&project).await?;
    let format = format(&file, args, colour);
    if args.detach {
        return detach::run(args, &project, format).await;
    }
    supervise(&project, selected, args, format).await
}

fn format(file: &WorkersFile, args: &RunArguments, colour: &Colour) -> Format {
    if args.file.json {
        return Format::Json;
    }
    let looks = file.workers.iter().map(|w| (&w.name, w.health.is_some()));
    Format::Human(Screen::new(looks, colour.of_stdout(), args.verbose))
}

/// Tells how to reach the supervisor that runs already. Without this, the lock on the state
/// directory refuses all the same, but only after all else was checked.
async fn refuse_a_second(project: &Project) -> Result<(), Failure> {
    match project.client().await {
        Ok(client) => Err(busy(&client.greeting.pid.to_string(), project)),
        Err(ClientError::NotRunning) => Ok(()),
        Err(error) => Err(Failure::from(error).with_code(REFUSED)),
    }
}

fn busy(pid: &str, project: &Project) -> Failure {
    let file = project.file().display();
    Failure::new(
        REFUSED,
        format_args!(
            "a supervisor runs {file} already, process {pid}\n    `iii-super ps` shows its workers, \
             `iii-super run --attach` brings it to this terminal, `iii-super stop` ends it, \
             `iii-super run --reload` has it read its file again"
        ),
    )
}

async fn supervise(
    project: &Project,
    specs: Vec<WorkerSpec>,
    args: &RunArguments,
    format: Format,
) -> Result<u8, Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::new(REFUSED, error);
    crate::descriptors::claim(specs.len()).map_err(|error| refused(&error))?;
    let mut signals = Signals::install_reloading()
        .map_err(|error| refused(&format_args!("failed to listen for signals: {error}")))?;
    let progress = Arc::new(StderrProgress::new());
    let builder = Supervisor::builder()
        .state_dir(project.directory().to_owned())
        .forget(args.reset_failed)
        .take_cgroup(true)
        .vmm(vmm::wished(args.vmm).map_err(|error| refused(&error))?)
        .progress(progress.clone());
    let ready = tokio::select! {
        ready = make_ready(builder.start(), specs.clone()) => ready,
        name = signals.next() => {
            progress.finish();
            say(format_args!("{name}: nothing was started yet"));
            return Ok(KILLED);
        }
    };
    progress.finish();
    let (supervisor, workers) = match ready {
        Ok(ready) => ready,
        Err(Refusal::Busy(pid)) => return Err(busy(&pid, project)),
        Err(Refusal::Faults(faults)) => {
            faults.iter().for_each(say);
            return Ok(REFUSED);
        }
    };
    // The state directory is locked by now.
    let file = project.file().canonicalize();
    let told = file.and_then(|file| Origin::WorkersFile(file).write(project.directory()));
    if let Err(error) = told {
        tracing::warn!(%error, "failed to take down whose state this is; prune will not find it");
    }
    let socket = ControlSocket::open(project.directory()).map_err(|error| refused(&error))?;
    let log = match args.in_background {
        true => {
            let log = BackgroundLog::begin(project.directory());
            Some(log.map_err(|error| {
                refused(&format_args!(
                    "failed to open the log of the supervisor: {error}"
                ))
            })?)
        }
        false => None,
    };
    let (supervisor, gate) = (Arc::new(supervisor), Arc::new(Gate::default()));
    let reloader = Arc::new(Reloader::new(
        Arc::clone(&supervisor),
        Arc::clone(&gate),
        absolute(project.file()),
        args.engine.clone(),
        args.file.names.clone(),
        specs,
    ));
    let run = Run::start(supervisor, gate, reloader, socket, workers, format, log);
    Ok(match run.await {
        Ok(run) => run.finish(signals).await,
        Err(code) => code,
    })
}

fn absolute(file: &Path) -> PathBuf {
    // What cannot be made absolute was not read either.
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// What stands against a run.
enum Refusal {
    /// A supervisor with this process id.
    Busy(String),
    /// These.
    Faults(Vec<String>),
}

/// The supervisor and workers that can be started, or everything that stands against it.
async fn make_ready(
    start: impl Future<Output = Result<Supervisor, StartError>>,
    specs: Vec<WorkerSpec>,
) -> Result<(Supervisor, Vec<PreparedWorker>), Refusal> {
    let supervisor = start.await.map_err(|error| match error {
        StartError::State(StateError::Busy { pid, .. }) => Refusal::Busy(pid),
        error => Refusal::Faults(vec![error.to_string()]),
    })?;
    match supervisor.prepare(specs).await {
        Ok(workers) => Ok((supervisor, workers)),
        Err(errors) => Err(Refusal::Faults(
            errors.iter().map(PrepareError::to_string).collect(),
        )),
    }
}
