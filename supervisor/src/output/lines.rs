//! Events and output as a supervisor tells them to a command, put out as `run` puts out its own.

use std::io::{self, ErrorKind, Write as _};

use super::json;
use super::printer::Format;
use crate::control::protocol::Reply;

/// Text that is put together before it is written.
const BATCH: usize = 64 * 1024;

/// What is to be written to stdout.
#[derive(Debug)]
pub struct Lines {
    format: Format,
    text: String,
}

impl Lines {
    /// Lines in this format.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
        }
    }

    /// Adds an event, a line of output, or how many were missed; other replies are none of those.
    pub fn put(&mut self, reply: &Reply) -> io::Result<()> {
        let (raw, is_event) = match reply {
            Reply::Event(raw) => (raw.get(), true),
            Reply::Log(raw) => (raw.get(), false),
            Reply::Missed(count) => {
                self.format.missed(*count, &mut self.text);
                return Ok(());
            }
            Reply::Worker(_)
            | Reply::Usage(_)
            | Reply::Reloaded(_)
            | Reply::Opened(_)
            | Reply::Done
            | Reply::Ended(_)
            | Reply::Refused(_) => return Ok(()),
        };
        match &self.format {
            Format::Json => {
                self.text += raw;
                self.text.push('\n');
            }
            Format::Human(_) if is_event => match serde_json::from_str(raw) {
                Ok(event) => self.format.event(&event, &mut self.text)?,
                // Of a kind that is newer than this program.
                Err(_) => {
                    self.text += &super::escape::text(raw);
                    self.text.push('\n');
                }
            },
            Format::Human(_) => self.format.log(&json::parse_log(raw)?, &mut self.text)?,
        }
        Ok(())
    }

    /// Whether so much has come together that it should be written.
    pub fn is_full(&self) -> bool {
        self.text.len() >= BATCH
    }

    /// Writes what there is; `false`: nobody reads any more.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut out = io::stdout().lock();
        let written = out
            .write_all(self.text.as_bytes())
            .and_then(|()| out.flush());
        self.text.clear();
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error),
        }
    }
}
