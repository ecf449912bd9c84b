//! The way in: an actor system on its own threads, driven from any runtime.

use std::net::TcpListener;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use actix::prelude::*;
use iii_proto::ids::WorkerName;
use tokio::sync::oneshot;

use crate::exec::{ExecError, ExecRequest, ExecSession, Find};
use crate::memory::WorkerMemory;
use crate::plan::{Environment, WorkerPlan};
use crate::processes::Roster;
use crate::root::{
    Add, AddError, Announce, AwaitIdle, InjectError, InjectInto, Inquire, Listeners, Outcomes,
    QueryStatus, QueryStatuses, Remove, Replace, ReplaceError, RequestError, RequestRestart,
    RequestStart, RequestStop, RootSupervisor, StopAll, StopSeveral, Until, WaitFor, WorkerStatus,
};
use crate::runtime::Arbiters;
use crate::usage::WorkerUsage;
use crate::worker::{Fault, Scope};

/// Threads for all actors of a system. Actors only pass messages; what works hard (network loops,
/// VMMs, file servers) has threads and processes of its own.
const ACTOR_THREADS: usize = 2;

/// Why the actors could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemError {
    /// No thread could be made.
    #[error("failed to start the actors' thread: {0}")]
    Thread(std::io::Error),
    /// The thread ended at once.
    #[error("failed to start the actors: their thread ended")]
    Ended,
}

/// A running tree. Dropping it ends it, see [`ActorSystem::end`].
#[derive(Debug)]
pub struct ActorSystem {
    root: Addr<RootSupervisor>,
    system: actix::System,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ActorSystem {
    /// Starts the root of a tree without workers.
    pub fn start(env: Environment) -> Result<Self, SystemError> {
        let (tx, rx) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("iii-actors".into())
            .spawn(move || {
                let runner = actix::System::new();
                let roster = Roster::default();
                let processes = roster.clone();
                let arbiters = runner.block_on(async move {
                    let arbiters = Arc::new(Arbiters::start(ACTOR_THREADS));
                    let root = RootSupervisor::new(env, Arc::clone(&arbiters), roster).start();
                    // The receiver waits below.
                    drop(tx.send((root, actix::System::current())));
                    arbiters
                });
                if let Err(error) = runner.run() {
                    tracing::error!(%error, "the actor system ended with an error");
                }
                arbiters.end();
                processes.end();
            })
            .map_err(SystemError::Thread)?;
        let (root, system) = rx.recv().map_err(|_| SystemError::Ended)?;
        Ok(Self {
            root,
            system,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Takes a worker and, if `start`, starts it. `memory` is what an earlier supervisor that did
    /// not end in order has left of it.
    pub async fn add(
        &self,
        plan: WorkerPlan,
        memory: Option<WorkerMemory>,
        start: bool,
    ) -> Result<(), AddError> {
        let plan = Arc::new(plan);
        self.root
            .send(Add {
                plan,
                memory,
                start,
            })
            .await
            .unwrap_or(Err(AddError::Ended))
    }

    /// Gives a worker another plan: what runs of it is stopped in order, and started by the new one.
    pub async fn replace(&self, plan: WorkerPlan) -> Result<(), ReplaceError> {
        let replace = Replace(Arc::new(plan));
        let replaced = self.root.send(replace).await;
        replaced.unwrap_or(Err(ReplaceError::Ended))
    }

    /// Duplicates of the listeners of a worker's ports; none, if it is not there.
    pub async fn listeners(&self, worker: WorkerName) -> std::io::Result<Vec<TcpListener>> {
        let listeners = self.root.send(Listeners(worker)).await;
        listeners.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// Starts a worker that is at rest, once what it depends on allows.
    pub async fn start_worker(&self, worker: WorkerName) -> Result<(), RequestError> {
        self.ask(RequestStart(worker)).await
    }

    /// Begins to stop a worker; [`Self::at_rest`] tells when that is done.
    pub async fn stop_worker(&self, worker: WorkerName, urgent: bool) -> Result<(), RequestError> {
        self.ask(RequestStop { worker, urgent }).await
    }

    /// Begins to stop workers within their grace, each behind those of them that depend on it.
    pub fn stop_workers(&self, workers: Vec<WorkerName>) {
        self.root.do_send(StopSeveral(workers));
    }

    /// Begins to restart a worker or a part of it.
    pub async fn restart_worker(
        &self,
        worker: WorkerName,
        scope: Scope,
    ) -> Result<(), RequestError> {
        self.ask(RequestRestart { worker, scope }).await
    }

    /// Tells those who watch these files in a worker's guest, whose paths they are, that the host has
    /// changed them.
    pub async fn announce(
        &self,
        worker: WorkerName,
        paths: Vec<String>,
    ) -> Result<(), RequestError> {
        self.ask(Announce { worker, paths }).await
    }

    /// Stops a worker and forgets it; resolves when nothing of it is left.
    pub async fn remove(&self, worker: WorkerName) -> Result<(), RequestError> {
        let (answer, gone) = oneshot::channel();
        let wait = WaitFor {
            worker: worker.clone(),
            until: Until::Removed,
            answer,
        };
        self.ask(wait).await?;
        self.ask(Remove(worker)).await?;
        // The sender is dropped with the worker.
        drop(gone.await);
        Ok(())
    }

    /// Resolves once nothing of the worker runs or will without a request.
    pub async fn at_rest(&self, worker: WorkerName) -> Result<WorkerStatus, RequestError> {
        self.wait(worker, Until::AtRest).await
    }

    /// Resolves once the worker is ready, or at rest and will not be.
    pub async fn ready(&self, worker: WorkerName) -> Result<WorkerStatus, RequestError> {
        self.wait(worker, Until::ReadyOrAtRest).await
    }

    /// Resolves once the worker is ready after more starts of its workload than these, or at rest
    /// and will not be.
    pub async fn ready_after(
        &self,
        worker: WorkerName,
        starts: u64,
    ) -> Result<WorkerStatus, RequestError> {
        self.wait(worker, Until::ReadyAfter { starts }).await
    }

    async fn wait(&self, worker: WorkerName, until: Until) -> Result<WorkerStatus, RequestError> {
        let (answer, status) = oneshot::channel();
        let unknown = RequestError::Unknown(worker.clone());
        self.ask(WaitFor {
            worker,
            until,
            answer,
        })
        .await?;
        // Dropped unanswered: the worker was removed.
        status.await.map_err(|_| unknown)
    }

    /// How a worker is.
    pub async fn status(&self, worker: WorkerName) -> Result<WorkerStatus, RequestError> {
        self.ask(QueryStatus(worker)).await
    }

    /// What a worker uses.
    pub async fn usage(&self, worker: WorkerName) -> Result<WorkerUsage, RequestError> {
        Ok(self.ask(Inquire(worker)).await?.answered().await)
    }

    /// How all workers are, by name.
    pub async fn statuses(&self) -> Result<Vec<WorkerStatus>, RequestError> {
        self.root
            .send(QueryStatuses)
            .await
            .map_err(|_| RequestError::Ended)
    }

    async fn ask<M, T>(&self, message: M) -> Result<T, RequestError>
    where
        M: Message<Result = Result<T, RequestError>> + Send + 'static,
        T: Send + 'static,
        RootSupervisor: Handler<M>,
    {
        self.root
            .send(message)
            .await
            .unwrap_or(Err(RequestError::Ended))
    }

    /// Begins to stop every worker; [`Self::idle`] tells when that is done. A second call with
    /// `urgent` cuts a graceful stop short.
    pub fn stop_all(&self, urgent: bool) {
        self.root.do_send(StopAll { urgent });
    }

    /// Resolves once no worker runs or will be started again.
    pub async fn idle(&self) -> Outcomes {
        let (tx, rx) = oneshot::channel();
        self.root.do_send(AwaitIdle(tx));
        // Without a root there is no worker either.
        rx.await.unwrap_or_default()
    }

    /// Runs a command in a worker's guest. Resolves when it runs there.
    pub async fn exec(
        &self,
        worker: WorkerName,
        request: ExecRequest,
    ) -> Result<ExecSession, ExecError> {
        let (find, answer) = Find::new(worker.clone());
        self.root.send(find).await.map_err(|_| ExecError::Ended)?;
        // The actor that was to answer has ended: its successor comes.
        let state = "between two VMs";
        let gone = |_| ExecError::NotRunning { worker, state };
        answer.await.map_err(gone)??.open(request).await
    }

    /// Hurts a worker whose spec allows it.
    pub async fn inject(&self, worker: WorkerName, fault: Fault) -> Result<(), InjectError> {
        self.root
            .send(InjectInto { worker, fault })
            .await
            .unwrap_or(Err(InjectError::Ended))
    }

    /// Kills everything that runs and waits for its end: of the actors, of their threads, of every
    /// process. Requests are refused from then on. A second call waits for nothing.
    pub fn end(&self) {
        self.system.stop();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the actors' thread panicked");
        }
    }
}

impl Drop for ActorSystem {
    fn drop(&mut self) {
        self.end();
    }
}
