//! The workload's processes: made, heard of, reaped.

use iii_proto::ids::GuestPid;
use iii_proto::restart::Exit;
use nix::sys::epoll::EpollFlags;
use nix::sys::signal::Signal;

use super::probes::RunningProbe;
use super::{CONTROL_HIGH_WATER, EventLoop, LoopError, Token};
use crate::clock;
use crate::supervision::Event;
use crate::sys;
use crate::text::cut;

impl EventLoop {
    /// One start per turn, so that a policy without any delay cannot starve the ports.
    pub(super) fn may_start(&self) -> bool {
        self.core.wants_start()
            && !self.spawned_this_turn
            && self.control.out.bytes() < CONTROL_HIGH_WATER
    }

    pub(super) fn start(&mut self) -> Result<(), LoopError> {
        self.spawned_this_turn = true;
        self.start_failure = None;
        if let Err(errno) = self.confinement.prepare() {
            let cause = format!("failed to make a cgroup for the workload: {errno}");
            return self.feed(Event::SpawnFailed { cause });
        }
        match self.launcher.start(&self.confinement) {
            Ok((child, pipes)) => {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                self.watch(&pipes.stdout, Token::Stdout, flags)?;
                self.watch(&pipes.stderr, Token::Stderr, flags)?;
                self.watch(&child.report, Token::Report, flags)?;
                self.output.open(child.pid, pipes.stdout, pipes.stderr);
                self.report = Some(child.report);
                self.feed(Event::Spawned { pid: child.pid })
            }
            Err(error) => self.feed(Event::SpawnFailed {
                cause: cut(error.to_string()),
            }),
        }
    }

    pub(super) fn may_start_next(&self) -> bool {
        self.core.wants_start() && self.control.out.bytes() < CONTROL_HIGH_WATER
    }

    pub(super) fn on_signals(&mut self) -> Result<(), LoopError> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGTERM as u32 || info.ssi_signo == Signal::SIGINT as u32 {
                self.feed(Event::Stop {
                    grace: self.settings.stop_grace,
                })?;
            }
        }
        while let Some((pid, status)) = sys::reap() {
            self.on_child_end(GuestPid(pid), status)?;
        }
        Ok(())
    }

    pub(super) fn on_child_end(&mut self, pid: GuestPid, status: i32) -> Result<(), LoopError> {
        if self.core.main_pid() == Some(pid) {
            // Whether it ever became the program is in the pipe by now.
            self.on_report()?;
            let exit = match self.start_failure.take() {
                Some(report) => Exit::Fault {
                    cause: cut(self.launcher.failure(report)),
                },
                None => exit_of(status),
            };
            self.report = None;
            self.explain_kill(pid, &exit)?;
            return self.feed(Event::MainExited { pid, exit });
        }
        if let Some(exec) = &mut self.exec
            && exec.on_child_end(pid, exit_of(status), clock::uptime())?
        {
            return Ok(());
        }
        if self.cache_drop == Some(pid) {
            self.cache_drop = None;
        }
        if let Some(RunningProbe::Exec { pid: probe }) = &self.probe
            && *probe == pid
        {
            self.probe = None;
            return match exit_of(status) {
                Exit::Code { code: 0 } => self.feed(Event::ProbePassed),
                exit => self.feed(Event::ProbeFailed {
                    detail: format!("the probe ended with {exit}"),
                }),
            };
        }
        Ok(())
    }

    pub(super) fn explain_kill(&mut self, pid: GuestPid, exit: &Exit) -> Result<(), LoopError> {
        let (Exit::Signal { signal: 9 }, Some(log)) = (exit, &mut self.kernel_log) else {
            return Ok(());
        };
        if !log.killed_for_memory(pid) {
            return Ok(());
        }
        self.warn(String::from(
            "the workload used up its memory and was killed by the guest's kernel; give it more \
             (resources.memory) or look for a leak",
        ))
    }

    pub(super) fn on_report(&mut self) -> Result<(), LoopError> {
        let Some(report) = &self.report else {
            return Ok(());
        };
        let mut bytes = [0; 5];
        match nix::unistd::read(report, &mut bytes) {
            Ok(0) => {
                self.report = None;
                // The report of a child that was killed before execve reads the same as success;
                // its end follows at once.
                self.feed(Event::Executed)
            }
            // Five bytes are written at once, and a pipe delivers so few whole.
            Ok(_) => {
                self.report = None;
                self.start_failure = Some(bytes);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal {
            signal: libc::WTERMSIG(status),
        }
    } else {
        Exit::Code {
            code: libc::WEXITSTATUS(status),
        }
    }
}
