//! The tree's own weight: a thousand workers, with a scripted process in place of each VMM.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
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
use iii_vmm::vmms::{Candidate, Vmms};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::broadcast;

use crate::product::at_once;
use crate::scripted::Scripted;

/// The argument under which this program is one measurement: memory that an earlier one has freed
/// would make the next one's workers look small.
pub(crate) const ARGUMENT: &str = "--scale-of";

const WORKERS: usize = 1000;
/// Workers that are started at once.
const BATCH: usize = 100;
/// Connections that may wait to be accepted.
const QUEUE: u32 = 4096;
/// From the last worker's readiness to idleness.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the idle tree is watched: four heartbeats.
const IDLE: Duration = Duration::from_secs(30);

/// What each worker has of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Its guest has found the gateway and holds a connection to the host, as a worker does to its
    /// engine.
    Connected,
    /// Its guest has found the gateway.
    Greeted,
    None,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "with a network and an idle connection each",
            Self::Greeted => "with a network each",
            Self::None => "without a network",
        })
    }
}

impl Network {
    pub(crate) const ALL: [Self; 3] = [Self::Connected, Self::Greeted, Self::None];

    fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Greeted => "greeted",
            Self::None => "none",
        }
    }
}

/// What was found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scale {
    pub(crate) workers: usize,
    /// Resident memory per worker, KiB.
    pub(crate) memory_kib: f64,
    /// The same once every VM was restarted and all is quiet again.
    pub(crate) memory_after_restart_kib: f64,
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
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_err(|e| e.to_string())?;
    Ok(Own {
        resident_kib: field("VmRSS:")?,
        threads: field("Threads:")?,
        cpu: cpu.into(),
    })
}

fn plan(name: &str, network: Network, port: u16) -> WorkerPlan {
    let mut spec = WorkerSpec::new(worker_name(name), vec!["scripted".into()]);
    spec.allow_faults = true;
    spec.vm_restart = at_once();
    if network == Network::None {
        spec.network.mode = iii_actors::spec::NetworkMode::None;
    }
    WorkerPlan {
        vmm: None,
        spec,
        kernel: "/dev/null".into(),
        initramfs: Arc::default(),
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
        policy: Policy {
            host_ports: BTreeSet::from([port]),
            ..Policy::default()
        },
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

/// What the guests connect to: takes a word from each, gives it back, and holds the connection until
/// the guest ends it. One thread for all of them, and none waits for another: a guest that was killed
/// before it said anything must not keep its neighbours.
fn host_service() -> Result<u16, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|e| e.to_string())?;
    let listener = {
        let _within = runtime.enter();
        let socket = tokio::net::TcpSocket::new_v4().map_err(|e| e.to_string())?;
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        socket.bind(address).map_err(|e| e.to_string())?;
        // Room for all at once: what finds the queue full is tried again by the host's kernel after
        // one second, then two, four and so on, which would be measured in our place.
        socket.listen(QUEUE).map_err(|e| e.to_string())?
    };
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    std::thread::spawn(move || {
        runtime.block_on(async {
            while let Ok((mut connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut word = [0; 5];
                    // A guest that was not answered says so.
                    if connection.read_exact(&mut word).await.is_ok()
                        && connection.write_all(&word).await.is_ok()
                    {
                        drop(connection.read_u8().await);
                    }
                });
            }
        });
    });
    Ok(port)
}

/// Measures in a process of its own.
pub(crate) fn measure(network: Network) -> Result<Scale, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program)
        .args([ARGUMENT, network.name(), &WORKERS.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!(
            "the measurement {network} failed: {}",
            output.status
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}

/// That process: runs the workers and looks at itself.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let [name, workers] = arguments else {
        return Err(format!("{arguments:?} are not a network and a number"));
    };
    let network = Network::ALL.into_iter().find(|n| n.name() == name);
    let network = network.ok_or_else(|| format!("{name} is no network"))?;
    let workers = workers.parse().map_err(|e| format!("{workers}: {e}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let scale = runtime.block_on(look(network, workers))?;
    println!(
        "{}",
        serde_json::to_string(&scale).map_err(|e| e.to_string())?
    );
    Ok(())
}

async fn look(network: Network, workers: usize) -> Result<Scale, String> {
    let text = |e: &dyn fmt::Display| e.to_string();
    let port = host_service()?;
    let program = std::env::current_exe().map_err(|e| text(&e))?;
    let vmm: Arc<dyn Vmm> = Arc::new(Scripted {
        program,
        connect: (network == Network::Connected).then_some(port),
    });
    let bus = EventBus::new();
    let environment = Environment {
        vmms: Arc::new(Vmms::only(Candidate::check(vmm).map_err(|e| text(&e))?)),
        spawner: Spawner::global().map_err(|e| text(&e))?,
        places: HelperPlaces::in_directory(binaries()),
        bus: bus.clone(),
        logs: LogBus::default(),
        cgroups: None,
        keeper: None,
    };
    let system = ActorSystem::start(environment).map_err(|e| text(&e))?;
    let mut events = bus.subscribe();
    // The first worker makes what all of them share.
    system
        .add(plan("first", network, port), None, true)
        .await
        .map_err(|e| text(&e))?;
    ready(&mut events, 1).await?;
    let before = own()?;
    let begin = Instant::now();
    for n in 0..workers {
        let added = system.add(plan(&format!("w{n}"), network, port), None, true);
        added.await.map_err(|e| text(&e))?;
        // Readers that are slow are told that they missed events; this one must miss none.
        if n % BATCH == BATCH - 1 {
            ready(&mut events, BATCH).await?;
        }
    }
    let start = begin.elapsed();
    tokio::time::sleep(SETTLE).await;
    let quiet = own()?;
    tokio::time::sleep(IDLE).await;
    let after = own()?;
    let begin = Instant::now();
    let mut events = bus.subscribe();
    let reading = tokio::spawn(async move { ready(&mut events, workers).await });
    for n in 0..workers {
        let name = worker_name(&format!("w{n}"));
        system
            .inject(name, Fault::KillVmm)
            .await
            .map_err(|e| text(&e))?;
    }
    let read = reading.await.map_err(|e| text(&e))??;
    let restart = begin.elapsed();
    tokio::time::sleep(SETTLE).await;
    let restarted = own()?;
    system.stop_all(true);
    system.idle().await;
    let per_worker = |now: u64, then: u64| now.saturating_sub(then) as f64 / workers as f64;
    Ok(Scale {
        workers,
        memory_kib: per_worker(quiet.resident_kib, before.resident_kib),
        memory_after_restart_kib: per_worker(restarted.resident_kib, before.resident_kib),
        threads: per_worker(quiet.threads, before.threads),
        idle_cpu_percent: (after.cpu - quiet.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0,
        start,
        restart,
        events_per_second: read as f64 / restart.as_secs_f64(),
    })
}
