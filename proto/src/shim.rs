//! What the supervisor and the helper `iii-shim` say to each other, over the shim's standard
//! input, a `SOCK_SEQPACKET` socket.
//!
//! The supervisor sends one message: a single byte, with the descriptor of a memfd that holds an
//! encoded [`ShimRequest`] and, behind it, the descriptors for the program in the order of
//! [`ShimRequest::targets`]. Everything after it is a [`ShimReport`] per message. The socket is the
//! lifeline too: when the supervisor's end closes, the program dies.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Descriptors in one request, the memfd not counted; the kernel takes 253 in one message.
pub const MAX_DESCRIPTORS: usize = 250;

/// Exit code (sysexits' EX_USAGE) of a shim that does not understand its request.
pub const EXIT_NOT_UNDERSTOOD: u8 = 64;

/// What one shim starts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShimRequest {
    /// Process id of the supervisor: a shim whose parent is another one came too late.
    pub parent_pid: i32,
    /// Absolute path of the program.
    pub program: Vec<u8>,
    /// Arguments, the program's own name first.
    pub args: Vec<Vec<u8>>,
    /// The whole environment, `KEY=value` each.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory.
    pub cwd: Vec<u8>,
    /// Descriptor numbers in the program, in the order in which the descriptors were sent. 0, 1 and
    /// 2 that are missing here become `/dev/null`.
    pub targets: Vec<i32>,
    /// `RLIMIT_*` number, soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Scheduling priority, -20 to 19; `None` leaves it.
    pub nice: Option<i32>,
    /// Wanted namespaces; refused ones are gone without.
    pub namespaces: Vec<Namespace>,
    /// A user namespace may be made to get them.
    pub allow_user_namespace: bool,
    /// What the program is held to; `None` leaves it what its user may do.
    pub confinement: Option<Confinement>,
    /// One more descriptor follows those of the program: the `cgroup.procs` of the cgroup in which
    /// the shim and all that it starts are to be.
    pub joins_cgroup: bool,
}

/// All that a confined program can reach besides its descriptors. Paths are absolute; what is not
/// there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Confinement {
    /// Files, and directories with all below them, that it may read.
    pub read: Vec<Vec<u8>>,
    /// Directories in which it may change whatever its user may.
    pub write: Vec<Vec<u8>>,
    /// Devices that it may read, write and control.
    pub devices: Vec<Vec<u8>>,
    /// Programs that it may execute; its own and that one's interpreter among them.
    pub execute: Vec<Vec<u8>>,
    /// Files among its descriptors that it may open anew, by their paths in `/proc`.
    pub reopen: Vec<Reopen>,
    /// How many threads it may have, where the kernel counts those of its user namespace alone.
    pub threads: u64,
}

/// A descriptor whose file may be opened anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reopen {
    /// Its number in the program.
    pub fd: i32,
    /// For writing too.
    pub writable: bool,
}

/// What became of one layer of a confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// In force.
    Applied,
    /// In force as far as this kernel knows it.
    Partial,
    /// The kernel refused it with this errno; the program runs without.
    Refused(i32),
}

/// What became of a confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Layers {
    /// A root directory of its own that holds what it may reach and nothing else.
    pub root: Layer,
    /// Landlock: files, TCP, signals and abstract sockets.
    pub landlock: Layer,
    /// The filter of system calls.
    pub system_calls: Layer,
}

impl Layers {
    /// Each layer with its name.
    pub fn named(&self) -> [(&'static str, Layer); 3] {
        [
            ("private root", self.root),
            ("Landlock", self.landlock),
            ("system call filter", self.system_calls),
        ]
    }
}

/// A kind of Linux namespace that a child can have for itself (namespaces(7)).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    /// Process ids: everything in it dies with its first process.
    Pid,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Network devices, addresses, ports: without any but what it is given by descriptor.
    Network,
}

/// What a child got of the namespaces that were wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Isolation {
    /// Namespaces of its own.
    pub namespaces: Vec<Namespace>,
    /// They lie in a user namespace, as an ordinary user's must.
    pub user_namespace: bool,
    /// The errno with which the kernel refused the namespaces, or, if there are some, the mapping of
    /// the user into them.
    pub refused: Option<i32>,
    /// What became of the confinement; `None` if none was wanted.
    pub layers: Option<Layers>,
    /// Whether it is in its cgroup; `None` if none was wanted.
    pub cgroup: Option<Layer>,
}

/// From the shim to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShimReport {
    /// The program was executed. Two descriptors come with it: the pidfds of the process that
    /// reaps for it and of the program.
    Started {
        /// The program's process id as the supervisor's `/proc` has it.
        pid: i32,
        /// What it runs in.
        isolation: Isolation,
    },
    /// The program could not be executed; the shim ends.
    Failed {
        /// What was being done.
        stage: ShimStage,
        /// Why not.
        errno: i32,
    },
    /// The program ended and everything that it left behind was killed; the shim ends.
    Exited {
        /// How.
        status: ShimExit,
    },
}

/// From the process that is about to become the program to the one that reaps for it. No
/// [`Self::Failed`] before the pipe closes: the program is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ProgramReport {
    /// What became of the confinement.
    Confined(Layers),
    /// The program could not be executed.
    Failed {
        /// What was being done.
        stage: ShimStage,
        /// Why not.
        errno: i32,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShimExit {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Steps of a shim that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShimStage {
    /// Reading the request.
    Request,
    /// Setting up itself: signals, death signal, pipes.
    Setup,
    /// Creating a process.
    Fork,
    /// Putting descriptors in their places and closing the others.
    Descriptors,
    /// Setting resource limits or the priority.
    Limits,
    /// Changing to the working directory.
    WorkingDirectory,
    /// Giving up capabilities.
    Capabilities,
    /// Executing the program.
    Execute,
}

impl std::fmt::Display for ShimStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Request => "read the request for",
            Self::Setup => "set up the shim of",
            Self::Fork => "create the process of",
            Self::Descriptors => "hand the descriptors to",
            Self::Limits => "set the limits of",
            Self::WorkingDirectory => "enter the working directory of",
            Self::Capabilities => "take the capabilities from",
            Self::Execute => "execute",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_spec, encode_spec};

    #[test]
    fn golden_bytes_of_a_report() {
        let report = ShimReport::Failed {
            stage: ShimStage::Execute,
            errno: 2,
        };
        let bytes = encode_spec(&report).unwrap();
        assert_eq!(bytes, [1, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(decode_spec::<ShimReport>(&bytes).unwrap(), report);
    }

    #[test]
    fn a_request_may_hold_bytes_that_are_not_utf8() {
        let request = ShimRequest {
            parent_pid: 1,
            program: b"/\xff".to_vec(),
            args: vec![b"\xff".to_vec()],
            env: vec![],
            cwd: b"/".to_vec(),
            targets: vec![0, 9],
            rlimits: vec![(4, 0, 0)],
            nice: Some(-5),
            namespaces: vec![Namespace::Pid],
            allow_user_namespace: true,
            confinement: Some(Confinement {
                read: vec![b"/usr/lib".to_vec(), b"/\xfe".to_vec()],
                write: vec![b"/home/\xfd".to_vec()],
                devices: vec![b"/dev/null".to_vec()],
                execute: vec![b"/\xff".to_vec()],
                reopen: vec![Reopen {
                    fd: 9,
                    writable: true,
                }],
                threads: 64,
            }),
            joins_cgroup: true,
        };
        let bytes = encode_spec(&request).unwrap();
        assert_eq!(decode_spec::<ShimRequest>(&bytes).unwrap(), request);
    }
}
