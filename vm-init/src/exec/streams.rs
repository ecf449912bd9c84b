//! A session's input and outputs, each under its window.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iii_proto::exec::MAX_CHUNK;
use iii_proto::exec::window::{ReceiveWindow, SendWindow, WindowError};
use iii_proto::log::Stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::sys::terminal;

/// Bytes that a terminal's two buffers can hold, with some to spare.
const TERMINAL_CAPACITY: usize = 1024 * 1024;

/// What came of an attempt to write input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Credit for the host.
    pub(super) credit: u32,
    /// The command reads no more.
    pub(super) closed: bool,
}

/// Input on its way to a command.
#[derive(Debug)]
pub(super) struct Input {
    fd: Option<OwnedFd>,
    terminal: bool,
    writable: bool,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are written already.
    offset: usize,
    /// No more comes.
    ended: bool,
    /// On a terminal: the line that was begun has no end yet.
    line_open: bool,
    window: ReceiveWindow,
}

impl Input {
    fn new(fd: Option<OwnedFd>, terminal: bool) -> Self {
        Self {
            fd,
            terminal,
            writable: true,
            queue: VecDeque::new(),
            offset: 0,
            ended: false,
            line_open: false,
            window: ReceiveWindow::default(),
        }
    }

    /// To the write end of a pipe.
    pub(super) fn pipe(fd: OwnedFd) -> Self {
        Self::new(Some(fd), false)
    }

    /// To a terminal's master.
    pub(super) fn terminal(fd: OwnedFd) -> Self {
        Self::new(Some(fd), true)
    }

    /// The command has none.
    pub(super) fn none() -> Self {
        Self::new(None, false)
    }

    /// What epoll watches for it.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Takes input. What comes after the command's own end of it is thrown away.
    pub(super) fn push(&mut self, bytes: Vec<u8>) -> Result<(), WindowError> {
        self.window.receive(bytes.len())?;
        if self.fd.is_some() && !self.ended {
            self.queue.push_back(bytes);
        }
        Ok(())
    }

    /// No more comes.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// epoll says that there is room, or that nobody reads.
    pub(super) fn on_ready(&mut self) {
        self.writable = true;
    }

    /// Something can be written now.
    pub(super) fn has_work(&self) -> bool {
        self.fd.is_some() && self.writable && (self.ended || !self.queue.is_empty())
    }

    /// Gives it up; true if it was open.
    pub(super) fn close(&mut self) -> bool {
        self.queue.clear();
        self.fd.take().is_some()
    }

    /// Nobody reads it any more, as the kernel says of a pipe without being written to.
    pub(super) fn on_error(&mut self) -> bool {
        !self.terminal && self.close()
    }

    /// Writes as far as there is room.
    pub(super) fn write(&mut self) -> Written {
        let mut written = Written::default();
        while let (Some(fd), Some(chunk)) = (&self.fd, self.queue.front()) {
            match nix::unistd::write(fd, &chunk[self.offset..]) {
                Ok(count) => {
                    self.offset += count;
                    if self.offset < chunk.len() {
                        continue;
                    }
                    self.line_open = chunk.last().is_some_and(|b| !b"\n\r".contains(b));
                    written.credit += self.window.consume(chunk.len()).unwrap_or(0);
                    self.queue.pop_front();
                    self.offset = 0;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.writable = false;
                    return written;
                }
                // EPIPE of a pipe, EIO of a terminal: nobody reads.
                Err(_) => {
                    written.closed = self.close();
                    return written;
                }
            }
        }
        if self.ended {
            self.finish();
        }
        written
    }

    /// All is written: what reads it shall see the end.
    fn finish(&mut self) {
        let Some(fd) = &self.fd else {
            return;
        };
        // A terminal's input has no end of its own: it is a character of the line discipline, which
        // means "hand over what there is" in the middle of a line and "end" at its beginning. A
        // program that reads bytes as they come would read it as one of them.
        if self.terminal
            && let Ok(Some(character)) = terminal::end_of_file(fd)
        {
            let twice = [character; 2];
            let count = if self.line_open { 2 } else { 1 };
            match nix::unistd::write(fd, &twice[..count]) {
                Err(Errno::EAGAIN) => {
                    self.writable = false;
                    return;
                }
                // One of two was written: the line is closed by it, the end is still to come.
                Ok(1) if self.line_open => {
                    self.line_open = false;
                    return self.finish();
                }
                Ok(_) | Err(_) => {}
            }
        }
        self.fd = None;
    }
}

/// One output of a command.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    stream: Stream,
    readable: bool,
    ended: bool,
    /// Nobody wants it. It is read all the same: a command that says something while it cleans up
    /// shall not die of a broken pipe before it is done.
    discarded: bool,
    /// While set, no process of the session writes any more, and so many bytes at most are its own.
    sealed: Option<usize>,
}

impl Output {
    /// From the read end of a pipe, or a terminal's master.
    pub(super) fn new(fd: OwnedFd, stream: Stream) -> Self {
        Self {
            fd,
            stream,
            readable: true,
            ended: false,
            discarded: false,
            sealed: None,
        }
    }

    /// Which one it is.
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// What epoll watches for it.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// epoll says that there is something, or nothing more.
    pub(super) fn on_ready(&mut self) {
        self.readable = true;
    }

    /// All of it was read.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Throw away what comes from now on.
    pub(super) fn discard(&mut self) {
        self.discarded = true;
    }

    /// What was read is to be thrown away.
    pub(super) fn discarded(&self) -> bool {
        self.discarded
    }

    /// Something can be read, and sent or thrown away, now.
    pub(super) fn has_work(&self, window: &SendWindow) -> bool {
        self.readable && !self.ended && self.room(window, MAX_CHUNK) > 0
    }

    fn room(&self, window: &SendWindow, wanted: usize) -> usize {
        if self.discarded {
            wanted
        } else {
            window.room(wanted)
        }
    }

    /// No process of the session is left. A process outside of it may hold its outputs too, and
    /// write for ever: what they can hold is all that the session itself can have left.
    pub(super) fn seal(&mut self) {
        let capacity = fcntl(&self.fd, FcntlArg::F_GETPIPE_SZ);
        let capacity = capacity.map_or(TERMINAL_CAPACITY, |c| usize::try_from(c).unwrap_or(0));
        self.sealed = Some(capacity);
        self.readable = true;
    }

    /// One read, of no more than the window takes. `None` when there is nothing, now or ever.
    pub(super) fn read(&mut self, window: &mut SendWindow, buffer: &mut [u8]) -> Option<usize> {
        let room = self.room(window, buffer.len());
        if self.ended || !self.readable || room == 0 {
            return None;
        }
        if self.sealed == Some(0) {
            self.ended = true;
            return None;
        }
        let room = room.min(self.sealed.unwrap_or(usize::MAX));
        loop {
            return match nix::unistd::read(&self.fd, &mut buffer[..room]) {
                Err(Errno::EINTR) => continue,
                Ok(count @ 1..) => {
                    if let Some(left) = &mut self.sealed {
                        *left -= count;
                    }
                    if !self.discarded {
                        window.spend(count);
                    }
                    Some(count)
                }
                // EIO: nobody has the terminal open; as long as its session lives, somebody may again.
                Err(Errno::EAGAIN | Errno::EIO) => {
                    self.readable = false;
                    self.ended = self.sealed.is_some();
                    None
                }
                // A pipe's writers are gone.
                Ok(0) | Err(_) => {
                    self.ended = true;
                    None
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::exec::TerminalSize;
    use iii_proto::exec::window::WINDOW;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use std::io::{Read, Write};

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap()
    }

    #[test]
    fn input_waits_for_room_earns_credit_and_ends_behind_its_last_byte() {
        let (theirs, ours) = pipe();
        let mut input = Input::pipe(ours);
        let mut sent = 0;
        while input.push(vec![b'x'; MAX_CHUNK]).is_ok() {
            sent += MAX_CHUNK;
        }
        assert!(sent <= WINDOW as usize);
        input.end();
        let mut theirs = std::fs::File::from(theirs);
        let (mut read, mut credit) = (0, 0);
        let mut buffer = vec![0; 10_000];
        loop {
            input.on_ready();
            let written = input.write();
            assert!(!written.closed);
            credit += written.credit;
            match theirs.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) => panic!("{error}: {input:?}"),
            }
        }
        assert_eq!(read, sent);
        assert!(credit as usize > sent / 2, "{credit}");
        assert!(!input.has_work());
    }

    #[test]
    fn input_that_nobody_reads_is_closed_once() {
        let (theirs, ours) = pipe();
        let mut input = Input::pipe(ours);
        drop(theirs);
        input.push(b"lost".to_vec()).unwrap();
        assert!(input.write().closed);
        input.push(b"more".to_vec()).unwrap();
        assert_eq!(input.write(), Written::default());
        assert!(!input.on_error());
    }

    #[test]
    fn a_terminals_input_ends_by_its_character() {
        let size = TerminalSize {
            rows: 1,
            columns: 1,
        };
        for text in ["", "line\n", "no newline"] {
            let (master, slave) = terminal::open_terminal(size).unwrap();
            let mut input = Input::terminal(master.try_clone().unwrap());
            if !text.is_empty() {
                input.push(text.as_bytes().to_vec()).unwrap();
            }
            input.end();
            assert!(!input.write().closed);
            let mut slave = std::fs::File::from(slave);
            let mut seen = String::new();
            slave.read_to_string(&mut seen).unwrap();
            assert_eq!(seen, text);
        }
    }

    #[test]
    fn an_output_stops_at_the_window_and_goes_on_with_credit() {
        let (ours, theirs) = pipe();
        fcntl(&ours, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        std::fs::File::from(theirs)
            .write_all(&vec![b'x'; 2 * WINDOW as usize])
            .unwrap();
        let mut output = Output::new(ours, Stream::Stdout);
        let mut window = SendWindow::default();
        let mut buffer = vec![0; MAX_CHUNK];
        let mut read = 0;
        while let Some(count) = output.read(&mut window, &mut buffer) {
            read += count;
        }
        assert!(read <= WINDOW as usize && !output.ended());
        assert!(!output.has_work(&window));
        while !output.ended() {
            window = SendWindow::default();
            while let Some(count) = output.read(&mut window, &mut buffer) {
                read += count;
            }
        }
        assert_eq!(read, 2 * WINDOW as usize);
    }

    #[test]
    fn what_nobody_wants_is_read_without_a_window() {
        let (ours, theirs) = pipe();
        let mut theirs = std::fs::File::from(theirs);
        let mut output = Output::new(ours, Stream::Stdout);
        let mut window = SendWindow::default();
        let mut buffer = vec![0; MAX_CHUNK];
        output.discard();
        for _ in 0..100 {
            theirs.write_all(&[b'z'; 10_000]).unwrap();
            assert!(output.has_work(&window));
            assert_eq!(output.read(&mut window, &mut buffer), Some(10_000));
        }
        assert_eq!(window, SendWindow::default());
    }

    #[test]
    fn a_sealed_output_ends_though_a_stranger_holds_it() {
        let (ours, theirs) = pipe();
        let mut theirs = std::fs::File::from(theirs);
        theirs.write_all(b"last words").unwrap();
        let mut output = Output::new(ours, Stream::Stdout);
        output.seal();
        let mut window = SendWindow::default();
        let mut buffer = vec![0; MAX_CHUNK];
        assert_eq!(output.read(&mut window, &mut buffer), Some(10));
        assert_eq!(output.read(&mut window, &mut buffer), None);
        assert!(output.ended());
        // One that writes as fast as it is read is cut off at the pipe's capacity.
        let (ours, theirs) = pipe();
        let mut theirs = std::fs::File::from(theirs);
        let mut output = Output::new(ours, Stream::Stdout);
        let mut read = 0;
        output.seal();
        while !output.ended() {
            theirs.write_all(&[b'y'; 4096]).unwrap();
            let mut window = SendWindow::default();
            read += output.read(&mut window, &mut buffer).unwrap_or(0);
        }
        assert_eq!(read, 65_536);
    }
}
