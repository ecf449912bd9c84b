//! `iii-super list`: the workers of the file, and which of them run.

use iii_actors::WorkerState;
use iii_actors::spec::{RootSpec, WorkerSpec};
use iii_proto::ids::WorkerName;
use serde::Serialize;

use super::arguments::{Colour, FileArguments};
use super::contact::{Failure, Project, block_on, workers};
use super::say::print;
use super::usage::NONE;
use super::{FAILED, REFUSED, config, ps};
use crate::control::client::ClientError;
use crate::control::protocol::WorkerInfo;
use crate::output::escape;
use crate::output::json::escape_c1;
use crate::output::table::{Cell, table};

/// Characters of a command that are shown; `iii-super config` shows all.
const COMMAND: usize = 48;

/// A worker of the file.
#[derive(Debug, PartialEq, Serialize)]
struct Listed {
    name: WorkerName,
    /// `None`: no supervisor runs, or it does not have this worker yet.
    state: Option<WorkerState>,
    /// `host`, or an image.
    root: String,
    command: Vec<String>,
    ports: Vec<String>,
    depends_on: Vec<WorkerName>,
}

pub(super) fn run(args: &FileArguments, colour: &Colour) -> u8 {
    let Some((_, specs)) = config::load(args, None) else {
        return REFUSED;
    };
    let colour = colour.of_stdout();
    block_on(async {
        let running = running(&Project::of(&args.file)?).await?;
        let listed: Vec<Listed> = specs.iter().map(|spec| listed(spec, &running)).collect();
        let text = if args.json {
            let text = serde_json::to_string_pretty(&listed);
            escape_c1(text.map_err(|error| Failure::new(FAILED, error))?) + "\n"
        } else {
            human(&listed, colour)
        };
        let code = print(&text);
        Ok(code)
    })
}

/// The workers of the file's supervisor; none, if none runs.
async fn running(project: &Project) -> Result<Vec<WorkerInfo>, Failure> {
    match project.client().await {
        Ok(client) => workers(client).await,
        Err(ClientError::NotRunning) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn listed(spec: &WorkerSpec, running: &[WorkerInfo]) -> Listed {
    let found = running.iter().find(|worker| worker.name == spec.name);
    let ports = spec.ports.iter().map(|port| {
        let host = std::net::SocketAddr::new(port.address, port.host_port);
        format!("{host}->{}", port.guest_port)
    });
    Listed {
        name: spec.name.clone(),
        state: found.map(|worker| worker.state),
        root: match &spec.root {
            RootSpec::Image(image) => image.reference.familiar(),
            _ => String::from("host"),
        },
        command: spec.command.clone(),
        ports: ports.collect(),
        depends_on: spec.depends_on.iter().map(|on| on.worker.clone()).collect(),
    }
}

fn human(workers: &[Listed], colour: bool) -> String {
    let row = |worker: &Listed| -> [Cell; 5] {
        let command = match worker.command.is_empty() {
            true => String::from("(the image's)"),
            false => escape::text(&shell_words::join(&worker.command)).replace('\n', " "),
        };
        [
            worker.name.as_str().into(),
            match worker.state {
                Some(state) => ps::state(state, colour),
                None => NONE.into(),
            },
            escape::text(&worker.root).into(),
            match worker.ports.is_empty() {
                true => NONE.into(),
                false => worker.ports.join(", ").into(),
            },
            super::usage::cut(&command, COMMAND).into(),
        ]
    };
    let rows = workers.iter().map(row).collect();
    table(["NAME", "STATE", "ROOT", "PORTS", "COMMAND"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_listed_whether_they_run_or_not() {
        let name = |name: &str| WorkerName::new(name).unwrap();
        let long = [
            "sh",
            "-c",
            "echo a\nb; exec a-program --with many --more arguments",
        ];
        let mut api = WorkerSpec::new(name("api"), long.map(String::from).to_vec());
        api.ports
            .push(iii_actors::spec::PublishSpec::loopback(8080, 3000));
        let job = WorkerSpec::new(name("job"), vec!["true".into()]);
        let running = [ps::tests::worker("api")];
        let all = [listed(&api, &running), listed(&job, &running)];
        let text = human(&all, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].starts_with("api   ready  host  127.0.0.1:8080->3000  sh -c "),
            "{text}"
        );
        assert!(lines[1].ends_with('…'), "{text}");
        assert!(lines[2].starts_with("job   -      host  -"), "{text}");
        assert!(lines[2].ends_with("true"), "{text}");
    }
}
