//! `iii-super ps`: how the workers of a running supervisor are; with `--stats` what they use
//! ([`stats`]), with `--size` what they take of the disk ([`sizes`]).

mod sizes;
mod stats;

use std::path::{Path, PathBuf};

use iii_actors::{Outcome, WorkerState};
use iii_firmware::home::IiiHome;
use serde::Serialize;

use self::sizes::{ProjectSizes, Sizes};
use super::arguments::{Colour, PsArguments};
use super::contact::{Failure, Project, block_on, workers};
use super::say::{print, say};
use super::usage::{self, INTERVAL, Measured, by_name, compare, restarts};
use super::{OK, REFUSED};
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Greeting, Health, WorkerInfo};
use crate::output::table::{Cell, table};
use crate::output::words;

/// A supervisor and its workers, for `--json`.
#[derive(Debug, Serialize)]
struct Running {
    #[serde(flatten)]
    greeting: Greeting,
    workers: Vec<Row>,
    #[serde(skip)]
    sizes: Option<ProjectSizes>,
}

/// A worker and what was asked about it.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    shown: Shown,
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<Sizes>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Shown {
    Worker(Box<WorkerInfo>),
    Measured(Box<Measured>),
}

impl Row {
    fn worker(&self) -> &WorkerInfo {
        match &self.shown {
            Shown::Worker(worker) => worker,
            Shown::Measured(measured) => &measured.worker.worker,
        }
    }
}

impl Running {
    fn human(&self, colour: bool) -> String {
        let workers: Vec<&WorkerInfo> = self.workers.iter().map(Row::worker).collect();
        if workers.is_empty() {
            return String::from("no workers\n");
        }
        let measured = self.workers.iter().map(|row| match &row.shown {
            Shown::Worker(_) => None,
            Shown::Measured(measured) => Some(&**measured),
        });
        let mut parts = Vec::new();
        if let Some(measured) = measured.collect::<Option<Vec<&Measured>>>() {
            parts.push(stats::human(&measured, words::now_unix_ms(), colour));
        }
        if let Some(sizes) = &self.sizes {
            parts.push(sizes.human(&workers, colour));
        }
        if parts.is_empty() {
            parts.push(human(&workers, colour));
        }
        parts.join("\n")
    }
}

pub(super) fn run(args: &PsArguments, colour: &Colour) -> u8 {
    let colour = colour.of_stdout();
    block_on(async {
        let text = if args.all_projects {
            let running = all(args).await?;
            if args.json {
                json(&running)?
            } else if running.is_empty() {
                say("no supervisor runs for any project of this user");
                return Ok(OK);
            } else {
                let pieces: Vec<String> = running
                    .iter()
                    .map(|running| heading(&running.greeting) + &running.human(colour))
                    .collect();
                pieces.join("\n")
            }
        } else {
            let project = Project::of(&args.file)?;
            let client = project.connect().await?;
            let running = ask(client, project.directory(), args).await?;
            if args.json {
                json(&running)?
            } else {
                running.human(colour)
            }
        };
        Ok(print(&text))
    })
}

/// Asks the supervisor of a state directory, and looks at the directory where that is wanted.
async fn ask(client: Client, directory: &Path, args: &PsArguments) -> Result<Running, Failure> {
    let greeting = client.greeting.clone();
    let mut rows: Vec<Row> = if args.stats {
        let before = by_name(&usage::ask(client).await?);
        tokio::time::sleep(INTERVAL).await;
        let now = usage::ask(Client::connect(directory).await?).await?;
        let row = |measured| Row {
            shown: Shown::Measured(Box::new(measured)),
            sizes: None,
        };
        compare(&before, now).into_iter().map(row).collect()
    } else {
        let row = |worker| Row {
            shown: Shown::Worker(Box::new(worker)),
            sizes: None,
        };
        workers(client).await?.into_iter().map(row).collect()
    };
    let mut sizes = None;
    if args.size {
        let home = IiiHome::from_env().map_err(|error| Failure::new(REFUSED, error))?;
        let found = ProjectSizes::look(&home, directory, &greeting.file)?;
        for row in &mut rows {
            row.sizes = Some(found.of(&row.worker().name));
        }
        sizes = Some(found);
    }
    Ok(Running {
        greeting,
        workers: rows,
        sizes,
    })
}

/// Every supervisor of this user. One that cannot be asked is said, and hides no other.
async fn all(args: &PsArguments) -> Result<Vec<Running>, Failure> {
    let home = IiiHome::from_env().map_err(|error| Failure::new(REFUSED, error))?;
    let projects = home.path().join("projects");
    let mut directories: Vec<PathBuf> = match std::fs::read_dir(&projects) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let message = format!("failed to read {}: {error}", projects.display());
            return Err(Failure::new(REFUSED, message));
        }
    };
    directories.sort();
    let mut running = Vec::new();
    for directory in directories {
        match Client::connect(&directory).await {
            Ok(client) => running.push(ask(client, &directory, args).await?),
            Err(ClientError::NotRunning) => {}
            Err(error) => say(format_args!("{}: {error}", directory.display())),
        }
    }
    Ok(running)
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Failure::new(super::FAILED, error))?;
    Ok(crate::output::json::escape_c1(text) + "\n")
}

fn heading(greeting: &Greeting) -> String {
    let up = words::since(greeting.started_unix_ms, words::now_unix_ms());
    let file = greeting.file.display().to_string();
    format!(
        "{} (process {}, up {up})\n",
        crate::output::escape::text(&file),
        greeting.pid
    )
}

fn human(workers: &[&WorkerInfo], colour: bool) -> String {
    let now = words::now_unix_ms();
    let rows = workers.iter().map(|worker| row(worker, now, colour));
    let heading = [
        "NAME", "STATE", "FOR", "RESTARTS", "HEALTH", "BOOT", "PID", "PORTS",
    ];
    let mut text = table(heading, rows.collect());
    for worker in workers {
        if let Some(note) = note(worker) {
            let note = crate::output::escape::text(&note);
            text += &format!("{}: {note}\n", worker.name);
        }
    }
    text
}

fn row(worker: &WorkerInfo, now: u64, colour: bool) -> [Cell; 8] {
    let dash = || String::from("-");
    let ports: Vec<String> = worker
        .ports
        .iter()
        .map(|port| format!("{}->{}", port.host, port.guest))
        .collect();
    let health = worker.health.map_or("-", |health| match health {
        Health::Pending => "pending",
        Health::Passing => "passing",
        Health::Failed => "failed",
    });
    [
        worker.name.as_str().into(),
        state(worker.state, colour),
        words::since(worker.since_unix_ms, now).into(),
        restarts(worker).into(),
        health.into(),
        worker
            .boot
            .map_or_else(dash, |boot| boot.to_string())
            .into(),
        worker
            .vmm_pid
            .map_or_else(dash, |pid| pid.to_string())
            .into(),
        if ports.is_empty() {
            dash()
        } else {
            ports.join(", ")
        }
        .into(),
    ]
}

/// A state in its colour.
pub(super) fn state(state: WorkerState, colour: bool) -> Cell {
    let sgr = match state {
        WorkerState::Ready | WorkerState::Done => "32",
        WorkerState::Failed => "31",
        WorkerState::Repairing | WorkerState::Replacing => "33",
        _ => "0",
    };
    Cell::painted(state.to_string(), |text| {
        if colour {
            format!("\x1b[{sgr}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    })
}

/// What its state alone does not say.
fn note(worker: &WorkerInfo) -> Option<String> {
    if !worker.waits_for.is_empty() {
        let names: Vec<String> = worker.waits_for.iter().map(ToString::to_string).collect();
        return Some(format!("waits for {}", names.join(", ")));
    }
    match worker.outcome.as_ref()? {
        Outcome::Failed(reason) => Some(format!("failed: {reason}")),
        Outcome::Done(exit) => Some(format!("done: {exit}")),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::protocol::Port;
    use iii_proto::ids::{BootId, WorkerName};
    use std::time::Duration;

    pub(in crate::cli) fn worker(name: &str) -> WorkerInfo {
        WorkerInfo {
            name: WorkerName::new(name).unwrap(),
            state: WorkerState::Ready,
            since_unix_ms: words::now_unix_ms()
                .saturating_sub(Duration::from_secs(3).as_millis() as u64),
            waits_for: Vec::new(),
            probed: true,
            health: Some(Health::Passing),
            boot: Some(BootId::from_random(7)),
            boots: 1,
            vmm_pid: Some(4711),
            vm_since_unix_ms: None,
            workload_pid: None,
            workload_since_unix_ms: None,
            starts: 1,
            vm_restarts: 0,
            last_exit: None,
            outcome: None,
            ports: vec![Port {
                host: ([127, 0, 0, 1], 8080).into(),
                guest: 80,
            }],
        }
    }

    #[test]
    fn each_worker_has_a_row_and_what_is_to_be_said_stands_below() {
        let mut failed = worker("flaky");
        failed.state = WorkerState::Failed;
        failed.boot = None;
        failed.vmm_pid = None;
        failed.health = None;
        failed.starts = 8;
        failed.vm_restarts = 2;
        failed.ports = Vec::new();
        failed.outcome = Some(Outcome::Failed("it \x1b[2J does not work".into()));
        let text = human(&[&failed, &worker("web")], false);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            [
                "NAME", "STATE", "FOR", "RESTARTS", "HEALTH", "BOOT", "PID", "PORTS"
            ]
        );
        assert_eq!(
            lines[1],
            [
                "flaky", "failed", "3s", "7", "(2", "of", "the", "vm)", "-", "-", "-", "-"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "web",
                "ready",
                "3s",
                "0",
                "passing",
                "0000000000000007",
                "4711",
                "127.0.0.1:8080->80"
            ]
        );
        assert!(
            text.ends_with("flaky: failed: it \\x1b[2J does not work\n"),
            "{text}"
        );
    }
}
