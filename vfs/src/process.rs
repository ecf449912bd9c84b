//! The life of one `iii-vfs` process, from its inherited descriptors to the end of its last
//! connection.

use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use iii_proto::codec::{CodecError, MAX_SPEC, decode_spec, encode_frame};
use iii_proto::vfs::{VfsConfig, VfsEvent, VfsExport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::budget::{Budget, Limits};
use crate::device::Device;
use crate::events::{EventQueue, EventSink, Refusals, event_queue};
use crate::export::{Common, Export, ExportError};
use crate::hardening::{self, HardeningError};
use crate::sys::Inherited;
use crate::{landlock, seccomp};

/// How long to wait for a connection that should have been pending before we were started.
const CONNECTION_TIMEOUT: u16 = 10_000;

/// How long the last events may take to reach the supervisor.
const FAREWELL: Duration = Duration::from_secs(1);

/// Unsent bytes of events; beyond them events are dropped, as they are from a full queue.
const MAX_UNSENT: usize = 64 * 1024;

/// Exit status after a panic, as a panicking main thread has it.
const PANICKED: i32 = 101;

/// Why the server could not start, or ended before its VMM did.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A descriptor is not what the command line or the configuration says.
    #[error("failed to take the inherited descriptor of {what}: {source}")]
    Descriptor {
        /// What it should have been.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The configuration cannot be read.
    #[error("failed to read the configuration: {0}")]
    Config(io::Error),
    /// The configuration is not one, or of another version.
    #[error(
        "failed to decode the configuration: {0}; iii-vfs and iii-super must be of one version"
    )]
    Decode(#[from] CodecError),
    /// The process could not be hardened.
    #[error(transparent)]
    Hardening(#[from] HardeningError),
    /// An export cannot be served.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Nobody connected.
    #[error("failed to serve export {tag:?}: no connection of a VMM is pending")]
    NoConnection {
        /// The export's tag.
        tag: String,
    },
    /// vhost-user failed.
    #[error("failed to serve export {tag:?}: {message}")]
    Device {
        /// The export's tag.
        tag: String,
        /// The cause.
        message: String,
    },
    /// The events socket or its queue failed.
    #[error("failed to report events: {0}")]
    Events(io::Error),
    /// The supervisor closed its end of the events socket.
    #[error("failed to go on: the supervisor has hung up")]
    SupervisorGone,
}

/// Serves until all connections have ended. Takes over the process: its limits, its umask, its
/// identity, its panic hook.
pub fn run(config: RawFd, events: RawFd) -> Result<(), ServeError> {
    let mut inherited = Inherited::new();
    let mut take = |fd, what: String| {
        inherited
            .take(fd)
            .map_err(|source| ServeError::Descriptor { what, source })
    };
    let events = UnixStream::from(take(events, "the events socket".to_owned())?);
    let farewell = events.try_clone().map_err(ServeError::Events)?;
    die_of_any_panic(events.try_clone().map_err(ServeError::Events)?);
    let served = take(config, "the configuration".to_owned()).and_then(|config| {
        let config = read_config(config.into())?;
        let listeners = config
            .exports
            .iter()
            .map(|export| {
                let what = format!("export {:?}", export.tag);
                Ok(UnixListener::from(take(export.listener_fd, what)?))
            })
            .collect::<Result<Vec<_>, ServeError>>()?;
        serve(config, listeners, events)
    });
    if let Err(error) = &served {
        tracing::error!(%error, "iii-vfs ends");
        say_farewell(farewell, error.to_string());
    }
    served
}

fn read_config(mut file: std::fs::File) -> Result<VfsConfig, ServeError> {
    // A memfd shares its position with the parent, which has just written it; a pipe has none.
    match file.rewind() {
        Err(error) if error.raw_os_error() != Some(libc::ESPIPE) => {
            return Err(ServeError::Config(error));
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    file.take(MAX_SPEC as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(ServeError::Config)?;
    Ok(decode_spec(&bytes)?)
}

fn serve(
    config: VfsConfig,
    listeners: Vec<UnixListener>,
    events: UnixStream,
) -> Result<(), ServeError> {
    hardening::prepare_process()?;
    let descriptor_limit = hardening::raise_descriptor_limit()?;
    let server = hardening::take_identity(&config.exports)?;
    let file_handles = hardening::file_handles(&config.exports);
    let (sink, queue) = event_queue().map_err(ServeError::Events)?;
    let limits = Limits::from_descriptors(descriptor_limit, config.exports.len(), !file_handles);
    let common = Common {
        budget: Arc::new(Budget::new(limits, sink.clone())),
        refusals: Arc::new(Refusals::new(sink.clone())),
        server,
        file_handles,
    };
    let exports = config
        .exports
        .iter()
        .map(|spec| Export::open(spec, common.clone()))
        .collect::<Result<Vec<_>, _>>()?;

    // Before the first thread is made: it holds for this one and those that it makes.
    if file_handles {
        tracing::debug!("inodes are held as file handles: no Landlock");
    } else if let Err(error) = landlock::confine(&config.exports) {
        // A kernel without it serves as safely as the rules of the exports are.
        tracing::warn!(%error, "serving without Landlock");
    }
    let (ended, endings) = channel();
    for ((spec, export), listener) in config.exports.iter().zip(exports).zip(listeners) {
        start(spec, export, listener, &common, &sink, ended.clone())?;
    }
    drop(ended);
    if let Err(error) = seccomp::confine() {
        // A kernel without it serves as safely as the rules of the exports are.
        tracing::warn!(%error, "serving without a system call filter");
    }
    tracing::info!(
        worker = config.worker,
        exports = config.exports.len(),
        file_handles,
        ?limits,
        "serving"
    );
    sink.send(VfsEvent::Serving { descriptor_limit });
    supervise(&events, &queue, &endings)
}

/// How one connection ended.
type Ending = Result<(), ServeError>;

/// Accepts the pending connection of one export and serves it on threads of its own.
fn start(
    spec: &VfsExport,
    export: Export,
    listener: UnixListener,
    common: &Common,
    sink: &EventSink,
    ended: Sender<Ending>,
) -> Result<(), ServeError> {
    let tag = spec.tag.clone();
    let fault = |error: &dyn std::fmt::Display| ServeError::Device {
        tag: tag.clone(),
        message: error.to_string(),
    };
    let mut pending = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut pending, PollTimeout::from(CONNECTION_TIMEOUT)).map_err(|e| fault(&e))? == 0 {
        return Err(ServeError::NoConnection { tag });
    }
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Device::new(export, memory.clone(), Arc::clone(&common.refusals));
    let name = format!("vhost-{tag}");
    let mut daemon =
        VhostUserDaemon::new(name, Arc::new(device), memory).map_err(|error| fault(&error))?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(|error| fault(&error))?;
    let sink = sink.clone();
    let fault_tag = tag.clone();
    std::thread::Builder::new()
        .name(format!("wait-{tag}"))
        .spawn(move || {
            let ending = match daemon.wait() {
                Ok(()) => Ok(()),
                Err(DaemonError::HandleRequest(
                    VhostError::Disconnected
                    | VhostError::PartialMessage
                    | VhostError::SocketBroken(_)
                    | VhostError::SocketError(_),
                )) => Ok(()),
                Err(error) => Err(ServeError::Device {
                    tag: fault_tag,
                    message: error.to_string(),
                }),
            };
            for worker in daemon.get_epoll_handlers() {
                worker.send_exit_event();
            }
            if ended.send(ending).is_err() {
                tracing::debug!("the process ends already");
            }
            // Before the wake-up: no sender left is how the main thread knows the last ending.
            drop(ended);
            sink.wake();
        })
        .map_err(|error| fault(&error))?;
    Ok(())
}

/// Writes events out until all connections have ended or the supervisor is gone.
fn supervise(
    events: &UnixStream,
    queue: &EventQueue,
    endings: &Receiver<Ending>,
) -> Result<(), ServeError> {
    events.set_nonblocking(true).map_err(ServeError::Events)?;
    let mut unsent: Vec<u8> = Vec::new();
    loop {
        for event in queue.take() {
            let frame = encode_frame(&event)?;
            if unsent.len() + frame.len() <= MAX_UNSENT {
                unsent.extend(frame);
            }
        }
        send(events, &mut unsent)?;
        loop {
            match endings.try_recv() {
                Ok(ending) => ending?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return finish(events, &unsent),
            }
        }
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !unsent.is_empty());
        let mut ready = [
            PollFd::new(events.as_fd(), interest),
            PollFd::new(queue.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(ServeError::Events(errno.into())),
        }
        let hung_up = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        if ready[0]
            .revents()
            .is_some_and(|got| got.intersects(hung_up))
        {
            gone(events)?;
        }
    }
}

/// The supervisor says nothing on this socket, so readable means the end, but for a stray byte.
fn gone(mut events: &UnixStream) -> Result<(), ServeError> {
    match events.read(&mut [0; 64]) {
        Ok(0) => Err(ServeError::SupervisorGone),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(_) => Err(ServeError::SupervisorGone),
    }
}

fn send(mut events: &UnixStream, unsent: &mut Vec<u8>) -> Result<(), ServeError> {
    while !unsent.is_empty() {
        match events.write(unsent) {
            Ok(written) => {
                unsent.drain(..written);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(ServeError::SupervisorGone),
        }
    }
    Ok(())
}

/// Sends what is left; a supervisor that does not take it in time has no use for it.
fn finish(mut events: &UnixStream, unsent: &[u8]) -> Result<(), ServeError> {
    events.set_nonblocking(false).map_err(ServeError::Events)?;
    events
        .set_write_timeout(Some(FAREWELL))
        .map_err(ServeError::Events)?;
    if let Err(error) = events.write_all(unsent) {
        tracing::debug!(%error, "last events not delivered");
    }
    Ok(())
}

fn say_farewell(mut events: UnixStream, message: String) {
    let told = encode_frame(&VfsEvent::Fatal { message })
        .map_err(io::Error::other)
        .and_then(|frame| {
            events.set_nonblocking(false)?;
            events.set_write_timeout(Some(FAREWELL))?;
            events.write_all(&frame)?;
            events.shutdown(Shutdown::Write)
        });
    if let Err(error) = told {
        // The exit status says that it was fatal, if not why.
        tracing::debug!(%error, "cause not delivered");
    }
}

/// A worker thread that panicked would leave the guest waiting for ever on a queue that nobody
/// serves; the supervisor can repair only a process that has ended.
fn die_of_any_panic(events: UnixStream) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        if let Ok(events) = events.try_clone() {
            say_farewell(events, format!("failed to go on: {info}"));
        }
        std::process::exit(PANICKED);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const CHILD: &str = "III_VFS_TEST_PANIC";

    /// Runs itself again as the process whose thread panics; its standard input is the socket.
    #[test]
    fn a_panic_of_any_thread_ends_the_process_and_is_told() {
        if std::env::var_os(CHILD).is_some() {
            let events = io::stdin().as_fd().try_clone_to_owned().unwrap();
            die_of_any_panic(events.into());
            let _ended = std::thread::spawn(|| panic!("a worker")).join();
            panic!("not reached: the join above does not return");
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let name = "process::tests::a_panic_of_any_thread_ends_the_process_and_is_told";
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(PANICKED));
        let mut bytes = Vec::new();
        ours.read_to_end(&mut bytes).unwrap();
        let mut frames = iii_proto::codec::FrameReader::new();
        frames.feed(&bytes);
        let Some(VfsEvent::Fatal { message }) = frames.next().unwrap() else {
            panic!("no cause was told");
        };
        assert!(message.contains("a worker"), "{message}");
        assert!(frames.next::<VfsEvent>().unwrap().is_none());
    }
}
