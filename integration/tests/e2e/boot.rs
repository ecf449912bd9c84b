//! A worker from its spec to a running workload in a VM.

use std::time::Duration;

use iii_integration::{Bench, shell};
use iii_proto::control::BootStage;
use iii_supervisor::EventKind;

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_sees_its_own_linux() {
    let script = r#"
        echo "release $(uname -r)"
        echo "init $(cat /proc/1/comm)"
        echo "user $(id -u):$(id -g) $HOME"
        ip -o addr | sed 's/^/addr /'
        mount | sed 's/^/mount /'
        echo "worker $III_WORKER_NAME boot $III_BOOT_ID"
        echo "scheduled $(cut -d' ' -f19,41 /proc/self/stat)"
        ls -d /home/* /root /var/lib/* 2>&1 | sed 's/^/dir /'
        echo end
        exec sleep 1000
    "#;
    let mut bench = Bench::start(vec![shell("look", script)]).await;
    bench.line("look", "end").await;
    assert!(
        bench
            .line("look", "release ")
            .await
            .starts_with("release 6.12.")
    );
    assert_eq!(bench.line("look", "init ").await, "init vm-init");
    assert_eq!(
        bench.line("look", "user ").await,
        "user 1000:1000 /home/worker"
    );
    // Nice 0 and SCHED_OTHER (proc_pid_stat(5)), whatever PID 1 has for itself.
    assert_eq!(bench.line("look", "scheduled ").await, "scheduled 0 0");
    let (boot, _, _) = bench.ready(0, "look").await;
    assert_eq!(
        bench.line("look", "worker ").await,
        format!("worker look boot {boot}")
    );
    let lines: Vec<String> = bench
        .lines
        .iter()
        .map(|l| String::from_utf8_lossy(&l.text).into_owned())
        .collect();
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("addr ") && l.contains("100.96.0.2/30"))
    );
    assert!(
        !lines
            .iter()
            .any(|l| l.starts_with("addr ") && l.contains("fe80")),
        "nobody is there to be spoken to by a link-local address"
    );
    let virtiofs = lines
        .iter()
        .filter(|l| l.starts_with("mount ") && l.contains("virtiofs"));
    assert!(virtiofs.count() <= 1, "nothing of the host but /usr");
    assert!(
        !lines
            .iter()
            .any(|l| l.starts_with("dir /home/") && l != "dir /home/worker")
    );
    // The guest's clock is the host's: at the workload's first line it shows the time of the launch
    // and all that the guest has run since then. Half of that is the margin for a busy host.
    let launched = bench
        .seen
        .iter()
        .find(|e| matches!(e.kind, EventKind::VmStarted { .. }))
        .map(|e| Duration::from_millis(e.time_unix_ms))
        .unwrap();
    let stages: Vec<(BootStage, Duration)> = bench
        .seen
        .iter()
        .filter_map(|e| match e.kind {
            EventKind::GuestStage { stage, uptime } => Some((stage, uptime)),
            _ => None,
        })
        .collect();
    assert!(
        stages
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1),
        "{stages:?}"
    );
    let (last, ran) = stages[stages.len() - 1];
    assert_eq!(last, BootStage::Prepared);
    let shown = Duration::from_nanos(bench.lines[0].time_unix_ns);
    assert!(
        shown.saturating_sub(launched) >= ran / 2,
        "{shown:?} {launched:?} {ran:?}"
    );
    let bench = bench.stop().await;
    println!("{}", bench.story());
}
