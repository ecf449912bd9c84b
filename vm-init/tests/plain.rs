//! The supervision loop as an ordinary process, spoken to over its two ports. Every wait is for a
//! message; the time limit only bounds a failure.
// Every function here is test code.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use iii_proto::codec::{FrameReader, Wire, encode_frame, encode_spec};
use iii_proto::control::{GuestFault, GuestMessage, HostMessage, PowerOffReason};
use iii_proto::guest::{
    GuestLimits, GuestSpec, GuestUser, HealthCheck, Probe, Root, Upper, Workload,
};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::{LogFrame, Stream};
use iii_proto::restart::{Decision, Exit, RestartLimit, RestartMode, RestartPolicy};

const FAILURE_BOUND: Duration = Duration::from_secs(60);

fn policy() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::ZERO,
        factor: 1.0,
        max: Duration::ZERO,
        jitter: 0.0,
        limit: None,
        reset_after: Duration::from_secs(60),
        stop_codes: vec![78],
    }
}

fn shell(script: &str) -> GuestSpec {
    GuestSpec {
        proto: iii_proto::PROTOCOL_VERSION,
        boot_id: BootId::from_random(7),
        worker: WorkerName::new("test").unwrap(),
        root: Root {
            lowers: vec![],
            skeleton: true,
            upper: Upper::Tmpfs { size_bytes: 0 },
        },
        mounts: vec![],
        network: None,
        workload: Workload {
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: vec![("A".into(), "b c".into())],
            cwd: "/".into(),
            user: GuestUser::Ids {
                name: "me".into(),
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                home: "/tmp".into(),
            },
            limits: GuestLimits::default(),
            stop_grace_ms: 10_000,
            stop_signal: 15,
        },
        restart: policy(),
        health: None,
        host_time_unix_ns: 0,
        entropy: [3; 32],
        at_rest: iii_proto::guest::AtRest::PowerOff,
        allow_faults: false,
    }
}

fn receive<T: Wire + Send + 'static>(mut port: UnixStream) -> Receiver<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut frames = FrameReader::new();
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = port.read(&mut buffer) {
            frames.feed(&buffer[..count]);
            while let Some(message) = frames.next::<T>().unwrap() {
                if sender.send(message).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

struct Init {
    child: Child,
    control: UnixStream,
    messages: Receiver<GuestMessage>,
    log: UnixStream,
    _spec: tempfile::TempDir,
}

impl Init {
    fn start(spec: &GuestSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec");
        std::fs::write(&path, encode_spec(spec).unwrap()).unwrap();
        let (control, control_there) = UnixStream::pair().unwrap();
        let (log, log_there) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-init"));
        let there: [OwnedFd; 2] = [control_there.into(), log_there.into()];
        let numbers = [there[0].as_raw_fd(), there[1].as_raw_fd()];
        command.arg("supervise").arg(&path);
        command.args(numbers.map(|n| n.to_string()));
        inherit(&mut command, numbers);
        let child = command.spawn().unwrap();
        drop(there);
        Self {
            child,
            messages: receive(control.try_clone().unwrap()),
            control,
            log,
            _spec: dir,
        }
    }

    fn send(&mut self, message: HostMessage) {
        self.control
            .write_all(&encode_frame(&message).unwrap())
            .unwrap();
    }

    fn next(&self) -> GuestMessage {
        self.messages.recv_timeout(FAILURE_BOUND).unwrap()
    }

    fn hello(&self) {
        assert!(matches!(
            self.next(),
            GuestMessage::Hello { proto, boot_id, .. }
                if proto == iii_proto::PROTOCOL_VERSION && boot_id == BootId::from_random(7)
        ));
    }

    fn started(&self) -> (GuestPid, u32) {
        match self.next() {
            GuestMessage::Started { pid, restarts } => (pid, restarts),
            other => panic!("not started: {other:?}"),
        }
    }

    fn ready(&self) -> GuestPid {
        match self.next() {
            GuestMessage::Ready { pid } => pid,
            other => panic!("not ready: {other:?}"),
        }
    }

    fn exited(&self) -> (GuestPid, Exit, Decision, u32) {
        match self.next() {
            GuestMessage::Exited {
                pid,
                exit,
                decision,
                restarts,
                ..
            } => (pid, exit, decision, restarts),
            other => panic!("not exited: {other:?}"),
        }
    }

    fn powering_off(&mut self) -> (PowerOffReason, u64) {
        let last = match self.next() {
            GuestMessage::PoweringOff {
                reason,
                last_log_seq,
            } => (reason, last_log_seq),
            other => panic!("not powering off: {other:?}"),
        };
        assert!(self.child.wait().unwrap().success());
        last
    }

    fn logs(&self) -> Receiver<LogFrame> {
        receive(self.log.try_clone().unwrap())
    }
}

impl Drop for Init {
    /// The end of its host ends it in order, with every process of its life; that it does so is
    /// what each test leaves no process behind by.
    fn drop(&mut self) {
        self.control.shutdown(std::net::Shutdown::Both).ok();
        let end = std::time::Instant::now() + FAILURE_BOUND;
        while let Ok(None) = self.child.try_wait() {
            if std::time::Instant::now() > end {
                self.child.kill().ok();
                self.child.wait().ok();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[allow(unsafe_code)]
fn inherit(command: &mut Command, descriptors: [i32; 2]) {
    // SAFETY: the closure makes fcntl calls alone, which are async-signal-safe; the descriptors
    // stay open in the parent until `spawn` has returned.
    unsafe {
        command.pre_exec(move || {
            for fd in descriptors {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

fn text(logs: &Receiver<LogFrame>, stream: Stream) -> String {
    let mut bytes = Vec::new();
    loop {
        let frame = logs.recv_timeout(FAILURE_BOUND).unwrap();
        if frame.stream == stream {
            bytes.extend(&frame.bytes);
            if frame.end {
                return String::from_utf8(bytes).unwrap();
            }
        }
    }
}

fn alive(pid: &str) -> bool {
    // A zombie still has a directory; its state says what it is.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

#[test]
fn a_crash_is_restarted_and_the_last_output_is_not_lost() {
    let mut init = Init::start(&shell("echo out $A $HOME; echo err >&2; exit 3"));
    let logs = init.logs();
    init.hello();
    let (first, restarts) = init.started();
    assert_eq!(restarts, 0);
    assert_eq!(init.ready(), first);
    let (pid, exit, decision, restarts) = init.exited();
    assert_eq!((pid, exit, restarts), (first, Exit::Code { code: 3 }, 0));
    assert_eq!(
        decision,
        Decision::RestartAfter {
            delay: Duration::ZERO
        }
    );
    let (second, restarts) = init.started();
    assert_ne!(second, first);
    assert_eq!(restarts, 1);
    let mut seq = 0;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let frame = logs.recv_timeout(FAILURE_BOUND).unwrap();
        seq += 1;
        assert_eq!(frame.seq, seq);
        assert_eq!(frame.pid, first);
        if frame.end {
            seen.push(frame.stream);
        } else {
            let expected: &[u8] = match frame.stream {
                Stream::Stdout => b"out b c /tmp\n",
                Stream::Stderr => b"err\n",
            };
            assert_eq!(frame.bytes, expected);
        }
    }
    init.send(HostMessage::Stop { grace_ms: 5000 });
}

#[test]
fn done_is_reported_and_ends_the_loop() {
    let mut spec = shell("exit 0");
    spec.restart.mode = RestartMode::OnFailure;
    let mut init = Init::start(&spec);
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    let (_, exit, decision, _) = init.exited();
    assert_eq!((exit, decision), (Exit::Code { code: 0 }, Decision::Done));
    assert_eq!(text(&logs, Stream::Stderr), "");
    init.send(HostMessage::LogAck { seq: 2 });
    let exit = Exit::Code { code: 0 };
    assert_eq!(init.powering_off(), (PowerOffReason::Done { exit }, 2));
}

#[test]
fn the_limit_gives_up() {
    let mut spec = shell("kill -SEGV $$");
    spec.restart.limit = Some(RestartLimit {
        restarts: 2,
        window: Duration::from_secs(1000),
    });
    let mut init = Init::start(&spec);
    init.hello();
    let exit = Exit::Signal { signal: 11 };
    for restarts in 0..3 {
        assert_eq!(init.started().1, restarts);
        init.ready();
        let (_, ended, decision, _) = init.exited();
        assert_eq!(ended, exit);
        assert_eq!(decision == Decision::GiveUp, restarts == 2);
    }
    let restarts = 2;
    assert_eq!(
        init.powering_off().0,
        PowerOffReason::GaveUp { exit, restarts }
    );
}

#[test]
fn an_unknown_program_is_a_fault_that_names_it() {
    let mut spec = shell("");
    spec.workload.command = vec!["no-such-program".into()];
    spec.restart.mode = RestartMode::Never;
    let mut init = Init::start(&spec);
    init.hello();
    let (_, exit, decision, _) = init.exited();
    assert_eq!(decision, Decision::Done);
    let shown = exit.to_string();
    assert!(
        shown.starts_with("failed to start \"no-such-program\": not found in PATH (/usr/local/"),
        "{shown}"
    );
    init.powering_off();
}

#[test]
fn a_missing_working_directory_is_a_fault_that_names_it() {
    let mut spec = shell("true");
    spec.workload.cwd = "/no/such".into();
    spec.restart.mode = RestartMode::Never;
    let mut init = Init::start(&spec);
    init.hello();
    let (_, exit, _, _) = init.exited();
    let shown = exit.to_string();
    assert!(
        shown.contains("failed to enter working directory \"/no/such\""),
        "{shown}"
    );
    init.powering_off();
}

#[test]
fn grandchildren_get_the_signal_and_end_before_the_successor_starts() {
    // The shell ends by itself; what it left behind, in its group, must not outlive it.
    let mut init = Init::start(&shell("sleep 1000 & echo $!; wait"));
    let logs = init.logs();
    init.hello();
    let (first, _) = init.started();
    init.ready();
    let line = String::from_utf8(logs.recv_timeout(FAILURE_BOUND).unwrap().bytes).unwrap();
    let grandchild = line.trim();
    assert!(alive(grandchild));
    init.send(HostMessage::RestartWorkload { grace_ms: 30_000 });
    let (pid, exit, decision, _) = init.exited();
    assert_eq!((pid, exit), (first, Exit::Signal { signal: 15 }));
    assert_eq!(
        decision,
        Decision::RestartAfter {
            delay: Duration::ZERO
        }
    );
    assert!(!alive(grandchild));
    assert_eq!(init.started().1, 1);
    init.ready();
    init.send(HostMessage::Stop { grace_ms: 30_000 });
    assert_eq!(init.exited().2, Decision::Done);
    assert_eq!(init.powering_off().0, PowerOffReason::Stopped);
}

#[test]
fn what_ignores_sigterm_is_killed_after_the_grace() {
    let mut init = Init::start(&shell(
        "trap '' TERM; echo on; while :; do sleep 0.05; done",
    ));
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    logs.recv_timeout(FAILURE_BOUND).unwrap();
    init.send(HostMessage::Stop { grace_ms: 50 });
    assert_eq!(init.exited().1, Exit::Signal { signal: 9 });
    assert_eq!(init.powering_off().0, PowerOffReason::Stopped);
}

#[test]
fn a_graceful_stop_waits_for_grandchildren_within_the_grace() {
    let script = "(trap 'echo bye; exit' TERM; echo on; while :; do sleep 0.02; done) & wait";
    let mut init = Init::start(&shell(script));
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    assert_eq!(logs.recv_timeout(FAILURE_BOUND).unwrap().bytes, b"on\n");
    init.send(HostMessage::Stop { grace_ms: 30_000 });
    init.exited();
    assert_eq!(text(&logs, Stream::Stdout), "bye\n");
    init.powering_off();
}

#[test]
fn a_host_that_hangs_up_ends_everything() {
    let init = Init::start(&shell("echo $$; exec sleep 1000"));
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    let line = String::from_utf8(logs.recv_timeout(FAILURE_BOUND).unwrap().bytes).unwrap();
    init.control.shutdown(std::net::Shutdown::Both).unwrap();
    // The log port ends when vm-init has ended.
    while logs.recv_timeout(FAILURE_BOUND).is_ok() {}
    assert!(!alive(line.trim()));
}

#[test]
fn heartbeats_are_answered_while_output_floods_and_nobody_reads_it() {
    let mut init = Init::start(&shell("yes"));
    init.hello();
    init.started();
    init.ready();
    for seq in 1..=50 {
        init.send(HostMessage::Heartbeat {
            seq,
            host_time_unix_ns: 0,
        });
        match init.next() {
            GuestMessage::Alive { seq: answered, .. } => assert_eq!(answered, seq),
            other => panic!("no answer: {other:?}"),
        }
    }
    // Backpressure, not growth.
    let status = std::fs::read_to_string(format!("/proc/{}/status", init.child.id())).unwrap();
    let kib: u64 = status
        .lines()
        .find_map(|l| {
            l.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap();
    assert!(kib < 16 * 1024, "{kib} KiB resident");
}

#[test]
fn a_flood_arrives_whole() {
    let mut spec = shell("head -c 20000000 /dev/zero; echo end");
    spec.restart.mode = RestartMode::Never;
    let mut init = Init::start(&spec);
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    let mut total = 0;
    let mut seq = 0;
    loop {
        let frame = logs.recv_timeout(FAILURE_BOUND).unwrap();
        seq += 1;
        assert_eq!(frame.seq, seq);
        if frame.stream == Stream::Stdout {
            total += frame.bytes.len();
            if frame.end {
                break;
            }
        }
    }
    assert_eq!(total, 20_000_004);
    init.exited();
    init.send(HostMessage::LogAck { seq: seq + 1 });
    assert_eq!(init.powering_off().1, seq + 1);
}

/// Whether a process is there and no zombie.
fn is_alive(pid: GuestPid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.0));
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

#[test]
fn a_workload_does_not_outlive_an_ordinary_process_that_is_killed() {
    let mut init = Init::start(&shell("exec sleep 1000"));
    init.hello();
    let (pid, _) = init.started();
    init.ready();
    assert!(is_alive(pid));
    init.child.kill().unwrap();
    init.child.wait().unwrap();
    let end = std::time::Instant::now() + FAILURE_BOUND;
    while is_alive(pid) {
        assert!(
            std::time::Instant::now() < end,
            "process {pid} was left behind"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_reach_the_group_and_injected_faults_need_leave() {
    let mut init = Init::start(&shell(
        "trap 'echo usr1' USR1; echo on; while :; do sleep 0.02; done",
    ));
    let logs = init.logs();
    init.hello();
    init.started();
    init.ready();
    logs.recv_timeout(FAILURE_BOUND).unwrap();
    init.send(HostMessage::Signal { signal: 10 });
    // The signal ends the `sleep` of the group too, which the shell says on standard error.
    let said = std::iter::from_fn(|| logs.recv_timeout(FAILURE_BOUND).ok());
    let mut stdout = said.filter(|frame| frame.stream == Stream::Stdout);
    assert_eq!(stdout.next().unwrap().bytes, b"usr1\n");
    init.send(HostMessage::Fault(GuestFault::KillWorkload));
    assert!(matches!(init.next(), GuestMessage::Warning { .. }));

    let mut spec = shell("sleep 1000");
    spec.allow_faults = true;
    let mut init = Init::start(&spec);
    init.hello();
    init.started();
    init.ready();
    init.send(HostMessage::Fault(GuestFault::KillWorkload));
    assert_eq!(init.exited().1, Exit::Signal { signal: 9 });
}

#[test]
fn readiness_follows_the_probe_and_an_unhealthy_workload_is_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("healthy");
    let mut spec = shell("sleep 1000");
    spec.health = Some(HealthCheck {
        probe: Probe::Exec(vec![
            "test".into(),
            "-e".into(),
            flag.to_str().unwrap().into(),
        ]),
        interval_ms: 20,
        timeout_ms: 20_000,
        retries: 2,
        start_period_ms: 3_600_000,
    });
    let mut init = Init::start(&spec);
    init.hello();
    let (first, _) = init.started();
    init.send(HostMessage::Heartbeat {
        seq: 1,
        host_time_unix_ns: 0,
    });
    assert!(
        matches!(init.next(), GuestMessage::Alive { .. }),
        "not ready yet"
    );
    File::create(&flag).unwrap();
    assert_eq!(init.ready(), first);
    std::fs::remove_file(&flag).unwrap();
    match init.next() {
        GuestMessage::Unhealthy { pid, detail } => {
            assert_eq!(pid, first);
            assert_eq!(detail, "the probe ended with exit code 1");
        }
        other => panic!("not unhealthy: {other:?}"),
    }
    let (pid, exit, decision, _) = init.exited();
    assert_eq!((pid, exit), (first, Exit::Unhealthy));
    assert_eq!(
        decision,
        Decision::RestartAfter {
            delay: Duration::ZERO
        }
    );
    assert_eq!(init.started().1, 1);
}

/// A host that goes just when a life begins: the child may not lead its group yet.
#[test]
fn a_life_that_has_just_begun_ends_with_its_host() {
    for _ in 0..50 {
        let mut spec = shell("exec sleep 1000");
        spec.allow_faults = true;
        let mut init = Init::start(&spec);
        init.hello();
        init.started();
        init.ready();
        init.send(HostMessage::Fault(GuestFault::KillWorkload));
        init.exited();
        init.control.shutdown(std::net::Shutdown::Both).unwrap();
        let end = std::time::Instant::now() + FAILURE_BOUND;
        while init.child.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
