//! The launching side: everything that a spawner hands to `iii-vfs` and to the VMM, made before
//! either of them runs.
//!
//! vhost-user-backend takes a listener, not a connected stream, and QEMU takes a connected stream
//! so that there is no socket file that anybody else could reach. So each export gets a listener
//! in a directory that only this user can enter, one connection is put into its backlog, and the
//! name is removed at once.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use iii_proto::codec::{CodecError, encode_spec};
use iii_proto::vfs::{VfsConfig, VfsExport};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

/// Descriptor number of the configuration in the child.
const CONFIG_FD: RawFd = 3;
/// Descriptor number of the events socket in the child.
const EVENTS_FD: RawFd = 4;
/// Descriptor number of the first listener in the child; the others follow.
const FIRST_LISTENER_FD: RawFd = 5;

/// Why a launch could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// An export is not an absolute path of a directory.
    #[error("failed to export {path}: {reason}; name an existing directory by its absolute path")]
    Export {
        /// The host path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tag is empty, too long, or used twice.
    #[error("failed to export tag {tag:?}: {reason}")]
    Tag {
        /// The tag.
        tag: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The private directory for the sockets could not be made.
    #[error("failed to make a private socket directory: {0}; check TMPDIR")]
    Directory(std::io::Error),
    /// A socket could not be made.
    #[error("failed to make the socket of export {tag:?}: {source}")]
    Socket {
        /// The export's tag.
        tag: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration could not be put into its descriptor.
    #[error("failed to write the configuration of iii-vfs: {0}")]
    Config(std::io::Error),
    /// The configuration cannot be encoded.
    #[error("failed to encode the configuration of iii-vfs: {0}")]
    Encode(#[from] CodecError),
}

/// One export's device, for the VMM's command line.
#[derive(Debug)]
pub struct VhostDevice {
    /// The virtio-fs tag (`-device vhost-user-fs-device,tag=…`).
    pub tag: String,
    /// The connected vhost-user stream (`-chardev socket,fd=…`).
    pub stream: OwnedFd,
}

/// All that one `iii-vfs` process and its VMM need, not yet spawned.
#[derive(Debug)]
pub struct VfsLaunch {
    /// Arguments of `iii-vfs`, without the program's name.
    pub args: Vec<OsString>,
    /// Descriptors that the child must have, each under the given number. Close them after the
    /// spawn: a listener kept open would keep a dead server's socket alive.
    pub inherited: Vec<(OwnedFd, RawFd)>,
    /// Our end of the events socket: frames of [`iii_proto::vfs::VfsEvent`]. The child ends when
    /// it is closed.
    pub events: UnixStream,
    /// One per export, in the order of the exports.
    pub devices: Vec<VhostDevice>,
}

/// Longest virtio-fs tag: the width of the field in the device's configuration space.
pub const MAX_TAG: usize = 36;

impl VfsLaunch {
    /// Prepares a launch. `listener_fd` of each export is assigned here, whatever it held before.
    pub fn prepare(worker: &str, mut exports: Vec<VfsExport>) -> Result<Self, LaunchError> {
        check_exports(&exports)?;
        let mut inherited = Vec::with_capacity(exports.len() + 2);
        let mut devices = Vec::with_capacity(exports.len());
        let directory = tempfile::Builder::new()
            .prefix("iii-vfs-")
            .tempdir()
            .map_err(LaunchError::Directory)?;
        for (target, export) in (FIRST_LISTENER_FD..).zip(exports.iter_mut()) {
            let (listener, stream) =
                connected_pair(directory.path()).map_err(|source| LaunchError::Socket {
                    tag: export.tag.clone(),
                    source,
                })?;
            export.listener_fd = target;
            inherited.push((listener, target));
            devices.push(VhostDevice {
                tag: export.tag.clone(),
                stream,
            });
        }
        directory.close().map_err(LaunchError::Directory)?;

        let config = VfsConfig {
            worker: worker.to_owned(),
            exports,
        };
        let config = sealed(&encode_spec(&config)?).map_err(LaunchError::Config)?;
        inherited.push((config, CONFIG_FD));
        let (events, child_events) = UnixStream::pair().map_err(LaunchError::Config)?;
        inherited.push((child_events.into(), EVENTS_FD));
        Ok(Self {
            args: [
                "--config-fd".to_owned(),
                CONFIG_FD.to_string(),
                "--events-fd".to_owned(),
                EVENTS_FD.to_string(),
            ]
            .map(OsString::from)
            .into(),
            inherited,
            events,
            devices,
        })
    }
}

fn check_exports(exports: &[VfsExport]) -> Result<(), LaunchError> {
    let fault = |export: &VfsExport, reason: &str| LaunchError::Export {
        path: export.path.display().to_string(),
        reason: reason.to_owned(),
    };
    for (index, export) in exports.iter().enumerate() {
        let tag_fault = |reason| LaunchError::Tag {
            tag: export.tag.clone(),
            reason,
        };
        if export.tag.is_empty() {
            return Err(tag_fault("it is empty"));
        }
        if export.tag.len() > MAX_TAG {
            return Err(tag_fault("it is longer than 36 bytes"));
        }
        if export
            .tag
            .bytes()
            .any(|byte| !byte.is_ascii_graphic() || byte == b',')
        {
            return Err(tag_fault("it may hold only visible ASCII without commas"));
        }
        if exports[..index].iter().any(|other| other.tag == export.tag) {
            return Err(tag_fault("another export has it"));
        }
        if !export.path.is_absolute() {
            return Err(fault(export, "the path is relative"));
        }
        match std::fs::metadata(&export.path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(fault(export, "it is not a directory")),
            Err(error) => return Err(fault(export, &error.to_string())),
        }
    }
    Ok(())
}

/// A listener with one connection in its backlog, the connected end, and no name left.
fn connected_pair(directory: &Path) -> std::io::Result<(OwnedFd, OwnedFd)> {
    // A path through the directory's descriptor stays short, whatever TMPDIR is: a socket
    // address holds 107 bytes.
    let directory_fd = open(
        directory,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let path = format!("/proc/self/fd/{}/vhost", directory_fd.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener.into(), stream?.into()))
}

/// A memfd that holds `bytes` and that nobody can change any more.
fn sealed(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = memfd_create(
        c"iii-vfs-config",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(
            SealFlag::F_SEAL_SEAL
                | SealFlag::F_SEAL_SHRINK
                | SealFlag::F_SEAL_GROW
                | SealFlag::F_SEAL_WRITE,
        ),
    )?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::codec::decode_spec;
    use std::os::unix::fs::FileExt;

    fn export(tag: &str, path: &Path) -> VfsExport {
        VfsExport {
            tag: tag.to_owned(),
            path: path.to_owned(),
            read_only: true,
            guest_uid: 1000,
            guest_gid: 1000,
            listener_fd: -1,
            immutable: false,
            live: false,
        }
    }

    #[test]
    fn a_launch_holds_what_the_child_needs() {
        let directory = tempfile::tempdir().unwrap();
        let launch = VfsLaunch::prepare(
            "api",
            vec![export("a", directory.path()), export("b", directory.path())],
        )
        .unwrap();
        let targets: Vec<RawFd> = launch.inherited.iter().map(|(_, n)| *n).collect();
        assert_eq!(targets, [5, 6, 3, 4]);
        assert_eq!(launch.args, ["--config-fd", "3", "--events-fd", "4"]);
        assert_eq!(launch.devices.len(), 2);

        let (config, _) = &launch.inherited[2];
        let file = std::fs::File::from(config.try_clone().unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let config: VfsConfig = decode_spec(&bytes).unwrap();
        assert_eq!(config.worker, "api");
        assert_eq!(config.exports[1].listener_fd, 6);
        assert!(file.write_at(b"x", 0).is_err(), "the seal holds");
    }

    #[test]
    fn the_connection_is_pending_and_the_name_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, stream) = connected_pair(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let (mut served, _) = UnixListener::from(listener).accept().unwrap();
        served.write_all(b"x").unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut UnixStream::from(stream), &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn faulty_exports_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (exports, word) in [
            (vec![export("a", &missing)], "No such file"),
            (vec![export("a", &file)], "not a directory"),
            (vec![export("a", Path::new("relative"))], "relative"),
            (vec![export("", directory.path())], "empty"),
            (vec![export("a,b", directory.path())], "commas"),
            (vec![export(&"a".repeat(37), directory.path())], "longer"),
            (
                vec![export("a", directory.path()), export("a", directory.path())],
                "another export",
            ),
        ] {
            let message = VfsLaunch::prepare("w", exports).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
