//! Starting the workload and exec probes: everything that can be prepared is prepared once, so that
//! a restart is two pipes and a child that borrows this process's memory until its execve.
//!
//! This process waits for that execve. Where it hangs (a program on a dead network mount) PID 1
//! hangs with it, its heartbeats stop, and the host replaces the VM.
//!
//! The environment is the spec's, in its order. `PATH`, `HOME`, `USER` and `LOGNAME` are added if
//! it does not name them; nothing else is.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use iii_proto::guest::Workload;
use iii_proto::ids::GuestPid;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, open, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::confinement::Confinement;
use crate::sys::{self, CStringArray, ChildPlan, ChildStack, ChildStep, Credentials, StepFailure};

/// The search path of a workload whose environment names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
            argv: c_strings(command.iter().cloned(), "the command")?,
            path: None,
        })
    }

    /// The file to execute; looked for until it is found, then remembered.
    fn resolve(&mut self, search: &OsStr, cwd: &Path) -> Result<&CString, LaunchError> {
        if self.path.is_none() {
            let found = find(&self.name, search, cwd).ok_or_else(|| LaunchError::NotFound {
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
    identity: Identity,
    open_files: Option<u64>,
    reset_priority: bool,
    null: OwnedFd,
    stack: ChildStack,
}

impl Launcher {
    /// Prepares the start of `workload` and of an exec probe. `reset_priority`: this process has a
    /// nice value that its children must not have.
    pub fn new(
        workload: &Workload,
        probe: Option<&[String]>,
        identity: Identity,
        reset_priority: bool,
    ) -> Result<Self, LaunchError> {
        let env = environment(&workload.env, &identity);
        let search = env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(DEFAULT_PATH, |(_, value)| value)
            .into();
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
            env: c_strings(
                env.iter().map(|(name, value)| format!("{name}={value}")),
                "the environment",
            )?,
            search,
            cwd: CString::new(workload.cwd.as_str())
                .map_err(|_| LaunchError::Nul("the working directory"))?,
            identity,
            open_files: workload.limits.open_files,
            reset_priority,
            null,
            stack: ChildStack::new(),
        })
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
                return;
            }
        }
    }

    /// Makes the workload's process, leader of its session and process group; returns when it has
    /// become the program. All signals must be blocked.
    pub fn start(&mut self, within: &Confinement) -> Result<(GuestPid, OutputPipes), LaunchError> {
        let name = &self.workload.name;
        let system = |step| move |errno| system_error(name, step, errno);
        let (stdout, stdout_write) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        let (stderr, stderr_write) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        for pipe in [&stdout, &stderr] {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(system("set up a pipe"))?;
            // The workload opens /dev/stdout and /dev/stderr anew, which asks the pipe's owner.
            if let Some(credentials) = &self.identity.credentials {
                let (uid, gid) = (credentials.uid, credentials.gid);
                fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(system("give a pipe to the user"))?;
            }
        }
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
        let (stdout, stderr) = output.unwrap_or((&self.null, &self.null));
        let plan = ChildPlan {
            path,
            argv: &program.argv,
            env: &self.env,
            cwd: &self.cwd,
            stdin: self.null.as_fd(),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            cgroup: within.cgroup(),
            credentials: self.identity.credentials.as_ref(),
            open_files: self.open_files,
            reset_priority: self.reset_priority,
        };
        match sys::spawn(&plan, &mut self.stack) {
            Ok(pid) => Ok(GuestPid(pid.as_raw())),
            Err(StepFailure::Clone(errno)) => {
                Err(system_error(&program.name, "make a process", errno))
            }
            Err(StepFailure::Step(step, errno)) => {
                let path = Path::new(OsStr::from_bytes(path.as_bytes()));
                let reason = reason(path, cwd, &self.identity.name, step, errno);
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

/// Why a child never became the program.
fn reason(path: &Path, cwd: &Path, user: &str, step: ChildStep, errno: Errno) -> String {
    let what = match step {
        ChildStep::Execute => return execute_failure(path, errno),
        ChildStep::Directory => {
            let hint = match errno {
                Errno::ENOENT => " in the guest; is it part of the image or of `mounts`?",
                _ => "",
            };
            return format!(
                "failed to enter working directory {cwd:?} as user {user:?}: {}{hint}",
                errno.desc()
            );
        }
        ChildStep::Session => "make a session",
        ChildStep::Descriptors => "set up its output",
        ChildStep::Priority => "reset its priority",
        ChildStep::Limits => "set its limit of open files",
        ChildStep::Credentials => "become its user",
    };
    format!("failed to {what}: {}", errno.desc())
}

fn system_error(program: &str, step: &'static str, errno: Errno) -> LaunchError {
    LaunchError::System {
        program: program.to_owned(),
        step,
        errno,
    }
}

/// What execve's terse errors mean.
fn execute_failure(path: &Path, errno: Errno) -> String {
    let shown = path.display();
    match errno {
        Errno::ENOENT if path.exists() => match interpreter(path) {
            Some(interpreter) => format!(
                "the interpreter {interpreter:?} that {shown} names does not exist in the guest"
            ),
            None => format!(
                "the dynamic loader of {shown} does not exist in the guest (built for another \
                 libc?)"
            ),
        },
        Errno::ENOENT => format!("there is no {shown} in the guest"),
        Errno::ENOEXEC => {
            format!("{shown} is neither a program for this machine nor a script with a #! line")
        }
        Errno::EACCES => format!("{shown} may not be executed by the workload's user"),
        errno => format!("{shown}: {}", errno.desc()),
    }
}

/// The program that a script's first line names.
fn interpreter(path: &Path) -> Option<String> {
    let mut head = [0; 256];
    let count = std::fs::File::open(path).ok()?.read(&mut head).ok()?;
    parse_interpreter(&head[..count])
}

/// The program in a `#!` line, if `head` begins with one.
pub fn parse_interpreter(head: &[u8]) -> Option<String> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(str::to_owned)
}

fn find(name: &str, search: &OsStr, cwd: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        // As execve would: relative to the directory in which the workload starts. Whether it is
        // there is execve's to say.
        return Some(cwd.join(name));
    }
    search
        .as_bytes()
        .split(|&b| b == b':')
        .map(|dir| match dir {
            // POSIX: an empty entry is the current directory.
            b"" => cwd.join(name),
            dir => cwd.join(OsStr::from_bytes(dir)).join(name),
        })
        .find(|path| {
            path.metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

fn environment(given: &[(String, String)], identity: &Identity) -> Vec<(String, String)> {
    let mut env = given.to_vec();
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", identity.home.as_str()),
        ("USER", identity.name.as_str()),
        ("LOGNAME", identity.name.as_str()),
    ] {
        if !given.iter().any(|(given, _)| given == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

fn c_strings(
    strings: impl Iterator<Item = String>,
    what: &'static str,
) -> Result<CStringArray, LaunchError> {
    strings
        .map(CString::new)
        .collect::<Result<Vec<_>, _>>()
        .map(CStringArray::new)
        .map_err(|_| LaunchError::Nul(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity {
            name: String::from("worker"),
            home: String::from("/home/worker"),
            credentials: None,
        }
    }

    #[test]
    fn the_environment_is_the_specs_and_only_what_is_missing_is_added() {
        let given = [("HOME".into(), "/srv".into()), ("A".into(), "b".into())];
        let env = environment(&given, &identity());
        let env: Vec<String> = env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            env,
            [
                "HOME=/srv".to_owned(),
                "A=b".to_owned(),
                format!("PATH={DEFAULT_PATH}"),
                "USER=worker".to_owned(),
                "LOGNAME=worker".to_owned(),
            ]
        );
    }

    #[test]
    fn programs_are_found_in_path_order_and_only_if_executable() {
        let dir = tempfile::tempdir().unwrap();
        for (sub, mode) in [("a", 0o644), ("b", 0o755)] {
            let path = dir.path().join(sub);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("prog"), "").unwrap();
            std::fs::set_permissions(path.join("prog"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let search = OsStr::new("a:b:c");
        assert_eq!(
            find("prog", search, dir.path()),
            Some(dir.path().join("b/prog"))
        );
        assert_eq!(find("other", search, dir.path()), None);
        assert_eq!(
            find("./a/prog", search, dir.path()),
            Some(dir.path().join("./a/prog"))
        );
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("run");
        std::fs::write(&script, "#! /no/such/python3 -u\nprint()").unwrap();
        let message = execute_failure(&script, Errno::ENOENT);
        assert!(message.contains("\"/no/such/python3\""), "{message}");
        let message = execute_failure(&dir.path().join("other"), Errno::ENOENT);
        assert!(message.starts_with("there is no /"), "{message}");
    }

    proptest! {
        #[test]
        fn any_head_of_a_file_is_survived(head in prop::collection::vec(any::<u8>(), 0..300)) {
            let named = parse_interpreter(&head);
            prop_assert!(named.is_none() || head.starts_with(b"#!"));
        }
    }
}
