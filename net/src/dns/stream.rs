//! DNS over one TCP connection: messages behind a two-byte length (RFC 7766).

/// Answers waiting for a guest that does not read them; above it no question is taken. Stops a
/// guest that asks without reading from eating memory.
const OUTPUT_LIMIT: usize = 128 << 10;
/// Questions of one connection that wait for their answers.
const IN_FLIGHT_LIMIT: usize = 32;

/// Reassembles questions and queues answers.
#[derive(Debug, Default)]
pub(crate) struct DnsStream {
    input: Vec<u8>,
    output: Vec<u8>,
    in_flight: usize,
}

impl DnsStream {
    /// Takes bytes from the guest, at most up to the end of the current message, and returns how
    /// many it took and the message if it is whole.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Vec<u8>>) {
        let mut taken = 0;
        loop {
            let wanted = match self.input.first_chunk::<2>() {
                None => 2,
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            };
            let part = bytes
                .len()
                .saturating_sub(taken)
                .min(wanted - self.input.len());
            self.input.extend_from_slice(&bytes[taken..taken + part]);
            taken += part;
            if self.input.len() < wanted {
                return (taken, None);
            }
            if self.input.len() > 2 || self.input == [0, 0] {
                let message = self.input.split_off(2);
                self.input.clear();
                return (taken, Some(message));
            }
        }
    }

    /// Whether another question may be taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.in_flight < IN_FLIGHT_LIMIT && self.output.len() < OUTPUT_LIMIT
    }

    /// A question waits for its answer.
    pub(crate) fn asked(&mut self) {
        self.in_flight += 1;
    }

    /// Such an answer has come.
    pub(crate) fn answered(&mut self, message: &[u8]) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.queue(message);
    }

    /// Queues an answer. It is never longer than its prefix can say.
    pub(crate) fn queue(&mut self, message: &[u8]) {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output
            .extend_from_slice(&message[..usize::from(length)]);
    }

    /// What the guest should get next.
    pub(crate) fn output(&self) -> &[u8] {
        &self.output
    }

    /// The guest's socket took so many bytes of it.
    pub(crate) fn sent(&mut self, count: usize) {
        self.output.drain(..count);
    }

    /// Everything asked is answered and handed on.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.output.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
            piece in 1usize..50,
        ) {
            let mut sender = DnsStream::default();
            for message in &messages {
                sender.queue(message);
            }
            let mut receiver = DnsStream::default();
            let mut received = Vec::new();
            for chunk in sender.output().chunks(piece) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let (taken, message) = receiver.take(rest);
                    rest = &rest[taken..];
                    received.extend(message);
                }
            }
            prop_assert_eq!(received, messages);
        }
    }
}
