//! Ends: of a command, of its client, of its guest.

use std::time::Duration;

use super::{BOX, begin, code, finish, idle_box, run, script, text, within};
use iii_integration::{Bench, is, shell, worker_name};
use iii_proto::restart::{Exit, RestartMode, RestartPolicy};
use iii_supervisor::exec::ExecReceiver;
use iii_supervisor::{EventKind, ExecError, ExecRequest, ExecSession, Fault};

/// A command that starts children which ignore what is polite: one in its group, one in a session
/// of its own, and one that the init of the guest has inherited.
const FAMILY: &str = "
    trap '' HUP TERM INT
    sleep 77777 &
    setsid sleep 77777 &
    (setsid sh -c 'sleep 77777 & sleep 77777' &)
    while [ $(pgrep -c -f 'sleep 77777$') -lt 5 ]; do sleep 0.1; done
    echo settled
";

async fn settled(output: &mut ExecReceiver) {
    let said = within("family", output.recv()).await.unwrap();
    assert_eq!(said.bytes(), b"settled\n");
}

async fn family(bench: &Bench, end: &str) -> (ExecSession, ExecReceiver) {
    // The family's own shell has the words in its command line too, hence the `$` above.
    let request = script(&format!("{FAMILY}\n{end}"));
    let mut session = begin(bench, request).await.unwrap();
    let mut output = session.output.take().unwrap();
    settled(&mut output).await;
    (session, output)
}

/// Resolves when nothing of any earlier session is left: no process, no cgroup but that of the
/// session which looks.
async fn nothing_is_left(bench: &Bench) {
    let looks = "i=0
        while pgrep -f 'sleep 77777$' >/dev/null ||
            [ $(ls -d /sys/fs/cgroup/workload/exec* | wc -l) -gt 1 ]; do
            sleep 0.1; i=$((i+1))
            if [ $i -gt 100 ]; then
                ps -e -o pid,ppid,stat,cgroup,args >&2
                grep . /sys/fs/cgroup/workload/exec*/cgroup.events >&2
                exit 1
            fi
        done";
    text(bench, looks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_session_outlives_it() {
    let bench = idle_box().await;
    let alive = "pgrep -c -f 'sleep 77777$' || true";

    // The main process ends: the others are gone when its end is told.
    let (session, mut output) = family(&bench, "exit 3").await;
    while within("its last words", output.recv()).await.is_some() {}
    assert_eq!(within("its end", session.wait()).await, Ok(code(3)));
    assert_eq!(text(&bench, alive).await, "0");
    assert_eq!(
        text(&bench, "ls -d /sys/fs/cgroup/workload/exec* | wc -l").await,
        "1",
        "the one that looks"
    );

    // The client goes.
    let (session, _output) = family(&bench, "sleep 77777").await;
    assert_ne!(text(&bench, alive).await, "0");
    drop(session);
    nothing_is_left(&bench).await;

    // The client goes while output waits for it, and while its command is stopped.
    let (session, _output) = family(&bench, "exec cat /dev/zero").await;
    drop(session);
    let (session, _output) = family(&bench, "kill -STOP $$").await;
    drop(session);
    let terminal = script(&format!("{FAMILY} read x")).terminal(24, 80).stdin();
    let mut session = begin(&bench, terminal).await.unwrap();
    let mut output = session.output.take().unwrap();
    let said = within("family", output.recv()).await.unwrap();
    assert_eq!(said.bytes(), b"settled\r\n");
    drop(session);
    nothing_is_left(&bench).await;

    // A polite command has the time for its last words to itself.
    let polite = "trap 'echo goes; echo bye > /tmp/polite; exit' HUP; echo ready; \
        while :; do sleep 0.1; done";
    let mut session = begin(&bench, script(polite)).await.unwrap();
    let mut output = session.output.take().unwrap();
    within("readiness", output.recv()).await.unwrap();
    drop(session);
    nothing_is_left(&bench).await;
    assert_eq!(text(&bench, "cat /tmp/polite").await, "bye");

    // Who does not listen still hears the end, and one who goes early is not waited for.
    let mut session = begin(&bench, script("seq 1 1000000; exit 8"))
        .await
        .unwrap();
    drop(session.output.take());
    assert_eq!(within("its end", session.wait()).await, Ok(code(8)));
    for _ in 0..20 {
        let opening = bench
            .supervisor
            .exec(worker_name(BOX), script("sleep 77777"));
        drop(tokio::time::timeout(Duration::from_millis(1), opening).await);
    }
    nothing_is_left(&bench).await;
    // Root of the guest may make cgroups below the session's own; they go with it.
    let nested = "mkdir -p $(sed 's,0::,/sys/fs/cgroup,' /proc/self/cgroup)/a/b";
    let ended = run(&bench, script(nested).user("root")).await;
    assert_eq!(ended.exit, code(0), "{}", ended.complaint());
    nothing_is_left(&bench).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_vm_is_told_and_its_successor_runs_commands() {
    let mut spec = shell(BOX, "exec sleep infinity");
    spec.vm_restart = RestartPolicy {
        mode: RestartMode::OnFailure,
        initial: Duration::from_millis(10),
        ..spec.vm_restart
    };
    let mut bench = Bench::start(vec![spec]).await;
    bench.ready(0, BOX).await;
    let mut session = begin(&bench, script("echo here; cat").stdin())
        .await
        .unwrap();
    let mut output = session.output.take().unwrap();
    let said = within("a sign", output.recv()).await.unwrap();
    assert_eq!(said.bytes(), b"here\n");
    let mark = bench.mark();
    bench.hurt(BOX, Fault::KillVmm).await;
    assert_eq!(within("end of the output", output.recv()).await, None);
    match within("its end", session.wait()).await {
        Err(ExecError::Lost(cause)) => assert!(cause.contains("ended"), "{cause}"),
        other => panic!("{other:?}"),
    }
    drop(session);
    bench.ready(mark, BOX).await;
    assert_eq!(text(&bench, "echo new").await, "new");

    // Panics of the actor that has the VM end its sessions too.
    let session = begin(&bench, script("sleep 77777")).await.unwrap();
    let mark = bench.mark();
    let vm = iii_supervisor::ActorKind::Vm;
    bench.hurt(BOX, Fault::PanicActor(vm)).await;
    let end = within("its end", session.wait()).await;
    assert!(matches!(end, Err(ExecError::Lost(_))), "{end:?}");
    bench.ready(mark, BOX).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_between_two_lives_of_the_workload_and_do_not_disturb_it() {
    let mut spec = shell(BOX, "echo life; sleep 0.1; exit 1");
    spec.restart = RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_secs(3600),
        max: Duration::from_secs(3600),
        ..RestartPolicy::default()
    };
    let mut crashes = shell("crashes", "echo life; sleep 0.05; exit 1");
    crashes.restart = RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_millis(10),
        factor: 1.0,
        limit: None,
        ..RestartPolicy::default()
    };
    let mut bench = Bench::start(vec![spec, crashes]).await;
    let (_, mark) = bench
        .event(0, "exit of the workload", |event| {
            matches!(event.kind, EventKind::WorkloadExited { .. } if is(event, BOX)).then_some(())
        })
        .await;
    assert_eq!(text(&bench, "echo in backoff").await, "in backoff");

    // Lives come and go; a session stays.
    bench.ready(0, "crashes").await;
    let crashes = worker_name("crashes");
    let counts = ExecRequest::new(["sh", "-c", "read x; echo $x"]).stdin();
    let mut session = bench
        .supervisor
        .exec(crashes.clone(), counts)
        .await
        .unwrap();
    let mut from = mark;
    for _ in 0..5 {
        (_, _, from) = bench.ready(from, "crashes").await;
        let quick = ExecRequest::new(["sh", "-c", "sleep 77777 & exit 2"]);
        let mut quick = bench.supervisor.exec(crashes.clone(), quick).await.unwrap();
        assert_eq!(finish(&mut quick).await.unwrap().exit, code(2));
    }
    let mut stdin = session.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"still here\n")
        .await
        .unwrap();
    let ended = finish(&mut session).await.unwrap();
    assert_eq!(ended.text(), "still here\n");
    let ends = |event: &iii_supervisor::Event| match &event.kind {
        EventKind::WorkloadExited { exit, .. } if is(event, "crashes") => Some(exit.clone()),
        _ => None,
    };
    bench.mark();
    for exit in bench.seen.iter().filter_map(ends) {
        assert_eq!(exit, code(1), "every life ended by itself");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_of_a_guest_ends_its_sessions() {
    let bench = idle_box().await;
    let polite = begin(&bench, script("exec sleep 77777")).await.unwrap();
    let (deaf, _output) = family(&bench, "sleep 77777").await;
    let bench = bench.stop().await;
    // SIGHUP ends the one; the other outlives its grace only as long as the guest lives.
    assert_eq!(
        within("its end", polite.wait()).await,
        Ok(Exit::Signal { signal: 1 })
    );
    match within("its end", deaf.wait()).await {
        Ok(Exit::Signal { signal: 9 }) | Err(ExecError::Lost(_)) => {}
        other => panic!("{other:?}"),
    }
    match begin(&bench, script("true")).await {
        Err(ExecError::NotRunning { state, .. }) => assert_eq!(state, "stopped"),
        other => panic!("{other:?}"),
    }
}
