//! Pseudo-terminals (pty(7)), without the parts of libc that look at paths.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use iii_proto::exec::TerminalSize;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// `_IOW('T', 0x31, int)`: lock or unlock the slave.
const TIOCSPTLCK: u32 = 0x4004_5431;
/// `_IO('T', 0x41)`: open the slave, whatever is mounted where its path would be (Linux 4.13).
const TIOCGPTPEER: u32 = 0x5441;

/// A new pseudo-terminal of this size: the master, which does not block, and the slave.
pub(crate) fn open_terminal(size: TerminalSize) -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags | OFlag::O_NONBLOCK, Mode::empty())?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, which lives through the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), TIOCSPTLCK as _, &raw const unlock) })?;
    // SAFETY: TIOCGPTPEER takes open(2)'s flags by value and returns a new descriptor.
    let slave =
        Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags.bits()) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let mut settings = settings_of(&slave)?;
    // Erasing a character erases all its bytes.
    settings.c_iflag |= libc::IUTF8;
    // SAFETY: tcsetattr reads a termios, which lives through the call.
    Errno::result(unsafe {
        libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw const settings)
    })?;
    resize(&master, size)?;
    Ok((master, slave))
}

/// Gives the terminal another size; its foreground process group gets SIGWINCH.
pub(crate) fn resize(terminal: impl AsFd, size: TerminalSize) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads a winsize, which lives through the call.
    Errno::result(unsafe {
        libc::ioctl(
            terminal.as_fd().as_raw_fd(),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    })
    .map(drop)
}

/// The character that ends input on this terminal; `None` where its program reads bytes as they
/// come, so that none does.
pub(crate) fn end_of_file(terminal: impl AsFd) -> nix::Result<Option<u8>> {
    let settings = settings_of(terminal)?;
    let canonical = settings.c_lflag & libc::ICANON != 0;
    Ok(canonical.then_some(settings.c_cc[libc::VEOF]))
}

fn settings_of(terminal: impl AsFd) -> nix::Result<libc::termios> {
    // SAFETY: a termios is plain numbers, for which zeros are valid.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: tcgetattr writes a termios, which lives through the call.
    Errno::result(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), &raw mut settings) })?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_its_size_and_says_how_its_input_ends() {
        let size = |rows, columns| TerminalSize { rows, columns };
        let (master, slave) = open_terminal(size(24, 80)).unwrap();
        let columns = || {
            let mut found = libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // SAFETY: TIOCGWINSZ writes a winsize, which lives through the call.
            let result =
                unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut found) };
            assert_eq!(result, 0);
            (found.ws_row, found.ws_col)
        };
        assert_eq!(columns(), (24, 80));
        resize(&master, size(50, 132)).unwrap();
        assert_eq!(columns(), (50, 132));
        assert_eq!(end_of_file(&master), Ok(Some(4)));
        drop(slave);
        let mut buffer = [0; 1];
        assert_eq!(nix::unistd::read(&master, &mut buffer), Err(Errno::EIO));
    }
}
