//! Lines of JSON, of a bounded length.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Longest request. A client that sends bytes without a newline makes the supervisor hold no more;
/// a command with its environment, of which guests take up to 128 KiB, fits.
pub const MAX_REQUEST: usize = 512 * 1024;
/// Longest line of an answer that a client takes. An overlong line of a workload comes in pieces
/// that fit many times.
pub const MAX_REPLY: usize = 1 << 20;

/// Why a line was not read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no end within the limit.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// It is not what is expected.
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
}

/// Reads lines.
#[derive(Debug)]
pub struct LineReader<R> {
    reader: BufReader<R>,
    limit: usize,
    /// What has come of the next line.
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// Lines of at most `limit` bytes.
    pub fn new(reader: R, limit: usize) -> Self {
        Self {
            reader: BufReader::new(reader),
            limit,
            line: Vec::new(),
        }
    }

    /// The bytes of the next line without its newline; `None` at the end. A last line without a
    /// newline was cut off, and counts as the end. Given up, it has lost nothing.
    pub async fn bytes(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        // A newline may follow a line of the limit's length.
        let room = self.limit + 1 - self.line.len().min(self.limit + 1);
        let mut bounded = (&mut self.reader).take(room as u64);
        bounded.read_until(b'\n', &mut self.line).await?;
        let mut line = std::mem::take(&mut self.line);
        if line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(Some(line));
        }
        if line.len() > self.limit {
            return Err(LineError::TooLong(self.limit));
        }
        Ok(None)
    }

    /// The next line as a value; `None` at the end. Given up, it has lost nothing.
    pub async fn value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        match self.bytes().await? {
            Some(line) => Ok(Some(serde_json::from_slice(&line)?)),
            None => Ok(None),
        }
    }

    /// Whether the next line is there already.
    pub fn has_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    /// What follows the lines that were read.
    pub fn into_inner(self) -> BufReader<R> {
        self.reader
    }
}

/// Appends a value as a line.
pub fn write(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *out, value)?;
    out.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn lines(bytes: &[u8], limit: usize) -> Vec<Result<Option<Vec<u8>>, String>> {
        let mut reader = LineReader::new(bytes, limit);
        let mut found = Vec::new();
        loop {
            let line = reader.bytes().await;
            let over = !matches!(line, Ok(Some(_)));
            found.push(line.map_err(|error| error.to_string()));
            if over {
                return found;
            }
        }
    }

    #[tokio::test]
    async fn a_line_is_whole_or_none() {
        let line = |text: &str| Ok(Some(text.as_bytes().to_vec()));
        assert_eq!(
            lines(b"one\n\ntwo two\n", 10).await,
            [line("one"), line(""), line("two two"), Ok(None)]
        );
        assert_eq!(lines(b"one\ncut", 10).await, [line("one"), Ok(None)]);
        assert_eq!(lines(b"1234\n", 4).await, [line("1234"), Ok(None)]);
        let long = || Err("a line of more than 4 bytes".to_owned());
        assert_eq!(lines(b"12345\n", 4).await, [long()]);
        assert_eq!(lines(b"123456789", 4).await, [long()]);
    }

    #[tokio::test]
    async fn a_read_that_is_given_up_loses_nothing() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let mut reader = LineReader::new(reader, 10);
        for piece in ["a", "b\nc"] {
            writer.write_all(piece.as_bytes()).await.unwrap();
            if piece == "a" {
                tokio::select! {
                    biased;
                    _ = reader.bytes() => panic!("there is no newline yet"),
                    () = std::future::ready(()) => {}
                }
            }
        }
        assert_eq!(reader.bytes().await.unwrap().unwrap(), b"ab");
        let mut rest = String::new();
        drop(writer);
        reader.into_inner().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "c");
    }
}
