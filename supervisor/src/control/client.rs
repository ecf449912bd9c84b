//! The commands' end of the control socket.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::line::{self, LineError, LineReader, MAX_REPLY};
use super::protocol::{Call, Greeting, PROTOCOL, Refusal, Reply, Request};
use super::socket;

/// How long a supervisor may take to greet. It does so before all else, so that only one that is
/// stopped or starved takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer, or none that is good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("no supervisor runs for this project")]
    NotRunning,
    /// The socket cannot be reached.
    #[error("failed to reach the supervisor at {path}: {source}{}", remedy(source))]
    Connect {
        /// The state directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody listens and says nothing.
    #[error(
        "failed to hear from the supervisor within {} s: it is stopped or overloaded; look at its \
         process, which the file `lock` in {path} names", PATIENCE.as_secs()
    )]
    Silent {
        /// The state directory.
        path: PathBuf,
    },
    /// It is of another version.
    #[error(
        "failed to speak to the supervisor with process id {pid}: it is iii-super {version}, which \
         speaks protocol {protocol}, and this one {PROTOCOL}; stop it with its own program or by \
         SIGTERM, and run it anew"
    )]
    Version {
        /// Its process.
        pid: u32,
        /// Its version.
        version: String,
        /// Its protocol.
        protocol: u32,
    },
    /// It does not do what it was asked for.
    #[error("{0}")]
    Refused(Refusal),
    /// It has ended while it was listened to.
    #[error("failed to hear the supervisor to the end: it has ended, or was killed")]
    Ended,
    /// The connection broke.
    #[error("failed to speak to the supervisor: {0}")]
    Broken(#[from] std::io::Error),
    /// What it says makes no sense.
    #[error("failed to understand the supervisor: {0}")]
    Malformed(String),
}

/// What to do next where the cause alone does not say it.
fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied => {
            "; that directory is not this user's: name one that is with III_HOME, or be the user who \
             runs it"
        }
        _ => "",
    }
}

impl From<LineError> for ClientError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Io(error) => Self::Broken(error),
            LineError::TooLong(_) | LineError::Malformed(_) => Self::Malformed(error.to_string()),
        }
    }
}

/// A connection on which a request may be made.
#[derive(Debug)]
pub struct Client {
    /// Who answers.
    pub greeting: Greeting,
    reader: LineReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// An answer on its way.
#[derive(Debug)]
pub struct Answer {
    reader: LineReader<OwnedReadHalf>,
    /// Its drop would tell the supervisor that nobody waits any more.
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects to the supervisor of a state directory.
    pub async fn connect(directory: &Path) -> Result<Self, ClientError> {
        let path = || directory.to_owned();
        let stream = match socket::connect(directory).await {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                // Where a part of the path is a file, nobody has ever run; a command that makes
                // the directory says what stands in its way.
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
                    return Err(ClientError::NotRunning);
                }
                // The queue of clients that wait to be accepted is full.
                ErrorKind::WouldBlock => return Err(ClientError::Silent { path: path() }),
                _ => {
                    return Err(ClientError::Connect {
                        path: path(),
                        source: error,
                    });
                }
            },
        };
        match tokio::time::timeout(PATIENCE, Self::greeted(stream)).await {
            Ok(client) => client,
            Err(_) => Err(ClientError::Silent { path: path() }),
        }
    }

    async fn greeted(stream: UnixStream) -> Result<Self, ClientError> {
        let (read, writer) = stream.into_split();
        let mut reader = LineReader::new(read, MAX_REPLY);
        let greeting: Greeting = reader.value().await?.ok_or(ClientError::NotRunning)?;
        if greeting.protocol != PROTOCOL {
            return Err(ClientError::Version {
                pid: greeting.pid,
                version: greeting.version,
                protocol: greeting.protocol,
            });
        }
        Ok(Self {
            greeting,
            reader,
            writer,
        })
    }

    /// Asks.
    pub async fn ask(mut self, request: Request) -> Result<Answer, ClientError> {
        let mut text = Vec::new();
        line::write(&Call::new(request), &mut text)
            .map_err(|error| ClientError::Malformed(error.to_string()))?;
        match self.writer.write_all(&text).await {
            // It may have said why it does not listen.
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Answer {
            reader: self.reader,
            writer: self.writer,
        })
    }
}

impl Answer {
    /// Whether there is more without waiting.
    pub fn has_more(&self) -> bool {
        self.reader.has_line()
    }

    /// Resolves when the supervisor's process has ended, and with it everything that it held: it
    /// hangs up a moment before.
    pub async fn ended(self) {
        let Self { reader, writer } = self;
        let process = pidfd_of(&writer);
        // Nothing more is said; an error is an end as well.
        let mut rest = reader.into_inner();
        while rest.read_u8().await.is_ok() {}
        let Ok(process) = process else {
            return;
        };
        // In a thread of its own: nothing else of a command that ends with this waits for it.
        let wait = tokio::task::spawn_blocking(move || {
            let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
            nix::poll::poll(&mut fds, patience)
        });
        if !matches!(wait.await, Ok(Ok(1))) {
            tracing::warn!("the supervisor has hung up and does not end");
        }
    }

    /// The connection behind the lines that were read.
    pub fn into_parts(self) -> (BufReader<OwnedReadHalf>, OwnedWriteHalf) {
        (self.reader.into_inner(), self.writer)
    }

    /// The next line of the answer; `None` when it is complete. Given up, it has lost nothing.
    pub async fn next(&mut self) -> Result<Option<Reply>, ClientError> {
        match self.reader.value().await? {
            Some(Reply::Done) => Ok(None),
            Some(Reply::Refused(refusal)) => Err(ClientError::Refused(refusal)),
            Some(reply) => Ok(Some(reply)),
            None => Err(ClientError::Ended),
        }
    }
}

/// The process at the other end. It lives: its end of the connection is open, or was just now.
fn pidfd_of(writer: &OwnedWriteHalf) -> std::io::Result<OwnedFd> {
    let unknown = || std::io::Error::from(ErrorKind::NotFound);
    let pid = writer.as_ref().peer_cred()?.pid().ok_or_else(unknown)?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(unknown)?;
    Ok(rustix::process::pidfd_open(
        pid,
        rustix::process::PidfdFlags::NONBLOCK,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_user_is_told_with_the_remedy() {
        let said = |kind: ErrorKind| {
            let path = PathBuf::from("/d");
            let source = kind.into();
            ClientError::Connect { path, source }.to_string()
        };
        let denied = said(ErrorKind::PermissionDenied);
        assert!(denied.contains("III_HOME"), "{denied}");
        assert!(!said(ErrorKind::TimedOut).contains("III_HOME"));
    }
}
