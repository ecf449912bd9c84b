//! The calls that make a VM of a launch description, in the order in which libkrun wants them.
//!
//! What libkrun would add by itself is switched off: its init (ours comes in the initramfs) and its
//! vsock device, whose sockets are the *host's*: a guest without a network interface would reach
//! through it whatever its policy forbids. Its kernel is not asked for either: libkrun looks for a
//! libkrunfw in the system's library path, and is given the kernel from iii-super's cache instead.
//!
//! The console is libkrun's first, with the one kind of output that is not a terminal and yet the
//! kernel's console: a file named by path, here that of an inherited descriptor. The ports are a
//! second device with a queue pair each.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use iii_proto::krun::{KrunDisk, KrunExport, KrunLaunch, KrunNetwork};

use crate::error::KrunError;
use crate::sys::{self, CallError, Context, Feature, SocketKind};

/// Where a process finds its own descriptors by path.
#[cfg(target_os = "linux")]
const DESCRIPTORS: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const DESCRIPTORS: &str = "/dev/fd";

/// Makes sure that this libkrun has every device that we use.
pub(crate) fn check_features() -> Result<(), KrunError> {
    for (feature, name) in [
        (Feature::Net, "network devices (NET)"),
        (Feature::Blk, "disks (BLK)"),
    ] {
        if !sys::has_feature(feature) {
            return Err(KrunError::Feature { feature: name });
        }
    }
    Ok(())
}

/// Enters the VM. libkrun ends the process with it.
pub(crate) fn enter(launch: KrunLaunch) -> Result<Infallible, KrunError> {
    check_features()?;
    // First of all, so that no descriptor of libkrun's own can have one of these numbers.
    let descriptors = Descriptors::take(&launch)?;
    sys::init_log().map_err(|e| failed("write the log", e))?;
    let vm = Context::create().map_err(|e| failed("make a VM", e))?;
    vm.set_vm_config(launch.cpus, launch.memory_mib)
        .map_err(|e| failed("give it CPUs and memory", e))?;
    vm.disable_implicit_init()
        .map_err(|e| failed("leave out libkrun's init", e))?;
    vm.disable_implicit_vsock()
        .map_err(|e| failed("leave out the vsock device", e))?;
    let kernel = path(&launch.worker, &launch.kernel)?;
    let initramfs = text(&launch.worker, &descriptor_path(launch.initrd_fd))?;
    let command_line = text(&launch.worker, &launch.command_line)?;
    vm.set_kernel(&kernel, &initramfs, &command_line)
        .map_err(|e| failed("give it the kernel", e))?;
    let console = text(&launch.worker, &descriptor_path(launch.console_fd))?;
    vm.set_console_output(&console)
        .map_err(|e| failed("give it the console", e))?;
    if !launch.ports.is_empty() {
        let device = vm
            .add_ports_device()
            .map_err(|e| failed("give it ports", e))?;
        for port in &launch.ports {
            let name = text(&launch.worker, &port.name)?;
            vm.add_port(device, &name, port.fd)
                .map_err(|e| failed(&format!("add port {}", port.name), e))?;
        }
    }
    for export in &launch.exports {
        add_export(&vm, &launch.worker, export)?;
    }
    for disk in &launch.disks {
        add_disk(&vm, &launch.worker, disk)?;
    }
    if let Some(network) = &launch.network {
        add_network(&vm, network)?;
    }
    // libkrun has duplicates of some, and opens others again by path: they stay open for good.
    descriptors.keep();
    Err(failed("enter the VM", vm.enter()))
}

fn add_export(vm: &Context, worker: &str, export: &KrunExport) -> Result<(), KrunError> {
    let tag = text(worker, &export.tag)?;
    let directory = path(worker, &export.path)?;
    vm.add_export(&tag, &directory, export.read_only)
        .map_err(|e| failed(&format!("export {}", export.path.display()), e))
}

fn add_disk(vm: &Context, worker: &str, disk: &KrunDisk) -> Result<(), KrunError> {
    let serial = text(worker, &disk.serial)?;
    let image = text(worker, &descriptor_path(disk.fd))?;
    vm.add_disk(&serial, &image, disk.read_only)
        .map_err(|e| failed(&format!("add disk {}", disk.serial), e))
}

fn add_network(vm: &Context, network: &KrunNetwork) -> Result<(), KrunError> {
    let kind = sys::socket_kind(network.fd).map_err(|source| KrunError::Descriptor {
        fd: network.fd,
        what: "the network".into(),
        source,
    })?;
    let added = match kind {
        SocketKind::Datagram => vm.add_datagram_network(network.fd, network.mac),
        SocketKind::Stream => vm.add_stream_network(network.fd, network.mac),
    };
    added.map_err(|e| failed("add the network", e))
}

fn failed(action: &str, CallError { call, source }: CallError) -> KrunError {
    KrunError::Call {
        action: action.to_owned(),
        call,
        source,
    }
}

fn descriptor_path(fd: RawFd) -> String {
    format!("{DESCRIPTORS}/{fd}")
}

fn text(worker: &str, text: &str) -> Result<CString, KrunError> {
    CString::new(text).map_err(|_| KrunError::Invalid {
        worker: worker.to_owned(),
        reason: format!("{text:?} holds a NUL byte"),
    })
}

fn path(worker: &str, path: &Path) -> Result<CString, KrunError> {
    text(worker, &path.to_string_lossy())
}

/// The inherited descriptors, each of which was there.
struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    fn take(launch: &KrunLaunch) -> Result<Self, KrunError> {
        let mut owned = Vec::new();
        for fd in launch.descriptors() {
            owned.push(sys::take(fd).map_err(|source| KrunError::Descriptor {
                fd,
                what: what(launch, fd),
                source,
            })?);
        }
        Ok(Self(owned))
    }

    fn keep(self) {
        for fd in self.0 {
            std::mem::forget(fd);
        }
    }
}

fn what(launch: &KrunLaunch, fd: RawFd) -> String {
    let port = launch.ports.iter().find(|port| port.fd == fd);
    let disk = launch.disks.iter().find(|disk| disk.fd == fd);
    match (port, disk) {
        (Some(port), _) => format!("port {}", port.name),
        (None, Some(disk)) => format!("disk {}", disk.serial),
        (None, None) if fd == launch.initrd_fd => "the initramfs".into(),
        (None, None) if fd == launch.console_fd => "the console".into(),
        (None, None) => "the network".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn this_libkrun_has_what_every_vm_needs() {
        check_features().unwrap();
    }

    #[test]
    fn sockets_are_told_apart() {
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let kind = sys::socket_kind(stream.as_raw_fd()).unwrap();
        assert!(matches!(kind, SocketKind::Stream));
        let (datagram, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let kind = sys::socket_kind(datagram.as_raw_fd()).unwrap();
        assert!(matches!(kind, SocketKind::Datagram));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(sys::socket_kind(null.as_raw_fd()).is_err());
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        let fd = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        drop(sys::take(fd).unwrap());
        // Far beyond what this process has open.
        assert!(sys::take(60_000).is_err());
    }
}
