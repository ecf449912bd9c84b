//! Commands that are run in a running worker's guest, beside its workload.
//!
//! * [`ExecRequest`] and [`ExecSession`] are what a caller sees; neither needs actix or knows it.
//! * `mux` keeps the sessions of one port and checks every frame of the guest; `port` moves bytes
//!   between it and the VM. A caller speaks to the mux itself: the actors are asked only where it
//!   is.
//!
//! A session's life is that of its [`ExecSession`]: dropped, it ends the command and all that this
//! has started. When the VM ends, its sessions end with [`ExecError::Lost`].

mod mux;
mod port;
mod request;
mod session;

use actix::Message;
use iii_proto::exec::MAX_SESSIONS;
use iii_proto::ids::WorkerName;
use tokio::sync::oneshot;

pub use iii_proto::exec::TerminalSize;
pub(crate) use port::{ExecOwner, ExecPort, read};
pub use request::ExecRequest;
pub use session::{ExecOutput, ExecReceiver, ExecSession, ExecStdin};

/// Why a command was not run, or why it is not known how it ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// There is no worker of that name.
    #[error("failed to run a command in worker {0}: there is none of that name")]
    UnknownWorker(WorkerName),
    /// The worker has no guest that could run it now.
    #[error("failed to run a command in worker {worker}: it is {state}")]
    NotRunning {
        /// The worker.
        worker: WorkerName,
        /// What it does instead, in words: `booting`, `stopping`, `failed`.
        state: &'static str,
    },
    /// The guest cannot run it as it was asked for: an unknown user, a missing directory.
    #[error("failed to run the command in the guest: {0}")]
    Refused(String),
    /// The guest runs as many commands as one may at once.
    #[error(
        "failed to run a command: the guest runs {MAX_SESSIONS} already, which is the limit; end \
         one first"
    )]
    TooManySessions,
    /// Command and environment do not fit into one message.
    #[error(
        "failed to run the command: it has {length} bytes with its environment, the limit is \
         {limit}; pass the rest in a file or by its standard input"
    )]
    TooLong {
        /// Bytes that it would take.
        length: usize,
        /// Bytes that there are.
        limit: usize,
    },
    /// The guest ended, or broke the rules, while the command ran.
    #[error("failed to see the end of the command: {0}")]
    Lost(String),
    /// The supervisor has ended.
    #[error("failed to run a command: the supervisor has ended")]
    Ended,
}

type Answer = Result<ExecPort, ExecError>;

/// From actor to actor, down to the one that has the VM: where is the exec port of this worker?
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Find {
    pub(crate) worker: WorkerName,
    answer: oneshot::Sender<Answer>,
}

impl Find {
    pub(crate) fn new(worker: WorkerName) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        (Self { worker, answer }, receiver)
    }

    pub(crate) fn answer(self, answer: Answer) {
        // Whoever has stopped waiting does not want to know.
        drop(self.answer.send(answer));
    }

    /// There is no guest that could run anything.
    pub(crate) fn not_running(self, state: &'static str) {
        let worker = self.worker.clone();
        self.answer(Err(ExecError::NotRunning { worker, state }));
    }
}
