//! The course of a run: from workers that can be started to the end of all.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::super::say::say;
use super::super::service;
use super::super::signals::Signals;
use super::super::{FAILED, KILLED, OK};
use super::background::BackgroundLog;
use super::printer::Printer;
use crate::control::server::{ControlServer, Order, Requests};
use crate::control::socket::ControlSocket;
use crate::output::printer::Format;
use crate::{Outcome, Outcomes, PreparedWorker, Shutdown, Supervisor};

/// Workers that run, and what prints what they do.
pub(super) struct Run {
    supervisor: Arc<Supervisor>,
    control: ControlServer,
    requests: Requests,
    workers: Vec<PreparedWorker>,
    printer: Printer,
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
    pub(super) fn start(
        supervisor: Supervisor,
        socket: ControlSocket,
        file: PathBuf,
        workers: Vec<PreparedWorker>,
        format: Format,
        log: Option<BackgroundLog>,
    ) -> Self {
        let printer = match log {
            Some(log) => Printer::into_log(&supervisor, format, log),
            None => Printer::start(&supervisor, format),
        };
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
    pub(super) async fn finish(mut self, mut signals: Signals) -> u8 {
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
