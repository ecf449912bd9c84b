//! The control socket of a running supervisor: who may speak, what a client cannot do, what is left.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use iii_integration::program::{Run, eventually};
use iii_integration::project::{Project, Said};
use nix::sys::signal::Signal;
use serde_json::Value;

const TWO: &str = "
workers:
  web:
    command: [/bin/sh, -c, 'echo awake; exec sleep 1000']
    health: {exec: ['true']}
  flood:
    command: [/bin/sh, -c, 'while true; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done']
";

const ONE: &str = "workers: {web: {command: [/bin/sh, -c, 'echo awake; exec sleep 1000']}}";

fn ready(project: &Project) -> Run {
    let mut run = project.start(&["run", "--json"]);
    run.line("awake");
    run
}

/// Connects and reads the greeting.
fn greeted(state: &Path) -> (BufReader<UnixStream>, Value) {
    let stream = UnixStream::connect(state.join("control.sock")).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let greeting = serde_json::from_str(&line).unwrap();
    (reader, greeting)
}

/// The answer to these bytes.
fn answer(state: &Path, request: &[u8]) -> String {
    let (mut reader, _) = greeted(state);
    // It may hang up before it has read everything.
    reader.get_mut().write_all(request).ok();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).ok();
    answer
}

fn states(said: &Said) -> Vec<(String, String)> {
    let workers = said.json()["workers"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    workers
        .iter()
        .map(|worker| (text(&worker["name"]), text(&worker["state"])))
        .collect()
}

#[test]
fn ps_and_events_show_what_runs_and_nothing_runs_is_an_exit_code() {
    let project = Project::new(TWO);
    for command in [
        &["ps"][..],
        &["ps", "--json"],
        &["events"],
        &["events", "-f"],
    ] {
        let said = project.says(command);
        assert_eq!(said.code, 3, "{said:?}");
        assert!(
            said.stderr.contains("start it with `iii-super run`"),
            "{said:?}"
        );
        assert_eq!(said.stdout, "");
    }
    assert_eq!(project.states(), Vec::<std::path::PathBuf>::new());

    let mut run = ready(&project);
    eventually("both are ready", iii_integration::PATIENCE, || {
        let said = project.says(&["ps", "--json"]);
        said.code == 0 && states(&said).iter().all(|(_, state)| state == "ready")
    });
    let said = project.says(&["ps", "--json"]);
    let value = said.json();
    assert_eq!(value["pid"], run.child.id(), "{value}");
    assert_eq!(Path::new(value["file"].as_str().unwrap()), project.file());
    let web = &value["workers"][1];
    assert_eq!(web["health"], "passing");
    assert_eq!(web["starts"], 1);
    let boot = web["boot"].as_str().unwrap().to_owned();

    let table = project.says(&["ps"]).stdout;
    let web: Vec<&str> = table
        .lines()
        .find(|line| line.starts_with("web"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        (web[1], web[3], web[4], web[5]),
        ("ready", "0", "passing", &*boot)
    );

    // Who comes late sees what was; names and time select.
    let all = project.says(&["events", "--json"]);
    let kinds = |said: &Said| -> Vec<String> {
        said.stdout
            .lines()
            .map(|line| {
                let event: Value = serde_json::from_str(line).unwrap();
                event["event"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    assert!(
        kinds(&all).contains(&"workload-ready".to_owned()),
        "{all:?}"
    );
    let web = project.says(&["events", "--json", "web"]);
    assert!(kinds(&web).contains(&"vm-started".to_owned()));
    assert!(!web.stdout.contains("flood"), "{web:?}");
    let last = project.says(&["events", "--json", "-n", "2", "web"]);
    assert_eq!(last.stdout.lines().count(), 2, "{last:?}");
    assert!(web.stdout.ends_with(&last.stdout), "{web:?} {last:?}");
    let said = project.says(&["events", "--since", "2020-01-01"]);
    assert!(said.stdout.contains("web"), "{said:?}");
    let none = project.says(&["events", "--since", "0s"]);
    assert_eq!((none.code, &*none.stdout), (0, ""));
    let said = project.says(&["events", "wbe"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("did you mean web?"), "{said:?}");

    // Who follows is told to the end.
    let mut follower = project.start(&["events", "-f", "--json"]);
    follower.line("workload-ready");
    run.signal(Signal::SIGINT);
    follower.line("supervisor-stopped");
    assert_eq!(follower.wait().code(), Some(0));
    assert_eq!(run.wait().code(), Some(0));
    assert_eq!(project.left(), ["logs", "workers-file"]);
}

#[test]
fn every_project_of_the_user_is_shown_and_a_file_that_was_removed_is_found() {
    let first = Project::new(ONE);
    let second = Project::new(ONE);
    let in_first = |arguments: &[&str]| {
        let mut command = second.command(arguments);
        command.env("III_HOME", first.home());
        command
    };
    let none = first.says(&["ps", "--all-projects"]);
    assert_eq!(none.code, 0, "{none:?}");
    let mut one = ready(&first);
    let mut other = Run::start(in_first(&["run"]));
    other.line("awake");
    let said = first.says(&["ps", "--all-projects", "--json"]);
    let projects = said.json();
    let mut pids: Vec<u64> = projects
        .as_array()
        .unwrap()
        .iter()
        .map(|project| project["pid"].as_u64().unwrap())
        .collect();
    let mut expected = vec![u64::from(one.child.id()), u64::from(other.child.id())];
    pids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    let table = first.says(&["ps", "--all-projects"]).stdout;
    assert!(table.contains(&*first.file().to_string_lossy()), "{table}");

    fs::remove_file(first.file()).unwrap();
    assert_eq!(first.says(&["ps"]).code, 0);
    for run in [&mut one, &mut other] {
        run.signal(Signal::SIGINT);
        run.wait();
    }
    let said = first.says(&["ps"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("--file FILE"), "{said:?}");
}

#[test]
fn garbage_is_answered_and_harms_nobody() {
    let project = Project::new(ONE);
    let _run = ready(&project);
    let state = project.state();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("control.sock")), 0o600);

    let endless = vec![b'x'; 2 << 20];
    let deep = [
        b"{\"protocol\":1,\"request\":".as_slice(),
        &[b'['; 100_000],
        b"\n",
    ]
    .concat();
    for (request, expected) in [
        (&b"\n"[..], "bad-request"),
        (b"hello\n", "bad-request"),
        (b"\xff\xfe\0\n", "bad-request"),
        (b"{}\n", "bad-request"),
        (b"{\"protocol\":1}\n", "bad-request"),
        (b"{\"protocol\":1,\"request\":\"fly\"}\n", "bad-request"),
        (
            b"{\"protocol\":1,\"request\":{\"events\":{\"workers\":[\"../x\"]}}}\n",
            "bad-request",
        ),
        (&deep, "bad-request"),
        (
            b"{\"protocol\":99,\"request\":{\"new\":1}}\n",
            "\"protocol\"",
        ),
        (&endless, "bad-request"),
    ] {
        let said = answer(&state, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
        assert!(
            said.contains("refused") && said.contains(expected),
            "{shown}: {said}"
        );
    }
    // Half a request and the end.
    let (mut reader, greeting) = greeted(&state);
    assert_eq!(greeting["protocol"], 1);
    reader.get_mut().write_all(b"{\"protocol\":1,").unwrap();
    drop(reader);
    assert_eq!(project.says(&["ps"]).code, 0);
}

#[test]
fn garbage_behind_a_command_ends_that_command_alone() {
    let project = Project::new(ONE);
    let _run = ready(&project);
    let state = project.state();
    let call = b"{\"protocol\":1,\"request\":{\"exec\":{\"worker\":\"web\",\
                 \"command\":[\"sleep\",\"4321\"],\"stdin\":true}}}\n";
    // Input frames (1) of the session 0: the length, the kind, the session, the bytes.
    let input = |bytes: usize| {
        let mut frame = (16 + bytes as u32).to_le_bytes().to_vec();
        frame.extend(1u32.to_le_bytes());
        frame.extend(0u32.to_le_bytes());
        frame.extend((bytes as u64).to_le_bytes());
        frame.resize(20 + bytes, b'x');
        frame
    };
    // And beyond what the guest's pipe takes, for which there is new credit.
    let beyond_the_window = input(32_000).repeat(40);
    for garbage in [
        &[0xff; 100_000][..],
        b"\0\0\0\0",
        &beyond_the_window,
        &input(0),
        // A second command, a session that is not there, credit for nothing.
        b"\x08\0\0\0\0\0\0\0\0\0\0\0",
        b"\x08\0\0\0\x02\0\0\0\x07\0\0\0",
        b"\x0c\0\0\0\x03\0\0\0\0\0\0\0\xff\xff\0\0",
    ] {
        let (mut reader, _) = greeted(&state);
        reader.get_mut().write_all(call).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"opened\":{\"pid\":"), "{line}");
        reader.get_mut().write_all(garbage).ok();
        let timeout = Some(iii_integration::PATIENCE);
        reader.get_ref().set_read_timeout(timeout).unwrap();
        // Either end of a connection may see a reset where bytes were left unread.
        let mut rest = Vec::new();
        if let Err(error) = reader.read_to_end(&mut rest) {
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{:?}",
                &garbage[..garbage.len().min(16)]
            );
        }
    }
    eventually("nothing of them is left", iii_integration::PATIENCE, || {
        let script = "grep -al '[4]321' /proc/[0-9]*/cmdline | wc -l";
        project
            .says(&["exec", "web", "--", "sh", "-c", script])
            .stdout
            == "0\n"
    });
}

#[test]
fn a_process_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        // An ordinary user cannot become another one.
        return;
    }
    let project = Project::new(ONE);
    let _run = ready(&project);
    let state = project.state();
    // The mode of the directory keeps everybody out.
    let asks = || {
        let program = "import socket, sys\n\
                       s = socket.socket(socket.AF_UNIX)\n\
                       s.connect(sys.argv[1])\n\
                       try: s.sendall(b'{\"protocol\":1,\"request\":\"status\"}\\n')\n\
                       except BrokenPipeError: pass\n\
                       print(s.makefile().read())";
        let mut command = Command::new("python3");
        command
            .args(["-c", program])
            .arg(state.join("control.sock"));
        command.uid(65534).gid(65534);
        Said::of(command.output().unwrap())
    };
    assert!(asks().stderr.contains("Permission denied"), "{:?}", asks());
    // If somebody opens it, the kernel still says who comes.
    for path in [project.home(), &project.home().join("projects"), &state] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(
        state.join("control.sock"),
        fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    let said = asks();
    assert!(said.stdout.contains("not-allowed"), "{said:?}");
    assert!(!said.stdout.contains("web"), "{said:?}");
    assert_eq!(project.says(&["ps"]).code, 0);
}

#[test]
fn fifty_clients_at_once_are_answered_beside_clients_that_stop_reading_or_say_nothing() {
    let project = Project::new(TWO);
    let _run = ready(&project);
    let state = project.state();
    // These are told a flood and read nothing of it.
    let stalled: Vec<_> = (0..20)
        .map(|_| {
            let (mut reader, _) = greeted(&state);
            let request = b"{\"protocol\":1,\"request\":{\"logs\":{\"follow\":true}}}\n";
            reader.get_mut().write_all(request).unwrap();
            reader
        })
        .collect();
    let silent: Vec<_> = (0..20).map(|_| greeted(&state)).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| project.says(&["ps", "--json"])))
            .collect();
        for client in clients {
            let said = client.join().unwrap();
            assert_eq!(said.code, 0, "{said:?}");
            assert_eq!(states(&said).len(), 2);
        }
    });
    // Somebody who reads again learns that something is missing, and goes on.
    let mut reader = stalled.into_iter().next().unwrap();
    let mut line = String::new();
    while !line.starts_with("{\"missed\":") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0);
    }
    // The flood goes on, and may be faster than this reader for a while.
    while line.starts_with("{\"missed\":") {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    assert!(line.starts_with("{\"log\":{"), "{line}");
    drop(silent);
}

#[test]
fn who_says_nothing_loses_its_place() {
    let project = Project::new(ONE);
    let _run = ready(&project);
    let (mut reader, _) = greeted(&project.state());
    reader
        .get_ref()
        .set_read_timeout(Some(iii_integration::PATIENCE))
        .unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "the supervisor has hung up");
}

#[test]
fn more_clients_than_are_taken_are_told_so_and_there_is_always_a_place_for_a_short_question() {
    let project = Project::new(ONE);
    let _run = ready(&project);
    let state = project.state();
    let follow = || {
        let (mut reader, _) = greeted(&state);
        let request = b"{\"protocol\":1,\"request\":{\"events\":{\"follow\":true}}}\n";
        reader.get_mut().write_all(request).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (reader, line)
    };
    let mut followers = Vec::new();
    let refused = loop {
        let (reader, line) = follow();
        if line.contains("refused") {
            break line;
        }
        followers.push(reader);
    };
    assert!(refused.contains("busy"), "{refused}");
    assert!(followers.len() >= 100, "{}", followers.len());
    assert_eq!(project.says(&["ps"]).code, 0);
    followers.clear();
    eventually("a place for followers", Duration::from_secs(30), || {
        !follow().1.contains("refused")
    });
}

#[test]
fn after_a_kill_nobody_answers_and_the_next_run_does() {
    let project = Project::new(ONE);
    let mut run = ready(&project);
    let mut follower = project.start(&["events", "-f", "--json"]);
    follower.line("workload-started");
    run.signal(Signal::SIGKILL);
    run.wait();
    follower.line("it has ended, or was killed");
    assert_eq!(follower.wait().code(), Some(1));
    assert!(project.state().join("control.sock").exists());
    let said = project.says(&["ps"]);
    assert_eq!(said.code, 3, "{said:?}");
    let mut next = ready(&project);
    assert_eq!(project.says(&["ps"]).code, 0);
    next.signal(Signal::SIGINT);
    next.wait();
    assert_eq!(project.left(), ["logs", "workers-file"]);
}

#[test]
fn a_deep_home_is_no_obstacle() {
    let project = Project::new(ONE);
    let deep = project.home().join("d".repeat(100)).join("e".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    for part in ["lib", "cache"] {
        fs::rename(project.home().join(part), deep.join(part)).unwrap();
    }
    let command = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        command.env("III_HOME", &deep);
        command
    };
    let mut run = Run::start(command(&["run"]));
    run.line("awake");
    let said = Said::of(command(&["ps"]).output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("web"));
}
