//! Which records are wanted.

use std::collections::BTreeSet;

use iii_actors::event::LogSource;

use super::super::record::{Kind, View};

/// Which records are wanted; by default all. Times are when a line was received, by the host's
/// clock, nanoseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query {
    /// At or behind this time.
    pub since_unix_ns: Option<u64>,
    /// Before this time.
    pub until_unix_ns: Option<u64>,
    /// Of these sources; empty: of any.
    pub sources: BTreeSet<LogSource>,
    /// Of the VMs whose boot id begins with this.
    pub boot: Option<String>,
    /// Of those that are there already, at most this many of each worker: the last.
    pub last: Option<usize>,
}

impl Query {
    /// Whether this record is wanted.
    pub(super) fn wants(&self, view: &View<'_>) -> bool {
        let at = view.received_unix_ns();
        if self.since_unix_ns.is_some_and(|since| at < since) || self.is_behind(at) {
            return false;
        }
        match view.kind() {
            Kind::Line(source) => {
                let source = self.sources.is_empty() || self.sources.contains(&source);
                let boot = self.boot.as_ref();
                source && boot.is_none_or(|boot| view.boot().to_string().starts_with(boot))
            }
            // Nobody knows of which source or boot the lost lines were.
            Kind::Lost => true,
        }
    }

    /// Whether nothing that is received then or later is wanted.
    pub(super) fn is_behind(&self, received_unix_ns: u64) -> bool {
        self.until_unix_ns
            .is_some_and(|until| received_unix_ns >= until)
    }
}
