//! A process under a tracer that stops it at each of its system calls.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Child, Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A stop of the traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is about to make this system call.
    Before(u64),
    /// It has made the one that was told before.
    After,
}

/// A program that is stopped before and behind each system call of its first thread, from its
/// first instruction on. Belongs to the thread that started it; killed when it is dropped.
#[derive(Debug)]
pub struct Traced {
    child: Child,
    pid: Pid,
    inside: bool,
}

impl Traced {
    /// Starts it. A shell is caught first and becomes the program, since nobody can be traced from
    /// the first instruction on without code between fork and exec.
    pub fn start(command: &Command) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read go; exec \"$@\"", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            shell.current_dir(directory);
        }
        let mut child = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEEXEC
            | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).unwrap();
        ptrace::interrupt(pid).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        drop(stdin);
        let mut traced = Self {
            child,
            pid,
            inside: false,
        };
        loop {
            match traced.wait() {
                WaitStatus::PtraceEvent(_, _, event)
                    if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 =>
                {
                    break;
                }
                WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None).unwrap(),
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).unwrap(),
                other => panic!("the shell: {other:?}"),
            }
        }
        // The end of exec itself.
        traced.inside = true;
        traced
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.pid, Some(WaitPidFlag::__WALL)).unwrap()
    }

    /// Goes on to the next stop; `None`: it has ended, with this exit code.
    pub fn next_stop(&mut self) -> Result<Stop, i32> {
        let mut signal: Option<Signal> = None;
        loop {
            ptrace::syscall(self.pid, signal.take()).unwrap();
            match self.wait() {
                WaitStatus::PtraceSyscall(_) => {
                    self.inside = !self.inside;
                    return Ok(if self.inside {
                        Stop::Before(ptrace::getregs(self.pid).unwrap().orig_rax)
                    } else {
                        Stop::After
                    });
                }
                WaitStatus::Stopped(_, other) => signal = Some(other),
                WaitStatus::PtraceEvent(..) => {}
                WaitStatus::Exited(_, code) => return Err(code),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Goes on until it is about to make this system call.
    pub fn until(&mut self, call: i64) {
        loop {
            match self.next_stop() {
                Ok(stop) if stop == Stop::Before(call as u64) => return,
                Ok(_) => {}
                Err(code) => panic!("it ended with {code} before system call {call}"),
            }
        }
    }

    /// Goes on to its end; its exit code.
    pub fn finish(mut self) -> i32 {
        loop {
            if let Err(code) = self.next_stop() {
                return code;
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended, and have been waited for, already.
        if self.child.kill().is_ok() {
            while matches!(
                waitpid(self.pid, Some(WaitPidFlag::__WALL)),
                Ok(status) if !matches!(status, WaitStatus::Signaled(..) | WaitStatus::Exited(..))
            ) {}
        }
    }
}
