//! What workers use, asked of a running supervisor, and how it is put into words.

use std::collections::BTreeMap;
use std::time::Duration;

use iii_proto::ids::WorkerName;
use serde::Serialize;

use super::contact::Failure;
use crate::NetworkUsage;
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request, UsageRequest, WorkerUsage};
use crate::output::words;
use crate::usage::Usage;

/// Between two moments whose difference is how busy a worker is.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// A worker, what it uses, and how busy it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    pub(super) worker: WorkerUsage,
    /// Of one CPU: two busy ones are 200.
    pub(super) cpu_percent: Option<f64>,
    /// Bytes that it receives in a second.
    pub(super) received_per_second: Option<u64>,
    /// Bytes that it sends in a second.
    pub(super) sent_per_second: Option<u64>,
}

/// What all workers use.
pub(super) async fn ask(client: Client) -> Result<Vec<WorkerUsage>, Failure> {
    let mut answer = client.ask(Request::Usage(UsageRequest::default())).await?;
    let mut workers = Vec::new();
    while let Some(reply) = answer.next().await? {
        if let Reply::Usage(usage) = reply {
            workers.push(*usage);
        }
    }
    Ok(workers)
}

/// What was measured, beside what was before. Rounded to what is said of it.
pub(super) fn compare(
    before: &BTreeMap<WorkerName, Usage>,
    now: Vec<WorkerUsage>,
) -> Vec<Measured> {
    let measured = |worker: WorkerUsage| {
        let before = before.get(&worker.worker.name);
        let percent = before.and_then(|before| worker.usage.cpu_percent_since(before));
        let rate = |of| before.and_then(|before| per_second(before, &worker.usage, of));
        Measured {
            cpu_percent: percent.map(|percent| (percent * 10.0).round() / 10.0),
            received_per_second: rate(|network| network.received_bytes),
            sent_per_second: rate(|network| network.sent_bytes),
            worker,
        }
    };
    now.into_iter().map(measured).collect()
}

/// How much more there is of something that passed through the network, in a second.
fn per_second(before: &Usage, now: &Usage, of: fn(&NetworkUsage) -> u64) -> Option<u64> {
    let more = of(now.network.as_ref()?).checked_sub(of(before.network.as_ref()?))?;
    let time = now.clock_ns.checked_sub(before.clock_ns)?;
    let rate = u128::from(more) * 1_000_000_000 / u128::from(time.max(1));
    u64::try_from(rate).ok()
}

/// By name.
pub(super) fn by_name(workers: &[WorkerUsage]) -> BTreeMap<WorkerName, Usage> {
    let pair = |worker: &WorkerUsage| (worker.worker.name.clone(), worker.usage.clone());
    workers.iter().map(pair).collect()
}

/// What stands for nothing.
pub(super) const NONE: &str = "-";

/// `12.3%`.
pub(super) fn percent(percent: Option<f64>) -> String {
    percent.map_or_else(|| NONE.into(), |percent| format!("{percent:.1}%"))
}

/// Bytes, or that they are not known.
pub(super) fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| NONE.into(), words::bytes)
}

/// `used/total` of the guest's memory.
pub(super) fn guest_memory(usage: &Usage) -> String {
    let Some(memory) = usage.guest_memory else {
        return NONE.into();
    };
    let used = memory.total.saturating_sub(memory.available);
    format!("{}/{}", words::bytes(used), words::bytes(memory.total))
}

/// How long its workload's process has run.
pub(super) fn uptime(worker: &WorkerUsage, now_unix_ms: u64) -> String {
    let since = worker.worker.workload_since_unix_ms;
    since.map_or_else(|| NONE.into(), |since| words::since(since, now_unix_ms))
}

/// Restarts of the workload, and how many of them were the VM's.
pub(super) fn restarts(worker: &crate::control::protocol::WorkerInfo) -> String {
    match (worker.starts.saturating_sub(1), worker.vm_restarts) {
        (all, 0) => all.to_string(),
        (all, vm) => format!("{all} ({vm} of the vm)"),
    }
}

/// No more characters than these; what is left out is marked.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}
