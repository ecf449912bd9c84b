//! Flow control: how much of a session's one direction may be under way. Pure; both ends use it.
//!
//! The sender may send [`WINDOW`] before it hears of the receiver. The receiver grants more only for
//! what its reader has taken, so it never holds more than the window.

use super::MAX_CHUNK;

/// What may be sent in one direction of a session and not be taken by its reader. It bounds what a
/// guest whose client reads nothing can make the supervisor hold, [`super::MAX_SESSIONS`] windows.
pub const WINDOW: u32 = 256 * 1024;

/// What a frame costs beside its bytes. It stands for what the receiver spends to keep a frame:
/// without it, a guest could fill its window with frames of one byte, each of which takes a hundred
/// in the host's memory.
pub const FRAME_COST: u32 = 64;

/// Room below which a sender waits, unless it has less to send: a window must not be cut into ever
/// smaller frames.
const LEAST_CHUNK: usize = 4 * 1024;
/// The receiver saves up credit until it is worth a frame.
const LEAST_CREDIT: u32 = WINDOW / 4;

/// What a frame of so many bytes takes of the window.
pub fn cost(bytes: usize) -> u32 {
    // Longer frames than MAX_CHUNK are never sent and always refused.
    FRAME_COST.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// The other end does not keep to the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// A frame with no bytes, or with more than [`MAX_CHUNK`].
    #[error("a chunk of {0} bytes")]
    Chunk(usize),
    /// More than was granted.
    #[error("a chunk that costs {cost} where {granted} were granted")]
    Exceeded {
        /// What it takes of the window.
        cost: u32,
        /// What was left of it.
        granted: u32,
    },
    /// No credit, or credit for what was never sent.
    #[error("a credit of {credit} where {outstanding} are outstanding")]
    Credit {
        /// What was said.
        credit: u32,
        /// What is under way.
        outstanding: u32,
    },
}

/// The sender's side of a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendWindow {
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { left: WINDOW }
    }
}

impl SendWindow {
    /// How many of `wanted` bytes the next frame may hold; 0: wait for credit.
    pub fn room(&self, wanted: usize) -> usize {
        let left = self.left.saturating_sub(FRAME_COST) as usize;
        let room = wanted.min(MAX_CHUNK).min(left);
        if room < wanted.min(LEAST_CHUNK) {
            0
        } else {
            room
        }
    }

    /// A frame of so many bytes, no more than [`Self::room`] said, is sent.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(cost(bytes));
    }

    /// The receiver grants more.
    pub fn refill(&mut self, credit: u32) -> Result<(), WindowError> {
        let outstanding = WINDOW - self.left;
        if credit == 0 || credit > outstanding {
            return Err(WindowError::Credit {
                credit,
                outstanding,
            });
        }
        self.left += credit;
        Ok(())
    }
}

/// The receiver's side of a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    granted: u32,
    owed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            granted: WINDOW,
            owed: 0,
        }
    }
}

impl ReceiveWindow {
    /// A frame of so many bytes has come.
    pub fn receive(&mut self, bytes: usize) -> Result<(), WindowError> {
        if bytes == 0 || bytes > MAX_CHUNK {
            return Err(WindowError::Chunk(bytes));
        }
        let (cost, granted) = (cost(bytes), self.granted);
        match granted.checked_sub(cost) {
            Some(left) => {
                self.granted = left;
                Ok(())
            }
            None => Err(WindowError::Exceeded { cost, granted }),
        }
    }

    /// The reader has taken a frame of so many bytes. What is to be granted to the sender, once it
    /// is worth saying.
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(cost(bytes));
        if self.owed < LEAST_CREDIT {
            return None;
        }
        let credit = std::mem::take(&mut self.owed);
        self.granted += credit;
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_full_window_is_not_exceeded_and_more_than_it_is_refused() {
        let mut sender = SendWindow::default();
        let mut receiver = ReceiveWindow::default();
        let mut sent = 0;
        loop {
            let room = sender.room(usize::MAX);
            if room == 0 {
                break;
            }
            sender.spend(room);
            receiver.receive(room).unwrap();
            sent += cost(room);
        }
        assert!(sent <= WINDOW && sent > WINDOW - LEAST_CHUNK as u32 - FRAME_COST);
        assert!(matches!(
            receiver.receive(MAX_CHUNK),
            Err(WindowError::Exceeded { .. })
        ));
    }

    #[test]
    fn frames_of_one_byte_are_few() {
        let mut receiver = ReceiveWindow::default();
        let mut frames = 0;
        while receiver.receive(1).is_ok() {
            frames += 1;
        }
        assert_eq!(frames, WINDOW / (FRAME_COST + 1));
    }

    #[test]
    fn odd_chunks_and_credits_are_faults() {
        let mut receiver = ReceiveWindow::default();
        assert_eq!(receiver.receive(0), Err(WindowError::Chunk(0)));
        let long = MAX_CHUNK + 1;
        assert_eq!(receiver.receive(long), Err(WindowError::Chunk(long)));
        let mut sender = SendWindow::default();
        assert!(sender.refill(1).is_err(), "nothing is under way");
        sender.spend(100);
        assert!(sender.refill(0).is_err());
        assert!(sender.refill(cost(100) + 1).is_err());
        sender.refill(cost(100)).unwrap();
        assert_eq!(sender, SendWindow::default());
        assert!(sender.refill(u32::MAX).is_err());
    }

    proptest! {
        /// Whatever the sizes and however the two ends take turns: all of it arrives, the receiver
        /// never refuses, and it never holds more than the window.
        #[test]
        fn any_stream_flows_to_its_end(
            sizes in prop::collection::vec(1usize..200_000, 1..40),
            turns in prop::collection::vec(any::<bool>(), 1..50),
        ) {
            let mut sender = SendWindow::default();
            let mut receiver = ReceiveWindow::default();
            let mut held: VecDeque<usize> = VecDeque::new();
            let mut left: usize = sizes.iter().sum();
            let mut turns = turns.into_iter().cycle();
            while left > 0 || !held.is_empty() {
                let room = sender.room(left);
                prop_assert!(room > 0 || !held.is_empty(), "neither end can go on");
                if room > 0 && (held.is_empty() || turns.next() == Some(true)) {
                    sender.spend(room);
                    receiver.receive(room).unwrap();
                    held.push_back(room);
                    left -= room;
                } else if let Some(bytes) = held.pop_front()
                    && let Some(credit) = receiver.consume(bytes)
                {
                    sender.refill(credit).unwrap();
                }
                let all: u32 = held.iter().map(|n| cost(*n)).sum();
                prop_assert!(all <= WINDOW);
            }
        }
    }
}
