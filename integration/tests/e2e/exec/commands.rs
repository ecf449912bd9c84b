//! What a command is run as, and what its end says.

use super::{begin, code, finish, idle_box, run, script, text, within};
use iii_integration::worker_name;
use iii_proto::restart::Exit;
use iii_supervisor::{ExecError, ExecRequest};
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_as_the_workload_unless_told_otherwise_and_end_as_in_a_shell() {
    let bench = idle_box().await;

    // Exit codes and signals.
    for expected in [0, 3, 255] {
        let ended = run(&bench, script(&format!("exit {expected}"))).await;
        assert_eq!(ended.exit, code(expected));
    }
    let ended = run(&bench, script("kill -9 $$")).await;
    assert_eq!(ended.exit, Exit::Signal { signal: 9 });

    // Programs that are not there, and that cannot be executed.
    let ended = run(&bench, ExecRequest::new(["no-such-program"])).await;
    assert_eq!(ended.exit, code(127));
    assert!(
        ended
            .complaint()
            .contains("no-such-program: not found in PATH")
    );
    assert!(ended.stdout.is_empty());
    let ended = run(&bench, ExecRequest::new(["/no/such/program"])).await;
    assert_eq!(ended.exit, code(127));
    let ended = run(&bench, ExecRequest::new(["/etc/passwd"])).await;
    assert_eq!(ended.exit, code(126), "{}", ended.complaint());
    assert!(ended.complaint().contains("may not be executed"));
    text(
        &bench,
        "printf '#!/no/such/interpreter\\n' > /tmp/odd; printf 'x' > /tmp/data; \
         chmod +x /tmp/odd /tmp/data",
    )
    .await;
    let ended = run(&bench, ExecRequest::new(["/tmp/odd"])).await;
    assert_eq!(ended.exit, code(126));
    assert!(ended.complaint().contains("/no/such/interpreter"));
    let ended = run(&bench, ExecRequest::new(["data"]).env("PATH", "/tmp")).await;
    assert_eq!(ended.exit, code(126), "{}", ended.complaint());

    // Outputs are separate and may hold any byte.
    let program = "import os; b = bytes(range(256)); os.write(1, b * 10); os.write(2, b[::-1])";
    let ended = run(&bench, ExecRequest::new(["python3", "-c", program])).await;
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(ended.stdout, bytes.repeat(10));
    assert_eq!(
        ended.stderr,
        bytes.iter().rev().copied().collect::<Vec<u8>>()
    );

    // As the workload, and as somebody else.
    let who = "echo $(id -u):$(id -g) $USER $HOME $PWD $III_WORKER_NAME";
    assert_eq!(
        text(&bench, who).await,
        "1000:1000 worker /home/worker /home/worker box"
    );
    let ended = run(&bench, script(who).user("root").cwd("/tmp")).await;
    assert_eq!(ended.text(), "0:0 root /root /tmp box\n");
    let ended = run(&bench, script("id -u; id -g; id -G").user("1000:7")).await;
    assert_eq!(ended.text(), "1000\n7\n7\n");
    let ended = run(&bench, script("id -u; id -g").user("daemon:daemon")).await;
    assert_eq!(ended.text(), "1\n1\n");
    let ended = run(
        &bench,
        script("echo $GREETING $III_WORKER_NAME")
            .env("GREETING", "hello")
            .env("III_WORKER_NAME", "other"),
    )
    .await;
    assert_eq!(ended.text(), "hello other\n");
    assert_eq!(text(&bench, "cat").await, "", "without an input it ends");

    // What cannot be had is refused, and says why.
    for (request, says) in [
        (script("true").user("nobody-there"), "nobody-there"),
        (script("true").user("1000:no-group"), "no-group"),
        (script("true").cwd("/no/such/place"), "/no/such/place"),
        (script("true").cwd("relative"), "not an absolute path"),
        (script("true").env("A=B", "c"), "A=B"),
        (ExecRequest::new(Vec::<String>::new()), "empty"),
    ] {
        match begin(&bench, request).await {
            Err(ExecError::Refused(message)) => assert!(message.contains(says), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    let long = script("true").env("A", "x".repeat(200_000));
    assert!(matches!(
        begin(&bench, long).await,
        Err(ExecError::TooLong { .. })
    ));
    let nobody = worker_name("nobody");
    assert_eq!(
        bench
            .supervisor
            .exec(nobody.clone(), script("true"))
            .await
            .unwrap_err(),
        ExecError::UnknownWorker(nobody)
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_ends_where_the_client_ends_it_and_signals_arrive() {
    let bench = idle_box().await;

    // The reply comes after the end of the input.
    let mut session = begin(&bench, script("sort; echo done").stdin())
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    within("room", stdin.write_all(b"c\na\nb\n")).await.unwrap();
    stdin.shutdown().await.unwrap();
    assert!(stdin.write_all(b"more").await.is_err());
    let ended = finish(&mut session).await.unwrap();
    assert_eq!(
        (ended.exit.clone(), ended.text().as_str()),
        (code(0), "a\nb\nc\ndone\n")
    );

    // A command that reads no more says so to whoever writes on.
    let mut session = begin(&bench, script("exec <&-; read x").stdin())
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let writing = async { while stdin.write_all(&[b'x'; 10_000]).await.is_ok() {} };
    within("end of the reader", writing).await;
    finish(&mut session).await.unwrap();

    // A signal goes to the whole group.
    let waits = "trap 'echo caught; exit 5' TERM; echo ready; sleep infinity & wait";
    let mut session = begin(&bench, script(waits)).await.unwrap();
    let mut output = session.output.take().unwrap();
    let ready = within("readiness", output.recv()).await.unwrap();
    assert_eq!(ready.bytes(), b"ready\n");
    session.signal(15);
    let caught = within("its last word", output.recv()).await.unwrap();
    assert_eq!(caught.bytes(), b"caught\n");
    assert_eq!(within("its end", session.wait()).await, Ok(code(5)));

    // Several at once, each with its own input.
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(begin(&bench, script("cat; exit 9").stdin()).await.unwrap());
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        let stdin = session.stdin.as_mut().unwrap();
        let text = format!("session {number}\n").repeat(100);
        stdin.write_all(text.as_bytes()).await.unwrap();
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        let ended = finish(session).await.unwrap();
        assert_eq!(ended.exit, code(9));
        assert_eq!(ended.text(), format!("session {number}\n").repeat(100));
    }

    // As many as one may have, and not one more.
    let mut sessions = Vec::new();
    let error = loop {
        match begin(&bench, script("read x").stdin()).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert_eq!(error, ExecError::TooManySessions);
    assert_eq!(sessions.len(), iii_proto::exec::MAX_SESSIONS);
    for mut session in sessions {
        finish(&mut session).await.unwrap();
    }
    assert_eq!(text(&bench, "echo again").await, "again");
    bench.stop().await;
}
