//! Starting the workload and exec probes: everything that can be prepared is prepared once, so that
//! a restart is two pipes and a child that borrows this process's memory until its execve.
//!
//! This process waits for that execve. Where it hangs (a program on a dead network mount) PID 1
//! hangs with it, its heartbeats stop, and the host replaces the VM.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use iii_proto::guest::Workload;
use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, open, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::confinement::Confinement;
use crate::program::{self, ChildFailure, c_strings};
use crate::sys::{self, CStringArray, ChildPlan, ChildStack, Credentials, StepFailure};

/// Bytes of a program that are read ahead: most small programs whole, of a large one what its
/// start needs, at a price of a few milliseconds where it does not.
const READ_AHEAD: i64 = 2 << 20;
/// As much as the kernel reads for one advice (the read-ahead of a file system without a device).
const READ_AHEAD_CHUNK: i64 = 128 << 10;

/// Why a program cannot be started.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command has no word.
    #[error("failed to start workload: its command is empty")]
    EmptyCommand,
    /// A string that execve cannot take.
    #[error("failed to start workload: {0} holds a NUL byte")]
    Nul(&'static str),
    /// No such program.
    #[error("failed to start {program:?}: not found in PATH ({searched})")]
    NotFound {
        /// As the spec names it.
        program: String,
        /// The directories.
        searched: String,
    },
    /// The child could not be made.
    #[error("failed to start {program:?}: failed to {step}: {errno}")]
    System {
        /// As the spec names it.
        program: String,
        /// What failed.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The child did not become the program.
    #[error("failed to start {program:?}: {reason}")]
    Child {
        /// As the spec names it.
        program: String,
        /// What went wrong.
        reason: String,
    },
}

/// As whom and where a workload runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// `None`: as vm-init itself.
    pub credentials: Option<Credentials>,
}

/// What the workload has, and what is started beside it has by default.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// As the spec gives it, before anything is added.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) identity: Identity,
    pub(crate) open_files: Option<u64>,
    /// This process is scheduled as its children must not be.
    pub(crate) reset_scheduling: bool,
    /// `/dev/null`, for reading and writing.
    pub(crate) null: OwnedFd,
}

struct Program {
    name: String,
    argv: CStringArray,
    path: Option<CString>,
}

impl Program {
    fn new(command: &[String]) -> Result<Self, LaunchError> {
        let name = command.first().ok_or(LaunchError::EmptyCommand)?.clone();
        Ok(Self {
            name,
            argv: c_strings(command.iter().cloned())
                .map_err(|_| LaunchError::Nul("the command"))?,
            path: None,
        })
    }

    /// The file to execute; looked for until it is found, then remembered.
    fn resolve(&mut self, search: &OsStr, cwd: &Path) -> Result<&CString, LaunchError> {
        if self.path.is_none() {
            let found =
                program::find(&self.name, search, cwd).map_err(|_| LaunchError::NotFound {
                    program: self.name.clone(),
                    searched: search.to_string_lossy().into_owned(),
                })?;
            let found = CString::new(found.into_os_string().into_encoded_bytes())
                .map_err(|_| LaunchError::Nul("the program's path"))?;
            self.path = Some(found);
        }
        self.path.as_ref().ok_or(LaunchError::EmptyCommand)
    }
}

/// The workload's output, from vm-init's side.
#[derive(Debug)]
pub struct OutputPipes {
    /// Read end, non-blocking.
    pub stdout: OwnedFd,
    /// Read end, non-blocking.
    pub stderr: OwnedFd,
}

/// Starts the workload as often as needed.
pub struct Launcher {
    workload: Program,
    probe: Option<Program>,
    env: CStringArray,
    search: std::ffi::OsString,
    cwd: CString,
    surroundings: Surroundings,
    stack: ChildStack,
    /// What [`Self::read_ahead`] has opened. Kept over the first start: closing it is a request to
    /// the host's file server, which would be waited for.
    ahead: Option<OwnedFd>,
}

impl Launcher {
    /// Prepares the start of `workload` and of an exec probe. `reset_scheduling`: this process is
    /// scheduled as its children must not be.
    pub fn new(
        workload: &Workload,
        probe: Option<&[String]>,
        identity: Identity,
        reset_scheduling: bool,
    ) -> Result<Self, LaunchError> {
        let env = program::environment(&workload.env, &identity);
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(
            |errno| LaunchError::System {
                program: workload.command.first().cloned().unwrap_or_default(),
                step: "open /dev/null",
                errno,
            },
        )?;
        Ok(Self {
            workload: Program::new(&workload.command)?,
            probe: probe.map(Program::new).transpose()?,
            env: env
                .strings()
                .map_err(|_| LaunchError::Nul("the environment"))?,
            search: env.search().into(),
            cwd: CString::new(workload.cwd.as_str())
                .map_err(|_| LaunchError::Nul("the working directory"))?,
            surroundings: Surroundings {
                env: workload.env.clone(),
                cwd: workload.cwd.clone(),
                identity,
                open_files: workload.limits.open_files,
                reset_scheduling,
                null,
            },
            stack: ChildStack::new(),
            ahead: None,
        })
    }

    /// What is started beside the workload has what it does not name from here.
    pub(crate) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Has the kernel read the beginning of the workload's program. Read here, it is there when the
    /// program starts; left to the program's page faults, each of the reads would be waited for.
    pub fn read_ahead(&mut self) {
        let cwd = Path::new(OsStr::from_bytes(self.cwd.as_bytes()));
        // Whatever is wrong with the program is said when it is started.
        let Ok(path) = self.workload.resolve(&self.search, cwd) else {
            return;
        };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Ok(file) = open(path.as_c_str(), flags, Mode::empty()) else {
            return;
        };
        for chunk in 0..READ_AHEAD / READ_AHEAD_CHUNK {
            let advised = posix_fadvise(
                &file,
                chunk * READ_AHEAD_CHUNK,
                READ_AHEAD_CHUNK,
                PosixFadviseAdvice::POSIX_FADV_WILLNEED,
            );
            if advised.is_err() {
                break;
            }
        }
        self.ahead = Some(file);
    }

    /// Lets go of what only the first start needs.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead = None;
    }

    /// Makes the workload's process, leader of its session and process group; returns when it has
    /// become the program. All signals must be blocked.
    pub fn start(&mut self, within: &Confinement) -> Result<(GuestPid, OutputPipes), LaunchError> {
        let name = &self.workload.name;
        let system = |step| move |errno| system_error(name, step, errno);
        let (stdout, stdout_write) = output_pipe(&self.surroundings.identity)
            .map_err(|(step, errno)| system(step)(errno))?;
        let (stderr, stderr_write) = output_pipe(&self.surroundings.identity)
            .map_err(|(step, errno)| system(step)(errno))?;
        let pid = self.make(false, within, Some((&stdout_write, &stderr_write)))?;
        Ok((pid, OutputPipes { stdout, stderr }))
    }

    /// Makes the process of the exec probe, as [`Self::start`] does; its output is discarded.
    pub fn start_probe(&mut self, within: &Confinement) -> Result<GuestPid, LaunchError> {
        self.make(true, within, None)
    }

    fn make(
        &mut self,
        probe: bool,
        within: &Confinement,
        output: Option<(&OwnedFd, &OwnedFd)>,
    ) -> Result<GuestPid, LaunchError> {
        let program = match (probe, self.probe.as_mut()) {
            (false, _) => &mut self.workload,
            (true, Some(program)) => program,
            (true, None) => return Err(LaunchError::EmptyCommand),
        };
        let cwd = Path::new(OsStr::from_bytes(self.cwd.as_bytes()));
        program.resolve(&self.search, cwd)?;
        let Some(path) = program.path.as_ref() else {
            return Err(LaunchError::EmptyCommand);
        };
        let Surroundings { null, identity, .. } = &self.surroundings;
        let (stdout, stderr) = output.unwrap_or((null, null));
        let plan = ChildPlan {
            path,
            argv: &program.argv,
            env: &self.env,
            cwd: &self.cwd,
            stdin: null.as_fd(),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            terminal: false,
            cgroup: within.cgroup(),
            credentials: identity.credentials.as_ref(),
            open_files: self.surroundings.open_files,
            reset_scheduling: self.surroundings.reset_scheduling,
        };
        match sys::spawn(&plan, &mut self.stack) {
            Ok(pid) => Ok(GuestPid(pid.as_raw())),
            Err(StepFailure::Clone(errno)) => {
                Err(system_error(&program.name, "make a process", errno))
            }
            Err(StepFailure::Step(step, errno)) => {
                let path = Path::new(OsStr::from_bytes(path.as_bytes()));
                let failure = ChildFailure { step, errno };
                let reason = failure.describe(path, cwd, &identity.name);
                // Looked for anew at the next start: it may come with what is mounted by then.
                program.path = None;
                Err(LaunchError::Child {
                    program: program.name.clone(),
                    reason,
                })
            }
        }
    }
}

/// What was being done when a call failed.
pub(crate) type FailedStep = (&'static str, Errno);

/// A pipe for a child's output: the end for us, which does not block, and the child's.
pub(crate) fn output_pipe(identity: &Identity) -> Result<(OwnedFd, OwnedFd), FailedStep> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| ("make a pipe", errno))?;
    prepare_pipe(&ours, identity)?;
    Ok((ours, theirs))
}

/// A pipe for a child's input: the child's end, and the one for us, which does not block.
pub(crate) fn input_pipe(identity: &Identity) -> Result<(OwnedFd, OwnedFd), FailedStep> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| ("make a pipe", errno))?;
    prepare_pipe(&ours, identity)?;
    Ok((theirs, ours))
}

fn prepare_pipe(ours: &OwnedFd, identity: &Identity) -> Result<(), FailedStep> {
    fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| ("set up a pipe", e))?;
    // A program opens /dev/stdout and /dev/stderr anew, which asks the pipe's owner.
    if let Some(credentials) = &identity.credentials {
        let (uid, gid) = (credentials.uid, credentials.gid);
        fchown(ours, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| ("give a pipe to the user", errno))?;
    }
    Ok(())
}

fn system_error(program: &str, step: &'static str, errno: Errno) -> LaunchError {
    LaunchError::System {
        program: program.to_owned(),
        step,
        errno,
    }
}
