//! Children of the spawner: what they get, how they end, what is said about it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::time::Duration;

use common::*;
use iii_vmm::helpers::{HelperError, HelperPlaces};
use iii_vmm::process::{
    ChildExit, ChildSpec, KillOnDrop, Namespace, ResourceLimit, Signal, SpawnError, Spawner, Stdio,
};
use nix::sys::signal::kill;
use nix::unistd::Pid;

fn signal_pid(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn exit_codes_and_signals_are_the_programs_own() {
    assert_eq!(run(shell("exit 0")).0, ChildExit::Code(0));
    assert_eq!(run(shell("exit 7")).0, ChildExit::Code(7));
    assert_eq!(run(shell("exit 255")).0, ChildExit::Code(255));
    for signal in [
        Signal::SIGTERM,
        Signal::SIGABRT,
        Signal::SIGSEGV,
        Signal::SIGKILL,
    ] {
        let number = signal as i32;
        let (exit, _) = run(shell(&format!("kill -{number} $$")));
        assert_eq!(exit, ChildExit::Signal(number), "{signal}");
    }
}

#[test]
fn signals_reach_a_program_without_handlers() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGABRT] {
        let child = spawn(ChildSpec {
            args: vec!["1000".into()],
            ..ChildSpec::new("/bin/sleep", "test")
        });
        assert!(!child.is_reaped());
        child.kill(signal).unwrap();
        let exit = child.wait_blocking(LONG);
        assert_eq!(exit, Some(ChildExit::Signal(signal as i32)));
        assert!(child.is_reaped() && !is_alive(child.pid()) && !is_alive(child.shim_pid()));
        child.kill(signal).expect("an ended child is no error");
    }
}

#[test]
fn a_signal_to_the_shim_is_passed_on() {
    let (child, _) = run_until_line(shell(
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    ));
    signal_pid(child.shim_pid(), Signal::SIGTERM);
    assert_eq!(child.wait_blocking(LONG), Some(ChildExit::Code(9)));
}

#[test]
fn the_program_lives_in_a_pid_namespace_but_is_not_its_first_process() {
    let (exit, output) = run(shell("echo $$; readlink /proc/self/ns/pid"));
    assert_eq!(exit, ChildExit::Code(0));
    let (pid, namespace) = output.trim().split_once('\n').unwrap();
    let ours = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(pid, "2");
    assert_ne!(namespace, ours.to_str().unwrap());

    let mut spec = shell("readlink /proc/self/ns/pid");
    spec.namespaces = Vec::new();
    assert_eq!(run(spec).1.trim(), ours.to_str().unwrap());
}

#[test]
fn a_user_namespace_is_made_only_where_it_is_allowed_and_a_refusal_is_told() {
    if nix::unistd::geteuid().is_root() {
        // Root needs none; an ordinary user's part is in `supervisor_killed`.
        let (exit, output) = run(shell("readlink /proc/self/ns/user"));
        assert_eq!(exit, ChildExit::Code(0));
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_eq!(output.trim(), ours.to_str().unwrap());
        return;
    }
    let mut spec = shell("exec sleep 1000");
    spec.allow_user_namespace = false;
    let child = spawn(spec);
    let _guard = KillOnDrop(child.clone());
    assert_eq!(child.isolation().namespaces, []);
    assert_eq!(child.isolation().refused, Some(libc::EPERM));
}

#[test]
fn other_namespaces_are_given_too() {
    let mut spec = shell("readlink /proc/self/ns/ipc; ls /sys/class/net; wc -l < /proc/net/dev");
    spec.namespaces = vec![Namespace::Pid, Namespace::Ipc, Namespace::Network];
    let (_, output) = run(spec);
    let ours = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    assert!(!output.contains(ours.to_str().unwrap()), "{output}");
    // Two lines of heading and the loopback interface.
    assert!(output.trim_end().ends_with('3'), "{output}");
}

#[test]
fn the_handle_tells_what_the_kernel_gave() {
    let child = spawn(shell("exec sleep 1000"));
    let _guard = KillOnDrop(child.clone());
    assert_eq!(child.isolation().namespaces, [Namespace::Pid]);
    assert_eq!(
        child.isolation().user_namespace,
        !nix::unistd::geteuid().is_root()
    );
    assert_eq!(child.isolation().refused, None);
    assert_eq!(child.label(), "test");
    wait_for("the program", || {
        std::fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap() == "sleep\n"
    });
}

#[test]
fn a_dropped_guard_kills_and_a_dropped_handle_does_not() {
    let (started, end) = channel();
    let child = Spawner::global()
        .unwrap()
        .spawn(shell("exec sleep 1000"), &places(), move |exit| {
            started.send(exit).unwrap()
        })
        .unwrap();
    drop(child.clone());
    assert!(end.recv_timeout(Duration::from_millis(50)).is_err());
    drop(KillOnDrop(child));
    assert_eq!(end.recv_timeout(LONG).unwrap(), ChildExit::Signal(9));
}

#[test]
fn killing_the_shim_kills_the_program_before_the_exit_is_told() {
    for with_namespace in [true, false] {
        let mut spec = shell("sleep 1000 & echo up; wait");
        if !with_namespace {
            spec.namespaces = Vec::new();
        }
        let (child, _) = run_until_line(spec);
        let init = children(child.shim_pid());
        signal_pid(child.shim_pid(), Signal::SIGKILL);
        assert_eq!(child.wait_blocking(LONG), Some(ChildExit::Signal(9)));
        assert!(!is_alive(child.pid()));
        assert!(init.iter().all(|&pid| !is_alive(pid)), "{init:?}");
    }
}

#[test]
fn killing_the_init_kills_the_program() {
    for with_namespace in [true, false] {
        let mut spec = shell("exec sleep 1000");
        if !with_namespace {
            spec.namespaces = Vec::new();
        }
        let child = spawn(spec);
        let init = children(child.shim_pid())[0];
        signal_pid(init, Signal::SIGKILL);
        assert_eq!(child.wait_blocking(LONG), Some(ChildExit::Signal(9)));
        assert!(!is_alive(child.pid()));
    }
}

#[test]
fn a_stopped_shim_can_be_killed_and_a_stopped_program_too() {
    let child = spawn(shell("exec sleep 1000"));
    signal_pid(child.shim_pid(), Signal::SIGSTOP);
    signal_pid(child.pid(), Signal::SIGSTOP);
    child.kill(Signal::SIGKILL).unwrap();
    wait_for("the program's end", || !is_alive(child.pid()));
    // Its shim cannot reap yet.
    assert!(!child.is_reaped());
    signal_pid(child.shim_pid(), Signal::SIGKILL);
    assert_eq!(child.wait_blocking(LONG), Some(ChildExit::Signal(9)));
}

#[test]
fn what_the_program_leaves_behind_dies_with_it() {
    for with_namespace in [true, false] {
        // One in the same group, one that has left session and group.
        let script = "sleep 1001 & setsid sleep 1001 & \
                      for p in /proc/[0-9]*/cmdline; do :; done; echo up; read x";
        let mut spec = shell(script);
        let (theirs, mut ours) = std::io::pipe().unwrap();
        spec.stdin = Stdio::Fd(theirs.into());
        if !with_namespace {
            spec.namespaces = Vec::new();
        }
        let (child, _) = run_until_line(spec);
        wait_for("both sleeps", || {
            let sleeps = children(child.pid());
            sleeps.len() == 2
                && sleeps.iter().all(|pid| {
                    std::fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|comm| comm == "sleep\n")
                })
        });
        let sleeps = children(child.pid());
        std::io::Write::write_all(&mut ours, b"go\n").unwrap();
        assert_eq!(child.wait_blocking(LONG), Some(ChildExit::Code(0)));
        assert!(sleeps.iter().all(|&pid| !is_alive(pid)), "{sleeps:?}");
    }
}

#[test]
fn only_given_descriptors_are_inherited_each_under_its_number() {
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    // Without close-on-exec, as a careless host program has them.
    let leaked = rustix::io::dup(&null).unwrap();
    assert!(leaked.as_raw_fd() > 2);

    let zero: OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    let full: OwnedFd = std::fs::File::open("/dev/full").unwrap().into();
    let mut spec = ChildSpec::new("/bin/ls", "test");
    spec.args(["-l", "/proc/self/fd"]);
    // Each other's numbers and one far away.
    let (a, b) = (zero.as_raw_fd(), full.as_raw_fd());
    spec.inherit.push((zero, b));
    spec.inherit.push((full, a));
    spec.inherit.push((null, 700));
    let (exit, output) = run(spec);
    assert_eq!(exit, ChildExit::Code(0));
    let mut open: BTreeMap<i32, &str> = output
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next().unwrap().parse().unwrap(), target))
        .collect();
    // ls' own directory.
    open.retain(|_, target| !target.starts_with("/proc/"));
    assert!(open.remove(&1).unwrap().starts_with("pipe:"));
    let expected = [
        (0, "/dev/null"),
        (2, "/dev/null"),
        (b, "/dev/zero"),
        (a, "/dev/full"),
        (700, "/dev/null"),
    ];
    assert_eq!(open, expected.into_iter().collect());
}

#[test]
fn descriptors_are_not_kept_by_spawner_or_shim() {
    // The reader sees end-of-file although the program, which has closed its end, goes on.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("exec sleep 1000 >/dev/null");
    spec.stdout = Stdio::Fd(writer.into());
    let _guard = KillOnDrop(spawn(spec));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    assert_eq!(bytes, b"");
}

#[test]
fn the_environment_limits_and_privileges_are_those_of_the_spec() {
    let mut spec = ChildSpec::new("/usr/bin/env", "test");
    spec.env("ONLY", "this");
    assert_eq!(run(spec).1, "ONLY=this\n");

    let mut spec = shell("ulimit -n; ulimit -c; nice; pwd; grep NoNewPrivs /proc/self/status");
    spec.rlimits.push(ResourceLimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 99,
        hard: 100,
    });
    spec.nice = Some(7);
    spec.cwd = "/usr".into();
    let (_, output) = run(spec);
    assert_eq!(output, "99\n0\n7\n/usr\nNoNewPrivs:\t1\n");
}

#[test]
fn signal_state_session_and_parent_death_are_the_programs_own() {
    let child = spawn(shell("exec sleep 1000"));
    let _guard = KillOnDrop(child.clone());
    wait_for("the program", || {
        std::fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap() == "sleep\n"
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    let session = |pid| nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap();
    let group = |pid| nix::unistd::getpgid(Some(Pid::from_raw(pid))).unwrap();
    let own = std::process::id().cast_signed();
    assert_ne!(session(child.pid()), session(own));
    assert_ne!(group(child.pid()), group(own));
    assert_ne!(group(child.shim_pid()), group(own));
    for init in children(child.shim_pid()) {
        assert_ne!(group(init), group(own));
    }
}

fn failure(spec: ChildSpec) -> SpawnError {
    let on_exit = |exit| panic!("no child, no exit: {exit}");
    Spawner::global()
        .unwrap()
        .spawn(spec, &places(), on_exit)
        .unwrap_err()
}

#[test]
fn failures_to_start_are_typed_and_named() {
    let error = failure(ChildSpec::new("/none/such", "test"));
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(
        error
            .to_string()
            .starts_with("failed to execute /none/such: "),
        "{error}"
    );

    assert_eq!(
        failure(ChildSpec::new("/etc/passwd", "test")).errno(),
        Some(libc::EACCES)
    );

    let mut spec = shell("");
    spec.cwd = "/none/such".into();
    let error = failure(spec);
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("working directory"), "{error}");

    let mut spec = shell("");
    spec.rlimits.push(ResourceLimit {
        resource: 9999,
        soft: 0,
        hard: 0,
    });
    let error = failure(spec);
    assert_eq!(error.errno(), Some(libc::EINVAL));
    assert!(error.to_string().contains("limits"), "{error}");

    let mut spec = shell("");
    spec.inherit
        .push((std::fs::File::open("/dev/null").unwrap().into(), i32::MAX));
    let error = failure(spec);
    assert!(
        error.errno().is_some() && error.to_string().contains("descriptors"),
        "{error}"
    );

    let mut spec = shell("");
    spec.program = "sh".into();
    assert!(matches!(failure(spec), SpawnError::Invalid { .. }));
}

#[test]
fn a_missing_shim_is_an_error_with_the_remedy() {
    let empty = tempfile::tempdir().unwrap();
    let places = HelperPlaces::in_directory(empty.path());
    let error = Spawner::global()
        .unwrap()
        .spawn(shell(""), &places, |_| {})
        .unwrap_err();
    assert!(
        matches!(error, SpawnError::Helper(HelperError::Missing { .. })),
        "{error}"
    );
}

#[test]
fn the_spawner_survives_a_panicking_callback_and_refuses_to_wait_for_itself() {
    let spawner = Spawner::global().unwrap();
    let (send, received) = channel();
    let inner = spawner.clone();
    let child = spawner
        .spawn(shell(""), &places(), move |_| {
            send.send(inner.spawn(shell(""), &places(), |_| {}).map(|_| ()))
                .unwrap();
            panic!("on purpose");
        })
        .unwrap();
    child.wait_blocking(LONG).unwrap();
    let refused = received.recv_timeout(LONG).unwrap();
    assert!(matches!(refused, Err(SpawnError::WouldDeadlock { .. })));
    assert_eq!(run(shell("exit 3")).0, ChildExit::Code(3));
}

#[test]
fn a_successor_can_be_started_from_the_predecessors_exit() {
    let spawner = Spawner::global().unwrap();
    let (send, received) = channel();
    let inner = spawner.clone();
    let first = spawner
        .spawn(shell("exit 1"), &places(), move |_| {
            let on_start = |started: Result<_, SpawnError>| drop(started.unwrap());
            let on_exit = move |exit| send.send(exit).unwrap();
            inner
                .spawn_with(shell("exit 2"), &places(), on_start, on_exit)
                .unwrap();
        })
        .unwrap();
    assert_eq!(received.recv_timeout(LONG).unwrap(), ChildExit::Code(2));
    assert_eq!(first.exit(), Some(ChildExit::Code(1)));
}

#[test]
fn children_of_the_host_program_are_left_to_it() {
    let mut own = std::process::Command::new("/bin/sh")
        .args(["-c", "exit 5"])
        .spawn()
        .unwrap();
    wait_for("its end", || !is_alive(own.id().cast_signed()));
    assert_eq!(run(shell("exit 6")).0, ChildExit::Code(6));
    assert_eq!(own.wait().unwrap().code(), Some(5));
}

#[test]
fn the_shim_says_its_version_and_is_for_nobody_to_start_by_hand() {
    let shim = || std::process::Command::new(env!("CARGO_BIN_EXE_iii-shim"));
    let version = shim().arg("--version").output().unwrap();
    let text = String::from_utf8(version.stdout).unwrap();
    assert_eq!(text, concat!("iii-shim ", env!("CARGO_PKG_VERSION"), "\n"));

    let by_hand = shim().stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(by_hand.status.code(), Some(64));
    let text = String::from_utf8(by_hand.stderr).unwrap();
    assert!(text.contains("started by iii-super"), "{text}");
}
