//! The way to the thread that starts every child.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::error::SpawnError;
use super::handle::{ChildExit, ChildHandle};
use super::request::Prepared;
use super::spec::ChildSpec;
use super::worker::Worker;
use crate::helpers::{self, HelperPlaces};

/// Name of the helper below which every child runs.
pub const SHIM: &str = "iii-shim";

/// Called with the handle once the program was executed, or with the reason why not.
pub type OnStart = Box<dyn FnOnce(Result<ChildHandle, SpawnError>) + Send>;
/// Called once nothing of the child is left. Never called for a child that did not start.
pub type OnExit = Box<dyn FnOnce(ChildExit) + Send>;

/// The way to the thread that starts every child.
///
/// There is one per process, shared by all supervisors in it ([`Spawner::global`]). Its thread
/// never ends: the end of the thread would be the death of all children.
///
/// Callbacks run on that thread: they must not block and should do no more than send a message. A
/// panic in one is caught and logged.
#[derive(Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner")
            .field("thread", &self.inner.thread)
            .finish()
    }
}

struct Inner {
    commands: Sender<Box<Start>>,
    wake: Arc<EventFd>,
    thread: ThreadId,
}

/// A child to be started, with whom to tell.
pub(super) struct Start {
    pub(super) label: String,
    pub(super) program: PathBuf,
    pub(super) shim: PathBuf,
    pub(super) request: Prepared,
    pub(super) on_start: OnStart,
    pub(super) on_exit: OnExit,
}

static GLOBAL: Mutex<Option<Spawner>> = Mutex::new(None);

impl Spawner {
    /// The process's spawner; its thread is started by the first call.
    pub fn global() -> Result<Self, SpawnError> {
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spawner) = &*global {
            return Ok(spawner.clone());
        }
        let spawner = Self::start().map_err(SpawnError::Thread)?;
        Ok(global.insert(spawner).clone())
    }

    fn start() -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (commands, received) = channel();
        let worker = Worker::new(received, Arc::clone(&wake))?;
        let thread = thread::Builder::new()
            .name("iii-spawner".into())
            .spawn(move || worker.run())?
            .thread()
            .id();
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                wake,
                thread,
            }),
        })
    }

    /// Starts a child and waits until its program was executed, which takes a few milliseconds.
    /// `on_exit` is called once nothing of it is left, also if that is before this call returns.
    pub fn spawn(
        &self,
        spec: ChildSpec,
        places: &HelperPlaces,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<ChildHandle, SpawnError> {
        if thread::current().id() == self.inner.thread {
            return Err(SpawnError::WouldDeadlock { label: spec.label });
        }
        let (started, outcome) = channel();
        let on_start = move |result| {
            // The receiver waits below; it can only be gone with its thread.
            drop(started.send(result));
        };
        self.spawn_with(spec, places, on_start, on_exit)?;
        match outcome.recv() {
            Ok(result) => result,
            Err(_) => Err(SpawnError::Thread(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Starts a child without waiting. `on_start` is called exactly once unless this returns an
    /// error, and `on_exit` after it, if the child started.
    pub fn spawn_with(
        &self,
        spec: ChildSpec,
        places: &HelperPlaces,
        on_start: impl FnOnce(Result<ChildHandle, SpawnError>) + Send + 'static,
        on_exit: impl FnOnce(ChildExit) + Send + 'static,
    ) -> Result<(), SpawnError> {
        let start = Start {
            label: spec.label.clone(),
            program: spec.program.clone(),
            shim: helpers::find(SHIM, places)?,
            request: Prepared::new(spec)?,
            on_start: Box::new(on_start),
            on_exit: Box::new(on_exit),
        };
        let gone = |_| SpawnError::Thread(io::ErrorKind::BrokenPipe.into());
        self.inner.commands.send(Box::new(start)).map_err(gone)?;
        match self.inner.wake.write(1) {
            // EAGAIN: the counter is full, so that the thread is being woken anyway.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(SpawnError::Thread(errno.into())),
        }
    }
}
