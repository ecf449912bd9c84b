//! The end of what a guest's console or a helper's standard error said, kept for the case of a
//! crash.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that are kept. A guest that floods its console gains nothing.
const LIMIT: usize = 8 * 1024;

/// The end of a text. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Rc<RefCell<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.borrow_mut();
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(LIMIT);
        tail.drain(..surplus);
    }

    /// Reads a stream to its end.
    pub(crate) async fn read(self, stream: impl AsyncRead + Unpin) {
        self.watch(stream, |_| ()).await;
    }

    /// Reads a stream to its end; `look` is shown what is kept after each read.
    pub(crate) async fn watch(
        self,
        mut stream: impl AsyncRead + Unpin,
        mut look: impl FnMut(&Self),
    ) {
        let mut buffer = vec![0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                // A reset is the end of its writer, as an end of file is.
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    self.push(&buffer[..n]);
                    look(&self);
                }
            }
        }
    }

    /// The text, with everything that could drive a terminal taken out.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.borrow().iter().copied().collect();
        String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect()
    }

    /// The bytes as they are, cut into lines, and whether a newline ended each. What was before
    /// the first is lost, and maybe the head of it.
    pub(crate) fn lines(&self) -> Vec<(Vec<u8>, bool)> {
        let bytes: Vec<u8> = self.0.borrow().iter().copied().collect();
        bytes
            .split_inclusive(|b| *b == b'\n')
            .map(|line| match line.strip_suffix(b"\n") {
                Some(line) => (line.to_vec(), true),
                None => (line.to_vec(), false),
            })
            .collect()
    }

    /// What the guest's kernel said when it panicked.
    pub(crate) fn panic_line(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().find(|line| line.contains("Kernel panic"))?;
        let at = line.find("Kernel panic").unwrap_or(0);
        Some(line[at..].trim_end().to_owned())
    }

    /// The last line that says something.
    pub(crate) fn last_line(&self) -> Option<String> {
        let text = self.text();
        let line = text
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())?;
        Some(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept_and_it_cannot_drive_a_terminal() {
        let tail = Tail::default();
        tail.push(&vec![b'x'; 3 * LIMIT]);
        tail.push(b"\x1b[31m[ 1.0] Kernel panic - not syncing: oops\r\nlast words\n\n");
        assert_eq!(tail.0.borrow().len(), LIMIT);
        assert!(!tail.text().contains('\x1b'));
        assert_eq!(
            tail.panic_line().unwrap(),
            "Kernel panic - not syncing: oops"
        );
        assert_eq!(tail.last_line().unwrap(), "last words");
        let lines = tail.lines();
        assert_eq!(lines[1], (b"last words".to_vec(), true));
        assert!(lines[0].0.starts_with(b"xxx") && lines[0].0.ends_with(b"oops\r"));
        tail.push(b"cut");
        assert_eq!(tail.lines().last().unwrap(), &(b"cut".to_vec(), false));
    }
}
