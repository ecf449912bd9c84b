//! Several workers' records as one sequence, by the time when they were received. Each worker's own
//! order is that in which it wrote.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use iii_proto::ids::WorkerName;

use super::cursor::{Cursor, Found};

#[derive(Debug, Default)]
pub(super) struct Merge {
    cursors: Vec<Cursor>,
    /// What each cursor has found and is not its turn yet.
    held: Vec<Option<Found>>,
    /// Their times.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    /// Cursors to be asked before the next turn.
    to_ask: Vec<usize>,
}

impl Merge {
    pub(super) fn add(&mut self, cursor: Cursor) {
        self.to_ask.push(self.cursors.len());
        self.cursors.push(cursor);
        self.held.push(None);
    }

    pub(super) fn has(&self, worker: &WorkerName) -> bool {
        self.cursors.iter().any(|cursor| cursor.worker() == worker)
    }

    /// The next in turn; `None`: nothing for now. Asked again, it looks for more.
    pub(super) fn next(&mut self) -> Result<Option<Found>, (usize, io::Error)> {
        while let Some(index) = self.to_ask.pop() {
            match self.cursors[index].next().map_err(|error| (index, error))? {
                None => {}
                Some(Found::Record(record)) => {
                    let at = record.received_unix_ns();
                    self.heads.push(Reverse((at, index)));
                    self.held[index] = Some(Found::Record(record));
                }
                // What is to be told has no time.
                Some(found) => {
                    self.to_ask.push(index);
                    return Ok(Some(found));
                }
            }
        }
        match self.heads.pop() {
            Some(Reverse((_, index))) => {
                self.to_ask.push(index);
                Ok(self.held[index].take())
            }
            None => {
                self.to_ask.extend(0..self.cursors.len());
                Ok(None)
            }
        }
    }

    pub(super) fn cursor(&self, index: usize) -> &Cursor {
        &self.cursors[index]
    }
}
