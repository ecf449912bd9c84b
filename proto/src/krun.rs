//! What the supervisor tells `iii-krun`, the launcher of a VM under libkrun: one [`KrunLaunch`],
//! encoded by [`crate::codec::encode_spec`] into a sealed descriptor that the launcher inherits.
//!
//! Descriptors are named by their numbers in the launcher, each number once. No path in it is
//! relative; nothing in it comes from a guest.

use std::path::PathBuf;

use bincode::{Decode, Encode};

/// Longest encoded [`KrunLaunch`] that the launcher reads: far beyond what a VM with all its devices
/// needs, and no size that matters.
pub const MAX_KRUN_LAUNCH: usize = 64 * 1024;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KrunLaunch {
    /// The worker's name, for messages.
    pub worker: String,
    /// Virtual CPUs, at least 1.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The guest kernel: on x86-64 the ELF file, on aarch64 the raw image.
    pub kernel: PathBuf,
    /// The kernel's command line, without the words for devices, which libkrun adds.
    pub command_line: String,
    /// The initramfs.
    pub initrd_fd: i32,
    /// Where the console's output goes: the writing end of a pipe, or a file.
    pub console_fd: i32,
    /// virtio-serial ports.
    pub ports: Vec<KrunPort>,
    /// The network interface.
    pub network: Option<KrunNetwork>,
    /// Host directories that libkrun itself shows to the guest.
    pub exports: Vec<KrunExport>,
    /// virtio-blk devices.
    pub disks: Vec<KrunDisk>,
}

/// A virtio-serial port.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KrunPort {
    /// Its name in the guest.
    pub name: String,
    /// The VMM's end of a stream socket pair.
    pub fd: i32,
}

/// The network interface.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KrunNetwork {
    /// The VMM's end of a socket pair: of datagrams, a frame each, or a stream of frames behind
    /// their lengths (four bytes, big-endian).
    pub fd: i32,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// A host directory shown to the guest over virtio-fs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KrunExport {
    /// The tag that the guest mounts.
    pub tag: String,
    /// The host directory, absolute.
    pub path: PathBuf,
    /// Every change answers EROFS.
    pub read_only: bool,
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KrunDisk {
    /// The raw image.
    pub fd: i32,
    /// Its serial number; at most 20 bytes.
    pub serial: String,
    /// Writes are refused.
    pub read_only: bool,
}

impl KrunLaunch {
    /// All descriptor numbers that it names.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        [self.initrd_fd, self.console_fd]
            .into_iter()
            .chain(self.ports.iter().map(|port| port.fd))
            .chain(self.network.iter().map(|network| network.fd))
            .chain(self.disks.iter().map(|disk| disk.fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_spec, encode_spec};
    use proptest::prelude::*;

    fn launch() -> KrunLaunch {
        KrunLaunch {
            worker: "a".into(),
            cpus: 2,
            memory_mib: 256,
            kernel: "/k".into(),
            command_line: "quiet".into(),
            initrd_fd: 4,
            console_fd: 3,
            ports: vec![KrunPort {
                name: "p".into(),
                fd: 5,
            }],
            network: Some(KrunNetwork {
                fd: 6,
                mac: [2, 0, 0, 0, 0, 1],
            }),
            exports: vec![KrunExport {
                tag: "usr".into(),
                path: "/usr".into(),
                read_only: true,
            }],
            disks: vec![KrunDisk {
                fd: 7,
                serial: "d".into(),
                read_only: false,
            }],
        }
    }

    #[test]
    fn golden_bytes() {
        let text: String = encode_spec(&launch())
            .unwrap()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let expected = [
            "010000000000000061", // worker
            "02",                 // cpus
            "00010000",           // memory_mib
            "02000000000000002f6b",
            "05000000000000007175696574",
            "04000000",
            "03000000",
            "0100000000000000",
            "010000000000000070",
            "05000000", // the port
            "01",
            "06000000",
            "020000000001", // the network
            "0100000000000000",
            "0300000000000000757372",
            "04000000000000002f757372",
            "01", // the export
            "0100000000000000",
            "07000000",
            "010000000000000064",
            "00", // the disk
        ];
        assert_eq!(text, expected.concat());
    }

    #[test]
    fn every_descriptor_is_named() {
        let mut all: Vec<i32> = launch().descriptors().collect();
        all.sort_unstable();
        assert_eq!(all, [3, 4, 5, 6, 7]);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_decoded_or_refused(cut in 0usize..200, flip in any::<u8>()) {
            let mut bytes = encode_spec(&launch()).unwrap();
            let at = cut % bytes.len();
            bytes[at] ^= flip;
            match decode_spec::<KrunLaunch>(&bytes) {
                Ok(decoded) => prop_assert_eq!(&encode_spec(&decoded).unwrap(), &bytes),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
            if cut < bytes.len() {
                prop_assert!(decode_spec::<KrunLaunch>(&bytes[..cut]).is_err());
            }
        }
    }
}
