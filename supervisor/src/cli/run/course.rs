//! The course of a run: from workers that can be started to the end of all.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::super::say::say;
use super::super::service;
use super::super::signals::{Asked, Signals};
use super::super::{FAILED, KILLED, OK};
use super::background::BackgroundLog;
use super::printer::Printer;
use crate::control::server::{ControlServer, Order, Requests};
use crate::control::socket::ControlSocket;
use crate::gate::Gate;
use crate::output::printer::Format;
use crate::reload::Reloader;
use crate::{Outcome, Outcomes, PreparedWorker, Shutdown, Supervisor, WorkerState};

/// Workers that run, and what prints what they do.
pub(super) struct Run {
    supervisor: Arc<Supervisor>,
    gate: Arc<Gate>,
    reloader: Arc<Reloader>,
    control: ControlServer,
    requests: Requests,
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
    /// Starts the workers, then answers clients: whoever asks finds all of them. The exit code if one
    /// was not taken.
    pub(super) async fn start(
        supervisor: Arc<Supervisor>,
        gate: Arc<Gate>,
        reloader: Arc<Reloader>,
        socket: ControlSocket,
        workers: Vec<PreparedWorker>,
        format: Format,
        log: Option<BackgroundLog>,
    ) -> Result<Self, u8> {
        let mut printer = match log {
            Some(log) => Printer::into_log(&supervisor, format, log),
            None => Printer::start(&supervisor, format),
        };
        for worker in workers {
            if let Err(error) = supervisor.launch(worker).await {
                say(&error);
                supervisor.shutdown(Shutdown::Now).await;
                printer.close().await;
                return Err(FAILED);
            }
        }
        let (control, requests) = ControlServer::start(
            socket,
            Arc::clone(&supervisor),
            Arc::clone(&gate),
            Arc::clone(&reloader),
        );
        Ok(Self {
            gate,
            reloader,
            control,
            requests,
            supervisor,
            printer,
        })
    }

    /// Runs to the end; then nothing of it is left.
    pub(super) async fn finish(mut self, mut signals: Signals) -> u8 {
        let code = self.supervise(&mut signals).await;
        let Self {
            supervisor,
            reloader,
            control,
            ..
        } = self;
        let clients = control.close(code).await;
        // A reload that is under way finds that there is nothing left to be asked.
        reloader.close().await;
        drop(reloader);
        if Arc::into_inner(supervisor).is_none() {
            tracing::error!("something still holds the supervisor at its end");
        }
        // Whoever waits for the end may run the next one at once.
        drop(clients);
        code
    }

    async fn supervise(&mut self, signals: &mut Signals) -> u8 {
        let service =
            service::is_wanted().then(|| tokio::spawn(service::tell(Arc::clone(&self.supervisor))));
        let end = self.end(signals).await;
        // From here on nobody asks for workers.
        self.gate.close().await;
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

    /// Resolves with what ends the normal course of things.
    async fn end(&mut self, signals: &mut Signals) -> End {
        let Requests { orders, touched } = &mut self.requests;
        let mut idle = std::pin::pin!(nothing_left(&self.supervisor, &self.reloader, touched));
        loop {
            let asked = tokio::select! {
                () = &mut idle => return End::Idle,
                asked = signals.asked() => asked,
                Order::Shutdown(how) = next(orders) => return End::Order(how),
                nobody_reads = self.printer.ended() => return End::Output(nobody_reads),
            };
            match asked {
                Asked::End(name) => return End::Signal(name),
                Asked::Reload => self.reloader.reload_in_background(Arc::clone(touched)),
            }
        }
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
async fn nothing_left(supervisor: &Supervisor, reloader: &Reloader, touched: &Notify) {
    loop {
        supervisor.idle().await;
        // Between what is gone and what is new there may be a moment with nothing.
        reloader.settled().await;
        let Ok(workers) = supervisor.workers().await else {
            return;
        };
        let ended = |state| matches!(state, WorkerState::Done | WorkerState::Failed);
        if workers.iter().all(|worker| ended(worker.state)) {
            return;
        }
        let rests = |state: WorkerState| state.is_at_rest() || state == WorkerState::Waiting;
        if workers.iter().all(|worker| rests(worker.state)) {
            touched.notified().await;
        }
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
