use super::*;

use iii_actors::event::{ActorKind, EventBus};
use iii_actors::spec::WorkerSpec;
use iii_proto::guest::{HealthCheck, Probe};
use iii_proto::ids::{BootId, GuestPid, WorkerName};

fn name(text: &str) -> WorkerName {
    WorkerName::new(text).unwrap()
}

fn screen(colour: bool, verbose: bool) -> Screen {
    let mut web = WorkerSpec::new(name("web"), vec!["x".into()]);
    web.health = Some(HealthCheck {
        probe: Probe::Tcp(80),
        interval_ms: 1,
        timeout_ms: 1,
        retries: 1,
        start_period_ms: 0,
    });
    let flaky = WorkerSpec::new(name("flaky"), vec!["x".into()]);
    let looks = [&web, &flaky].map(|w| (&w.name, w.health.is_some()));
    Screen::new(looks, colour, verbose)
}

fn make(worker: &str, kind: EventKind) -> Event {
    let bus = EventBus::new();
    let mut receiver = bus.subscribe();
    bus.emit(Some(&name(worker)), None, kind);
    receiver.try_recv().unwrap()
}

fn shown(kind: EventKind) -> String {
    event(&make("web", kind), &screen(false, true), "12:00:00").unwrap()
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn exited(exit: Exit, ran: f64, decision: Decision, restarts: u32) -> EventKind {
    EventKind::WorkloadExited {
        pid: GuestPid(57),
        exit,
        ran: seconds(ran),
        decision,
        restarts,
    }
}

#[test]
fn golden_lines() {
    let check = |kind: EventKind, expected: &str| {
        assert_eq!(shown(kind), format!("12:00:00 web   * {expected}"));
    };
    check(EventKind::WorkerStarting, "starting");
    check(
        EventKind::Published {
            host: "127.0.0.1:8080".parse().unwrap(),
            guest_port: 80,
        },
        "port 80 of the guest is 127.0.0.1:8080 on this host",
    );
    let started = |boots| EventKind::VmStarted {
        vmm: "qemu".into(),
        accel: "tcg".into(),
        pid: 1234,
        boots,
    };
    check(started(1), "vm started (qemu/tcg, pid 1234)");
    check(started(3), "vm started (qemu/tcg, pid 1234, boot 3)");
    check(
        EventKind::GuestUp {
            kernel: "6.12.87".into(),
            after: seconds(0.5612),
        },
        "guest is up after 0.56 s (Linux 6.12.87)",
    );
    check(
        EventKind::GuestStage {
            stage: BootStage::Mounted,
            uptime: Duration::from_millis(700),
        },
        "guest has mounted its file systems",
    );
    let pid = GuestPid(57);
    check(
        EventKind::WorkloadStarted { pid, restarts: 0 },
        "workload started (pid 57)",
    );
    check(
        EventKind::WorkloadStarted { pid, restarts: 4 },
        "workload started again inside its VM (pid 57, restart 4)",
    );
    check(EventKind::WorkloadReady { pid }, "workload is ready");
    check(
        EventKind::WorkloadUnhealthy {
            pid,
            detail: "status 500".into(),
        },
        "workload is unhealthy and will be ended: status 500",
    );
    let again = |s| Decision::RestartAfter { delay: seconds(s) };
    check(
        exited(Exit::Code { code: 3 }, 2.1, again(0.8), 3),
        "workload exited with code 3 after 2.1 s; restart 4 in 0.80 s (inside its VM)",
    );
    check(
        exited(Exit::Signal { signal: 11 }, 75.0, again(12.0), 0),
        "workload was ended by signal 11 (SIGSEGV) after 1 min 15 s; restart 1 in 12.0 s (inside its VM)",
    );
    check(
        exited(Exit::Code { code: 0 }, 0.1, Decision::Done, 0),
        "workload exited with code 0 after 0.10 s",
    );
    check(
        exited(Exit::Code { code: 1 }, 7300.0, Decision::Done, 0),
        "workload exited with code 1 after 2 h 1 min; it is not restarted",
    );
    check(
        exited(Exit::Unhealthy, 59.97, Decision::GiveUp, 10),
        "workload was ended as unhealthy after 1 min 0 s; its limit is used up after 10 restarts in this VM",
    );
    let off = |reason| EventKind::GuestPoweringOff { reason };
    check(
        off(PowerOffReason::Stopped),
        "guest powers off: it was asked to",
    );
    check(
        off(PowerOffReason::GaveUp {
            exit: Exit::Code { code: 1 },
            restarts: 10,
        }),
        "guest powers off: the workload exited with code 1 and was restarted 10 times",
    );
    check(
        off(PowerOffReason::SetupFailed {
            stage: BootStage::NetworkUp,
            message: "no eth0".into(),
        }),
        "guest could not be set up: no eth0 (it never had brought up its network)",
    );
    check(EventKind::VmStopped, "vm stopped");
    check(
        EventKind::VmRestarting {
            delay: seconds(0.2),
            cause: "the guest panicked".into(),
        },
        "a new vm in 0.20 s: the guest panicked",
    );
    check(
        EventKind::ActorFailed {
            actor: ActorKind::Fs,
            cause: "iii-vfs was ended by signal 9".into(),
            stops: vec![ActorKind::Vm],
        },
        "file server failed: iii-vfs was ended by signal 9; stopped with it: VM",
    );
    check(
        EventKind::ActorRestarted {
            actor: ActorKind::Dns,
            restarts: 2,
        },
        "resolver runs again (restart 2)",
    );
    check(
        EventKind::WorkerDone {
            exit: Exit::Code { code: 0 },
        },
        "done: the workload exited with code 0",
    );
    check(EventKind::WorkerStopped, "stopped");
    check(
        EventKind::WorkerFailed {
            reason: "5 restarts in 5 minutes".into(),
        },
        "failed, and is not started again: 5 restarts in 5 minutes",
    );
    let refused = |protocol: &str, destination: &str| EventKind::NetworkRefused {
        protocol: protocol.into(),
        destination: destination.into(),
    };
    check(
        refused("tcp", "10.0.0.1:443"),
        "its network policy refuses tcp to 10.0.0.1:443; network.mode and network.allow say what it may reach",
    );
    check(
        refused("dns", "a.example"),
        "its network policy refuses the name a.example; network.mode and network.allow say what it may reach",
    );
    check(
        refused("tcp", "host.iii.internal:5432"),
        "its network policy refuses tcp to host.iii.internal:5432; network.host_ports says what it may reach there",
    );
    check(
        EventKind::Warning {
            message: "w".into(),
        },
        "warning: w",
    );
    check(EventKind::SupervisorStopped, "all workers have ended");
}

#[test]
fn a_crash_shows_the_console_below() {
    let kind = EventKind::VmCrashed {
        cause: "the VMM ended without a word".into(),
        exit: Some("signal 9 (SIGKILL)".into()),
        last_stage: Some(BootStage::SpecRead),
        console_tail: "one\n\x1b[31mtwo\n".into(),
        announced: false,
    };
    assert_eq!(
        shown(kind),
        "\
12:00:00 web   * vm crashed: the VMM ended without a word; its process: signal 9 (SIGKILL); the guest had read its settings
12:00:00 web   *     the end of its console:
12:00:00 web   *     one
12:00:00 web   *     \\x1b[31mtwo"
    );
    let silent = EventKind::VmCrashed {
        cause: "no Hello within 60 s".into(),
        exit: None,
        last_stage: None,
        console_tail: "\n".into(),
        announced: false,
    };
    assert_eq!(
        shown(silent),
        "12:00:00 web   * vm crashed: no Hello within 60 s; the guest had not said anything"
    );
}

#[test]
fn a_vm_that_ended_as_its_guest_had_said_did_not_crash() {
    let kind = EventKind::VmCrashed {
        cause: "the workload used up its restart limit (1 restart, last: exit code 1)".into(),
        exit: Some("exit code 0".into()),
        last_stage: Some(BootStage::Prepared),
        console_tail: String::new(),
        announced: true,
    };
    assert_eq!(
        shown(kind),
        "12:00:00 web   * vm ended: the workload used up its restart limit (1 restart, last: exit code 1)"
    );
    // The guest's own word would be the same line twice.
    let reason = PowerOffReason::GaveUp {
        exit: Exit::Code { code: 1 },
        restarts: 1,
    };
    let quiet = screen(false, false);
    let word = make("web", EventKind::GuestPoweringOff { reason });
    assert_eq!(event(&word, &quiet, "t"), None);
    let verbose = event(&word, &screen(false, true), "t").unwrap();
    assert!(verbose.ends_with("and was restarted 1 time"), "{verbose}");
}

#[test]
fn what_only_the_curious_want_is_hidden() {
    let quiet = screen(false, false);
    let hidden = |worker: &str, kind| event(&make(worker, kind), &quiet, "t").is_none();
    let ready = || EventKind::WorkloadReady { pid: GuestPid(1) };
    assert!(hidden("web", EventKind::WorkerStarting));
    assert!(hidden(
        "web",
        EventKind::GuestStage {
            stage: BootStage::Init,
            uptime: Duration::ZERO
        }
    ));
    // Without a probe, ready says no more than started.
    assert!(hidden("flaky", ready()));
    assert!(!hidden("web", ready()));
    assert!(!hidden("web", EventKind::VmStopped));
}

#[test]
fn columns_align_and_colours_are_the_workers_own() {
    let line = |worker: &str, text: &[u8], complete| LogLine {
        worker: name(worker),
        boot: BootId::from_random(1),
        pid: GuestPid(1),
        stream: LogSource::Stdout,
        time_unix_ns: 0,
        received_unix_ns: 0,
        text: text.to_vec(),
        complete,
    };
    let plain = screen(false, false);
    assert_eq!(log(&line("web", b"a", true), &plain, "t"), "t web   | a");
    assert_eq!(
        log(&line("flaky", b"b", false), &plain, "t"),
        "t flaky | b…"
    );
    let mut console = line("web", b"c", true);
    console.stream = LogSource::Console;
    assert_eq!(log(&console, &plain, "t"), "t web   # c");
    assert_eq!(
        lost(&name("web"), 12, &plain, "t"),
        "t web   * 12 lines are lost here: the disk did not take them"
    );
    let coloured = screen(true, false);
    assert_eq!(
        log(&line("web", b"\x1b[1mx", true), &coloured, "t"),
        "\x1b[2mt\x1b[0m \x1b[36mweb   |\x1b[0m \x1b[1mx\x1b[0m"
    );
    assert_eq!(
        event(&make("flaky", EventKind::WorkerStopped), &coloured, "t").unwrap(),
        "\x1b[2mt\x1b[0m \x1b[33mflaky *\x1b[0m stopped"
    );
}

#[test]
fn guests_cannot_forge_lines() {
    let kind = EventKind::WorkloadUnhealthy {
        pid: GuestPid(1),
        detail: "x\r\x1b[2K\nweb * forged".into(),
    };
    let shown = shown(kind);
    assert!(
        shown
            .lines()
            .all(|line| line.starts_with("12:00:00 web   * "))
    );
    assert!(!shown.contains('\x1b') && !shown.contains('\r'));
}
