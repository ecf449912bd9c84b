//! What the end-to-end tests stand on: a supervisor in the test's own process, and facts to wait
//! for. Every VM in these tests is a real one.
//!
//! The helper binaries and `iii-super` itself must have been built (`cargo build --workspace
//! --bins`, which `make test` does). May depend on everything. Must never be in it: mocks.
#![deny(unsafe_code)]

pub mod agent;
pub mod chaos;
pub mod engine;
pub mod http;
pub mod images;
pub mod program;
pub mod project;
pub mod terminal;
pub mod traced;
pub mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iii_actors::event::{Event, EventKind, LogLine};
use iii_actors::spec::WorkerSpec;
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::{Exit, RestartMode, RestartPolicy};
use iii_supervisor::{
    EventStream, ExecOutput, ExecRequest, Fault, LogReader, Shutdown, Supervisor,
    SupervisorBuilder, Worker,
};

/// Nothing in these tests takes as long unless it is broken; a loaded machine only makes them
/// slower, never wrong.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where cargo has put the binaries of this build.
pub fn binaries() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    exe.ancestors()
        .skip(1)
        .find(|dir| dir.join("iii-shim").exists())
        .expect("build the helpers first: cargo build --workspace --bins")
        .to_owned()
}

/// A worker on the host's root that runs a shell script.
pub fn shell(name: &str, script: &str) -> WorkerSpec {
    let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let mut spec = WorkerSpec::new(worker_name(name), command);
    spec.allow_faults = true;
    spec
}

/// Restarts what has failed at once and for ever.
pub fn quick() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::OnFailure,
        initial: Duration::from_millis(10),
        factor: 1.0,
        limit: None,
        ..RestartPolicy::default()
    }
}

/// A worker's name.
pub fn worker_name(name: &str) -> WorkerName {
    WorkerName::new(name).expect("the test's name is valid")
}

/// A supervisor, and everything that it has said.
pub struct Bench {
    /// The supervisor under test.
    pub supervisor: Supervisor,
    events: EventStream,
    logs: LogReader,
    /// Events seen so far.
    pub seen: Vec<Event>,
    /// Lines seen so far.
    pub lines: Vec<Arc<LogLine>>,
}

impl Bench {
    /// A supervisor with these workers, started.
    pub async fn start(specs: Vec<WorkerSpec>) -> Self {
        let mut bench = Self::empty().await;
        bench.add(specs).await;
        bench
    }

    /// A supervisor without workers.
    pub async fn empty() -> Self {
        Self::build(Supervisor::builder()).await
    }

    /// A supervisor without workers that keeps its state in `directory`.
    pub async fn keeping(directory: &Path) -> Self {
        Self::build(Supervisor::builder().state_dir(directory.to_owned())).await
    }

    /// A supervisor of these options without workers.
    pub async fn build(builder: SupervisorBuilder) -> Self {
        let supervisor = builder
            .helper_dir(binaries())
            .start()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let events = supervisor.events();
        let logs = supervisor.take_logs().expect("nobody has taken them");
        Self {
            supervisor,
            events,
            logs,
            seen: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Adds workers.
    pub async fn add(&mut self, specs: Vec<WorkerSpec>) {
        let prepared = self
            .supervisor
            .prepare(specs)
            .await
            .unwrap_or_else(|errors| {
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                panic!("{}", texts.join("\n"))
            });
        for worker in prepared {
            self.supervisor
                .launch(worker)
                .await
                .expect("the name is new");
        }
    }

    /// Takes in events and lines until one satisfies `fact`, looking first at what was not looked
    /// at by an earlier wait.
    async fn until<T>(&mut self, what: &str, mut fact: impl FnMut(&Self) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = fact(self) {
                    return found;
                }
                tokio::select! {
                    event = self.events.next() => match event {
                        Some(Ok(event)) => self.seen.push(event),
                        Some(Err(error)) => panic!("waiting for {what}: {error}"),
                        None => panic!("waiting for {what}: the events have ended"),
                    },
                    line = self.logs.recv() => match line {
                        Some(line) => self.lines.push(line),
                        None => panic!("waiting for {what}: the logs have ended"),
                    },
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("no {what} within {PATIENCE:?}; seen:\n{}", self.story()),
        }
    }

    /// The first event at or behind position `from` that satisfies `fact`, and the position behind
    /// it.
    pub async fn event<T>(
        &mut self,
        from: usize,
        what: &str,
        fact: impl Fn(&Event) -> Option<T>,
    ) -> (T, usize) {
        self.until(what, |bench| {
            let (at, found) = bench
                .seen
                .iter()
                .enumerate()
                .skip(from)
                .find_map(|(at, event)| Some((at, fact(event)?)))?;
            Some((found, at + 1))
        })
        .await
    }

    /// What a shell script that succeeds puts out in a running worker's guest, without what is
    /// blank at its end.
    pub async fn output(&self, worker: &str, script: &str) -> String {
        let request = ExecRequest::new(["/bin/sh", "-c", script]);
        let opening = self.supervisor.exec(worker_name(worker), request).await;
        let mut session = opening.unwrap_or_else(|error| panic!("{script}: {error}"));
        drop(session.stdin.take());
        let mut output = session.output.take().expect("nobody has taken it");
        let mut text = Vec::new();
        while let Some(piece) = output.recv().await {
            match piece {
                ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => text.extend(bytes),
            }
        }
        let exit = session.wait().await.expect("the session ends in order");
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        assert_eq!(exit, Exit::Code { code: 0 }, "{script}: {text}");
        text
    }

    /// The first line of `worker` that starts with `prefix`, as text.
    pub async fn line(&mut self, worker: &str, prefix: &str) -> String {
        self.line_from(0, worker, prefix).await.0
    }

    /// As [`Self::line`] from position `from` on; also returns the position behind it.
    pub async fn line_from(&mut self, from: usize, worker: &str, prefix: &str) -> (String, usize) {
        self.until(&format!("line {prefix:?} of {worker}"), |bench| {
            bench
                .lines
                .iter()
                .enumerate()
                .skip(from)
                .find_map(|(at, line)| {
                    let text = String::from_utf8_lossy(&line.text).into_owned();
                    let hit = line.worker.as_str() == worker && text.starts_with(prefix);
                    hit.then_some((text, at + 1))
                })
        })
        .await
    }

    /// Waits until `worker` is ready, looking from position `from` on.
    pub async fn ready(&mut self, from: usize, worker: &str) -> (BootId, GuestPid, usize) {
        let ((boot, pid), next) = self
            .event(
                from,
                &format!("readiness of {worker}"),
                |event| match &event.kind {
                    EventKind::WorkloadReady { pid } if is(event, worker) => {
                        Some((event.boot.expect("a workload runs in a boot"), *pid))
                    }
                    _ => None,
                },
            )
            .await;
        (boot, pid, next)
    }

    /// A handle to a worker.
    pub fn worker(&self, name: &str) -> Worker {
        self.supervisor.worker(worker_name(name))
    }

    /// Hurts a worker.
    pub async fn hurt(&self, worker: &str, fault: Fault) {
        self.supervisor
            .inject(worker_name(worker), fault)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Everything that was said until now, for a failure's message.
    pub fn whole_story(&mut self) -> String {
        self.mark();
        while let Some(line) = self.logs.try_recv() {
            self.lines.push(line);
        }
        self.story()
    }

    /// Where the next event will be put.
    pub fn mark(&mut self) -> usize {
        while let Some(Ok(event)) = self.events.try_next() {
            self.seen.push(event);
        }
        self.seen.len()
    }

    /// Everything that was seen, for a failure's message.
    pub fn story(&self) -> String {
        let mut story = String::new();
        for event in &self.seen {
            story += &format!(
                "{:?} {:?} {:?} {:?}\n",
                event.at, event.worker, event.boot, event.kind
            );
        }
        for line in &self.lines {
            story += &format!(
                "{} | {}\n",
                line.worker,
                String::from_utf8_lossy(&line.text)
            );
        }
        story
    }

    /// Stops everything in order.
    pub async fn stop(mut self) -> Self {
        self.drain_until_stopped().await;
        self
    }

    async fn drain_until_stopped(&mut self) {
        let Self {
            supervisor,
            events,
            logs,
            seen,
            lines,
        } = self;
        {
            let mut shutdown = std::pin::pin!(supervisor.shutdown(Shutdown::Graceful));
            // Somebody must go on reading, or the workloads' last words block the stop.
            loop {
                tokio::select! {
                    _ = &mut shutdown => break,
                    Some(Ok(event)) = events.next() => seen.push(event),
                    Some(line) = logs.recv() => lines.push(line),
                }
            }
        }
        while let Some(Ok(event)) = events.try_next() {
            seen.push(event);
        }
        while let Some(line) = logs.try_recv() {
            lines.push(line);
        }
    }
}

/// Whether an event is about this worker.
pub fn is(event: &Event, worker: &str) -> bool {
    event
        .worker
        .as_ref()
        .is_some_and(|name| name.as_str() == worker)
}
