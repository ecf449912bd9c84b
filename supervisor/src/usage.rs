//! What a worker costs this host, and what it uses of what it was given. Read when somebody asks: the
//! kernel counts anyhow, and nothing of ours counts meanwhile.

use std::time::Duration;

use iii_actors::event::ActorKind;
use iii_actors::tree::ChildState;
use iii_actors::usage::{NetworkUsage, WorkerUsage};
use iii_proto::control::GuestMemory;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What a worker uses, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// When, by this host's monotonic clock in nanoseconds: for the difference of two of these.
    pub clock_ns: u64,
    /// CPU time of its VMM and its file server in nanoseconds, since each was started; `None`: neither
    /// runs.
    pub cpu_ns: Option<u64>,
    /// Bytes of this host's memory that they occupy: the guest's memory as far as it was ever
    /// touched, and their own.
    pub memory: Option<u64>,
    /// CPUs of its VM.
    pub cpus: u8,
    /// Bytes of memory of its VM.
    pub vm_memory: u64,
    /// What the guest's kernel says of its memory; `None`: no guest runs, or it is too busy to say.
    pub guest_memory: Option<GuestMemory>,
    /// What has passed between it and the network since the supervisor's start; `None`: it has none.
    pub network: Option<NetworkUsage>,
    /// Its parts, in the order of their start; none: nothing of it runs.
    pub parts: Vec<Part>,
}

/// A part of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Part {
    /// Which.
    pub actor: ActorKind,
    /// Where it stands.
    pub state: ChildState,
    /// Its restarts after failures.
    pub restarts: u64,
    /// The process that it runs on this host, if it runs one.
    pub pid: Option<u32>,
    /// That process's CPU time in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Bytes of this host's memory that it occupies. The file server's share of the guest's memory
    /// counts as the VMM's alone.
    pub memory: Option<u64>,
}

impl From<WorkerUsage> for Usage {
    fn from(usage: WorkerUsage) -> Self {
        let part = |part: iii_actors::usage::PartUsage| Part {
            actor: part.actor,
            state: part.state,
            restarts: part.restarts,
            cpu_ns: part.pid.and_then(cpu_time).map(nanoseconds),
            memory: part.pid.and_then(|pid| memory(pid, part.actor)),
            pid: part.pid,
        };
        let parts: Vec<Part> = usage.parts.into_iter().map(part).collect();
        let sum = |of: fn(&Part) -> Option<u64>| {
            let mut known = parts.iter().filter_map(of).peekable();
            known.peek()?;
            Some(known.sum())
        };
        Self {
            clock_ns: clock_gettime(ClockId::CLOCK_MONOTONIC)
                .map_or(0, |now| nanoseconds(Duration::from(now))),
            cpu_ns: sum(|part| part.cpu_ns),
            memory: sum(|part| part.memory),
            cpus: usage.cpus,
            vm_memory: usage.memory,
            guest_memory: usage.guest_memory,
            network: usage.network,
            parts,
        }
    }
}

impl Usage {
    /// How busy one CPU was with it since an earlier moment, in percent: two busy ones are 200.
    /// `None`: nothing of it runs, or not yet for so long.
    pub fn cpu_percent_since(&self, earlier: &Self) -> Option<f64> {
        let time = self.clock_ns.checked_sub(earlier.clock_ns)?;
        if time == 0 {
            return None;
        }
        let mut busy = None;
        for part in self.parts.iter().filter(|part| part.cpu_ns.is_some()) {
            let before = (earlier.parts.iter()).find(|before| before.pid == part.pid);
            let before = before.and_then(|before| before.cpu_ns);
            // One that has been started since has spent all of its time since.
            let spent = part.cpu_ns?.saturating_sub(before.unwrap_or(0));
            *busy.get_or_insert(0) += spent;
        }
        Some(busy? as f64 * 100.0 / time as f64)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time of all threads of a process that were ever there; `None`: it has ended.
fn cpu_time(pid: u32) -> Option<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    let clock = clock_getcpuclockid(pid).ok()?;
    Some(Duration::from(clock_gettime(clock).ok()?))
}

/// What a process occupies.
fn memory(pid: u32, actor: ActorKind) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let own = resident(&status, "RssAnon")? + resident(&status, "RssFile")?;
    Some(match actor {
        // The guest's memory, which is a file in memory.
        ActorKind::Vm => own + resident(&status, "RssShmem")?,
        ActorKind::Dns | ActorKind::NetPoll | ActorKind::Fs => own,
    })
}

/// A line of `/proc/PID/status` in bytes: proc_pid_status(5).
fn resident(status: &str, key: &str) -> Option<u64> {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(clock_ns: u64, parts: &[(u32, u64)]) -> Usage {
        let parts = parts.iter().map(|(pid, cpu_ns)| Part {
            actor: ActorKind::Vm,
            state: ChildState::Up,
            restarts: 0,
            pid: Some(*pid),
            cpu_ns: Some(*cpu_ns),
            memory: None,
        });
        Usage {
            clock_ns,
            cpu_ns: None,
            memory: None,
            cpus: 1,
            vm_memory: 0,
            guest_memory: None,
            network: None,
            parts: parts.collect(),
        }
    }

    #[test]
    fn a_cpu_that_was_busy_for_half_of_the_time_is_half_busy() {
        let earlier = usage(1_000, &[(7, 500), (8, 100)]);
        let percent = usage(2_000, &[(7, 900), (8, 200)]).cpu_percent_since(&earlier);
        assert_eq!(percent, Some(50.0));
        // A successor's time is its own, not the difference to its predecessor's.
        let percent = usage(2_000, &[(9, 250)]).cpu_percent_since(&earlier);
        assert_eq!(percent, Some(25.0));
        assert_eq!(usage(2_000, &[]).cpu_percent_since(&earlier), None);
        assert_eq!(earlier.cpu_percent_since(&earlier), None);
        assert_eq!(earlier.cpu_percent_since(&usage(2_000, &[])), None);
    }

    #[test]
    fn a_process_of_this_host_is_measured_and_one_that_is_not_there_is_not() {
        let me = std::process::id();
        let before = cpu_time(me).unwrap();
        let mut sum = 0u64;
        while cpu_time(me).unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let occupied = memory(me, ActorKind::Vm).unwrap();
        assert!(occupied > 100 * 1024, "{occupied}");
        assert!(memory(me, ActorKind::Fs).unwrap() <= occupied);
        // Linux gives none that is greater (PID_MAX_LIMIT).
        assert_eq!(cpu_time(1 << 22), None);
        assert_eq!(memory(1 << 22, ActorKind::Vm), None);
    }

    #[test]
    fn resident_memory_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tqemu\nRssAnon:\t    1234 kB\nRssFile:\t junk\n";
        assert_eq!(resident(status, "RssAnon"), Some(1234 * 1024));
        assert_eq!(resident(status, "RssFile"), None);
        assert_eq!(resident(status, "RssShmem"), None);
    }
}
