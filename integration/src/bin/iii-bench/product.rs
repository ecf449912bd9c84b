//! Ours: what a user waits for.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iii_actors::spec::WorkerSpec;
use iii_integration::{Bench, binaries, worker_name};
use iii_proto::restart::{RestartMode, RestartPolicy};
use iii_supervisor::{EventKind, Fault};

/// A static program of the host's root, so that the workload's own start is next to nothing.
const STATIC: &str = "/usr/bin/busybox";

/// From the start of `iii-super run` to the first line of its workload.
pub(crate) fn first_line() -> Result<Duration, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = directory.path().join("iii.workers.yaml");
    let text = format!("workers: {{bench: {{command: [{STATIC}, echo, hello], restart: never}}}}");
    std::fs::write(&file, text).map_err(|e| e.to_string())?;
    let start = Instant::now();
    let mut child = Command::new(binaries().join("iii-super"))
        .arg("run")
        .arg("-f")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("failed to start iii-super: {e}"))?;
    let out = child.stdout.take().ok_or("iii-super has no output")?;
    let mut seen = None;
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|e| e.to_string())?;
        if line.contains("hello") && seen.is_none() {
            seen = Some(start.elapsed());
        }
    }
    child.wait().map_err(|e| e.to_string())?;
    seen.ok_or_else(|| "the workload said nothing".into())
}

/// Restarts without a delay and without a limit.
pub(crate) fn at_once() -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::ZERO,
        limit: None,
        ..RestartPolicy::default()
    }
}

/// `runs` restarts inside one VM, then `runs` restarts of a VM.
pub(crate) async fn restarts(runs: usize) -> Result<(Vec<Duration>, Vec<Duration>), String> {
    let command = [STATIC, "echo", "again"].map(String::from).to_vec();
    let mut spec = WorkerSpec::new(worker_name("again"), command);
    spec.restart = at_once();
    let mut bench = Bench::start(vec![spec]).await;
    let mut times = Vec::new();
    let mut at = 0;
    // The first lives fill the guest's caches.
    for _ in 0..runs * 4 {
        let (_, next) = bench.line_from(at, "again", "again").await;
        times.push(bench.lines[next - 1].time_unix_ns);
        at = next;
    }
    bench.stop().await;
    let in_guest = times
        .windows(2)
        .skip(runs)
        .map(|pair| Duration::from_nanos(pair[1].saturating_sub(pair[0])))
        .collect();

    let command = ["/bin/sh", "-c", "echo up; exec sleep 100000"]
        .map(String::from)
        .to_vec();
    let mut spec = WorkerSpec::new(worker_name("victim"), command);
    spec.vm_restart = at_once();
    spec.allow_faults = true;
    let mut bench = Bench::start(vec![spec]).await;
    let (_, mut at) = bench.line_from(0, "victim", "up").await;
    let mut full = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        bench
            .supervisor
            .inject(worker_name("victim"), Fault::KillVmm)
            .await
            .map_err(|e| e.to_string())?;
        let (_, next) = bench.line_from(at, "victim", "up").await;
        full.push(start.elapsed());
        at = next;
    }
    let crashes = bench
        .seen
        .iter()
        .filter(|e| matches!(e.kind, EventKind::VmCrashed { .. }));
    if crashes.count() < runs {
        return Err("a VM was not restarted".into());
    }
    bench.stop().await;
    Ok((in_guest, full))
}
