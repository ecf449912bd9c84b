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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{ExecOutput, TerminalSize};
    use iii_proto::codec::{FrameReader, Wire, encode_frame};
    use iii_proto::exec::{GuestFrame, HostFrame};
    use iii_proto::ids::GuestPid;
    use iii_proto::log::Stream;
    use iii_proto::restart::Exit;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    /// The guest's end of a port.
    struct Guest {
        stream: UnixStream,
        reader: FrameReader,
    }

    impl Guest {
        async fn hear(&mut self) -> HostFrame {
            let mut buffer = [0; 4096];
            loop {
                if let Some(frame) = self.reader.next().unwrap() {
                    return frame;
                }
                let count = self.stream.read(&mut buffer).await.unwrap();
                assert_ne!(count, 0, "the host has hung up");
                self.reader.feed(&buffer[..count]);
            }
        }

        async fn say(&mut self, frame: &impl Wire) {
            let frame = encode_frame(frame).unwrap();
            self.stream.write_all(&frame).await.unwrap();
        }
    }

    /// A port with its tasks, as VmActor has it, and its guest.
    fn with_port<F: Future<Output = ()>>(
        test: impl FnOnce(ExecOwner, Guest, tokio::task::JoinHandle<Option<String>>) -> F,
    ) {
        actix_rt::System::new().block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (from_guest, mut into_guest) = ours.into_split();
            let (frames, mut queued) = mpsc::unbounded_channel::<Vec<u8>>();
            let port = ExecPort::new(frames);
            actix_rt::spawn(async move {
                while let Some(frame) = queued.recv().await {
                    into_guest.write_all(&frame).await.unwrap();
                }
            });
            let reading = actix_rt::spawn(read(from_guest, port.clone()));
            let guest = Guest {
                stream: theirs,
                reader: FrameReader::new(),
            };
            test(ExecOwner(port), guest, reading).await;
        });
    }

    async fn open(owner: &ExecOwner, guest: &mut Guest) -> (ExecSession, SessionId) {
        let request = ExecRequest::new(["cat"]).stdin();
        let opening = actix_rt::spawn(owner.0.clone().open(request));
        let HostFrame::Open { session, command } = guest.hear().await else {
            panic!("no Open");
        };
        assert_eq!(command.command, ["cat"]);
        let pid = Some(GuestPid(9));
        guest.say(&GuestFrame::Opened { session, pid }).await;
        let opened = opening.await.unwrap().unwrap();
        assert_eq!(opened.pid(), pid);
        (opened, session)
    }

    #[test]
    fn a_session_is_what_its_client_and_its_guest_make_of_it() {
        with_port(|owner, mut guest, _reading| async move {
            let (mut client, session) = open(&owner, &mut guest).await;
            let mut stdin = client.stdin.take().unwrap();
            stdin.write_all(b"in").await.unwrap();
            let bytes = b"in".to_vec();
            assert_eq!(guest.hear().await, HostFrame::Stdin { session, bytes });
            stdin.shutdown().await.unwrap();
            assert_eq!(guest.hear().await, HostFrame::StdinEnd { session });
            let size = TerminalSize {
                rows: 2,
                columns: 3,
            };
            client.resize(size);
            assert_eq!(guest.hear().await, HostFrame::Resize { session, size });
            client.signal(15);
            let signal = 15;
            assert_eq!(guest.hear().await, HostFrame::Signal { session, signal });
            let mut output = client.output.take().unwrap();
            guest
                .say(&GuestFrame::Output {
                    session,
                    stream: Stream::Stderr,
                    bytes: b"out".to_vec(),
                })
                .await;
            let piece = output.recv().await.unwrap();
            assert_eq!(piece, ExecOutput::Stderr(b"out".to_vec()));
            let exit = Exit::Code { code: 3 };
            guest
                .say(&GuestFrame::Exited {
                    session,
                    exit: exit.clone(),
                })
                .await;
            assert_eq!(output.recv().await, None);
            assert_eq!(client.wait().await, Ok(exit.clone()));
            assert_eq!(client.wait().await, Ok(exit), "as often as one asks");
            drop(client);
            // Nothing was said about it any more: the next word is about the next one.
            let (next, id) = open(&owner, &mut guest).await;
            drop(next);
            let session = id;
            assert_eq!(guest.hear().await, HostFrame::Close { session });
        });
    }

    #[test]
    fn a_client_that_gives_up_before_the_answer_closes() {
        with_port(|owner, mut guest, _reading| async move {
            let opening = actix_rt::spawn(owner.0.clone().open(ExecRequest::new(["cat"])));
            let HostFrame::Open { session, .. } = guest.hear().await else {
                panic!("no Open");
            };
            opening.abort();
            assert_eq!(guest.hear().await, HostFrame::Close { session });
        });
    }

    #[test]
    fn a_guest_that_breaks_its_port_is_hung_up_on() {
        with_port(|owner, mut guest, reading| async move {
            let (client, _) = open(&owner, &mut guest).await;
            let session = SessionId(77);
            guest.say(&GuestFrame::StdinClosed { session }).await;
            let cause = reading.await.unwrap().expect("it says how");
            assert!(cause.contains("session 77"), "{cause}");
            assert!(matches!(client.wait().await, Err(ExecError::Lost(_))));
            let mut rest = Vec::new();
            guest.stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty());
            let again = owner.0.clone().open(ExecRequest::new(["cat"])).await;
            assert!(matches!(again, Err(ExecError::Lost(_))), "{again:?}");
        });
    }

    #[test]
    fn sessions_end_with_their_owner_and_with_their_vm() {
        with_port(|owner, mut guest, _reading| async move {
            let (client, _) = open(&owner, &mut guest).await;
            drop(owner);
            assert!(matches!(client.wait().await, Err(ExecError::Lost(_))));
        });
        with_port(|owner, mut guest, reading| async move {
            let (mut client, _) = open(&owner, &mut guest).await;
            drop(guest);
            assert_eq!(client.output.take().unwrap().recv().await, None);
            assert!(matches!(client.wait().await, Err(ExecError::Lost(_))));
            assert_eq!(reading.await.unwrap(), None, "that is no fault");
        });
    }
}
