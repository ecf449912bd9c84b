//! What a child is made of.

use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use iii_proto::shim::{Confinement, Namespace};

use crate::cgroup::Leaf;

/// Where one of a child's standard streams goes.
#[derive(Debug, Default)]
pub enum Stdio {
    /// `/dev/null`.
    #[default]
    Null,
    /// This descriptor.
    Fd(OwnedFd),
}

/// A resource limit that a child is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// The `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

impl ResourceLimit {
    /// No core dumps: one of a VMM holds the guest's whole memory.
    pub const NO_CORE: Self = Self {
        resource: libc::RLIMIT_CORE,
        soft: 0,
        hard: 0,
    };

    /// Soft and hard limit are the same.
    pub fn both(resource: u32, most: u64) -> Self {
        Self {
            resource,
            soft: most,
            hard: most,
        }
    }
}

/// A child to be spawned. Nothing is inherited but what stands here.
#[derive(Debug)]
pub struct ChildSpec {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments without the program's name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Absolute working directory; `/` by default, so that no mount is kept busy.
    pub cwd: PathBuf,
    /// Descriptors and the numbers under which the child has them (3 or above). Our copies are
    /// closed once the child runs.
    pub inherit: Vec<(OwnedFd, RawFd)>,
    /// Descriptor 0.
    pub stdin: Stdio,
    /// Descriptor 1.
    pub stdout: Stdio,
    /// Descriptor 2.
    pub stderr: Stdio,
    /// Resource limits; [`ResourceLimit::NO_CORE`] by default.
    pub rlimits: Vec<ResourceLimit>,
    /// Scheduling priority; `None` leaves the supervisor's.
    pub nice: Option<i32>,
    /// Namespaces that the child should have for itself; the pid namespace by default. If the
    /// kernel refuses them, the child runs without, and the handle's
    /// [`isolation`](super::ChildHandle::isolation) says so.
    pub namespaces: Vec<Namespace>,
    /// Whether a user namespace may be made to get them, as an ordinary user's must; no by default.
    /// In it only the child's own user and group have numbers, all others look like `nobody`: not
    /// for a process that reports the owners of files.
    pub allow_user_namespace: bool,
    /// What the child is held to; nothing by default. What the kernel refuses of it, the child runs
    /// without, and the handle's [`isolation`](super::ChildHandle::isolation) says so.
    pub confinement: Option<Confinement>,
    /// The cgroup in which the child and its shim are from their start; none by default. If the
    /// kernel refuses it, the child runs without, and the handle's
    /// [`isolation`](super::ChildHandle::isolation) says so.
    pub cgroup: Option<Arc<Leaf>>,
    /// For logs: the worker and what the process does for it, such as `api/qemu`.
    pub label: String,
}

impl ChildSpec {
    /// A child with the defaults of each field.
    pub fn new(program: impl Into<PathBuf>, label: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            inherit: Vec::new(),
            stdin: Stdio::Null,
            stdout: Stdio::Null,
            stderr: Stdio::Null,
            rlimits: vec![ResourceLimit::NO_CORE],
            nice: None,
            namespaces: vec![Namespace::Pid],
            allow_user_namespace: false,
            confinement: None,
            cgroup: None,
            label: label.into(),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I>(&mut self, args: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    /// Adds a variable to the environment.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the child `fd` under the first number from 3 on that is still free, and returns that
    /// number.
    pub fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let taken = |number: &RawFd| self.inherit.iter().any(|(_, target)| target == number);
        let number = (3..)
            .find(|number| !taken(number))
            .expect("there are more numbers than descriptors");
        self.inherit.push((fd, number));
        number
    }
}
