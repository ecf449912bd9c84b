//! A session, as its client holds it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use iii_proto::exec::{SessionId, TerminalSize};
use iii_proto::ids::GuestPid;
use iii_proto::restart::Exit;
use tokio::io::AsyncWrite;

use super::{ExecError, ExecPort};

/// A piece of what a command wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// On its standard output, or on its terminal.
    Stdout(Vec<u8>),
    /// On its standard error.
    Stderr(Vec<u8>),
}

impl ExecOutput {
    /// The bytes, on whichever output.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Stdout(bytes) | Self::Stderr(bytes) => bytes,
        }
    }
}

/// A command that runs in a guest. Dropped, it ends the command: SIGHUP to its process group, after
/// two seconds SIGKILL to everything that it has started.
#[derive(Debug)]
pub struct ExecSession {
    port: ExecPort,
    id: SessionId,
    pid: Option<GuestPid>,
    /// Its input, if the request asks for one; to be taken.
    pub stdin: Option<ExecStdin>,
    /// Its outputs; to be taken.
    pub output: Option<ExecReceiver>,
}

impl ExecSession {
    pub(super) fn new(port: ExecPort, id: SessionId, stdin: bool) -> Self {
        let handle = |port: &ExecPort| port.clone();
        Self {
            pid: None,
            stdin: stdin.then(|| ExecStdin {
                port: handle(&port),
                id,
            }),
            output: Some(ExecReceiver {
                port: handle(&port),
                id,
            }),
            port,
            id,
        }
    }

    pub(super) async fn opened(&mut self) -> Result<(), ExecError> {
        let opened = poll_fn(|cx| self.port.with(|mux| mux.poll_opened(self.id, cx)));
        self.pid = opened.await?;
        Ok(())
    }

    /// The command's process in the guest; `None` where there was no such program.
    pub fn pid(&self) -> Option<GuestPid> {
        self.pid
    }

    /// The client's terminal has another size. Without a terminal, or when the command has ended,
    /// nothing happens.
    pub fn resize(&self, size: TerminalSize) {
        self.port.with(|mux| mux.resize(self.id, size));
    }

    /// Sends the command's process group a signal, by its Linux number. When the command has ended,
    /// nothing happens.
    pub fn signal(&self, signal: i32) {
        self.port.with(|mux| mux.signal(self.id, signal));
    }

    /// Resolves once the command has ended, its output has been taken and nothing that it started is
    /// left in the guest. A command that cannot write waits, so read or drop [`Self::output`] first
    /// or meanwhile. Exit code 127: no such program; 126: it cannot be executed; standard error says
    /// why.
    pub async fn wait(&self) -> Result<Exit, ExecError> {
        poll_fn(|cx| self.port.with(|mux| mux.poll_end(self.id, cx))).await
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        self.port.with(|mux| mux.close(self.id));
    }
}

/// The outputs of a command. A slow reader slows the command down and loses nothing; once this is
/// dropped, output is thrown away.
#[derive(Debug)]
pub struct ExecReceiver {
    port: ExecPort,
    id: SessionId,
}

impl ExecReceiver {
    /// The next piece, in the order in which each output was written; `None` when there is no more,
    /// and then [`ExecSession::wait`] knows why. Given up, it has taken nothing.
    pub async fn recv(&mut self) -> Option<ExecOutput> {
        poll_fn(|cx| self.port.with(|mux| mux.poll_output(self.id, cx))).await
    }
}

impl Drop for ExecReceiver {
    fn drop(&mut self) {
        self.port.with(|mux| mux.drop_output(self.id));
    }
}

/// The input of a command. A write waits until the command reads on, and fails with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when it reads no more. `shutdown`, or the drop, ends the
/// input behind what was written; on a terminal that is the end-of-file character.
#[derive(Debug)]
pub struct ExecStdin {
    port: ExecPort,
    id: SessionId,
}

impl AsyncWrite for ExecStdin {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.port.with(|mux| mux.poll_stdin(self.id, bytes, cx))
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.port.with(|mux| mux.end_stdin(self.id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for ExecStdin {
    fn drop(&mut self) {
        self.port.with(|mux| mux.end_stdin(self.id));
    }
}
