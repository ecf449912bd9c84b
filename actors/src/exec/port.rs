//! Between the mux and the VM.

use std::sync::{Arc, Mutex, PoisonError};

use iii_proto::exec::SessionId;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use super::mux::{Mux, PortFault};
use super::{ExecError, ExecRequest, ExecSession};

/// Bytes of one read. Between two of them the other actors of the thread have their turn.
const READ_SIZE: usize = 64 * 1024;

/// The exec port of one boot of one guest. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ExecPort {
    mux: Arc<Mutex<Mux>>,
}

impl ExecPort {
    /// A port whose frames for the guest go into `to_guest`.
    pub(crate) fn new(to_guest: mpsc::UnboundedSender<Vec<u8>>) -> Self {
        Self {
            mux: Arc::new(Mutex::new(Mux::new(to_guest))),
        }
    }

    /// Does something with the mux, then wakes whom it concerns.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Mux) -> T) -> T {
        let (result, woken) = {
            let mut mux = self.mux.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut mux);
            (result, mux.take_woken())
        };
        for waker in woken {
            waker.wake();
        }
        result
    }

    /// Begins a session; resolves when the guest has it. Given up before, it is closed.
    pub(crate) async fn open(self, request: ExecRequest) -> Result<ExecSession, ExecError> {
        let stdin = request.stdin;
        let id: SessionId = self.with(|mux| mux.open(request.into_command()))?;
        let mut session = ExecSession::new(self, id, stdin);
        session.opened().await?;
        Ok(session)
    }

    fn on_bytes(&self, bytes: &[u8]) -> Result<(), PortFault> {
        self.with(|mux| mux.on_bytes(bytes))
    }

    fn lose(&self, cause: &str) {
        self.with(|mux| mux.lose(cause.to_owned()));
    }
}

/// Held by the actor that has the VM: with it, all sessions end.
#[derive(Debug)]
pub(crate) struct ExecOwner(pub(crate) ExecPort);

impl Drop for ExecOwner {
    fn drop(&mut self) {
        self.0.lose(VM_ENDED);
    }
}

const VM_ENDED: &str = "the VM in which it ran has ended";

/// Reads the port until it ends. Returns how the guest broke it, if that is why.
pub(crate) async fn read(mut port: OwnedReadHalf, exec: ExecPort) -> Option<String> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match port.read(&mut buffer).await {
            // A reset is the end of the VMM, as an end of file is.
            Ok(0) | Err(_) => {
                exec.lose(VM_ENDED);
                return None;
            }
            Ok(count) => {
                if let Err(fault) = exec.on_bytes(&buffer[..count]) {
                    return Some(fault.to_string());
                }
            }
        }
        tokio::task::yield_now().await;
    }
}
