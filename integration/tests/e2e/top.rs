//! What workers use, and the screen that shows it: real VMs, a real terminal.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use iii_integration::PATIENCE;
use iii_integration::program::{Run, eventually};
use iii_integration::project::Project;
use iii_integration::terminal::Terminal;
use nix::sys::signal::Signal;
use serde_json::Value;

const TWO: &str = "
workers:
  busy:
    command: [/bin/sh, -c, 'echo at work; while :; do sleep 0.2; done']
    network: none
  web:
    command: [/bin/sh, -c, 'echo awake; exec /usr/bin/busybox httpd -f -p 8000 -h /usr']
    ports: ['0:8000']
    root: {persist: 64MiB}
    health: {tcp: 8000}
";

fn ready(project: &Project) -> Run {
    let mut run = project.start(&["run", "--json"]);
    run.line("awake");
    eventually("both are ready", PATIENCE, || {
        let said = project.says(&["ps", "--json"]);
        said.code == 0 && worker(&said.json(), "web")["state"] == "ready"
    });
    run
}

/// What the service answers, with all that is around it.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn worker<'v>(value: &'v Value, name: &str) -> &'v Value {
    let workers = value["workers"].as_array().unwrap();
    workers.iter().find(|w| w["name"] == name).unwrap()
}

fn port(project: &Project) -> u16 {
    let said = project.says(&["ps", "--json"]).json();
    let host = worker(&said, "web")["ports"][0]["host"].clone();
    let host = host.as_str().unwrap();
    host.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn what_workers_use_is_told_when_somebody_asks() {
    let project = Project::new(TWO);
    for command in [
        &["ps", "--stats"][..],
        &["ps", "--size"],
        &["top", "--once"],
    ] {
        let said = project.says(command);
        assert_eq!(said.code, 3, "{said:?}");
        assert!(
            said.stderr.contains("start it with `iii-super run`"),
            "{said:?}"
        );
    }
    let mut run = ready(&project);
    let stats = || project.says(&["ps", "--stats", "--json"]).json();
    let first = stats();
    let web = worker(&first, "web").clone();
    let usage = &web["usage"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}"));
    // The guest's kernel and Python are in memory, and more than all the VM's is not.
    let memory = number(&usage["memory"]);
    assert!((64 << 20..512 << 20).contains(&memory), "{usage}");
    assert_eq!(number(&usage["vm_memory"]), 256 << 20);
    let guest = &usage["guest_memory"];
    let (total, available) = (number(&guest["total"]), number(&guest["available"]));
    assert!((128 << 20..256 << 20).contains(&total), "{usage}");
    assert!((1 << 20..total).contains(&available), "{usage}");
    let parts = usage["parts"].as_array().unwrap();
    let actors: Vec<&str> = parts.iter().map(|p| p["actor"].as_str().unwrap()).collect();
    assert_eq!(actors, ["dns", "net-poll", "fs", "vm"]);
    assert!(parts.iter().all(|part| part["state"] == "up"), "{usage}");
    assert_eq!(parts[3]["pid"], web["vmm_pid"]);
    assert!(number(&web["workload_since_unix_ms"]) >= number(&web["vm_since_unix_ms"]));

    // One that starts a program again and again keeps a CPU busy.
    let busy = worker(&first, "busy");
    assert!(busy["usage"]["network"].is_null(), "{busy}");
    let spent = number(&busy["usage"]["cpu_ns"]);
    eventually("busy is busy", PATIENCE, || {
        let now = stats();
        let busy = worker(&now, "busy");
        busy["cpu_percent"].as_f64().unwrap() > 1.0 && number(&busy["usage"]["cpu_ns"]) > spent
    });

    // What passes through its network is counted, over a restart of everything too.
    let network = |value: &Value| {
        let network = worker(value, "web")["usage"]["network"].clone();
        (
            number(&network["received_bytes"]),
            number(&network["sent_bytes"]),
        )
    };
    let before = network(&stats());
    assert!(get(port(&project), "/lib/os-release").contains("NAME"));
    let after = network(&stats());
    assert!(
        after.0 > before.0 + 40 && after.1 > before.1 + 200,
        "{before:?} {after:?}"
    );
    assert_eq!(project.says(&["restart", "--wait", "web"]).code, 0);
    let restarted = stats();
    let again = network(&restarted);
    assert!(
        again.0 >= after.0 && again.1 >= after.1,
        "{after:?} {again:?}"
    );
    assert_eq!(worker(&restarted, "web")["starts"], 2);

    let table = project.says(&["ps", "--stats"]).stdout;
    let row = |table: &str, name: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let web = row(&table, "web");
    assert_eq!((&*web[1], &*web[3]), ("ready", "1"), "{table}");
    assert!(web[4].ends_with('%') && web[5].ends_with("MiB"), "{table}");

    // A worker at rest uses nothing, and is shown.
    assert_eq!(project.says(&["stop", "busy"]).code, 0);
    let list = project.says(&["list"]).stdout;
    assert_eq!(row(&list, "busy")[1], "stopped", "{list}");
    assert_eq!(row(&list, "web")[1], "ready", "{list}");
    let said = project.says(&["exec", "busy", "--", "true"]);
    assert_eq!(said.code, 125);
    assert!(
        said.stderr.contains("start it with `iii-super start busy`"),
        "{said:?}"
    );
    let stopped = stats();
    let busy = worker(&stopped, "busy");
    assert!(
        busy["usage"]["memory"].is_null() && busy["cpu_percent"].is_null(),
        "{busy}"
    );
    assert_eq!(busy["usage"]["guest_memory"], Value::Null);

    let sizes = project.says(&["ps", "--size", "--json"]).json();
    let root = &worker(&sizes, "web")["sizes"]["root"];
    assert_eq!(number(&root["apparent"]), 64 << 20);
    assert!(number(&root["allocated"]) < 64 << 20, "{root}");
    assert!(
        number(&worker(&sizes, "web")["sizes"]["logs"]["allocated"]) > 0,
        "{sizes}"
    );
    assert!(worker(&sizes, "busy")["sizes"]["root"].is_null());
    let table = project.says(&["ps", "--size"]).stdout;
    assert!(row(&table, "web")[2].ends_with("/64MiB"), "{table}");

    let once = project.says(&["top", "--once"]);
    assert_eq!(once.code, 0, "{once:?}");
    assert!(
        once.stdout.contains("└ vm ") && !once.stdout.contains('\x1b'),
        "{once:?}"
    );
    let objects = project.says(&["top", "--json"]).stdout;
    let names: Vec<Value> = (objects.lines())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["busy", "web"]);

    run.signal(Signal::SIGINT);
    assert_eq!(run.wait().code(), Some(0));
}

#[test]
fn a_guest_that_hangs_is_told_of_without_its_memory() {
    let project = Project::new(TWO);
    let mut run = ready(&project);
    let said = project.says(&["ps", "--json"]).json();
    let pid = worker(&said, "web")["vmm_pid"].as_u64().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let said = project.says(&["ps", "--stats", "--json"]).json();
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    let usage = &worker(&said, "web")["usage"];
    assert!(usage["guest_memory"].is_null(), "{usage}");
    assert!(usage["memory"].as_u64().unwrap() > 0, "{usage}");
    assert!(
        !worker(&said, "busy")["usage"]["guest_memory"].is_null(),
        "{said}"
    );
    run.signal(Signal::SIGINT);
    assert_eq!(run.wait().code(), Some(0));
}

fn top(project: &Project) -> Terminal {
    Terminal::open(project.command(&["top"]), 30, 120)
}

/// The line of a worker in the table.
fn row(screen: &str, name: &str) -> String {
    let found = screen.lines().find(|line| line.starts_with(name));
    found.unwrap_or_default().to_owned()
}

#[test]
fn the_screen_shows_the_tree_and_obeys_keys_and_gives_the_terminal_back() {
    let project = Project::new(TWO);
    let said = project.says(&["top"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.stderr
            .contains("`iii-super top --once` prints one frame"),
        "{said:?}"
    );
    // Without a supervisor the terminal is not touched.
    let mut early = top(&project);
    assert_eq!(early.ends(), Some(3));
    assert!(early.is_as_before());

    let mut run = ready(&project);
    let mut screen = top(&project);
    let shown = screen.shows("the tree", |s| {
        s.contains("log of busy") && s.contains("| at work") && row(s, "busy").contains('%')
    });
    assert!(screen.is_taken());
    assert!(row(&shown, "web").contains("ready"), "{shown}");
    assert!(
        shown.contains("└ vm ") && shown.contains("└ workload "),
        "{shown}"
    );
    assert!(!shown.contains("awake"), "{shown}");

    // The other worker, its parts, and what it wrote.
    screen.press("\x1b[B");
    screen.shows("the log of web", |s| {
        s.contains("log of web") && s.contains("| awake")
    });
    screen.press("?");
    screen.shows("help", |s| s.contains("stop it; start it"));
    screen.press("q");
    screen.shows("no help", |s| {
        !s.contains("stop it; start it") && s.contains("| awake")
    });

    // Another size.
    screen.resize(20, 70);
    screen.shows("fewer columns", |s| {
        s.contains("log of web") && !s.contains("IN GUEST") && s.contains("? help")
    });
    screen.resize(40, 130);
    screen.shows("all columns", |s| {
        s.contains("CONNS") && s.contains("? help")
    });

    let state = |project: &Project| {
        let said = project.says(&["ps", "--json"]).json();
        let web = worker(&said, "web");
        (
            web["state"].as_str().unwrap().to_owned(),
            web["starts"].as_u64().unwrap(),
        )
    };
    screen.press("r");
    screen.shows("that it restarts", |s| {
        s.contains("restarts") || s.contains("restarting web")
    });
    eventually("a restart", PATIENCE, || {
        let (state, starts) = state(&project);
        state == "ready" && starts >= 2
    });
    screen.shows("ready again", |s| row(s, "web").contains("ready"));
    screen.press("s");
    screen.shows("stopped", |s| row(s, "web").contains("stopped"));
    assert_eq!(state(&project).0, "stopped");
    screen.press("s");
    screen.shows("started", |s| row(s, "web").contains("ready"));

    // The end of the supervisor is told, and the next one is found.
    run.signal(Signal::SIGINT);
    assert_eq!(run.wait().code(), Some(0));
    screen.shows("the end", |s| s.contains("no supervisor runs for"));
    let mut run = ready(&project);
    screen.shows("the next one", |s| {
        row(s, "web").contains("ready") && s.contains("log of web")
    });
    screen.press("q");
    assert_eq!(screen.ends(), Some(0));
    assert!(screen.is_as_before());

    // Signals and Ctrl-C give it back too.
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
    ] {
        let mut screen = top(&project);
        screen.shows("the tree", |s| row(s, "web").contains("ready"));
        screen.signal(signal);
        assert_eq!(screen.ends(), Some(code));
        assert!(screen.is_as_before(), "{signal}");
    }
    let mut screen = top(&project);
    screen.shows("the tree", |s| row(s, "web").contains("ready"));
    screen.press("\x03");
    assert_eq!(screen.ends(), Some(0));
    assert!(screen.is_as_before());
    run.signal(Signal::SIGINT);
    assert_eq!(run.wait().code(), Some(0));
}
