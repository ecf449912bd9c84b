//! What vm-init is told to become. Written by the host, read once at boot.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use bincode::{Decode, Encode};

use crate::ids::{BootId, WorkerName};
use crate::restart::RestartPolicy;

/// Everything vm-init needs to know.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct GuestSpec {
    /// [`crate::PROTOCOL_VERSION`] of the host.
    pub proto: u32,
    /// Repeated in `Hello`.
    pub boot_id: BootId,
    /// Also the host name.
    pub worker: WorkerName,
    /// The root filesystem.
    pub root: Root,
    /// Further file systems, mounted below the new root in this order.
    pub mounts: Vec<Mount>,
    /// `None`: only `lo` is brought up.
    pub network: Option<GuestNetwork>,
    /// The user's process.
    pub workload: Workload,
    /// When the workload is started again.
    pub restart: RestartPolicy,
    /// What is done once it is not to be started again.
    pub at_rest: AtRest,
    /// Probe of the workload.
    pub health: Option<HealthCheck>,
    /// Host wall clock at launch, nanoseconds since the Unix epoch; the guest has no RTC to trust.
    pub host_time_unix_ns: u64,
    /// Seed for jitter and the kernel's entropy pool (RNDADDENTROPY, credited).
    pub entropy: [u8; 32],
    /// Obey [`crate::control::HostMessage::Fault`].
    pub allow_faults: bool,
}

/// How the root is assembled: an overlay of the boot medium's skeleton
/// ([`crate::SKELETON_PATH`]) and read-only file systems, below a writable upper.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Root {
    /// Read-only file systems that are whole roots, topmost first. Empty with `root: host`, whose
    /// root is the skeleton alone.
    pub lowers: Vec<Lower>,
    /// Put the skeleton on top of the lowers (its `/etc/hosts` and `/etc/resolv.conf` must win).
    pub skeleton: bool,
    /// Where changes go.
    pub upper: Upper,
}

/// A read-only file system that is a whole root.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Lower {
    /// A virtio-fs export.
    Export {
        /// Its tag.
        tag: String,
    },
    /// An EROFS file system on a virtio-blk disk: an image.
    Disk {
        /// `/sys/block/vd*/serial`.
        serial: String,
    },
}

/// Where changes to the root go.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Upper {
    /// Fresh at every boot; `size_bytes` keeps a full disk ahead of out-of-memory.
    Tmpfs {
        /// Limit in bytes.
        size_bytes: u64,
    },
    /// An ext4 file system on a virtio-blk disk with this serial number.
    Disk {
        /// `/sys/block/vd*/serial`.
        serial: String,
    },
}

/// A file system below the root.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mount {
    /// Absolute path in the guest; made if it is missing.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
}

/// Kinds of [`Mount`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MountSource {
    /// A virtio-fs export, as it is.
    Export {
        /// Its tag.
        tag: String,
        /// Mounted read-only (the server enforces it too).
        read_only: bool,
    },
    /// A read-only virtio-fs export below a writable overlay whose upper lies on the root's upper:
    /// `/usr` of the host root.
    Overlay {
        /// The export's tag.
        tag: String,
    },
    /// A tmpfs of its own.
    Tmpfs {
        /// Limit in bytes.
        size_bytes: u64,
    },
    /// A directory of the ext4 file system on a virtio-blk disk, writable. Several mounts may show
    /// directories of one disk, which may be the root's upper too.
    Disk {
        /// `/sys/block/vd*/serial`.
        serial: String,
        /// Path in the file system; empty for its top. Made if it is missing.
        directory: String,
        /// Owner of the directory.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// What the guest does once its workload has ended and its policy does not start it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum AtRest {
    /// Powers off, and says why.
    #[default]
    PowerOff,
    /// Stays up until a restart of the workload is asked for.
    Wait {
        /// A failure within so many milliseconds of the start is not tried again by itself either.
        quick_ms: u64,
    },
}

/// The guest's only network interface, `eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GuestNetwork {
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// Its prefix length.
    pub ipv4_prefix: u8,
    /// Default route, DNS server and `host.iii.internal`.
    pub ipv4_gateway: Ipv4Addr,
    /// The guest's ULA address (RFC 4193).
    pub ipv6: Ipv6Addr,
    /// Its prefix length.
    pub ipv6_prefix: u8,
    /// Default route for IPv6.
    pub ipv6_gateway: Ipv6Addr,
    /// Lines for `/etc/hosts` beside `localhost` and the guest's own name.
    pub hosts: Vec<(String, std::net::IpAddr)>,
}

/// Shows the names of variables and not their values: which of them are secret is known to
/// nobody down here.
pub struct Names<'a>(pub &'a [(String, String)]);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// The user's process.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Workload {
    /// Program and arguments; the program is looked up in the guest's PATH.
    pub command: Vec<String>,
    /// The whole environment, in order.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute in the guest.
    pub cwd: String,
    /// As whom it runs.
    pub user: GuestUser,
    /// Limits of its cgroup.
    pub limits: GuestLimits,
    /// Milliseconds between the stop signal and SIGKILL when vm-init itself ends it.
    pub stop_grace_ms: u64,
    /// What asks it to end: SIGTERM, unless its image says otherwise.
    pub stop_signal: i32,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            env,
            cwd,
            user,
            limits,
            stop_grace_ms,
            stop_signal,
        } = self;
        f.debug_struct("Workload")
            .field("command", command)
            .field("env", &Names(env))
            .field("cwd", cwd)
            .field("user", user)
            .field("limits", limits)
            .field("stop_grace_ms", stop_grace_ms)
            .field("stop_signal", stop_signal)
            .finish()
    }
}

/// As whom the workload runs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GuestUser {
    /// These numbers; a home directory is made if it is missing.
    Ids {
        /// Login name, for `/etc/passwd` if the uid is not in it, and for `USER`.
        name: String,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Home directory.
        home: String,
    },
    /// A name or `name:group` to look up in the guest's own `/etc/passwd` and `/etc/group`.
    Named(String),
    /// The host knows the root's accounts and homes: in the guest there is nothing to look up and
    /// nothing to make.
    Known {
        /// Login name, for `USER`.
        name: String,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// All groups, `gid` among them.
        groups: Vec<u32>,
        /// Home directory, which exists.
        home: String,
    },
}

/// Limits of the workload's cgroup (v2). A limit that cannot be set is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct GuestLimits {
    /// `memory.max` in bytes.
    pub memory_bytes: Option<u64>,
    /// `pids.max`.
    pub pids: Option<u64>,
    /// RLIMIT_NOFILE, soft and hard.
    pub open_files: Option<u64>,
}

/// A probe that vm-init runs in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HealthCheck {
    /// What is done.
    pub probe: Probe,
    /// Milliseconds between two probes.
    pub interval_ms: u64,
    /// Milliseconds after which a probe counts as failed.
    pub timeout_ms: u64,
    /// Failures in a row that make the workload unhealthy.
    pub retries: u32,
    /// Milliseconds after the start in which failures do not count; if no probe has passed by its
    /// end plus `retries` probes, the workload counts as crashed.
    pub start_period_ms: u64,
}

/// Kinds of probe.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Probe {
    /// Exit status 0 is health.
    Exec(Vec<String>),
    /// A TCP connection to this port of the guest's loopback is accepted.
    Tcp(u16),
    /// A GET of this path on this port of the guest's loopback answers 200 to 399.
    Http {
        /// Port.
        port: u16,
        /// Path with its slash.
        path: String,
    },
}
