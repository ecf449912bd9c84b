//! The tree's own weight: a thousand workers, with a scripted process in place of each VMM.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iii_actors::event::{Event, EventBus, EventKind};
use iii_actors::logs::LogBus;
use iii_actors::plan::{Environment, WorkerPlan};
use iii_actors::spec::WorkerSpec;
use iii_actors::{ActorSystem, Fault};
use iii_integration::{binaries, worker_name};
use iii_net::Policy;
use iii_proto::guest::{GuestUser, Root, Upper};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::process::Spawner;
use iii_vmm::vmm::Vmm;
use tokio::sync::broadcast;

use crate::product::at_once;
use crate::scripted::Scripted;

const WORKERS: usize = 1000;
/// How long the idle tree is watched.
const IDLE: Duration = Duration::from_secs(20);

/// What was found.
pub(crate) struct Scale {
    pub(crate) workers: usize,
    /// Resident memory per worker, KiB.
    pub(crate) memory_kib: f64,
    /// Threads per worker: that of its network loop, which is its only device of ours.
    pub(crate) threads: f64,
    /// Of one core, in percent, for all workers together.
    pub(crate) idle_cpu_percent: f64,
    /// Until all were ready.
    pub(crate) start: Duration,
    /// From the order to kill every VMM until all were ready again.
    pub(crate) restart: Duration,
    /// Events per second during that.
    pub(crate) events_per_second: f64,
}

struct Own {
    resident_kib: u64,
    threads: u64,
    cpu: Duration,
}

/// This process, by proc(5).
fn own() -> Result<Own, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let field = |name: &str| -> Result<u64, String> {
        let line = status.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("no {name} in /proc/self/status"))
    };
    let stat = fs::read_to_string("/proc/self/stat").map_err(|e| e.to_string())?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // utime and stime, in ticks of 10 ms.
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Ok(Own {
        resident_kib: field("VmRSS:")?,
        threads: field("Threads:")?,
        cpu: Duration::from_millis(ticks * 10),
    })
}

fn plan(name: &str, network: bool) -> WorkerPlan {
    let mut spec = WorkerSpec::new(worker_name(name), vec!["scripted".into()]);
    spec.allow_faults = true;
    spec.vm_restart = at_once();
    if !network {
        spec.network.mode = iii_actors::spec::NetworkMode::None;
    }
    WorkerPlan {
        spec,
        kernel: "/dev/null".into(),
        initramfs: Arc::from([]),
        root: Root {
            lowers: Vec::new(),
            skeleton: true,
            upper: Upper::Tmpfs { size_bytes: 0 },
        },
        mounts: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
        user: GuestUser::Named("nobody".into()),
        cwd: "/".into(),
        stop_signal: 15,
        policy: Policy::default(),
        listeners: Vec::new(),
    }
}

/// Reads events until `count` different workers have been ready; how many events that took.
async fn ready(events: &mut broadcast::Receiver<Event>, count: usize) -> Result<usize, String> {
    let mut seen = BTreeSet::new();
    let mut read = 0;
    while seen.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(120), events.recv());
        let event = event
            .await
            .map_err(|_| format!("only {} of {count} workers became ready", seen.len()))?;
        let event = event.map_err(|e| e.to_string())?;
        read += 1;
        if let (EventKind::WorkloadReady { .. }, Some(name)) = (&event.kind, event.worker) {
            seen.insert(name);
        }
    }
    Ok(read)
}

/// Runs the workers and looks at this process.
pub(crate) fn measure(network: bool) -> Result<Scale, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(run(network))
}

async fn run(network: bool) -> Result<Scale, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let program = std::env::current_exe().map_err(|e| text(&e))?;
    let vmm: Arc<dyn Vmm> = Arc::new(Scripted { program });
    let bus = EventBus::new();
    let environment = Environment {
        vmm_info: vmm.check().map_err(|e| text(&e))?,
        vmm,
        spawner: Spawner::global().map_err(|e| text(&e))?,
        places: HelperPlaces {
            directory: Some(binaries()),
        },
        vfs_program: binaries().join("iii-vfs"),
        bus: bus.clone(),
        logs: LogBus::default(),
        keeper: None,
    };
    let system = ActorSystem::start(environment).map_err(|e| text(&e))?;
    let mut events = bus.subscribe();
    // The first worker makes what all of them share.
    system
        .add(plan("first", network), None, true)
        .await
        .map_err(|e| text(&e))?;
    ready(&mut events, 1).await?;
    let before = own()?;
    let begin = Instant::now();
    for n in 0..WORKERS {
        let added = system.add(plan(&format!("w{n}"), network), None, true);
        added.await.map_err(|e| text(&e))?;
        // Readers that are slow are told that they missed events; this one must miss none.
        if n % 100 == 99 {
            ready(&mut events, 100).await?;
        }
    }
    let start = begin.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = own()?;
    tokio::time::sleep(IDLE).await;
    let after = own()?;
    let begin = Instant::now();
    let mut events = bus.subscribe();
    let reading = tokio::spawn(async move { ready(&mut events, WORKERS).await });
    for n in 0..WORKERS {
        let name = worker_name(&format!("w{n}"));
        system
            .inject(name, Fault::KillVmm)
            .await
            .map_err(|e| text(&e))?;
    }
    let read = reading.await.map_err(|e| text(&e))??;
    let restart = begin.elapsed();
    system.stop_all(true);
    system.idle().await;
    let per_worker = |now: u64, then: u64| now.saturating_sub(then) as f64 / WORKERS as f64;
    Ok(Scale {
        workers: WORKERS,
        memory_kib: per_worker(quiet.resident_kib, before.resident_kib),
        threads: per_worker(quiet.threads, before.threads),
        idle_cpu_percent: (after.cpu - quiet.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0,
        start,
        restart,
        events_per_second: read as f64 / restart.as_secs_f64(),
    })
}
