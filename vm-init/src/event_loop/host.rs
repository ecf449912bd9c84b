//! What the host says on the control port.

use std::time::Duration;

use iii_proto::codec::FrameReader;
use iii_proto::control::{GuestFault, GuestMessage, HostMessage};
use iii_proto::ids::GuestPid;
use nix::errno::Errno;

use super::{CONTROL_HIGH_WATER, EventLoop, LoopError};
use crate::clock;
use crate::supervision::Event;
use crate::sys;

impl EventLoop {
    pub(super) fn read_control(&mut self) -> Result<(), LoopError> {
        let mut buffer = [0; 4096];
        while self.control.readable {
            match nix::unistd::read(&self.control.fd, &mut buffer) {
                Ok(0) => {
                    self.control.readable = false;
                    // Before the host has opened its end a port reads as ended.
                    if self.control.connected {
                        self.feed(Event::HostGone)?;
                    }
                }
                Ok(count) => {
                    self.control.connected = true;
                    self.control.reader.feed(&buffer[..count]);
                    self.take_messages()?;
                }
                Err(Errno::EINTR) => {}
                Err(_) => self.control.readable = false,
            }
        }
        Ok(())
    }

    pub(super) fn take_messages(&mut self) -> Result<(), LoopError> {
        loop {
            match self.control.reader.next::<HostMessage>() {
                Ok(Some(message)) => self.on_message(message)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The stream has no boundary any more: whoever writes it is no supervisor.
                    self.warn(format!("failed to read the control port: {error}"))?;
                    self.control.readable = false;
                    self.control.reader = FrameReader::new();
                    return self.feed(Event::HostGone);
                }
            }
        }
    }

    pub(super) fn on_message(&mut self, message: HostMessage) -> Result<(), LoopError> {
        match message {
            HostMessage::Stop { grace_ms } => self.feed(Event::Stop {
                grace: Duration::from_millis(grace_ms),
            }),
            HostMessage::RestartWorkload { grace_ms } => self.feed(Event::Restart {
                grace: Duration::from_millis(grace_ms),
            }),
            HostMessage::Signal { signal } => self.feed(Event::Signal { signal }),
            HostMessage::Heartbeat {
                seq,
                host_time_unix_ns,
            } => self.on_heartbeat(seq, host_time_unix_ns),
            HostMessage::LogAck { seq } => {
                self.output.on_ack(seq);
                Ok(())
            }
            HostMessage::DropCaches => self.drop_caches(),
            HostMessage::FilesChanged { paths } => {
                self.announcer.add(paths);
                self.announce()
            }
            HostMessage::Fault(fault) => self.on_fault(fault),
            HostMessage::Measure { seq } => self.measure(seq),
        }
    }

    pub(super) fn on_heartbeat(&mut self, seq: u64, host_ns: u64) -> Result<(), LoopError> {
        let guest_time_unix_ns = clock::wall_ns();
        // A host that does not read gets no more answers than it can take, and will notice.
        if self.control.out.bytes() < CONTROL_HIGH_WATER {
            self.control.send(&GuestMessage::Alive {
                seq,
                guest_time_unix_ns,
            })?;
        }
        if self.settings.owns_machine {
            let correction = self.clock.on_heartbeat(host_ns, guest_time_unix_ns);
            if let Err(errno) = clock::apply(correction) {
                self.warn(format!("failed to set the guest's clock: {errno}"))?;
            }
        }
        Ok(())
    }

    /// As an ordinary process the memory is somebody else's machine's.
    pub(super) fn measure(&mut self, seq: u64) -> Result<(), LoopError> {
        let memory = match self.settings.owns_machine {
            true => crate::memory::read(),
            false => None,
        };
        if self.control.out.bytes() < CONTROL_HIGH_WATER {
            self.control.send(&GuestMessage::Measured { seq, memory })?;
        }
        Ok(())
    }

    pub(super) fn drop_caches(&mut self) -> Result<(), LoopError> {
        // One at a time: it takes the kernel up to a second, which is why a child does it.
        if !self.settings.owns_machine || self.cache_drop.is_some() {
            return Ok(());
        }
        // 2: dentries and inodes, which are what the file server holds descriptors for.
        match sys::write_in_child(c"/proc/sys/vm/drop_caches", b"2") {
            Ok(pid) => {
                self.cache_drop = Some(GuestPid(pid.as_raw()));
                Ok(())
            }
            Err(errno) => self.warn(format!("failed to drop caches: {errno}")),
        }
    }

    pub(super) fn announce(&mut self) -> Result<(), LoopError> {
        match self.announcer.turn() {
            Ok(()) => Ok(()),
            Err(errno) => self.warn(format!(
                "failed to tell watchers of files that have changed: {errno}"
            )),
        }
    }

    pub(super) fn on_fault(&mut self, fault: GuestFault) -> Result<(), LoopError> {
        if !self.settings.allow_faults {
            return self.warn(String::from(
                "an injected fault was refused: the guest's spec does not allow any",
            ));
        }
        match fault {
            GuestFault::KernelPanic if self.settings.owns_machine => panic_kernel(),
            // The nearest thing to it for a plain process: an end without a word.
            GuestFault::KernelPanic => std::process::exit(1),
            GuestFault::Hang => loop {
                std::hint::spin_loop();
            },
            GuestFault::KillWorkload => self.feed(Event::KillMain),
        }
    }
}

/// The guest kernel answers an init that exits with an orderly reboot, and has no sysrq; what does
/// make it panic is running out of memory when it was told to.
fn panic_kernel() -> ! {
    if std::fs::write("/proc/sys/vm/panic_on_oom", "2").is_err() {
        std::process::exit(1);
    }
    let mut hog = Vec::new();
    loop {
        hog.push(vec![1u8; 4 << 20]);
        std::hint::black_box(&hog);
    }
}
