//! What a run says, put out by a task of its own: a reader that stalls stalls no request.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::say::say;
use super::background::BackgroundLog;
use crate::Supervisor;
use crate::output::printer::{self, Format};

/// How long what is left may take to be printed once all workers have ended: a reader that has
/// stopped reading must not keep the program.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Prints what happens in the background.
pub(in crate::cli) struct Printer {
    task: JoinHandle<io::Result<()>>,
    done: oneshot::Sender<()>,
    broken: bool,
}

impl Printer {
    /// Prints what a new supervisor tells from now on.
    pub(in crate::cli) fn start(supervisor: &Supervisor, format: Format) -> Self {
        let events = supervisor.events();
        let logs = supervisor
            .take_logs()
            .expect("the supervisor is new, so nobody has taken its logs");
        let (done, finish) = oneshot::channel();
        let print = printer::print(format, events, logs, finish, tokio::io::stdout());
        Self {
            task: tokio::spawn(print),
            done,
            broken: false,
        }
    }

    /// Writes what happens into the file of a run in the background. The workloads' output is not
    /// for it.
    pub(super) fn into_log(
        supervisor: &Supervisor,
        format: Format,
        mut log: BackgroundLog,
    ) -> Self {
        let events = supervisor.events();
        let (done, finish) = oneshot::channel();
        let print = async move {
            printer::print_events(&format, events, finish, |text| log.write(text)).await
        };
        Self {
            task: tokio::spawn(print),
            done,
            broken: false,
        }
    }

    /// Resolves when printing has failed: `true` if nobody reads.
    pub(in crate::cli) async fn ended(&mut self) -> bool {
        let result = (&mut self.task).await;
        self.broken = true;
        match result {
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => true,
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                say(format_args!("failed to write to stdout: {error}; stopping"));
                false
            }
            Err(error) => {
                say(format_args!("failed to print: {error}; stopping"));
                false
            }
        }
    }

    /// Prints what is left.
    pub(in crate::cli) async fn close(&mut self) {
        if self.broken {
            return;
        }
        // An error means that the printer has ended by itself, which `ended` tells.
        let (done, _) = oneshot::channel();
        std::mem::replace(&mut self.done, done).send(()).ok();
        if tokio::time::timeout(LAST_WORDS, self.ended())
            .await
            .is_err()
        {
            say("stdout is not read: the last lines are not printed");
        }
    }
}
