//! A VMM in name only, for the measurement of the tree's own scale: a process that says what a
//! guest would say. No measurement of a VM uses it, and no test.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use iii_proto::codec::{FrameReader, Wire, encode_frame};
use iii_proto::control::{GuestMessage, HostMessage, PowerOffReason};
use iii_proto::ids::{BootId, GuestPid};
use iii_proto::{CONTROL_PORT, PROTOCOL_VERSION};
use iii_vmm::host::Acceleration;
use iii_vmm::process::{ChildSpec, Stdio};
use iii_vmm::vmm::{Version, VmLaunch, Vmm, VmmError, VmmInfo};

use crate::scripted_guest::Guest;

/// The argument under which this program is such a process.
pub(crate) const ARGUMENT: &str = "--scripted-vmm";
/// Port 0 is no port.
const NO_CONNECTION: u16 = 0;

/// Launches such processes.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) program: PathBuf,
    /// A port of the host's to which each guest opens a connection.
    pub(crate) connect: Option<u16>,
}

impl Vmm for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn check(&self) -> Result<VmmInfo, VmmError> {
        Ok(VmmInfo {
            name: self.name(),
            path: self.program.clone(),
            version: Version(0, 0, 0),
            acceleration: Acceleration::Tcg,
        })
    }

    fn command(&self, launch: VmLaunch) -> Result<ChildSpec, VmmError> {
        let mut spec = ChildSpec::new(&self.program, format!("{}/scripted", launch.worker));
        spec.namespaces = Vec::new();
        spec.args = vec![ARGUMENT.into(), launch.boot_id.to_string().into()];
        for port in launch.ports {
            match port.name.as_str() {
                CONTROL_PORT => spec.stdin = Stdio::Fd(port.fd),
                _ => {
                    spec.inherit(port.fd);
                }
            }
        }
        if let Some(network) = launch.network {
            spec.stdout = Stdio::Fd(network.fd);
            spec.args
                .push(self.connect.unwrap_or(NO_CONNECTION).to_string().into());
        }
        Ok(spec)
    }
}

/// The process: boots at once, speaks on its network if there is one, starts at once, answers
/// heartbeats, stops when it is told to.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let [boot, rest @ ..] = arguments else {
        return Err("no boot is named".into());
    };
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let boot_id = BootId::try_from(boot.clone()).map_err(|e| text(&e))?;
    let stdin = std::io::stdin();
    let control = stdin.as_fd().try_clone_to_owned().map_err(|e| text(&e))?;
    let mut control = UnixStream::from(control);
    let pid = GuestPid(2);
    say(
        &mut control,
        &GuestMessage::Hello {
            proto: PROTOCOL_VERSION,
            boot_id,
            kernel: "scripted".into(),
        },
    )?;
    // Held to the end: with it the connection.
    let mut network = None;
    if let [port] = rest {
        let link = std::io::stdout().as_fd().try_clone_to_owned();
        let guest = network.insert(Guest::new(link.map_err(|e| text(&e))?)?);
        guest.greet()?;
        match port.parse().map_err(|e| text(&e))? {
            NO_CONNECTION => {}
            port => guest.connect(port)?,
        }
    }
    say(&mut control, &GuestMessage::Started { pid, restarts: 0 })?;
    say(&mut control, &GuestMessage::Ready { pid })?;
    let mut frames = FrameReader::new();
    let mut buffer = [0; 4096];
    loop {
        match control.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => frames.feed(&buffer[..count]),
        }
        while let Some(message) = frames.next::<HostMessage>().map_err(|e| text(&e))? {
            match message {
                HostMessage::Heartbeat {
                    seq,
                    host_time_unix_ns,
                } => say(
                    &mut control,
                    &GuestMessage::Alive {
                        seq,
                        guest_time_unix_ns: host_time_unix_ns,
                    },
                )?,
                HostMessage::Stop { .. } => {
                    return say(
                        &mut control,
                        &GuestMessage::PoweringOff {
                            reason: PowerOffReason::Stopped,
                            last_log_seq: 0,
                        },
                    );
                }
                _ => {}
            }
        }
    }
}

fn say<T: Wire>(control: &mut UnixStream, message: &T) -> Result<(), String> {
    let frame = encode_frame(message).map_err(|e| e.to_string())?;
    control.write_all(&frame).map_err(|e| e.to_string())
}
