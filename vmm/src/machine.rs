//! What every VMM asks of a machine: the same bounds and names, and the words of the kernel's command
//! line that make the same guest of it.

use std::path::Path;

use iii_proto::ids::WorkerName;

use crate::vmm::VmmError;

/// Bytes of the kernel's command line (COMMAND_LINE_SIZE on x86 and on arm64).
pub(crate) const MAX_COMMAND_LINE: usize = 2048;
/// Bytes that a VMM appends to it for one device, with some to spare:
/// ` virtio_mmio.device=512@0xfeb00e00:12`.
const COMMAND_LINE_PER_DEVICE: usize = 48;
/// Width of a virtio-fs device's tag.
pub(crate) const MAX_TAG: usize = 36;
/// Width of a virtio-blk device's serial number.
const MAX_SERIAL: usize = 20;
/// Largest MTU of a virtio-net device.
const MAX_MTU: u32 = 65_535;
/// Smallest MTU of an IPv6 link (RFC 8200 §5).
const MIN_MTU: u32 = 1_280;
/// Memory below which the kernel and its initramfs do not unpack.
const MIN_MEMORY_MIB: u32 = 64;
/// CPUs that a machine takes, whatever runs it.
const MAX_CPUS: u32 = 255;

/// Initialisations of drivers and tables that no worker uses and that take a noticeable part of a
/// boot under translation.
pub(crate) const SKIPPED_INITCALLS: &str = "initcall_blacklist=jent_mod_init,cacheinfo_sysfs_init,cpuid_init,\
    loop_init,dummy_init_module,init_btrfs_fs,init_xfs_fs,init_encrypted,cmos_init,\
    param_sysfs_builtin_init";

/// What the boot medium is unpacked into, and the security modules. A file system in a file of the
/// boot medium can be mounted from ramfs, not from tmpfs. The kernel's other module, SELinux, has
/// no policy in a guest and so decides nothing; asked all the same, it is 600 of the 22,000 blocks
/// of code that are translated between the kernel's own start and the workload's first line.
pub(crate) const ROOT_AND_MODULES: &str = "rootfstype=ramfs lsm=capability";

/// A machine, as far as its bounds go.
#[derive(Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) worker: &'a WorkerName,
    /// Devices that the machine has room for.
    pub(crate) slots: usize,
    /// The VMM says on the kernel's command line where they are.
    pub(crate) names_devices: bool,
    /// Those that every machine of this VMM has.
    pub(crate) own_devices: usize,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: &'a Path,
    /// Of the network, if there is one.
    pub(crate) mtu: Option<u32>,
    pub(crate) ports: Vec<&'a str>,
    pub(crate) tags: Vec<&'a str>,
    pub(crate) serials: Vec<&'a str>,
    pub(crate) kernel_words: &'a [String],
}

/// This value of a launch cannot be taken.
pub(crate) fn invalid(worker: &WorkerName, reason: impl Into<String>) -> VmmError {
    VmmError::Invalid {
        worker: worker.clone(),
        reason: reason.into(),
    }
}

impl Shape<'_> {
    /// Devices that are asked for, with those that every machine has.
    pub(crate) fn devices(&self) -> usize {
        self.own_devices + usize::from(self.mtu.is_some()) + self.tags.len() + self.serials.len()
    }

    /// The kernel's command line: what the VMM says, then what the launch asks for.
    pub(crate) fn finish_command_line(&self, mut line: String) -> Result<String, VmmError> {
        for word in self.kernel_words {
            line.push(' ');
            line.push_str(word);
        }
        // A VMM may add one that a guest can do without, where a slot is left.
        let devices = match self.names_devices {
            true => (self.devices() + 1).min(self.slots),
            false => 0,
        };
        let room = MAX_COMMAND_LINE - COMMAND_LINE_PER_DEVICE * devices;
        if line.len() >= room {
            let reason = format!(
                "its kernel command line has {} bytes, there is room for {}",
                line.len(),
                room - 1
            );
            return Err(invalid(self.worker, reason));
        }
        Ok(line)
    }

    /// Whether a guest can be made of it.
    pub(crate) fn check(&self) -> Result<(), VmmError> {
        self.check_devices()?;
        let fault = |reason: String| Err(invalid(self.worker, reason));
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return fault(format!("{} CPUs; it takes 1 to {MAX_CPUS}", self.cpus));
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return fault(format!(
                "{} MiB of memory; a guest needs at least {MIN_MEMORY_MIB}",
                self.memory_mib
            ));
        }
        if !self.kernel.is_absolute() {
            return fault(format!(
                "the kernel {:?} is not an absolute path",
                self.kernel
            ));
        }
        if let Some(mtu) = self.mtu
            && !(MIN_MTU..=MAX_MTU).contains(&mtu)
        {
            return fault(format!("an MTU of {mtu}; it takes {MIN_MTU} to {MAX_MTU}"));
        }
        let names = (self.ports.iter().map(|name| ("port", name, usize::MAX)))
            .chain(self.tags.iter().map(|tag| ("export tag", tag, MAX_TAG)))
            .chain(
                self.serials
                    .iter()
                    .map(|serial| ("disk serial", serial, MAX_SERIAL)),
            );
        for (kind, name, most) in names {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || name.len() > most || !name.chars().all(plain) {
                return fault(format!(
                    "the {kind} {name:?} is empty, too long, or holds other characters than \
                     letters, digits, '.', '_' and '-'"
                ));
            }
        }
        for word in self.kernel_words {
            let whole = word.chars().all(|c| c.is_ascii_graphic());
            if word.is_empty() || word == "--" || !whole {
                return fault(format!(
                    "{word:?} is no single word of a kernel command line"
                ));
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), VmmError> {
        if self.devices() <= self.slots {
            return Ok(());
        }
        let mut used = format!("{} by the ports", self.own_devices);
        if self.mtu.is_some() {
            used.push_str(", 1 by the network");
        }
        for (kind, names) in [("exports", &self.tags), ("disks", &self.serials)] {
            if !names.is_empty() {
                used.push_str(&format!(
                    ", {} by {kind} ({})",
                    names.len(),
                    names.join(", ")
                ));
            }
        }
        Err(VmmError::TooManyDevices {
            worker: self.worker.clone(),
            slots: self.slots,
            used,
        })
    }
}
