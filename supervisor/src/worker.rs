//! A handle to one worker.

use std::sync::Arc;

use iii_actors::exec::{ExecError, ExecRequest, ExecSession};
use iii_actors::logs::LogBus;
use iii_actors::{ActorSystem, RequestError, Scope, WorkerStatus};
use iii_proto::ids::WorkerName;

use crate::Shutdown;
use crate::streams::LogStream;
use crate::usage::Usage;

/// One worker of a [`crate::Supervisor`]. Cheap to clone; dropping it changes nothing. Every
/// request is answered also in states where there is nothing to do: a worker that runs can be
/// started, one that is at rest can be stopped.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(crate) system: Arc<ActorSystem>,
    pub(crate) logs: LogBus,
    pub(crate) name: WorkerName,
}

impl Worker {
    /// Its name.
    pub fn name(&self) -> &WorkerName {
        &self.name
    }

    /// Makes it wanted: it starts once what it depends on allows. Counters of a worker that is at
    /// rest begin anew. [`Self::ready`] tells when it is ready.
    ///
    /// # Errors
    /// [`RequestError::Unknown`] if it was removed, [`RequestError::Ended`] if the supervisor was.
    pub async fn start(&self) -> Result<(), RequestError> {
        self.system.start_worker(self.name.clone()).await
    }

    /// Stops it, those first that may not outlive it; resolves when nothing of it runs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn stop(&self, how: Shutdown) -> Result<WorkerStatus, RequestError> {
        let name = || self.name.clone();
        self.system
            .stop_worker(name(), how == Shutdown::Now)
            .await?;
        let rest = self.system.at_rest(name());
        match how {
            Shutdown::Graceful | Shutdown::Now => rest.await,
            Shutdown::Within(time) => {
                tokio::pin!(rest);
                if let Ok(status) = tokio::time::timeout(time, &mut rest).await {
                    return status;
                }
                self.system.stop_worker(name(), true).await?;
                rest.await
            }
        }
    }

    /// Restarts it or a part of it, in order. A request, no failure: nothing is counted.
    ///
    /// # Errors
    /// As [`Self::start`], and [`RequestError::NotRunning`] for a part of what does not run.
    pub async fn restart(&self, scope: Scope) -> Result<(), RequestError> {
        self.system.restart_worker(self.name.clone(), scope).await
    }

    /// Tells those who watch these files in its guest that the host has changed them: its kernel
    /// raises an event for each (`IN_ATTRIB`). Paths are the guest's. A worker without a VM has
    /// nobody to tell.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn announce(&self, paths: Vec<String>) -> Result<(), RequestError> {
        self.system.announce(self.name.clone(), paths).await
    }

    /// As [`Self::restart`]; resolves once it is ready again, or at rest and will not be.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub async fn restart_until_ready(&self, scope: Scope) -> Result<WorkerStatus, RequestError> {
        let starts = self.status().await?.workload_starts;
        self.restart(scope).await?;
        self.ready_after(starts).await
    }

    /// Resolves once it is ready after more starts of its workload than these, or at rest and will
    /// not be.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn ready_after(&self, starts: u64) -> Result<WorkerStatus, RequestError> {
        self.system.ready_after(self.name.clone(), starts).await
    }

    /// Resolves once it is ready, or at rest and will not be: the state says which.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn ready(&self) -> Result<WorkerStatus, RequestError> {
        self.system.ready(self.name.clone()).await
    }

    /// Resolves once nothing of it runs or will without a request.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn at_rest(&self) -> Result<WorkerStatus, RequestError> {
        self.system.at_rest(self.name.clone()).await
    }

    /// How it is now.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn status(&self) -> Result<WorkerStatus, RequestError> {
        self.system.status(self.name.clone()).await
    }

    /// What it uses now: CPU and memory of this host, its guest's memory, its network. Costs nothing
    /// while nobody asks. A guest that is busy is waited for half a second, then told without.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn usage(&self) -> Result<Usage, RequestError> {
        Ok(self.system.usage(self.name.clone()).await?.into())
    }

    /// Runs a command in its guest, beside its workload.
    ///
    /// # Errors
    /// [`ExecError`] says why there is no session: the worker does not run now, the guest refused,
    /// or there are too many sessions.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, ExecError> {
        self.system.exec(self.name.clone(), request).await
    }

    /// What its workload wrote lately, and what it will. A reader that falls far behind misses
    /// lines and is told; nobody is slowed.
    pub fn logs(&self) -> LogStream {
        LogStream::new(self.logs.follow(&self.name))
    }
}
