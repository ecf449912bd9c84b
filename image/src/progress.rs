//! How work that takes long is reported.

/// Told about work that takes long enough for a user to wonder; from any thread.
pub trait Progress: Send + Sync {
    /// A new phase begins; `text` is for a human, without a full stop.
    fn phase(&self, text: &str);
    /// Bytes of the phase that are done, of `total` if that is known.
    fn bytes(&self, done: u64, total: Option<u64>);
}

/// Silence.
impl Progress for () {
    fn phase(&self, _text: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
}
