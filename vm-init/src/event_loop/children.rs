//! The workload's processes: made, heard of, reaped.

use iii_proto::ids::GuestPid;
use iii_proto::restart::Exit;
use nix::sys::epoll::EpollFlags;
use nix::sys::signal::Signal;

use super::probes::RunningProbe;
use super::{CONTROL_HIGH_WATER, EventLoop, LoopError, Token};
use crate::clock;
use crate::kernel_log::Victim;
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
        if let Err(errno) = self.confinement.prepare() {
            let cause = format!("failed to make a cgroup for the workload: {errno}");
            return self.feed(Event::SpawnFailed { cause });
        }
        match self.launcher.start(&self.confinement) {
            Ok((pid, pipes)) => {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                self.watch(&pipes.stdout, Token::Stdout, flags)?;
                self.watch(&pipes.stderr, Token::Stderr, flags)?;
                self.output.open(pid, pipes.stdout, pipes.stderr);
                self.feed(Event::Spawned { pid })?;
                // A child that was killed before its execve looks the same; its end follows.
                self.feed(Event::Executed)
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
            let exit = exit_of(status);
            self.explain_kill(pid, &exit)?;
            self.launcher.forget_ahead();
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
        if self.announcer.on_child_end(pid) {
            return self.announce();
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
        log.read();
        if !log.take(pid) {
            return Ok(());
        }
        self.warn(String::from(
            "the workload used up its memory and was killed by the guest's kernel; give it more \
             (resources.memory) or look for a leak",
        ))
    }

    /// The kernel has said something. Whom it kills beside the main process, only that one would
    /// learn of; the main process is named with its exit.
    pub(super) fn on_kernel_log(&mut self) -> Result<(), LoopError> {
        let Some(log) = &mut self.kernel_log else {
            return Ok(());
        };
        // Until nothing is left, since it is told of once; a flood waits for the next turn.
        self.kernel_log_unread = !log.read();
        for Victim { pid, name } in log.take_others(self.core.main_pid()) {
            self.warn(format!(
                "{name} (process {pid} in the guest) was killed by the guest's kernel for want of \
                 memory; give the worker more (resources.memory) or look for a leak"
            ))?;
        }
        Ok(())
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
