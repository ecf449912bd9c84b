//! Messages on the control port. The guest's side is hostile input for the host.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::ids::{BootId, GuestPid};
use crate::restart::{Decision, Exit};

/// Longest text that a guest may put into one message; longer ones are cut by vm-init and refused
/// by nobody, since the frame bound holds anyway.
pub const MAX_TEXT: usize = 4096;

/// Most paths in one message.
pub const MAX_CHANGED_PATHS: usize = 64;
/// Most bytes of one of them.
pub const MAX_PATH_BYTES: usize = 1024;

/// From the supervisor to vm-init.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HostMessage {
    /// End the workload (SIGTERM to its group, after `grace_ms` SIGKILL), sync, power off.
    Stop {
        /// Milliseconds between the two signals.
        grace_ms: u64,
    },
    /// End the workload as `Stop` does, then start it again without counting it as a failure.
    RestartWorkload {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
    /// A signal for the workload's process group.
    Signal {
        /// The number as Linux has it on the guest's architecture.
        signal: i32,
    },
    /// Are you alive? Sent only while the supervisor's own loop ticks.
    Heartbeat {
        /// Counts up; the answer repeats it.
        seq: u64,
        /// Host wall clock in nanoseconds since the Unix epoch: vm-init slews its clock to it.
        host_time_unix_ns: u64,
    },
    /// Log frames up to this number have been taken over by the supervisor.
    LogAck {
        /// The highest `seq` received in order.
        seq: u64,
    },
    /// Give dentries and inodes back (the file server is near its descriptor limit).
    DropCaches,
    /// The host has changed these files: raise an event for those who watch them in the guest.
    FilesChanged {
        /// Absolute in the guest; at most [`MAX_CHANGED_PATHS`], each of at most
        /// [`MAX_PATH_BYTES`].
        paths: Vec<String>,
    },
    /// Fault injection for tests; obeyed only if [`crate::guest::GuestSpec::allow_faults`] is set.
    Fault(GuestFault),
    /// How much of the guest is used? Sent only when somebody asks.
    Measure {
        /// Counts up; the answer repeats it.
        seq: u64,
    },
}

/// Ways a test can hurt the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GuestFault {
    /// PID 1 exits: the kernel panics.
    KernelPanic,
    /// PID 1 spins and answers nothing.
    Hang,
    /// SIGKILL to the workload's main process.
    KillWorkload,
}

/// How far the guest has come; the last one is named when a boot fails.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum BootStage {
    /// vm-init runs and has opened its ports.
    Init,
    /// The GuestSpec was read.
    SpecRead,
    /// Root and exports are mounted.
    Mounted,
    /// lo and eth0 are up.
    NetworkUp,
    /// Limits are set, the user is known: the workload can start.
    Prepared,
}

/// Why the guest powers itself off.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum PowerOffReason {
    /// The supervisor asked for it.
    Stopped,
    /// The workload ended and its policy does not restart it.
    Done {
        /// How it ended.
        exit: Exit,
    },
    /// The workload used up its restart limit.
    GaveUp {
        /// How it ended last.
        exit: Exit,
        /// Restarts in this boot.
        restarts: u32,
    },
    /// The guest cannot be set up; restarting it changes nothing that the guest knows of.
    SetupFailed {
        /// The stage that could not be reached.
        stage: BootStage,
        /// The cause, for the user.
        message: String,
    },
    /// The control port hung up: the supervisor is gone.
    HostGone,
}

/// From vm-init to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GuestMessage {
    /// First message: who speaks.
    Hello {
        /// [`crate::PROTOCOL_VERSION`] of the guest.
        proto: u32,
        /// Repeats the GuestSpec's.
        boot_id: BootId,
        /// `uname -r` of the guest.
        kernel: String,
    },
    /// A stage is complete.
    Stage {
        /// Which.
        stage: BootStage,
        /// Guest CLOCK_BOOTTIME in microseconds when it was complete.
        uptime_us: u64,
    },
    /// The workload's process was started; says nothing about readiness.
    Started {
        /// Its main process.
        pid: GuestPid,
        /// Restarts so far in this boot: 0 for the first start.
        restarts: u32,
    },
    /// The readiness probe passed; without a probe, sent right behind `Started`.
    Ready {
        /// The main process that is ready.
        pid: GuestPid,
    },
    /// The health probe failed `retries` times in a row: the workload is being killed.
    Unhealthy {
        /// The main process.
        pid: GuestPid,
        /// What the last probe saw.
        detail: String,
    },
    /// The workload's main process ended.
    Exited {
        /// Which process.
        pid: GuestPid,
        /// How.
        exit: Exit,
        /// Milliseconds that it ran.
        ran_ms: u64,
        /// What vm-init does about it.
        decision: Decision,
        /// Restarts so far in this boot, this one not included.
        restarts: u32,
    },
    /// Answer to a heartbeat, from vm-init's own loop.
    Alive {
        /// The heartbeat's number.
        seq: u64,
        /// Guest wall clock in nanoseconds since the Unix epoch.
        guest_time_unix_ns: u64,
    },
    /// Something a user should know that stops nothing.
    Warning {
        /// For the user.
        message: String,
    },
    /// Last message: the guest ends itself. An end of the VMM without it is a crash.
    PoweringOff {
        /// Why.
        reason: PowerOffReason,
        /// The number of the last log frame sent.
        last_log_seq: u64,
    },
    /// Answer to `Measure`.
    Measured {
        /// The question's number.
        seq: u64,
        /// `None`: the guest's kernel does not say.
        memory: Option<GuestMemory>,
    },
}

/// A guest's memory, as its kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct GuestMemory {
    /// Bytes that its kernel has to give away: a little less than the VM has.
    pub total: u64,
    /// Bytes that it could still give away without swapping, caches that it would drop included.
    pub available: u64,
}
