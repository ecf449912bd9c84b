//! What a developer at a terminal sees and presses.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use iii_integration::PATIENCE;
use iii_integration::terminal::on_terminal;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::Project;

struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    screen: String,
}

impl Terminal {
    fn open(project: &Project) -> Self {
        let mut dev = project.command(&["--no-color"]);
        dev.env("III_HOME", project.home.path());
        let (child, pty) = on_terminal(dev, None, "xterm");
        let master = File::from(pty.master);
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        Self {
            child,
            master,
            slave: pty.slave,
            screen: String::new(),
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = self.master.read(&mut buffer) {
            self.screen += &String::from_utf8_lossy(&buffer[..n]);
        }
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Waits for text behind position `from`; the position behind it.
    fn shows(&mut self, from: usize, text: &str) -> usize {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.screen[from..].find(text) {
                return from + at + text.len();
            }
            assert!(Instant::now() < end, "no {text:?}:\n{}", self.screen);
            self.read();
        }
    }

    fn press(&mut self, key: u8) {
        self.master.write_all(&[key]).unwrap();
    }

    fn ends(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.read();
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.screen);
        }
    }

    fn reads_lines(&self) -> bool {
        let flags = tcgetattr(&self.slave).unwrap().local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
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

#[test]
fn keys_restart_clear_and_quit_and_the_terminal_is_put_back() {
    let script = "import time\nprint('up')\ntime.sleep(1000)\n";
    let project = Project::new("keys", &[("main.py", script)]);
    let mut terminal = Terminal::open(&project);
    let at = terminal.shows(0, "Python (main.py): `python3 main.py`; to change it");
    let at = terminal.shows(at, "keys: r restart, c clear, q quit");
    let at = terminal.shows(at, "| up");
    assert!(!terminal.reads_lines());
    terminal.press(b'r');
    let at = terminal.shows(at, "| up");
    terminal.press(b'c');
    let at = terminal.shows(at, "\x1b[2J");
    project.save("main.py", &script.replace("up", "changed"));
    let at = terminal.shows(at, "saved main.py: restarting");
    terminal.shows(at, "| changed");
    terminal.press(b'q');
    assert_eq!(terminal.ends(), Some(0), "{}", terminal.screen);
    assert!(terminal.reads_lines());
}

#[test]
fn ctrl_c_on_a_terminal_ends_it_and_puts_the_terminal_back() {
    let project = Project::new(
        "ctrlc",
        &[("main.py", "import time\nprint('up')\ntime.sleep(1000)\n")],
    );
    let mut terminal = Terminal::open(&project);
    terminal.shows(0, "| up");
    terminal.press(3);
    assert_eq!(terminal.ends(), Some(0), "{}", terminal.screen);
    assert!(terminal.reads_lines());
}
