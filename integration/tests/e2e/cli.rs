//! The program as a user runs it: its processes, its exit codes, what it leaves behind.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use iii_integration::program::{
    NOBODY, Run, as_user, descendants, eventually, is_alive, processes_with, program, run,
    workers_file,
};
use iii_integration::{PATIENCE, binaries};
use nix::sys::signal::Signal;

const SLEEPER: &str = "
workers:
  NAME:
    command: [/bin/sh, -c, 'echo awake; exec sleep 1000']
";

#[test]
fn a_killed_supervisor_leaves_nothing_and_the_next_run_starts() {
    let (_directory, file) = workers_file(&SLEEPER.replace("NAME", "orphan"));
    for _ in 0..2 {
        let mut first = run(&file);
        first.line("awake");
        let family = descendants(first.child.id());
        assert!(
            family.len() >= 4,
            "a shim and a program for each of QEMU and iii-vfs"
        );
        assert!(!processes_with("orphan").is_empty());
        first.signal(Signal::SIGKILL);
        first.wait();
        eventually("the end of the family", Duration::from_secs(10), || {
            !family.iter().any(|pid| is_alive(*pid))
        });
        assert_eq!(processes_with("orphan"), Vec::<String>::new());
    }
}

#[test]
fn ctrl_c_stops_in_order_and_twice_at_once() {
    let stubborn = "
workers:
  stubborn:
    stop_grace: 1000s
    command: [/bin/sh, -c, 'trap \"echo asked\" TERM; echo awake; while true; do sleep 1; done']
";
    let (_directory, file) = workers_file(&SLEEPER.replace("NAME", "polite"));
    let mut polite = run(&file);
    polite.line("awake");
    polite.signal(Signal::SIGINT);
    let status = polite.wait();
    assert_eq!(status.code(), Some(0), "{}", polite.seen.join("\n"));
    assert_eq!(processes_with("polite"), Vec::<String>::new());

    let (_directory, file) = workers_file(stubborn);
    let mut run = run(&file);
    run.line("awake");
    let family = descendants(run.child.id());
    run.signal(Signal::SIGINT);
    run.line("asked");
    // Two signals close together count as one press, so it may take a second press more.
    let status = run.wait_pressing(Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{}", run.seen.join("\n"));
    assert!(
        !family.iter().any(|pid| is_alive(*pid)),
        "the second Ctrl-C waits for the reaping"
    );
}

#[test]
fn a_run_ends_by_itself_when_nothing_is_left_to_run() {
    let (_directory, file) =
        workers_file("workers: {once: {command: [/bin/sh, -c, 'echo done here'], restart: never}}");
    let mut done = run(&file);
    done.line("done here");
    assert_eq!(done.wait().code(), Some(0));
    let (_directory, file) =
        workers_file("workers: {once: {command: [/bin/sh, -c, 'exit 4'], restart: never}}");
    let mut done = run(&file);
    assert_eq!(done.wait().code(), Some(1), "{}", done.seen.join("\n"));
    let (_directory, file) = workers_file(
        "
workers:
  hopeless:
    command: [/bin/sh, -c, 'exit 9']
    restart: {mode: on-failure, initial: 10ms, limit: {restarts: 1, window: 10m}}
    vm_restart: {mode: on-failure, initial: 10ms, limit: {restarts: 0, window: 10m}}
",
    );
    let mut failed = run(&file);
    assert_eq!(failed.wait().code(), Some(1), "{}", failed.seen.join("\n"));
}

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

/// A copy of the quickstart on a free port, readable by anybody, with the helpers beside it.
fn quickstart_for_anybody() -> (tempfile::TempDir, u16) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    let copy = |from: &Path, to: &Path| {
        let status = Command::new("cp")
            .arg("-rL")
            .arg(from)
            .arg(to)
            .status()
            .unwrap();
        assert!(status.success());
    };
    copy(&quickstart(), &directory.path().join("quickstart"));
    for binary in ["iii-super", "iii-shim", "iii-vfs"] {
        copy(&binaries().join(binary), &directory.path().join(binary));
    }
    let file = directory.path().join("quickstart/iii.workers.yaml");
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("18080", &port.to_string());
    fs::write(&file, text).unwrap();
    let status = Command::new("chmod")
        .arg("-R")
        .arg("a+rX")
        .arg(directory.path())
        .status();
    assert!(status.unwrap().success());
    (directory, port)
}

fn get(port: u16) -> Option<String> {
    use std::io::Write;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.").then_some(answer)
}

fn quickstart_runs(mut command: Command, directory: &Path, port: u16) {
    command
        .current_dir(directory)
        .args(["run", "-f", "quickstart/iii.workers.yaml"]);
    let mut run = Run::start(command);
    // flaky crashes and is started again inside its VM; web answers meanwhile.
    run.line("restart");
    let mut answer = String::new();
    let end = Instant::now() + PATIENCE;
    while answer.is_empty() {
        run.seen.extend(run.lines.try_iter());
        assert!(
            Instant::now() < end,
            "web does not answer:\n{}",
            run.seen.join("\n")
        );
        answer = get(port).unwrap_or_default();
    }
    assert!(
        answer.contains("200 OK") || answer.contains(" 200 "),
        "{answer}"
    );
    assert!(answer.contains("6.12."), "{answer}");
    run.signal(Signal::SIGINT);
    let status = run.wait();
    assert_eq!(status.code(), Some(0), "{}", run.seen.join("\n"));
}

#[test]
fn the_quickstart_runs() {
    let (directory, port) = quickstart_for_anybody();
    quickstart_runs(
        Command::new(directory.path().join("iii-super")),
        directory.path(),
        port,
    );
}

#[test]
fn the_quickstart_runs_as_an_ordinary_user() {
    if !nix::unistd::geteuid().is_root() {
        // Then every test here is that of an ordinary user.
        return;
    }
    let (directory, port) = quickstart_for_anybody();
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    // Its own cache, filled from the one that the other tests use.
    let cache = std::env::var_os("III_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".iii"),
        PathBuf::from,
    );
    let status = Command::new("cp")
        .arg("-r")
        .arg(&cache)
        .arg(home.join(".iii"))
        .status();
    assert!(status.unwrap().success());
    let status = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(&home)
        .status();
    assert!(status.unwrap().success());
    let mut command = as_user(NOBODY, &Command::new(directory.path().join("iii-super")));
    command.env_remove("III_HOME").env("HOME", &home);
    quickstart_runs(command, directory.path(), port);
}

/// Runs a file that must be refused: exit code 2, nothing started.
fn refused(text: &str, change: impl FnOnce(&mut Command)) -> String {
    let (_directory, file) = workers_file(text);
    let mut command = program();
    command.arg("run").arg("-f").arg(&file);
    change(&mut command);
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "",
        "nothing was started"
    );
    err
}

#[test]
fn bad_input_is_refused_with_place_and_remedy() {
    let nothing = |_: &mut Command| {};
    let err = refused("workers: {a: {comand: [/bin/true]}}", nothing);
    assert!(
        err.contains("comand") && err.contains("command"),
        "did you mean: {err}"
    );
    assert!(err.contains("iii.workers.yaml:1:"), "{err}");

    let err = refused(
        "workers: {a: {command: [/bin/true], resources: {memory: lots}}}",
        nothing,
    );
    assert!(err.contains("memory") && err.contains("lots"), "{err}");

    let err = refused(
        "workers: {a: {command: [/bin/true], path: ./nowhere}}",
        nothing,
    );
    assert!(err.contains("nowhere"), "{err}");

    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let err = refused(
        &format!("workers: {{a: {{command: [/bin/true], ports: [\"{port}:80\"]}}}}"),
        nothing,
    );
    assert!(
        err.contains(&port.to_string()) && err.contains("publish another port"),
        "{err}"
    );

    let err = refused("workers: {a: {command: no-such-command}}", nothing);
    assert!(err.contains("no-such-command"), "{err}");
}

#[test]
fn a_host_that_lacks_something_is_told_what() {
    let fine = "workers: {a: {command: [/bin/true]}}";
    let empty = tempfile::tempdir().unwrap();
    let err = refused(fine, |command| {
        command.env("PATH", empty.path());
    });
    assert!(
        err.contains("qemu") && err.contains("apt-get install"),
        "{err}"
    );

    let old = tempfile::tempdir().unwrap();
    let qemu = old.path().join("qemu-system-x86_64");
    fs::write(&qemu, "#!/bin/sh\necho 'QEMU emulator version 6.2.0'\n").unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    let err = refused(fine, |command| {
        command.env("PATH", format!("{}:/usr/bin:/bin", old.path().display()));
    });
    assert!(err.contains("6.2.0") && err.contains("7.2"), "{err}");

    let corrupt = empty.path().join("libkrunfw.so.5");
    fs::write(&corrupt, "no library").unwrap();
    let err = refused(fine, |command| {
        command.env("III_LIBKRUNFW_PATH", &corrupt);
    });
    assert!(
        err.contains("III_LIBKRUNFW_PATH") || err.contains("libkrunfw"),
        "{err}"
    );

    let err = refused(fine, |command| {
        command.env("III_HELPER_DIR", empty.path());
    });
    assert!(err.contains("iii-shim"), "{err}");
}

#[test]
fn the_engine_is_where_the_command_line_says_and_the_commands_words_stay() {
    let engine = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = engine.local_addr().unwrap().port();
    let (_directory, file) = workers_file(
        "
engine: ws://engine.invalid:1
workers:
  caller:
    restart: never
    network: engine
    env: {OTHER: ws://localhost:9}
    command:
    - /usr/bin/python3
    - -c
    - |
      import os, socket, sys
      from urllib.parse import urlsplit
      url = urlsplit(os.environ['III_URL'])
      socket.create_connection((url.hostname, url.port)).sendall(b'hello')
      print('said hello to', url.netloc, 'words', sys.argv[1:], os.environ['OTHER'])
    - http://localhost:9/
",
    );
    let mut command = program();
    let url = format!("ws://LOCALHOST:{port}");
    command
        .args(["run", "--engine", &url, "-f"])
        .arg(&file)
        .env("III_URL", "nonsense that is not looked at");
    let mut run = Run::start(command);
    let line = run.line("said hello");
    let said = format!(
        "said hello to host.iii.internal:{port} words ['http://localhost:9/'] ws://localhost:9"
    );
    assert!(line.contains(&said), "{line}");
    assert_eq!(run.wait().code(), Some(0), "{}", run.seen.join("\n"));
    let (mut stream, _) = engine.accept().unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    assert_eq!(word, "hello");
}
