//! Whom the kernel has killed for want of memory. It says so in its log alone: this kernel counts no
//! VM events, and a cgroup counts only with the memory controller, which costs every allocation
//! something.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek, read};

/// Longer than any record of the kernel's (its CONSOLE_EXT_LOG_MAX).
const RECORD: usize = 8192;
/// Records that are read at one time. A workload that runs as root can write to the log, and would
/// otherwise keep PID 1 reading for ever.
const MOST_RECORDS: usize = 4096;
/// Victims that nobody has asked for yet; a guest in which the killer runs wild keeps the newest.
const MOST_VICTIMS: usize = 16;

/// A process that the kernel has killed for want of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its number.
    pub pid: GuestPid,
    /// As `/proc/PID/comm` named it, at most 15 bytes of whatever the workload chose.
    pub name: String,
}

/// `/dev/kmsg`, from its end on (the kernel's Documentation/ABI/testing/dev-kmsg).
#[derive(Debug)]
pub struct KernelLog {
    records: OwnedFd,
    victims: VecDeque<Victim>,
}

impl KernelLog {
    /// Only what the kernel says from now on counts.
    pub fn open() -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let records = open("/dev/kmsg", flags, Mode::empty())?;
        lseek(&records, 0, Whence::SeekEnd)?;
        Ok(Self {
            records,
            victims: VecDeque::new(),
        })
    }

    /// Readable when the kernel has said something.
    pub fn records(&self) -> BorrowedFd<'_> {
        self.records.as_fd()
    }

    /// Takes in what the kernel has said since the last look. False: there is more.
    pub fn read(&mut self) -> bool {
        let mut record = [0; RECORD];
        for _ in 0..MOST_RECORDS {
            match read(&self.records, &mut record) {
                Ok(0) => return true,
                Ok(count) => {
                    if let Some(victim) = victim(&record[..count]) {
                        self.victims.push_back(victim);
                    }
                    if self.victims.len() > MOST_VICTIMS {
                        self.victims.pop_front();
                    }
                }
                // Records were overwritten before they were read; the next read goes on behind.
                Err(Errno::EPIPE | Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        false
    }

    /// Whether this process is among the victims; it is asked for once.
    pub fn take(&mut self, pid: GuestPid) -> bool {
        let before = self.victims.len();
        self.victims.retain(|victim| victim.pid != pid);
        self.victims.len() < before
    }

    /// The victims but for this process, each of which is told once.
    pub fn take_others(&mut self, kept: Option<GuestPid>) -> Vec<Victim> {
        let (kept, others) = std::mem::take(&mut self.victims)
            .into_iter()
            .partition(|victim| Some(victim.pid) == kept);
        self.victims = kept;
        others.into_iter().collect()
    }
}

/// `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`, where the text says `Killed process PID (NAME)`.
fn victim(record: &[u8]) -> Option<Victim> {
    let text = String::from_utf8_lossy(record);
    let (head, text) = text.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // Facility 0 is the kernel's own; what programs write has another one.
    if priority >= 8 || !text.to_ascii_lowercase().contains("out of memory") {
        return None;
    }
    let (pid, rest) = text.split_once("Killed process ")?.1.split_once(" (")?;
    // A name may hold any byte, a parenthesis too; the kernel's next field ends it.
    let name = rest
        .rsplit_once(") total-vm:")
        .map_or(rest, |(name, _)| name);
    Some(Victim {
        pid: GuestPid(pid.parse().ok()?),
        name: name.chars().filter(|c| !c.is_control()).take(16).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VICTIM: &str = "Killed process 114 (python3) total-vm:9kB, anon-rss:8kB, UID:1000";

    #[test]
    fn the_victim_is_told_from_its_like() {
        let of = |record: &str| victim(record.as_bytes()).map(|v| (v.pid.0, v.name));
        let python = Some((114, String::from("python3")));
        for (record, is) in [
            (format!("3,510,9000,-;Out of memory: {VICTIM}\n"), &python),
            (
                format!("3,5,9,-;Memory cgroup out of memory: {VICTIM}\n"),
                &python,
            ),
            (
                format!("3,5,9,-;Out of memory (oom_kill_allocating_task): {VICTIM}"),
                &python,
            ),
            (format!("12,510,9000,-;Out of memory: {VICTIM}\n"), &None),
            (format!("3,510,9000,-;{VICTIM}\n"), &None),
            (format!("Out of memory: {VICTIM}"), &None),
        ] {
            assert_eq!(of(&record), *is, "{record}");
        }
        assert_eq!(
            of("3,5,9,-;Out of memory: Killed process 7 (a) (b\u{1b}) total-vm:9kB"),
            Some((7, "a) (b".into()))
        );
    }

    #[test]
    fn victims_are_asked_for_once_and_bounded() {
        let null = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        let mut log = KernelLog {
            records: null,
            victims: (1..=3)
                .map(|pid| Victim {
                    pid: GuestPid(pid),
                    name: "x".into(),
                })
                .collect(),
        };
        let others = log.take_others(Some(GuestPid(2)));
        let others: Vec<i32> = others.iter().map(|victim| victim.pid.0).collect();
        assert_eq!(others, [1, 3]);
        assert!(log.take(GuestPid(2)) && !log.take(GuestPid(2)));
        assert!(log.read());
    }

    proptest! {
        #[test]
        fn any_record_is_survived(record in prop::collection::vec(any::<u8>(), 0..300)) {
            victim(&record);
        }
    }
}
