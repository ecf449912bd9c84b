//! Words to the user.

use std::fmt::Display;
use std::io::{self, Write as _};

use super::{FAILED, OK};

/// One message on stderr.
pub(super) fn say(message: impl Display) {
    say_plain(format_args!("iii-super: {message}"));
}

/// The same without the program's name before it. If nobody reads stderr, there is nobody to tell.
pub(super) fn say_plain(message: impl Display) {
    let text = crate::output::escape::text(&message.to_string());
    // See above: the result has no use.
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// The result of a command on stdout. A reader that has read enough (`| head`) is no failure.
pub(super) fn print(text: &str) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => OK,
        Err(error) => {
            say(format_args!("failed to write to stdout: {error}"));
            FAILED
        }
    }
}
