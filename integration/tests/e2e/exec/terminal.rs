//! Commands on a terminal.

use super::{Ended, begin, code, finish, idle_box, run, script, within};
use iii_proto::exec::TerminalSize;
use iii_proto::restart::Exit;
use iii_supervisor::ExecRequest;
use iii_supervisor::exec::ExecReceiver;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

/// Reads on until there is `wanted` in what was read.
async fn read_until(output: &mut ExecReceiver, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match within(&format!("{wanted:?} behind {seen:?}"), output.recv()).await {
            Some(piece) => seen += &String::from_utf8_lossy(piece.bytes()),
            None => panic!("no {wanted:?} in {seen:?}"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one() {
    let bench = idle_box().await;
    let ended = run(&bench, script("tty; stty size; test -t 0 && test -t 1 && test -t 2; echo $?; echo $TERM; stat -c '%U %a' $(tty); : < /dev/tty && echo controls").terminal(33, 101)).await;
    let lines: Vec<String> = ended.text().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(
        lines[1..],
        ["33 101", "0", "xterm", "worker 620", "controls"]
    );
    assert!(ended.stderr.is_empty());

    // All outputs are the terminal's, and what cannot be run is told there.
    let ended = run(
        &bench,
        script("echo out; echo err >&2; exit 4").terminal(24, 80),
    )
    .await;
    assert_eq!(
        ended,
        Ended {
            exit: code(4),
            stdout: b"out\r\nerr\r\n".to_vec(),
            stderr: Vec::new(),
        }
    );
    let nothing = ExecRequest::new(["no-such-program"]).terminal(24, 80);
    let ended = run(&bench, nothing).await;
    assert_eq!(ended.exit, code(127));
    assert!(ended.text().ends_with(")\r\n"), "{}", ended.text());

    // The guest sees the new size, and is told.
    let watches = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut session = begin(&bench, script(watches).terminal(24, 80))
        .await
        .unwrap();
    let mut output = session.output.take().unwrap();
    read_until(&mut output, "ready\r\n").await;
    session.resize(TerminalSize {
        rows: 50,
        columns: 132,
    });
    read_until(&mut output, "50 132\r\n").await;
    drop(session);

    // Keys that mean signals; the end of the input is a character.
    let request = script("trap '' HUP; echo ready; exec cat")
        .terminal(24, 80)
        .stdin();
    let mut session = begin(&bench, request.clone()).await.unwrap();
    let mut output = session.output.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    read_until(&mut output, "ready\r\n").await;
    stdin.write_all(b"typed\r").await.unwrap();
    read_until(&mut output, "typed\r\ntyped\r\n").await;
    stdin.write_all(b"\x03").await.unwrap();
    assert_eq!(
        within("its end", session.wait()).await,
        Ok(Exit::Signal { signal: 2 })
    );
    let mut session = begin(&bench, request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"line\nrest").await.unwrap();
    drop(stdin);
    let ended = finish(&mut session).await.unwrap();
    assert_eq!(ended.exit, code(0));
    let text = ended.text();
    assert!(
        text.contains("line\r\n") && text.ends_with("rest"),
        "{text:?}"
    );

    // Who closes its terminal can open it again.
    let silent = script("exec <&- >&- 2>&-; sleep 0.2; echo again > /dev/tty; exit 7");
    let ended = run(&bench, silent.terminal(24, 80)).await;
    assert_eq!(
        (ended.exit.clone(), ended.text().as_str()),
        (code(7), "again\r\n")
    );

    // A program that takes bytes as they come gets all of them.
    let raw = script("stty raw -echo; echo ready; head -c 1000000 | sha256sum");
    let mut session = begin(&bench, raw.terminal(24, 80).stdin()).await.unwrap();
    let mut output = session.output.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    read_until(&mut output, "ready\n").await;
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    within("room", stdin.write_all(&bytes)).await.unwrap();
    let said = read_until(&mut output, "-\n").await;
    assert_eq!(said.trim_end(), format!("{:x}  -", Sha256::digest(&bytes)));
    assert_eq!(within("its end", session.wait()).await, Ok(code(0)));

    // An interactive shell with its jobs.
    let shell = ExecRequest::new(["/bin/bash", "--norc", "-i"])
        .env("PS1", "> ")
        .terminal(24, 80)
        .stdin();
    let mut session = begin(&bench, shell).await.unwrap();
    let mut output = session.output.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    read_until(&mut output, "> ").await;
    stdin.write_all(b"sleep 1000 & jobs %1\r").await.unwrap();
    read_until(&mut output, "Running").await;
    stdin.write_all(b"exit 6\r").await.unwrap();
    while within("its last words", output.recv()).await.is_some() {}
    assert_eq!(within("its end", session.wait()).await, Ok(code(6)));
    bench.stop().await;
}
