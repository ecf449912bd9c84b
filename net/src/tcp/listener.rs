//! Published ports: listeners on the host.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::config::PublishedPort;
use crate::error::NetError;
use crate::gateway::{Env, Token};

/// How long to leave a listener alone when the host has no descriptor or memory for a connection.
const RESOURCE_PAUSE: Duration = Duration::from_millis(100);

/// The listeners of a guest. They are watched only while a connection could be served; until then
/// clients wait in the kernel's backlog.
pub(crate) struct Listeners {
    ports: Vec<PublishedPort>,
    watched: bool,
    resume_at: Option<Duration>,
}

impl Listeners {
    pub(crate) fn new(ports: Vec<PublishedPort>, env: &Env) -> Result<Self, NetError> {
        for (index, port) in ports.iter().enumerate() {
            port.listener
                .set_nonblocking(true)
                .map_err(NetError::io("make a published port non-blocking"))?;
            let token = Token::Listener(index as u64);
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token.encode());
            env.shared
                .epoll
                .add(&port.listener, event)
                .map_err(NetError::errno("watch a published port"))?;
        }
        Ok(Self {
            ports,
            watched: true,
            resume_at: None,
        })
    }

    pub(crate) fn guest_port(&self, index: u64) -> Option<u16> {
        Some(self.listener(index)?.guest_port)
    }

    fn listener(&self, index: u64) -> Option<&PublishedPort> {
        self.ports.get(usize::try_from(index).ok()?)
    }

    /// The next client, if there is one.
    pub(crate) fn accept(&mut self, index: u64, env: &Env, now: Duration) -> Option<TcpStream> {
        loop {
            match self.listener(index)?.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    // The client has given up.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        if env.stats().refused.host_resources.count() {
                            tracing::warn!(%error, "failed to accept on a published port");
                        }
                        self.resume_at = Some(now + RESOURCE_PAUSE);
                        return None;
                    }
                },
            }
        }
    }

    /// Watches the listeners or leaves them alone.
    pub(crate) fn watch(&mut self, env: &Env, able: bool, now: Duration) {
        if self.resume_at.is_some_and(|at| at <= now) {
            self.resume_at = None;
        }
        let wanted = able && self.resume_at.is_none();
        if wanted == self.watched {
            return;
        }
        let interest = if wanted {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::empty()
        };
        for (index, port) in self.ports.iter().enumerate() {
            let mut event = EpollEvent::new(interest, Token::Listener(index as u64).encode());
            if let Err(errno) = env.shared.epoll.modify(&port.listener, &mut event) {
                tracing::error!(%errno, port = port.guest_port, "failed to watch a published port");
            }
        }
        self.watched = wanted;
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.resume_at
    }
}
