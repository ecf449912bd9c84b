//! Whom the kernel has killed for want of memory. It says so in its log alone: this kernel counts no
//! VM events, and a cgroup counts only with the memory controller, which costs every allocation
//! something.

use std::os::fd::OwnedFd;

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

/// `/dev/kmsg`, from its end on (the kernel's Documentation/ABI/testing/dev-kmsg).
#[derive(Debug)]
pub struct KernelLog {
    records: OwnedFd,
}

impl KernelLog {
    /// Only what the kernel says from now on counts.
    pub fn open() -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let records = open("/dev/kmsg", flags, Mode::empty())?;
        lseek(&records, 0, Whence::SeekEnd)?;
        Ok(Self { records })
    }

    /// Whether the kernel has said since the last look that it killed this process for want of
    /// memory.
    pub fn killed_for_memory(&mut self, pid: GuestPid) -> bool {
        let mut record = [0; RECORD];
        let mut killed = false;
        for _ in 0..MOST_RECORDS {
            match read(&self.records, &mut record) {
                Ok(0) => break,
                Ok(count) => killed |= names_victim(&record[..count], pid),
                // Records were overwritten before they were read; the next read goes on behind.
                Err(Errno::EPIPE | Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        killed
    }
}

/// `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`, where the text says `Killed process PID (NAME)`.
fn names_victim(record: &[u8], pid: GuestPid) -> bool {
    let text = String::from_utf8_lossy(record);
    let Some((head, text)) = text.split_once(';') else {
        return false;
    };
    let priority = head.split(',').next().and_then(|p| p.parse::<u32>().ok());
    // Facility 0 is the kernel's own; what programs write has another one.
    priority.is_some_and(|priority| priority < 8)
        && text.to_ascii_lowercase().contains("out of memory")
        && text.contains(&format!("Killed process {pid} ("))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VICTIM: &str = "Killed process 114 (python3) total-vm:9kB, anon-rss:8kB, UID:1000";

    #[test]
    fn the_victim_is_told_from_its_like() {
        for (record, is) in [
            (format!("3,510,9000,-;Out of memory: {VICTIM}\n"), true),
            (
                format!("3,5,9,-;Memory cgroup out of memory: {VICTIM}\n"),
                true,
            ),
            (
                format!("3,5,9,-;Out of memory (oom_kill_allocating_task): {VICTIM}"),
                true,
            ),
            (format!("12,510,9000,-;Out of memory: {VICTIM}\n"), false),
            (format!("3,510,9000,-;{VICTIM}\n"), false),
            (
                "3,5,9,-;Out of memory: Killed process 1140 (python3)".into(),
                false,
            ),
            (format!("Out of memory: {VICTIM}"), false),
        ] {
            assert_eq!(
                names_victim(record.as_bytes(), GuestPid(114)),
                is,
                "{record}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_record_is_survived(record in prop::collection::vec(any::<u8>(), 0..300)) {
            names_victim(&record, GuestPid(1));
        }
    }
}
