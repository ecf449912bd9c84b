//! The way in: an actor system on its own threads, driven from any runtime.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use actix::prelude::*;
use iii_proto::ids::WorkerName;
use tokio::sync::oneshot;

use crate::exec::{ExecError, ExecRequest, ExecSession, Find};
use crate::plan::{Environment, WorkerPlan};
use crate::root::{
    Add, AddError, AwaitIdle, InjectError, InjectInto, Outcomes, RootSupervisor, StopAll,
};
use crate::runtime::Arbiters;
use crate::worker::Fault;

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

/// A running tree. Dropping it kills what runs and waits for the threads' end.
#[derive(Debug)]
pub struct ActorSystem {
    root: Addr<RootSupervisor>,
    system: actix::System,
    thread: Option<JoinHandle<()>>,
}

impl ActorSystem {
    /// Starts the root of a tree without workers.
    pub fn start(env: Environment) -> Result<Self, SystemError> {
        let (tx, rx) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("iii-actors".into())
            .spawn(move || {
                let runner = actix::System::new();
                runner.block_on(async move {
                    let arbiters = Arc::new(Arbiters::start(ACTOR_THREADS));
                    let root = RootSupervisor::new(env, arbiters).start();
                    // The receiver waits below.
                    drop(tx.send((root, actix::System::current())));
                });
                if let Err(error) = runner.run() {
                    tracing::error!(%error, "the actor system ended with an error");
                }
            })
            .map_err(SystemError::Thread)?;
        let (root, system) = rx.recv().map_err(|_| SystemError::Ended)?;
        Ok(Self {
            root,
            system,
            thread: Some(thread),
        })
    }

    /// Starts a worker.
    pub async fn add(&self, plan: WorkerPlan) -> Result<(), AddError> {
        self.root
            .send(Add(Arc::new(plan)))
            .await
            .unwrap_or(Err(AddError::Ended))
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
}

impl Drop for ActorSystem {
    fn drop(&mut self) {
        // Actors that are dropped with their thread kill their processes by their guards.
        self.system.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the actors' thread panicked");
        }
    }
}
