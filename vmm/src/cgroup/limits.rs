//! How much a VM may use of its host. Pure.
//!
//! These limits are for what should not happen: a VMM or a file server that has been taken over, or
//! that leaks. So each is what the parts of a VM bound themselves to, taken together, and a VM as it
//! should be never meets one of them.

use crate::host::Acceleration;

const MIB: u64 = 1 << 20;

/// A VMM's own memory, its devices' buffers, both shims and the file server without its files.
const PROCESSES_BYTES: u64 = 192 * MIB;
/// What a file server holds for its guest: half a million descriptors, systemd's hard limit, at a KiB
/// and a half of the kernel's memory each; or, without descriptors, a million inodes at half a KiB of
/// its own.
const FILES_BYTES: u64 = 768 * MIB;
/// Of the guest's memory, the part that page tables take: eight bytes for a page of 4 KiB, in each of
/// two processes and, under KVM, once more.
const PAGE_TABLES: u64 = 128;
/// Translated code, under TCG: QEMU takes up to an eighth of the host's memory for it, and no more
/// than this.
const TRANSLATED_BYTES: u64 = 1024 * MIB;

/// Threads beside the virtual CPUs: two shims of two processes, QEMU's pool of 64 and its few others,
/// libkrun's few per device, the file server's few per export.
const PROCESSES: u64 = 256;

/// CPU time is counted in periods of so many microseconds: the kernel's default.
const PERIOD_MICROSECONDS: u64 = 100_000;
/// CPUs that the devices, the files and the network of a VM may take beside its own.
const BESIDE: u64 = 1;
/// Weight of one CPU; the kernel's default for a cgroup.
const WEIGHT: u64 = 100;
/// The kernel's greatest.
const MAX_WEIGHT: u64 = 10_000;

/// Limits of one VM's processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory; the same again of swap.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
}

impl Limits {
    /// For a VM with so much memory and so many CPUs on a host with `host_memory` bytes.
    pub fn for_vm(
        guest_memory: u64,
        cpus: u32,
        acceleration: Acceleration,
        host_memory: u64,
    ) -> Self {
        let translated = match acceleration {
            Acceleration::Kvm => 0,
            Acceleration::Tcg => TRANSLATED_BYTES.min(host_memory / 8),
        };
        Self {
            memory: guest_memory
                .saturating_add(guest_memory / PAGE_TABLES)
                .saturating_add(PROCESSES_BYTES + FILES_BYTES + translated),
            processes: PROCESSES + u64::from(cpus),
            cpus,
        }
    }

    /// `cpu.max`: time within a period.
    pub(super) fn cpu_max(&self) -> String {
        let cpus = u64::from(self.cpus) + BESIDE;
        format!("{} {PERIOD_MICROSECONDS}", cpus * PERIOD_MICROSECONDS)
    }

    /// `cpu.weight`: where time is short, each virtual CPU counts the same.
    pub(super) fn cpu_weight(&self) -> u64 {
        u64::from(self.cpus)
            .saturating_mul(WEIGHT)
            .clamp(1, MAX_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_its_memory_and_what_its_parts_bound_themselves_to() {
        let of = |memory, acceleration, host| Limits::for_vm(memory, 2, acceleration, host).memory;
        let host = 64 << 30;
        assert_eq!(
            of(256 * MIB, Acceleration::Kvm, host),
            (256 + 2 + 960) * MIB
        );
        assert_eq!(
            of(256 * MIB, Acceleration::Tcg, host),
            (256 + 2 + 960 + 1024) * MIB
        );
        assert_eq!(
            of(256 * MIB, Acceleration::Tcg, 4 << 30),
            (256 + 2 + 960 + 512) * MIB
        );
        assert_eq!(of(u64::MAX, Acceleration::Tcg, host), u64::MAX);
    }

    #[test]
    fn cpu_time_is_that_of_its_cpus_and_one_more() {
        let limits = Limits::for_vm(1, 3, Acceleration::Kvm, 1);
        assert_eq!(limits.cpu_max(), "400000 100000");
        assert_eq!(limits.cpu_weight(), 300);
        assert_eq!(limits.processes, 259);
        assert_eq!(Limits { cpus: 0, ..limits }.cpu_weight(), 1);
        assert_eq!(
            Limits {
                cpus: 500,
                ..limits
            }
            .cpu_weight(),
            10_000
        );
    }
}
