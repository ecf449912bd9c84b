//! What QEMU's machines differ in, by the architecture of the guest.
//!
//! Both have their devices on virtio-mmio transports and the ports, network, exports and disks of
//! every guest; none has a disk controller, a bus or a firmware that was not asked for, but what
//! `virt` cannot be without. What is told of x86-64 stands in the module `arguments`. Of QEMU 7.2's
//! `virt` with the Linux 6.12 of libkrunfw for aarch64:
//! * the device tree, which QEMU makes, names the transports, so that it appends nothing to the
//!   kernel's command line;
//! * a reboot and a power-off are PSCI's, which QEMU itself answers;
//! * this kernel tests its ciphers at every boot, unless `cryptomgr.notests=1`: that is 0.57 s of
//!   1.34 s of CPU time from QEMU's start to vm-init and off again;
//! * `-cpu neoverse-n1`, what servers commonly have, costs as much as the older `cortex-a72`
//!   (0.77 s), and `max` a fifth more; interrupts by GICv2 instead of v3 0.05 s more.

use super::arguments::Accelerator;
use crate::guest::GuestArch;

/// A machine of QEMU's.
#[derive(Debug)]
pub(super) struct Board {
    /// QEMU's program.
    pub(super) program: &'static str,
    /// What to do about one that is missing or old.
    pub(super) remedy: &'static str,
    /// Where its version is remembered.
    pub(super) cache_file: &'static str,
    /// virtio-mmio transports.
    pub(super) slots: usize,
    /// QEMU says on the kernel's command line where each of them is.
    pub(super) names_devices: bool,
    /// `-machine` and `-cpu` under KVM.
    kvm: (&'static str, &'static str),
    /// The same in software.
    tcg: (&'static str, &'static str),
    /// What only this machine's kernel is told.
    pub(super) kernel_words: &'static [&'static str],
}

const X86_64: Board = Board {
    program: "qemu-system-x86_64",
    remedy: "on Debian: apt-get install --no-install-recommends qemu-system-x86",
    cache_file: "qemu-version.json",
    slots: 8,
    names_devices: true,
    kvm: ("microvm,accel=kvm,acpi=off", "host"),
    // Nested virtualisation would only be translated once more.
    tcg: ("microvm,accel=tcg,acpi=off", "max,-svm"),
    kernel_words: &["reboot=t"],
};

const AARCH64: Board = Board {
    program: "qemu-system-aarch64",
    remedy: "on Debian: apt-get install --no-install-recommends qemu-system-arm",
    cache_file: "qemu-aarch64-version.json",
    slots: 32,
    names_devices: false,
    kvm: ("virt,accel=kvm,acpi=off,gic-version=host", "host"),
    tcg: ("virt,accel=tcg,acpi=off,gic-version=3", "neoverse-n1"),
    kernel_words: &["cryptomgr.notests=1"],
};

impl Board {
    pub(super) fn of(guest: GuestArch) -> &'static Self {
        match guest {
            GuestArch::X86_64 => &X86_64,
            GuestArch::Aarch64 => &AARCH64,
        }
    }

    /// Where there is none for the host: only named in errors.
    pub(super) fn any() -> &'static Self {
        &X86_64
    }

    /// The values of `-machine` and `-cpu`.
    pub(super) fn machine_and_cpu(&self, accelerator: Accelerator) -> (&'static str, &'static str) {
        match accelerator {
            Accelerator::Kvm => self.kvm,
            Accelerator::Tcg { .. } => self.tcg,
        }
    }
}
