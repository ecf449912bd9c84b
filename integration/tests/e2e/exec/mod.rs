//! Commands in a running worker's guest: what they are run as, what goes in and comes out, and that
//! nothing of them stays behind.

mod commands;
mod ends;
mod flow;
mod terminal;

use iii_integration::{Bench, PATIENCE, shell, worker_name};
use iii_proto::restart::Exit;
use iii_supervisor::{ExecError, ExecOutput, ExecRequest, ExecSession};

/// The name of the worker that has nothing to do.
const BOX: &str = "box";

/// A worker whose workload sleeps, ready.
async fn idle_box() -> Bench {
    let mut bench = Bench::start(vec![shell(BOX, "exec sleep infinity")]).await;
    bench.ready(0, BOX).await;
    bench
}

/// A request for a shell script.
fn script(text: &str) -> ExecRequest {
    ExecRequest::new(["/bin/sh", "-c", text])
}

/// Begins a session in the idle worker.
async fn begin(bench: &Bench, request: ExecRequest) -> Result<ExecSession, ExecError> {
    let opening = bench.supervisor.exec(worker_name(BOX), request);
    within("answer to a request", opening).await
}

/// Resolves to what `what` resolves to, or fails instead of waiting for ever.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(4 * PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("no {what}"),
    }
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    exit: Exit,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

const fn code(code: i32) -> Exit {
    Exit::Code { code }
}

/// Reads a session to its end.
async fn finish(session: &mut ExecSession) -> Result<Ended, ExecError> {
    drop(session.stdin.take());
    let mut output = session.output.take().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = within("output", output.recv()).await {
        match piece {
            ExecOutput::Stdout(bytes) => stdout.extend(bytes),
            ExecOutput::Stderr(bytes) => stderr.extend(bytes),
        }
    }
    let exit = within("end of a session", session.wait()).await?;
    Ok(Ended {
        exit,
        stdout,
        stderr,
    })
}

/// Runs a command to its end.
async fn run(bench: &Bench, request: ExecRequest) -> Ended {
    let asked = format!("{request:?}");
    let result = match begin(bench, request).await {
        Ok(mut session) => finish(&mut session).await,
        Err(error) => Err(error),
    };
    result.unwrap_or_else(|error| panic!("{error}: {asked}"))
}

/// The output of a script that must succeed.
async fn text(bench: &Bench, what: &str) -> String {
    let ended = run(bench, script(what)).await;
    assert_eq!(ended.exit, code(0), "{what}: {}", ended.complaint());
    ended.text().trim_end().to_owned()
}
