//! `iii-super exec` as a user gives it: exit codes, bytes, signals, terminals, ends.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iii_integration::PATIENCE;
use iii_integration::program::{Run, eventually};
use iii_integration::project::{Project, Said};
use iii_integration::terminal::on_terminal;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};

const BOX: &str = "
workers:
  box:
    command: [/bin/sh, -c, 'echo awake; exec sleep 1000000']
    env: {GREETING: hello}
";

fn idle_box() -> (Project, Run) {
    let project = Project::new(BOX);
    let mut run = project.start(&["run"]);
    run.line("awake");
    (project, run)
}

fn exec(project: &Project, arguments: &[&str]) -> Said {
    project.says(&[&["exec"], arguments].concat())
}

/// A script in the guest that must succeed.
fn guest(project: &Project, script: &str) -> String {
    let said = exec(project, &["box", "--", "sh", "-c", script]);
    assert_eq!(said.code, 0, "{said:?}");
    said.stdout.trim_end().to_owned()
}

/// Processes of the guest whose command line holds this word.
fn guest_processes(project: &Project, word: &str) -> usize {
    // So written, the word is not found in the search itself.
    let (first, rest) = word.split_at(1);
    let script = format!("grep -al '[{first}]{rest}' /proc/[0-9]*/cmdline | wc -l");
    guest(project, &script).parse::<usize>().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

fn wait(child: &mut Child) -> i32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap();
        }
        assert!(Instant::now() < end, "it does not end");
        thread::sleep(Duration::from_millis(20));
    }
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_command_ends_as_it_would_here() {
    let (project, _run) = idle_box();
    for (arguments, code) in [
        (&["box", "true"][..], 0),
        (&["box", "--", "sh", "-c", "exit 7"], 7),
        (&["box", "--", "sh", "-c", "kill -9 $$"], 137),
        (&["box", "--", "sh", "-c", "kill -TERM $$"], 143),
        (&["box", "no-such-program"], 127),
        (&["box", "/etc/passwd"], 126),
        (&["--timeout", "500ms", "box", "sleep", "4321"], 124),
        // It ends by itself when it is asked to; its time was up all the same.
        (
            &[
                "--timeout",
                "500ms",
                "box",
                "--",
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 0.1; done",
            ],
            124,
        ),
        (
            &[
                "--timeout",
                "500ms",
                "box",
                "--",
                "sh",
                "-c",
                "trap '' TERM; while :; do sleep 0.1; done",
            ],
            124,
        ),
        (&["-w", "/nowhere", "box", "true"], 125),
        (&["-u", "nobody-knows", "box", "true"], 125),
        (&["bax", "true"], 125),
        (&["box"], 2),
    ] {
        let said = exec(&project, arguments);
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
        assert_eq!(
            said.stderr.is_empty(),
            said.code < 2 || said.code == 7 || said.code > 128,
            "{said:?}"
        );
    }
    eventually("nothing of it is left", PATIENCE, || {
        guest_processes(&project, "4321") == 0
    });

    let said = exec(
        &project,
        &["box", "--", "sh", "-c", "echo out; echo err >&2"],
    );
    assert_eq!((&*said.stdout, &*said.stderr), ("out\n", "err\n"));
    let said = exec(
        &project,
        &[
            "-u",
            "root",
            "-w",
            "/tmp",
            "-e",
            "A=b=c",
            "-e",
            "HERE",
            "-e",
            "NOT_HERE",
            "box",
            "--",
            "sh",
            "-c",
            "id -u; pwd; echo $GREETING $A $HERE ${NOT_HERE-unset}",
        ],
    );
    assert_eq!(said.stdout, "0\n/tmp\nhello b=c unset\n", "{said:?}");
    let mut command =
        project.command(&["exec", "-e", "HERE", "box", "--", "sh", "-c", "echo $HERE"]);
    assert_eq!(
        Said::of(command.env("HERE", "there").output().unwrap()).stdout,
        "there\n"
    );

    // Without -i nothing of our input is taken.
    let said = exec(&project, &["box", "cat"]);
    assert_eq!((said.code, &*said.stdout), (0, ""));
    let refused = exec(&project, &["-it", "box", "true"]);
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("leave -t out"), "{refused:?}");

    let nobody = Project::new(BOX);
    let said = exec(&nobody, &["box", "true"]);
    assert_eq!(said.code, 125);
    assert!(said.stderr.contains("no supervisor runs"), "{said:?}");
}

#[test]
fn a_programs_view_of_a_command_is_json_with_its_streams_apart_and_its_end() {
    let (project, _run) = idle_box();
    let script = r"printf 'out\n'; printf '\377' >&2; exit 7";
    let said = project.says(&["exec", "--json", "box", "--", "sh", "-c", script]);
    assert_eq!((said.code, &*said.stderr), (7, ""), "{said:?}");
    let lines: Vec<serde_json::Value> = said
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |stream: &str, key: &str| -> String {
        let pieces = lines.iter().filter(|line| line["stream"] == stream);
        pieces.filter_map(|piece| piece[key].as_str()).collect()
    };
    assert_eq!(of("stdout", "text"), "out\n");
    assert_eq!(of("stderr", "text_base64"), "/w==");
    assert_eq!(lines.last().unwrap()["code"], 7, "{said:?}");

    let late = [
        "exec",
        "--json",
        "--timeout",
        "1s",
        "box",
        "--",
        "sleep",
        "100",
    ];
    let said = project.says(&late);
    assert_eq!(said.code, 124, "{said:?}");
    assert_eq!(
        said.json(),
        serde_json::json!({"exit": "timed-out", "code": 124})
    );
    assert_eq!(
        project.says(&["exec", "--json", "-t", "box", "true"]).code,
        2
    );
}

#[test]
fn a_hundred_megabytes_pass_each_way_byte_for_byte() {
    let (project, _run) = idle_box();
    let mut bytes = vec![0; 100_000_000];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    let expected = hex(Sha256::digest(&bytes));
    let file = project.directory().join("bytes");
    std::fs::write(&file, &bytes).unwrap();
    let with_input = |command: &str| {
        let mut child = project.command(&["exec", "-i", "box", command]);
        child.stdin(File::open(&file).unwrap());
        let output = child.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let said = String::from_utf8(with_input("sha256sum")).unwrap();
    assert_eq!(said.split(' ').next(), Some(&*expected));
    let back = with_input("cat");
    assert_eq!(back.len(), bytes.len());
    assert_eq!(hex(Sha256::digest(back)), expected);
}

#[test]
fn input_ends_where_ours_does_and_output_may_follow() {
    let (project, _run) = idle_box();
    let script = "cat > /tmp/in; sleep 0.5; wc -c < /tmp/in; echo after";
    let mut command = project.command(&["exec", "-i", "box", "--", "sh", "-c", script]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"1234567").unwrap();
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "7\nafter\n");
    assert_eq!(wait(&mut child), 0);

    // A command that reads nothing ends all the same, however much there would be to read.
    let mut command = project.command(&["exec", "-i", "box", "true"]);
    command.stdin(File::open("/dev/zero").unwrap());
    assert_eq!(Said::of(command.output().unwrap()).code, 0);
}

#[test]
fn a_client_that_does_not_read_stops_its_own_command_alone() {
    let (project, _run) = idle_box();
    let mut slow = project.command(&["exec", "box", "--", "sh", "-c", "yes | tee /tmp/written"]);
    let mut slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    let size = || {
        guest(&project, "stat -c %s /tmp/written")
            .parse::<u64>()
            .unwrap()
    };
    eventually("it writes", PATIENCE, || {
        guest(&project, "test -s /tmp/written && echo y || echo n") == "y"
    });
    let mut before = 0;
    eventually("it stands still", PATIENCE, || {
        std::mem::replace(&mut before, size()) == size()
    });
    assert!(size() < 2_000_000, "what is under way is bounded");
    assert_eq!(project.says(&["ps"]).code, 0);
    // Read on, it goes on; when nobody reads any more it ends.
    let mut out = slow.stdout.take().unwrap();
    let mut piece = vec![0; 4_000_000];
    out.read_exact(&mut piece).unwrap();
    assert!(piece.chunks(2).all(|line| line == b"y\n"));
    assert!(size() >= 4_000_000);
    drop(out);
    assert_eq!(wait(&mut slow), 141);
    eventually("nothing of it is left", PATIENCE, || {
        guest_processes(&project, "written") == 0
    });
}

#[test]
fn signals_reach_a_command_that_reads_nothing_and_the_third_ctrl_c_ends_any() {
    let (project, _run) = idle_box();
    let start = |script: &str| {
        let mut command = Command::new("env");
        let inner = project.command(&["exec", "-i", "box", "--", "sh", "-c", script]);
        command
            .arg("--default-signal=INT,TERM,QUIT")
            .arg(inner.get_program())
            .args(inner.get_args());
        command
            .current_dir(project.directory())
            .env("III_HOME", project.home());
        // It has more input than it takes.
        command
            .stdin(File::open("/dev/zero").unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let heard = |child: &mut Child| {
        let mut line = [0; 3];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        assert_eq!(&line, b"up\n");
    };
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let mut child = start(&format!(
            "trap 'exit 42' {name}; echo up; while :; do sleep 0.1; done"
        ));
        heard(&mut child);
        send(&child, signal);
        assert_eq!(wait(&mut child), 42, "{name}");
    }
    let mut child = start("trap 'echo no' INT; echo up; while :; do sleep 0.1; done # stubborn");
    heard(&mut child);
    for _ in 0..2 {
        send(&child, Signal::SIGINT);
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 3])
            .unwrap();
    }
    send(&child, Signal::SIGINT);
    assert_eq!(wait(&mut child), 130);
    eventually("nothing of it is left", PATIENCE, || {
        guest_processes(&project, "stubborn") == 0
    });
    // A client that is killed takes its command with it.
    let mut child = start("echo up; sleep 1000 # orphan");
    heard(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("nothing of it is left", PATIENCE, || {
        guest_processes(&project, "orphan") == 0
    });
}

/// A terminal, and a program that has it.
struct Terminal {
    master: File,
    slave: OwnedFd,
    child: Child,
    said: String,
}

impl Terminal {
    /// `exec -it box COMMAND…` on a terminal of 31 lines.
    fn exec(project: &Project, command: &[&str]) -> Self {
        let command = project.command(&[&["exec", "-it", "box", "--"], command].concat());
        let (child, pty) = on_terminal(command, Some((31, 97)), "screen");
        Self {
            master: File::from(pty.master),
            slave: pty.slave,
            child,
            said: String::new(),
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self
            .modes()
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Takes in what it says next.
    fn hear(&mut self) {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        // A signal of another test of this program interrupts it.
        let ready = loop {
            match poll(&mut fds, patience) {
                Err(Errno::EINTR) => {}
                ready => break ready.unwrap(),
            }
        };
        assert!(ready > 0, "it says no more than {:?}", self.said);
        let mut buffer = [0; 4096];
        let count = self.master.read(&mut buffer).unwrap();
        self.said += &String::from_utf8_lossy(&buffer[..count]);
    }

    /// Waits until it has said this, and forgets what it said up to there.
    fn says(&mut self, text: &str) {
        while !self.said.contains(text) {
            self.hear();
        }
        let at = self.said.find(text).unwrap() + text.len();
        self.said.drain(..at);
    }

    /// The program itself, below setsid.
    fn program(&self) -> Pid {
        // setsid is itself the leader's parent or has become the program.
        let family = iii_integration::program::descendants(self.child.id());
        Pid::from_raw(family.first().copied().unwrap_or(self.child.id()) as i32)
    }
}

#[test]
fn a_terminal_is_the_commands_and_is_given_back_whatever_happens() {
    let (project, run) = idle_box();
    let before = Terminal::exec(&project, &["true"]);
    let cooked = before.modes();
    drop(before);

    let mut shell = Terminal::exec(&project, &["bash", "--norc"]);
    shell.says("$ ");
    assert!(shell.is_raw());
    shell.types("stty size; echo [$TERM]\r");
    shell.says("31 97");
    shell.says("[screen]");
    // Ctrl-C goes to what runs in the foreground there.
    shell.types("sh -c 'echo sle\"\"eps; exec sleep 1000'\r");
    shell.says("sleeps");
    shell.types("\x03");
    shell.says("^C");
    shell.types("echo [$?]\r");
    shell.says("[130]");
    let size = Command::new("stty")
        .args(["rows", "20", "cols", "60"])
        .stdin(shell.slave.try_clone().unwrap())
        .status();
    assert!(size.unwrap().success());
    // The size is passed on as soon as the signal has come.
    eventually("the new size", PATIENCE, || {
        shell.types("stty size\r");
        shell.hear();
        shell.said.contains("20 60")
    });
    shell.types("exit 5\r");
    assert_eq!(wait(&mut shell.child), 5);
    assert_eq!(shell.modes(), cooked);

    // Signals end it for good when they come again and again; a hang-up does at once.
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut cat = Terminal::exec(&project, &["sh", "-c", "trap '' TERM; echo up; cat"]);
        cat.says("up");
        assert!(cat.is_raw());
        let program = cat.program();
        let end = Instant::now() + PATIENCE;
        while cat.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end);
            // Gone between the look and the signal: the next look sees it.
            kill(program, signal).ok();
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(wait(&mut cat.child), code);
        assert_eq!(cat.modes(), cooked, "after {signal}");
    }

    // The supervisor is killed.
    let mut cat = Terminal::exec(&project, &["sh", "-c", "echo up; cat"]);
    cat.says("up");
    run.signal(Signal::SIGKILL);
    assert_eq!(wait(&mut cat.child), 125);
    assert_eq!(cat.modes(), cooked);
    cat.says("the supervisor has ended, or was killed");
}

#[test]
fn fifty_commands_at_once() {
    let (project, _run) = idle_box();
    thread::scope(|scope| {
        let commands: Vec<_> = (0..50)
            .map(|n| {
                let project = &project;
                scope.spawn(move || {
                    exec(
                        project,
                        &["box", "--", "sh", "-c", &format!("echo {n}; exit {n}")],
                    )
                })
            })
            .collect();
        for (n, command) in commands.into_iter().enumerate() {
            let said = command.join().unwrap();
            assert_eq!(
                (said.code, said.stdout),
                (n as i32, format!("{n}\n")),
                "{}",
                said.stderr
            );
        }
    });
}
