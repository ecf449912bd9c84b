//! What a VM takes of the host's memory.

use std::fs;

use iii_integration::program::eventually;
use iii_integration::{Bench, PATIENCE, shell, worker_name};
use iii_supervisor::{EventKind, ExecRequest};

const MIB: u64 = 1 << 20;
/// What the workload takes and gives back.
const TAKEN: u64 = 100 * MIB;

const WORKLOAD: &str = "
import os, time
held = bytearray(100 << 20)
print('taken', flush=True)
# Until somebody has looked.
while not os.path.exists('/tmp/enough'): time.sleep(0.05)
del held
print('freed', flush=True)
time.sleep(1e6)
";

/// Bytes of the guest's memory that the host holds for it.
fn guest_memory(vmm: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssShmem:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_frees_goes_back_to_the_host() {
    let mut spec = shell("hoarder", "");
    spec.command = ["/usr/bin/python3", "-c", WORKLOAD]
        .map(String::from)
        .to_vec();
    let mut bench = Bench::start(vec![spec]).await;
    let (vmm, _) = bench
        .event(0, "the VM", |event| match event.kind {
            EventKind::VmStarted { pid, .. } => Some(pid),
            _ => None,
        })
        .await;
    bench.line("hoarder", "taken").await;
    let taken = guest_memory(vmm);
    assert!(
        taken > TAKEN,
        "the workload's memory is the host's: {taken}"
    );
    let enough = ExecRequest::new(["touch", "/tmp/enough"]);
    let session = bench.supervisor.exec(worker_name("hoarder"), enough).await;
    // The command ends with its session.
    let _session = session.expect("a command runs beside the workload");
    bench.line("hoarder", "freed").await;
    eventually("the memory is the host's again", PATIENCE, || {
        guest_memory(vmm) + TAKEN / 2 < taken
    });
    bench.stop().await;
}
