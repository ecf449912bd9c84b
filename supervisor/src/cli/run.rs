//! `iii-super run`: file → checks → start → print until all is done.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iii_firmware::home::IiiHome;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::arguments::{Colour, RunArguments, Vmm};
use super::config::load;
use super::progress::StderrProgress;
use super::project;
use super::say::say;
use super::service;
use super::signals::Signals;
use super::{FAILED, KILLED, OK, REFUSED};
use crate::control::server::{ControlServer, Order, Requests};
use crate::control::socket::ControlSocket;
use crate::output::printer::{self, Format};
use crate::output::screen::Screen;
use crate::{
    Outcome, Outcomes, PrepareError, PreparedWorker, Shutdown, StartError, Supervisor, VmmChoice,
    WorkerSpec,
};

/// How long what is left may take to be printed once all workers have ended: a reader that has
/// stopped reading must not keep the program.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub(super) fn run(args: &RunArguments, colour: &Colour) -> u8 {
    let Some((file, selected)) = load(&args.file, args.engine.as_ref()) else {
        return REFUSED;
    };
    let format = if args.file.json {
        Format::Json
    } else {
        let looks = file.workers.iter().map(|w| (&w.name, w.health.is_some()));
        let screen = Screen::new(looks, colour.of_stdout(), args.verbose);
        Format::Human(screen)
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
    let code = runtime.block_on(supervise(&file.path, selected, args, format));
    // A write to a stalled stdout may hang in a thread of the runtime; nothing waits for it.
    runtime.shutdown_background();
    code
}

async fn supervise(file: &Path, specs: Vec<WorkerSpec>, args: &RunArguments, format: Format) -> u8 {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            say(format_args!("failed to listen for signals: {error}"));
            return REFUSED;
        }
    };
    let state = match IiiHome::from_env().map(|home| project::state_dir(&home, file)) {
        Ok(Ok(directory)) => directory,
        Ok(Err(error)) => {
            say(&error);
            return REFUSED;
        }
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let progress = Arc::new(StderrProgress::new());
    let builder = Supervisor::builder()
        .state_dir(state.clone())
        .forget(args.reset_failed)
        .vmm(match args.vmm {
            Vmm::Auto => VmmChoice::Auto,
            Vmm::Qemu => VmmChoice::Qemu,
        })
        .progress(progress.clone());
    let ready = tokio::select! {
        ready = make_ready(builder.start(), specs) => ready,
        name = signals.next() => {
            progress.finish();
            say(format_args!("{name}: nothing was started yet"));
            return KILLED;
        }
    };
    progress.finish();
    let (supervisor, workers) = match ready {
        Ok(ready) => ready,
        Err(refusals) => {
            refusals.iter().for_each(say);
            return REFUSED;
        }
    };
    // The state directory is locked by now.
    let socket = match ControlSocket::open(&state) {
        Ok(socket) => socket,
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    // What cannot be made absolute was not read either.
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Run::start(supervisor, socket, file, workers, format)
        .finish(signals)
        .await
}

/// The supervisor and workers that can be started, or everything that stands against it.
async fn make_ready(
    start: impl Future<Output = Result<Supervisor, StartError>>,
    specs: Vec<WorkerSpec>,
) -> Result<(Supervisor, Vec<PreparedWorker>), Vec<String>> {
    let supervisor = start.await.map_err(|error| vec![error.to_string()])?;
    match supervisor.prepare(specs).await {
        Ok(workers) => Ok((supervisor, workers)),
        Err(errors) => Err(errors.iter().map(PrepareError::to_string).collect()),
    }
}

/// Workers that run, and what prints what they do.
struct Run {
    supervisor: Arc<Supervisor>,
    control: ControlServer,
    requests: Requests,
    workers: Vec<PreparedWorker>,
    printer: Printer,
}

/// Prints what happens in the background.
pub(super) struct Printer {
    task: JoinHandle<io::Result<()>>,
    done: oneshot::Sender<()>,
    broken: bool,
}

/// What ended the normal course of things.
enum End {
    /// Nothing is left to run.
    Idle,
    /// The user wants it.
    Signal(&'static str),
    /// A client wants it.
    Order(Shutdown),
    /// Nothing can be printed any more; `true`: since nobody reads.
    Output(bool),
}

impl Run {
    fn start(
        supervisor: Supervisor,
        socket: ControlSocket,
        file: PathBuf,
        workers: Vec<PreparedWorker>,
        format: Format,
    ) -> Self {
        let printer = Printer::start(&supervisor, format);
        let supervisor = Arc::new(supervisor);
        let (control, requests) = ControlServer::start(socket, Arc::clone(&supervisor), file);
        Self {
            control,
            requests,
            supervisor,
            workers,
            printer,
        }
    }

    /// Runs to the end; then nothing of it is left.
    async fn finish(mut self, mut signals: Signals) -> u8 {
        let code = self.supervise(&mut signals).await;
        let Self {
            supervisor,
            control,
            ..
        } = self;
        let clients = control.close(code).await;
        drop(supervisor);
        // Whoever waits for the end may run the next one at once.
        drop(clients);
        code
    }

    async fn supervise(&mut self, signals: &mut Signals) -> u8 {
        for worker in std::mem::take(&mut self.workers) {
            if let Err(error) = self.supervisor.launch(worker).await {
                say(&error);
                self.supervisor.shutdown(Shutdown::Now).await;
                self.printer.close().await;
                return FAILED;
            }
        }
        let service =
            service::is_wanted().then(|| tokio::spawn(service::tell(Arc::clone(&self.supervisor))));
        let end = tokio::select! {
            () = nothing_left(&self.supervisor, &self.requests.touched) => End::Idle,
            name = signals.next() => End::Signal(name),
            Order::Shutdown(how) = next(&mut self.requests.orders) => End::Order(how),
            nobody_reads = self.printer.ended() => End::Output(nobody_reads),
        };
        let (outcomes, mut code) = match end {
            // Ends the supervisor's own parts; no worker is left to be stopped.
            End::Idle => (self.supervisor.shutdown(Shutdown::Now).await, OK),
            End::Signal(name) => {
                say(format_args!(
                    "{name}: stopping all workers; Ctrl-C again ends them at once"
                ));
                self.stop(signals, Shutdown::Graceful).await
            }
            End::Order(how) => {
                say("stopping all workers, as `iii-super stop` asks");
                self.stop(signals, how).await
            }
            End::Output(nobody_reads) => {
                let (outcomes, code) = self.stop(signals, Shutdown::Graceful).await;
                (outcomes, if nobody_reads { code } else { code.max(FAILED) })
            }
        };
        if let Some(service) = service {
            service.abort();
            // It ends with an error, since it was aborted.
            drop(service.await);
        }
        if code != KILLED {
            tokio::select! {
                () = self.printer.close() => {}
                _ = signals.next() => code = KILLED,
            }
        }
        let failed = outcomes.iter().any(|(_, outcome)| is_failure(outcome));
        if failed { code.max(FAILED) } else { code }
    }

    /// Stops all workers in order; at once when the user asks a second time.
    async fn stop(&mut self, signals: &mut Signals, how: Shutdown) -> (Outcomes, u8) {
        service::stopping();
        if how == Shutdown::Now {
            return (self.supervisor.shutdown(how).await, OK);
        }
        let mut stopped = std::pin::pin!(self.supervisor.shutdown(Shutdown::Graceful));
        let mut time_is_up = std::pin::pin!(after(how));
        let code = loop {
            tokio::select! {
                outcomes = &mut stopped => return (outcomes, OK),
                () = &mut time_is_up => {
                    say("the time is up: killing what still runs");
                    break OK;
                }
                name = signals.next() => {
                    say(format_args!("{name} again: killing all workers"));
                    break KILLED;
                }
                Order::Shutdown(how) = next(&mut self.requests.orders) => match how {
                    // It is being done.
                    Shutdown::Graceful => {}
                    Shutdown::Within(_) => time_is_up.set(after(how)),
                    Shutdown::Now => {
                        say("killing all workers, as `iii-super stop` asks");
                        break KILLED;
                    }
                },
            }
        };
        (self.supervisor.shutdown(Shutdown::Now).await, code)
    }
}

/// Resolves when a shutdown has no more time.
async fn after(how: Shutdown) {
    match how {
        Shutdown::Graceful => std::future::pending().await,
        Shutdown::Within(time) => tokio::time::sleep(time).await,
        Shutdown::Now => {}
    }
}

/// Resolves once nothing runs or will be started again. A worker that was stopped by request may be
/// asked for again: for its sake the supervisor stays.
async fn nothing_left(supervisor: &Supervisor, touched: &Notify) {
    loop {
        let outcomes = supervisor.idle().await;
        let stopped = |(_, outcome): &(_, Outcome)| *outcome == Outcome::Stopped;
        if !outcomes.iter().any(stopped) {
            return;
        }
        touched.notified().await;
    }
}

/// The next order; who could give one may be gone, which is no order.
async fn next(orders: &mut mpsc::Receiver<Order>) -> Order {
    match orders.recv().await {
        Some(order) => order,
        None => std::future::pending().await,
    }
}

/// Whether an outcome makes the run's exit code 1.
fn is_failure(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed(_) => true,
        Outcome::Done(exit) => !exit.is_success(),
        // By request; and what a later version adds is no failure that this one knows of.
        _ => false,
    }
}

impl Printer {
    /// Prints what a new supervisor tells from now on.
    pub(super) fn start(supervisor: &Supervisor, format: Format) -> Self {
        let events = supervisor.events();
        let logs = supervisor
            .take_logs()
            .expect("the supervisor is new, so nobody has taken its logs");
        let (done, finish) = oneshot::channel();
        let print = printer::print(format, events, logs, finish, tokio::io::stdout());
        Self {
            task: tokio::spawn(print),
            done,
            broken: false,
        }
    }

    /// Resolves when printing has failed: `true` if nobody reads.
    pub(super) async fn ended(&mut self) -> bool {
        let result = (&mut self.task).await;
        self.broken = true;
        match result {
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => true,
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                say(format_args!("failed to write to stdout: {error}; stopping"));
                false
            }
            Err(error) => {
                say(format_args!("failed to print: {error}; stopping"));
                false
            }
        }
    }

    /// Prints what is left.
    pub(super) async fn close(&mut self) {
        if self.broken {
            return;
        }
        // An error means that the printer has ended by itself, which `ended` tells.
        let (done, _) = oneshot::channel();
        std::mem::replace(&mut self.done, done).send(()).ok();
        if tokio::time::timeout(LAST_WORDS, self.ended())
            .await
            .is_err()
        {
            say("stdout is not read: the last lines are not printed");
        }
    }
}
