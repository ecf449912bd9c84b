//! `iii-super start`, `stop` and `restart`, as a user gives them.

use std::path::PathBuf;

use iii_integration::program::{Run, descendants, is_alive};
use iii_integration::project::Project;
use nix::sys::signal::Signal;
use serde_json::Value;

const THREE: &str = "
workers:
  db:
    command: [/bin/sh, -c, 'echo db up; exec sleep 1000']
  api:
    command: [/bin/sh, -c, 'echo api up; exec sleep 1000']
    depends_on: [db]
  stubborn:
    stop_grace: 1000s
    command: [/bin/sh, -c, 'trap \"echo asked\" TERM; echo stubborn up; while true; do sleep 1; done']
";

fn running(file: &str) -> (Project, Run) {
    let project = Project::new(file);
    let run = project.start(&["run", "--json"]);
    let said = project_ready(&project);
    assert_eq!(said.0, 0, "{said:?}");
    (project, run)
}

/// `start --wait`, as soon as there is somebody to be asked.
fn project_ready(project: &Project) -> (i32, String) {
    let mut said = project.says(&["start", "--wait"]);
    iii_integration::program::eventually("an answer", iii_integration::PATIENCE, || {
        if said.code == 3 {
            said = project.says(&["start", "--wait"]);
        }
        said.code != 3
    });
    (said.code, said.stdout + &said.stderr)
}

fn worker(project: &Project, name: &str) -> Value {
    let said = project.says(&["ps", "--json"]);
    let value = said.json();
    let workers = value["workers"].as_array().unwrap();
    let found = workers.iter().find(|worker| worker["name"] == name);
    found.unwrap_or_else(|| panic!("{said:?}")).clone()
}

fn state(project: &Project, name: &str) -> String {
    worker(project, name)["state"].as_str().unwrap().to_owned()
}

#[test]
fn workers_are_stopped_and_started_by_name_and_the_supervisor_stays() {
    let (project, mut run) = running(THREE);
    let boot = worker(&project, "stubborn")["boot"].clone();

    let said = project.says(&["stop", "db", "api"]);
    assert_eq!(said.code, 0, "{said:?}");
    // Each once it is down, and who depends on another before it.
    assert_eq!(said.stdout, "api: stopped\ndb: stopped\n");
    assert_eq!(state(&project, "db"), "stopped");
    assert_eq!(
        worker(&project, "stubborn")["boot"],
        boot,
        "nobody touched it"
    );

    // What it waits for is started with it.
    let said = project.says(&["start", "--wait", "--json", "api"]);
    assert_eq!(said.code, 0, "{said:?}");
    let names: Vec<String> = said
        .stdout
        .lines()
        .map(|line| {
            let worker: Value = serde_json::from_str(line).unwrap();
            assert_eq!(worker["state"], "ready", "{line}");
            worker["name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, ["db", "api"]);

    // A start of what runs, and a stop of what is at rest, change nothing.
    assert_eq!(project.says(&["start", "db"]).stdout, "db: ready\n");
    let again = worker(&project, "db")["boot"].clone();
    project.says(&["stop", "api"]);
    assert_eq!(project.says(&["stop", "api"]).stdout, "api: stopped\n");
    assert_eq!(worker(&project, "db")["boot"], again);

    // All that run are stopped by name: there is nothing left to run, but somebody may ask.
    let said = project.says(&["stop", "-t", "0", "db", "api", "stubborn"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(state(&project, "stubborn"), "stopped");
    let said = project.says(&["start", "--wait"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(state(&project, "api"), "ready");

    run.signal(Signal::SIGINT);
    run.wait_pressing(Signal::SIGINT);
}

#[test]
fn names_that_are_not_there_change_nothing_and_are_said() {
    let (project, _run) = running(THREE);
    for command in [
        &["stop", "db", "dbb"][..],
        &["start", "dbb"],
        &["restart", "api", "dbb"],
        &["exec", "dbb", "true"],
    ] {
        let said = project.says(command);
        let code = if command[0] == "exec" { 125 } else { 1 };
        assert_eq!(said.code, code, "{said:?}");
        assert!(said.stderr.contains("did you mean db?"), "{said:?}");
        assert_eq!(said.stdout, "");
    }
    assert_eq!(state(&project, "db"), "ready");
    assert_eq!(worker(&project, "api")["starts"], 1);
    let said = project.says(&["stop", "../db"]);
    assert_eq!(said.code, 2, "{said:?}");
    let said = project.says(&["start", "--timeout", "1s"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("--wait"), "{said:?}");
}

#[test]
fn each_scope_restarts_that_and_returns_when_it_is_ready_again() {
    let (project, _run) = running(THREE);
    let of = |name: &str| {
        let worker = worker(&project, name);
        let number = |key: &str| worker[key].as_u64().unwrap();
        (
            worker["boot"].clone(),
            worker["workload_pid"].clone(),
            number("starts"),
        )
    };
    let neighbour = of("api");
    let first = of("db");
    let said = project.says(&["restart", "-s", "workload", "--wait", "db"]);
    assert_eq!((said.code, &*said.stdout), (0, "db: ready\n"), "{said:?}");
    let second = of("db");
    assert_eq!((&second.0, second.2), (&first.0, first.2 + 1));
    assert_ne!(second.1, first.1);

    for scope in ["vm", "all"] {
        let before = of("db");
        let said = project.says(&["restart", "--scope", scope, "--wait", "db"]);
        assert_eq!((said.code, &*said.stdout), (0, "db: ready\n"), "{said:?}");
        let after = of("db");
        assert_ne!(after.0, before.0);
        assert_eq!(after.2, before.2 + 1);
    }
    assert_eq!(of("api"), neighbour);
    assert_eq!(
        worker(&project, "db")["vm_restarts"],
        0,
        "a request counts nothing"
    );

    // A part of what does not run is refused, for all that are named.
    project.says(&["stop", "api"]);
    let before = of("db");
    let said = project.says(&["restart", "-s", "vm", "db", "api"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.stderr.contains("api: it is stopped; start it instead"),
        "{said:?}"
    );
    assert_eq!(of("db"), before);
    // The whole of it is started.
    let said = project.says(&["restart", "--wait", "api"]);
    assert_eq!((said.code, &*said.stdout), (0, "api: ready\n"), "{said:?}");
}

#[test]
fn a_wait_ends_with_what_came_of_it() {
    let project = Project::new(
        "
workers:
  steady: {command: [sleep, '1000']}
  hopeless:
    command: [/bin/sh, -c, 'exit 9']
    health: {exec: ['false']}
    restart: {mode: on-failure, initial: 10ms, limit: {restarts: 1, window: 10m}}
    vm_restart: {mode: on-failure, initial: 10ms, limit: {restarts: 0, window: 10m}}
  never:
    command: [sleep, '1000']
    health: {exec: ['false'], retries: 1000, start_period: 1h}
",
    );
    let _run = project.start(&["run"]);
    iii_integration::program::eventually("a supervisor", iii_integration::PATIENCE, || {
        project.says(&["ps"]).code == 0
    });
    let said = project.says(&["start", "--wait", "hopeless", "steady"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.stdout.contains("hopeless: failed: its VM failed"),
        "{said:?}"
    );
    assert!(said.stdout.contains("steady: ready\n"), "{said:?}");
    let said = project.says(&["start", "--wait", "--timeout", "1s", "never"]);
    assert_eq!(said.code, 124, "{said:?}");
    assert!(said.stderr.contains("it goes on"), "{said:?}");
}

#[test]
fn a_stop_without_names_ends_everything_and_the_next_run_may_follow_at_once() {
    let (project, mut run) = running(
        "workers: {one: {command: [sleep, '1000']}, two: {command: [sleep, '1000'], depends_on: [one]}}",
    );
    let family = descendants(run.child.id());
    let said = project.says(&["stop"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.stdout, "two: stopped\none: stopped\n");
    assert!(said.stderr.contains("the supervisor has ended"), "{said:?}");
    // Nothing was put out, so that nothing is kept.
    assert_eq!(project.states(), Vec::<PathBuf>::new(), "its state is free");
    assert!(!family.iter().any(|pid| is_alive(*pid)));
    let mut next = project.start(&["run", "--json"]);
    assert_eq!(run.wait().code(), Some(0));
    assert!(run.said("as `iii-super stop` asks").contains("stopping"));
    next.line("workload-ready");
    assert_eq!(project.says(&["stop"]).code, 0);
    assert_eq!(next.wait().code(), Some(0));
    assert_eq!(project.says(&["stop"]).code, 3);
}

#[test]
fn what_does_not_stop_in_time_is_killed_and_a_second_stop_may_be_harder() {
    let (project, mut run) = running(THREE);
    let said = project.says(&["stop", "--timeout", "500ms"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(run.wait().code(), Some(0), "{}", run.seen.join("\n"));

    let (project, mut run) = running(THREE);
    let mut patient = project.start(&["stop"]);
    run.line("asked");
    patient.line("api: stopped");
    let said = project.says(&["stop", "-t", "0"]);
    assert_eq!(said.code, 0, "{said:?}");
    patient.line("the supervisor has ended");
    assert_eq!(patient.wait().code(), Some(0));
    assert_eq!(run.wait().code(), Some(130));
}

#[test]
fn a_request_goes_on_when_who_made_it_has_gone() {
    let (project, _run) = running(THREE);
    let mut client = project.start(&["stop", "stubborn", "db"]);
    // It waits for the stubborn one.
    client.line("db: stopped");
    client.signal(Signal::SIGKILL);
    client.wait();
    assert_eq!(state(&project, "stubborn"), "stopping");
    let said = project.says(&["stop", "-t", "0", "stubborn"]);
    assert_eq!(
        (said.code, &*said.stdout),
        (0, "stubborn: stopped\n"),
        "{said:?}"
    );
}
