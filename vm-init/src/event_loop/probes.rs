//! The running probe.

use iii_proto::guest::Probe;
use iii_proto::ids::GuestPid;
use nix::sys::epoll::EpollFlags;

use super::{EventLoop, LoopError, Token};
use crate::probe::{Progress, SocketProbe};
use crate::supervision::Event;
use crate::sys;
use crate::text::cut;

pub(super) enum RunningProbe {
    Exec { pid: GuestPid },
    Socket(SocketProbe),
}

impl EventLoop {
    pub(super) fn start_probe(&mut self) -> Result<(), LoopError> {
        let Some(check) = &self.settings.health else {
            return Ok(());
        };
        let begun = match &check.probe {
            Probe::Exec(_) => self
                .launcher
                .start_probe(&self.confinement)
                .map(|pid| RunningProbe::Exec { pid })
                .map_err(|e| e.to_string()),
            Probe::Tcp(port) => SocketProbe::tcp(*port)
                .map(RunningProbe::Socket)
                .map_err(|e| format!("port {port}: {}", e.desc())),
            Probe::Http { port, path } => SocketProbe::http(*port, path)
                .map(RunningProbe::Socket)
                .map_err(|e| format!("port {port}: {}", e.desc())),
        };
        match begun {
            Ok(probe) => {
                if let RunningProbe::Socket(socket) = &probe {
                    self.watch_probe(socket)?;
                }
                self.probe = Some(probe);
                Ok(())
            }
            Err(detail) => self.feed(Event::ProbeFailed {
                detail: cut(detail),
            }),
        }
    }

    pub(super) fn watch_probe(&self, socket: &SocketProbe) -> Result<(), LoopError> {
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.watch(socket.fd(), Token::Probe, both)
    }

    pub(super) fn on_probe(&mut self) -> Result<(), LoopError> {
        let Some(RunningProbe::Socket(mut socket)) = self.probe.take() else {
            return Ok(());
        };
        match socket.advance() {
            Progress::Pending => self.probe = Some(RunningProbe::Socket(socket)),
            Progress::Reconnecting => {
                self.watch_probe(&socket)?;
                self.probe = Some(RunningProbe::Socket(socket));
            }
            Progress::Passed => self.feed(Event::ProbePassed)?,
            Progress::Failed(detail) => self.feed(Event::ProbeFailed {
                detail: cut(detail),
            })?,
        }
        Ok(())
    }

    pub(super) fn cancel_probe(&mut self) {
        if let Some(RunningProbe::Exec { pid }) = self.probe.take() {
            // It may have ended already; reaping it finds no probe any more.
            sys::kill(pid.0, true, 9).unwrap_or(());
        }
    }
}
