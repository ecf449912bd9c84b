//! A program on a terminal, for tests: what it shows is looked at as a terminal would show it.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::program::{around, with_signals};

/// Starts a program on a terminal of its own, which controls it as a shell's does, and with the
/// signals that a shell leaves it.
pub fn on_terminal(
    command: Command,
    size: Option<(u16, u16)>,
    kind: &str,
) -> (Child, OpenptyResult) {
    let size = size.map(|(rows, columns)| Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    let pty = openpty(&size, None).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let inner = with_signals(command);
    let mut wrapped = Command::new("setsid");
    wrapped.args(["--ctty", "--wait"]);
    let mut wrapped = around(wrapped, &inner);
    wrapped.env("TERM", kind);
    let child = wrapped.stdin(end()).stdout(end()).stderr(end()).spawn();
    (child.unwrap(), pty)
}

/// A pseudo-terminal with a program on it.
pub struct Terminal {
    /// The program.
    pub child: Child,
    master: File,
    slave: OwnedFd,
    emulator: vt100::Parser,
}

impl Terminal {
    /// The program on a terminal of its own, which controls it.
    pub fn open(command: Command, rows: u16, columns: u16) -> Self {
        let (child, pty) = on_terminal(command, Some((rows, columns)), "xterm-256color");
        let master = File::from(pty.master);
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        Self {
            child,
            master,
            slave: pty.slave,
            emulator: vt100::Parser::new(rows, columns, 0),
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = self.master.read(&mut buffer) {
            self.emulator.process(&buffer[..n]);
        }
    }

    /// What is on the screen now.
    pub fn screen(&mut self) -> String {
        self.read();
        self.emulator.screen().contents()
    }

    /// Waits until what is on the screen satisfies `fact`; returns it.
    pub fn shows(&mut self, what: &str, fact: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if fact(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "{what} is not shown:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Gives it another size, of which its program is told.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        // What was drawn for the old size is not mistaken for the new.
        self.read();
        self.emulator.screen_mut().set_size(rows, columns);
        let stty = Command::new("stty")
            .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
            .stdin(Stdio::from(self.slave.try_clone().unwrap()))
            .status();
        assert!(stty.unwrap().success());
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the program's end; its exit code.
    pub fn ends(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if let Some(status) = self.child.try_wait().unwrap() {
                self.read();
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The terminal reads lines and shows what is typed, has its cursor and its first screen: as a
    /// shell leaves it to a program, and wants it back.
    pub fn is_as_before(&mut self) -> bool {
        self.read();
        let flags = tcgetattr(&self.slave).unwrap().local_flags;
        let screen = self.emulator.screen();
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
            && !screen.alternate_screen()
            && !screen.hide_cursor()
    }

    /// A program has the whole screen.
    pub fn is_taken(&mut self) -> bool {
        self.read();
        self.emulator.screen().alternate_screen()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}
