//! What comes from the supervisor while the screen is shown, and what goes there.
//!
//! Each question is a connection of its own: a supervisor that was stopped and run again is found
//! by the next one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use iii_proto::ids::WorkerName;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::state::{Input, LogText, Order};
use crate::cli::contact::{Failure, Project};
use crate::cli::usage;
use crate::control::protocol::{
    LogsRequest, Reply, Request, RestartRequest, RestartScope, StartRequest, StopRequest,
};
use crate::output::escape::{self, Colours};
use crate::output::{json, stamp, words};

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// Inputs that wait for the screen; whoever brings more waits.
const WAITING: usize = 256;
/// Characters of a line that are kept: no screen is wider.
const WIDEST: usize = 1000;

/// Tasks that bring inputs, until it is dropped.
pub(super) struct Feed {
    project: Arc<Project>,
    inputs: mpsc::Sender<Input>,
    look: Arc<Notify>,
    sampling: JoinHandle<()>,
    following: Option<JoinHandle<()>>,
}

impl Feed {
    /// Begins to ask.
    pub(super) fn start(project: Project) -> (Self, mpsc::Receiver<Input>) {
        let project = Arc::new(project);
        let (inputs, receiver) = mpsc::channel(WAITING);
        let look = Arc::new(Notify::new());
        let sampling = tokio::spawn(sample(
            Arc::clone(&project),
            inputs.clone(),
            Arc::clone(&look),
        ));
        let feed = Self {
            project,
            inputs,
            look,
            sampling,
            following: None,
        };
        (feed, receiver)
    }

    /// Resolves when nothing is asked any more, which is a fault of ours: a panic, which has put the
    /// terminal back already.
    pub(super) async fn failed(&mut self) -> io::Error {
        match (&mut self.sampling).await {
            Ok(()) => io::Error::other("nobody asks the supervisor any more"),
            Err(error) => io::Error::other(error),
        }
    }

    /// Tells what this worker writes from now on, and what it wrote lately.
    pub(super) fn follow(&mut self, worker: WorkerName) {
        let (project, inputs) = (Arc::clone(&self.project), self.inputs.clone());
        let next = tokio::spawn(async move {
            if let Err(error) = follow(&project, worker, &inputs).await {
                // That the supervisor is gone is told by who samples.
                tracing::debug!(%error, "failed to follow a worker's output");
            }
        });
        if let Some(before) = self.following.replace(next) {
            before.abort();
        }
    }

    /// Has the supervisor do something; what comes of it is an input.
    pub(super) fn order(&self, order: Order) {
        let (request, done) = match order {
            Order::Restart(name) => (
                Request::Restart(RestartRequest {
                    workers: vec![name.clone()],
                    scope: RestartScope::All,
                    wait: false,
                }),
                format!("{name} restarts"),
            ),
            Order::Stop(name) => (
                Request::Stop(StopRequest {
                    workers: vec![name.clone()],
                    within_ms: None,
                }),
                format!("{name} is stopped; s starts it again"),
            ),
            Order::Start(name) => (
                Request::Start(StartRequest {
                    workers: vec![name.clone()],
                    wait: false,
                }),
                format!("{name} starts"),
            ),
            Order::Quit | Order::Suspend | Order::Redraw | Order::Follow(_) => return,
        };
        let (project, inputs) = (Arc::clone(&self.project), self.inputs.clone());
        let look = Arc::clone(&self.look);
        tokio::spawn(async move {
            let told = match ask(&project, request).await {
                Ok(()) => Ok(done),
                Err(error) => Err(error.to_string()),
            };
            // Who has quit does not want to know.
            inputs.send(Input::Told(told)).await.unwrap_or(());
            look.notify_one();
        });
        self.look.notify_one();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.sampling.abort();
        if let Some(following) = &self.following {
            following.abort();
        }
    }
}

async fn ask(project: &Project, request: Request) -> Result<(), Failure> {
    let mut answer = project.ask(request).await?;
    while answer.next().await?.is_some() {}
    Ok(())
}

async fn sample(project: Arc<Project>, inputs: mpsc::Sender<Input>, look: Arc<Notify>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = look.notified() => {}
        }
        let input = match once(&project).await {
            Ok(input) => input,
            Err(error) => Input::Lost(error.to_string()),
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

/// One sample.
pub(super) async fn once(project: &Project) -> Result<Input, Failure> {
    let client = project.connect().await?;
    let greeting = client.greeting.clone();
    Ok(Input::Sample {
        greeting,
        workers: usage::ask(client).await?,
        at_unix_ms: words::now_unix_ms(),
    })
}

async fn follow(
    project: &Project,
    worker: WorkerName,
    inputs: &mpsc::Sender<Input>,
) -> Result<(), Failure> {
    let request = Request::Logs(LogsRequest {
        workers: vec![worker.clone()],
        recent: true,
        follow: true,
    });
    let mut answer = project.ask(request).await?;
    while let Some(reply) = answer.next().await? {
        let input = match reply {
            Reply::Log(raw) => match json::parse_log(raw.get()) {
                Ok(line) => {
                    let text = escape::line(&line.text, Colours::Drop).replace('\t', "    ");
                    Input::Line(LogText {
                        worker: line.worker,
                        stream: line.stream,
                        time: stamp::time_of_day(line.received_unix_ns),
                        text: text.chars().take(WIDEST).collect(),
                    })
                }
                Err(error) => {
                    tracing::debug!(%error, "a line of output is none");
                    continue;
                }
            },
            Reply::Missed(count) => Input::Missed(worker.clone(), count),
            Reply::Worker(_)
            | Reply::Usage(_)
            | Reply::Event(_)
            | Reply::Reloaded(_)
            | Reply::Opened(_)
            | Reply::Done
            | Reply::Ended(_)
            | Reply::Refused(_) => continue,
        };
        if inputs.send(input).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
