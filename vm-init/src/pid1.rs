//! The guest's entry: boot, supervise, power off.

use std::os::fd::OwnedFd;
use std::time::Duration;

use iii_proto::control::{BootStage, GuestMessage, PowerOffReason};
use iii_proto::guest::{GuestSpec, Probe};
use iii_proto::{
    CONTROL_PORT, EXEC_PORT, GUEST_SPEC_PATH, LOG_PORT, PORTS_VARIABLE, PROTOCOL_VERSION,
};
use nix::fcntl::{OFlag, open};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::Mode;

use crate::boot::disks::Disks;
use crate::boot::{cgroup, early, network, ports, root, spec, users};
use crate::clock;
use crate::confinement::Confinement;
use crate::event_loop::{ControlPort, EventLoop, Finished, Settings};
use crate::exec::Exec;
use crate::launch::Launcher;
use crate::sys;

/// Boots the guest, runs its workload to the end, and ends the guest.
pub fn run() -> ! {
    if let Err(message) = guest() {
        say(&message);
    }
    // The kernel's command line makes a reboot the end of the VM, on every VMM.
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    say(&format!("failed to end the guest: {errno}"));
    // The end of PID 1 ends the VM as well: a panic, or with libkrunfw's kernel a reboot.
    std::process::exit(1)
}

/// For whoever reads the console; the control port may not be there.
fn say(message: &str) {
    use std::io::Write;
    // Without a console there is nobody to tell.
    writeln!(std::io::stderr(), "vm-init: {message}").unwrap_or(());
}

fn guest() -> Result<(), String> {
    let in_memory = early::is_in_memory();
    let begun = early::name_self()
        .and_then(|()| early::mount_devices())
        .and_then(|()| early::open_standard_descriptors())
        .and_then(|()| early::protect_self(in_memory));
    begun.map_err(|error| error.to_string())?;
    let announced = std::env::var(PORTS_VARIABLE).unwrap_or_default();
    let ports = ports::open_all([CONTROL_PORT, LOG_PORT, EXEC_PORT], &announced);
    let [control, log, exec] = ports.map_err(|e| e.to_string())?;
    let init_at = clock::uptime();
    let mut control = ControlPort::new(control);
    let spec = match spec::take(GUEST_SPEC_PATH) {
        Ok(spec) => spec,
        Err(error) => return Err(fail(control, BootStage::SpecRead, error.to_string())),
    };
    let greeted = greet(&mut control, &spec, init_at);
    let stages = greeted.map_err(|error| (BootStage::SpecRead, error));
    match stages.and_then(|()| boot(&mut control, &spec, in_memory)) {
        Ok(booted) => supervise(control, log, exec, spec, booted),
        Err((stage, message)) => Err(fail(control, stage, message)),
    }
}

/// Tells the host that this boot ends before it began, and returns what to say on the console.
fn fail(mut control: ControlPort, stage: BootStage, message: String) -> String {
    let reason = PowerOffReason::SetupFailed {
        stage,
        message: message.clone(),
    };
    match control.last_word(reason, 0) {
        Ok(()) => message,
        Err(error) => format!("{message}; {error}"),
    }
}

fn greet(control: &mut ControlPort, spec: &GuestSpec, init_at: Duration) -> Result<(), String> {
    control
        .queue(&GuestMessage::Hello {
            proto: PROTOCOL_VERSION,
            boot_id: spec.boot_id,
            kernel: crate::kernel_release(),
        })
        .map_err(|error| error.to_string())?;
    control
        .queue(&stage_at(BootStage::Init, init_at))
        .map_err(|error| error.to_string())?;
    // The host read its clock before it started the VMM; since then the guest's has run.
    let since = u64::try_from(clock::uptime().as_nanos()).unwrap_or(u64::MAX);
    clock::set_wall_ns(spec.host_time_unix_ns.saturating_add(since))
        .map_err(|errno| format!("failed to set the guest's clock: {errno}"))?;
    open(
        "/dev/random",
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .and_then(|random| sys::credit_entropy(&random, &spec.entropy))
    .map_err(|errno| format!("failed to seed the kernel's entropy pool: {errno}"))?;
    reached(control, BootStage::SpecRead)
}

fn stage_at(stage: BootStage, at: Duration) -> GuestMessage {
    let uptime_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
    GuestMessage::Stage { stage, uptime_us }
}

fn reached(control: &mut ControlPort, stage: BootStage) -> Result<(), String> {
    control
        .send(&stage_at(stage, clock::uptime()))
        .map_err(|error| error.to_string())
}

struct Booted {
    launcher: Launcher,
    confinement: Confinement,
    disks: Disks,
    /// Closed at the end: that costs the kernel more than all else that is closed before the start.
    _network_socket: OwnedFd,
}

/// The stages behind `SpecRead`; an error says which one was not reached.
fn boot(
    control: &mut ControlPort,
    spec: &GuestSpec,
    in_memory: bool,
) -> Result<Booted, (BootStage, String)> {
    let assembled = at(BootStage::Mounted, root::assemble(spec))?;
    for message in assembled.disks.warnings() {
        let queued = control.queue(&GuestMessage::Warning { message });
        at(BootStage::Mounted, queued)?;
    }
    at(BootStage::Mounted, root::switch(in_memory))?;
    at(BootStage::Mounted, reached(control, BootStage::Mounted))?;

    let (identity, warning) = at(BootStage::Prepared, users::resolve(&spec.workload.user))?;
    if let Some(message) = warning {
        let queued = control.queue(&GuestMessage::Warning { message });
        at(BootStage::Prepared, queued)?;
    }
    let is_image = !spec.root.lowers.is_empty();
    if is_image {
        let cwd = make_working_directory(&spec.workload.cwd);
        at(BootStage::Prepared, cwd)?;
    }
    let probe = match spec.health.as_ref().map(|check| &check.probe) {
        Some(Probe::Exec(command)) => Some(command.as_slice()),
        Some(Probe::Tcp(_) | Probe::Http { .. }) | None => None,
    };
    let mut launcher = at(
        BootStage::Prepared,
        Launcher::new(&spec.workload, probe, identity, true),
    )?;
    // Early, so that the host's file server reads while this kernel sets up the network.
    launcher.read_ahead();

    let network = spec.network.as_ref();
    let network_socket = at(BootStage::NetworkUp, network::bring_up(network))?;
    at(BootStage::NetworkUp, reached(control, BootStage::NetworkUp))?;

    let cgroup = at(BootStage::Prepared, cgroup::make(&spec.workload.limits))?;
    at(BootStage::Prepared, reached(control, BootStage::Prepared))?;
    Ok(Booted {
        launcher,
        confinement: Confinement::Cgroup(cgroup),
        disks: assembled.disks,
        _network_socket: network_socket,
    })
}

fn at<T>(
    stage: BootStage,
    result: Result<T, impl std::fmt::Display>,
) -> Result<T, (BootStage, String)> {
    result.map_err(|error| (stage, error.to_string()))
}

/// Images name working directories that they do not hold, and expect them made. Anything else that
/// is wrong with one shows when the workload enters it.
fn make_working_directory(cwd: &str) -> Result<(), String> {
    match std::fs::metadata(cwd) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(cwd)
            .map_err(|error| format!("failed to make working directory {cwd:?}: {error}")),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn supervise(
    control: ControlPort,
    log: OwnedFd,
    exec: OwnedFd,
    spec: GuestSpec,
    booted: Booted,
) -> Result<(), String> {
    let settings = Settings::of(&spec, true);
    let Booted {
        launcher,
        confinement,
        disks,
        _network_socket,
    } = booted;
    let exec = confinement
        .limits()
        .map(|limits| Exec::new(exec, limits.to_owned()));
    let finished = EventLoop::new(settings, control, log, exec, launcher, confinement)
        .and_then(EventLoop::run);
    let Finished {
        reason,
        mut control,
        last_log_seq,
    } = finished.map_err(|error| error.to_string())?;
    nix::unistd::sync();
    if let Err(error) = root::close(&disks) {
        let message = error.to_string();
        control
            .queue(&GuestMessage::Warning { message })
            .map_err(|error| error.to_string())?;
    }
    control
        .last_word(reason, last_log_seq)
        .map_err(|error| error.to_string())
}
