//! What a VM costs this host in memory: its VMM, its file server, their shims and the supervisor's
//! share, beside what its guest uses by its own kernel's word.

use std::fs;
use std::time::Duration;

use iii_integration::PATIENCE;
use iii_integration::program::{Run, descendants, eventually};
use iii_integration::project::Project;
use nix::sys::signal::Signal;
use serde_json::Value;

/// How many VMs are measured together: one, and several for what they share.
pub(crate) const WORKERS: [usize; 2] = [1, 3];

/// Between two looks at whether all is quiet.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks that must agree: what a guest frees after its boot goes back to the host within seconds.
const QUIET: usize = 5;
/// Looks until it is given up on: a figure of something that still moves is none.
const LOOKS: usize = 60;
/// How far they may lie apart.
const TOLERANCE_KIB: u64 = 512;

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Occupied {
    /// Each page divided by the number of processes that have it.
    pub(crate) proportional: u64,
    /// Each page counted for each process that has it.
    pub(crate) resident: u64,
}

impl Occupied {
    fn add(&mut self, other: Self) {
        self.proportional += other.proportional;
        self.resident += other.resident;
    }
}

/// All processes of one program.
#[derive(Debug)]
pub(crate) struct Part {
    /// The program.
    pub(crate) name: &'static str,
    /// Of all of them, without the guests' memory.
    pub(crate) own: Occupied,
    /// How many there are.
    pub(crate) processes: usize,
}

/// What was found while all VMs were idle.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What each VM was given, MiB.
    pub(crate) vm_mib: u64,
    /// The guests' memory as far as it takes up the host's.
    pub(crate) guests: Occupied,
    /// What the guests' kernels say that is in use, KiB.
    pub(crate) used_in_guests: u64,
    /// In the order of [`PROGRAMS`].
    pub(crate) parts: Vec<Part>,
}

/// What runs for a worker: its name here, and how the kernel names its processes.
const PROGRAMS: [(&str, &str); 4] = [
    ("QEMU", "qemu-system"),
    ("iii-vfs", "iii-vfs"),
    ("iii-shim", "iii-shim"),
    ("iii-super", "iii-super"),
];

impl Memory {
    /// The supervisor's own.
    pub(crate) fn supervisor(&self) -> Occupied {
        self.parts.last().map_or_else(Occupied::default, |p| p.own)
    }

    /// Everything, the guests' memory included.
    pub(crate) fn sum(&self) -> Occupied {
        let mut sum = self.guests;
        for part in &self.parts {
            sum.add(part.own);
        }
        sum
    }
}

/// Runs so many idle workers with the memory that they have by default, and looks at them.
pub(crate) fn measure(workers: usize) -> Result<Memory, String> {
    let names: Vec<String> = (0..workers).map(|n| format!("idle{n}")).collect();
    let entry = |name: &String| format!("  {name}: {{command: [/bin/sleep, '100000']}}\n");
    let text: String = names.iter().map(entry).collect();
    let project = Project::new(&format!("workers:\n{text}"));
    let mut run = project.start(&["run", "--json"]);
    eventually("all are ready", PATIENCE, || {
        let said = project.says(&["ps", "--json"]);
        said.code == 0 && all_ready(&said.json(), workers)
    });
    let memory = quiet(&run).and_then(|memory| with_guests(memory, &project));
    run.signal(Signal::SIGINT);
    let status = run.wait();
    if !status.success() {
        return Err(format!("iii-super ended with {status}"));
    }
    memory
}

fn all_ready(said: &Value, workers: usize) -> bool {
    said["workers"].as_array().is_some_and(|all| {
        all.len() == workers && all.iter().all(|worker| worker["state"] == "ready")
    })
}

/// Looks again and again until nothing moves.
fn quiet(run: &Run) -> Result<Memory, String> {
    let mut seen: Vec<u64> = Vec::new();
    for _ in 0..LOOKS {
        let memory = look(run.child.id())?;
        seen.push(memory.sum().proportional);
        let last = &seen[seen.len().saturating_sub(QUIET)..];
        let (least, most) = (last.iter().min(), last.iter().max());
        if let (QUIET, Some(least), Some(most)) = (last.len(), least, most)
            && most - least <= TOLERANCE_KIB
        {
            return Ok(memory);
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("the VMs' memory does not settle: {seen:?} KiB"))
}

fn look(supervisor: u32) -> Result<Memory, String> {
    let mut memory = Memory {
        vm_mib: 0,
        guests: Occupied::default(),
        used_in_guests: 0,
        parts: PROGRAMS
            .iter()
            .map(|(name, _)| Part {
                name,
                own: Occupied::default(),
                processes: 0,
            })
            .collect(),
    };
    for pid in std::iter::once(supervisor).chain(descendants(supervisor)) {
        let text = |file| {
            fs::read_to_string(format!("/proc/{pid}/{file}"))
                .map_err(|error| format!("failed to read {file} of process {pid}: {error}"))
        };
        let name = text("comm")?;
        let at = PROGRAMS
            .iter()
            .position(|(_, process)| name.starts_with(process))
            .ok_or_else(|| format!("{} is none of a worker's programs", name.trim()))?;
        let (rollup, status) = (text("smaps_rollup")?, text("status")?);
        let kib = |text: &str, key: &str| {
            field(text, key).ok_or_else(|| format!("no {key} of process {pid}"))
        };
        let shared = kib(&rollup, "Pss_Shmem")?;
        let part = &mut memory.parts[at];
        part.processes += 1;
        part.own.add(Occupied {
            proportional: kib(&rollup, "Pss")? - shared,
            resident: kib(&status, "RssAnon")? + kib(&status, "RssFile")?,
        });
        // The guest's memory is a file in memory, which its VMM and its file server map. It counts
        // once: as the VMM's.
        memory.guests.proportional += shared;
        if PROGRAMS[at].0 == "QEMU" {
            memory.guests.resident += kib(&status, "RssShmem")?;
        }
    }
    Ok(memory)
}

fn with_guests(mut memory: Memory, project: &Project) -> Result<Memory, String> {
    let said = project.says(&["ps", "--stats", "--json"]).json();
    let workers = said["workers"].as_array().ok_or("ps knows no workers")?;
    for worker in workers {
        let usage = &worker["usage"];
        let number = |value: &Value| {
            value
                .as_u64()
                .ok_or_else(|| format!("a guest does not say what it uses: {usage}"))
        };
        let guest = &usage["guest_memory"];
        let used = number(&guest["total"])?.saturating_sub(number(&guest["available"])?);
        memory.used_in_guests += used / 1024;
        memory.vm_mib = number(&usage["vm_memory"])? >> 20;
    }
    Ok(memory)
}

/// A line of `/proc/PID/status` or `smaps_rollup`, in KiB: proc_pid_status(5), proc_pid_smaps(5).
fn field(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}
