//! `iii-super ps --stats`: what workers use.

use super::state;
use crate::cli::usage::{Measured, NONE, bytes, guest_memory, percent, restarts, uptime};
use crate::output::table::{Cell, table};

const HEADING: [&str; 10] = [
    "NAME", "STATE", "UPTIME", "RESTARTS", "CPU", "MEMORY", "IN GUEST", "RECEIVED", "SENT", "CONNS",
];

/// A row for each.
pub(super) fn human(workers: &[&Measured], now_unix_ms: u64, colour: bool) -> String {
    let row = |measured: &&Measured| -> [Cell; 10] {
        let (worker, usage) = (&measured.worker.worker, &measured.worker.usage);
        let network = |of: fn(&crate::NetworkUsage) -> u64| usage.network.as_ref().map(of);
        let connections = network(|network| network.connections);
        [
            worker.name.as_str().into(),
            state(worker.state, colour),
            uptime(&measured.worker, now_unix_ms).into(),
            restarts(worker).into(),
            percent(measured.cpu_percent).into(),
            bytes(usage.memory).into(),
            guest_memory(usage).into(),
            bytes(network(|network| network.received_bytes)).into(),
            bytes(network(|network| network.sent_bytes)).into(),
            connections
                .map_or_else(|| NONE.into(), |count| count.to_string())
                .into(),
        ]
    };
    table(HEADING, workers.iter().map(row).collect())
}
