//! From what the host asks for to a process in a cgroup of its own.

use std::ffi::{CString, NulError, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use iii_proto::exec::window::WINDOW;
use iii_proto::exec::{Command, TerminalSize};
use iii_proto::ids::GuestPid;
use iii_proto::log::Stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{Uid, fchown};

use super::streams::{Input, Output};
use crate::boot::users::{self, UserError};
use crate::cgroup::Cgroup;
use crate::launch::{self, FailedStep, Identity, Surroundings};
use crate::program::{self, ChildFailure, NoProgram, c_strings};
use crate::sys::{self, ChildPlan, ChildStack, ChildStep, StepFailure};

/// Exit code of a shell whose program is not there.
const NOT_FOUND: i32 = 127;
/// Exit code of a shell whose program cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// The kind of terminal that a program is told it has, unless the host says.
const DEFAULT_TERM: &str = "xterm";

/// Why a session cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The command has no word.
    #[error("its command is empty")]
    EmptyCommand,
    /// A string that execve cannot take.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// A variable's name that none can have.
    #[error("{0:?} is no name of a variable")]
    VariableName(String),
    /// The working directory is relative.
    #[error("working directory {0:?} is not an absolute path in the guest")]
    RelativeDirectory(String),
    /// The user is not known.
    #[error(transparent)]
    User(#[from] UserError),
    /// The process did not get as far as its program.
    #[error("{0}")]
    Child(String),
    /// The guest cannot make one.
    #[error("failed to {step}: {}{hint}", errno.desc())]
    System {
        step: &'static str,
        errno: Errno,
        hint: &'static str,
    },
}

impl From<FailedStep> for StartError {
    fn from((step, errno): FailedStep) -> Self {
        let hint = match (step, errno) {
            (MAKE_PROCESS, Errno::EAGAIN) => " (the workload's limit of processes?)",
            _ => "",
        };
        Self::System { step, errno, hint }
    }
}

impl From<NulError> for StartError {
    fn from(_: NulError) -> Self {
        Self::Nul("the command or its environment")
    }
}

const MAKE_PROCESS: &str = "make a process";

/// What was started.
pub(super) enum Start {
    /// The program.
    Process(Box<Process>),
    /// There is no such program, or none that can be executed.
    NoProgram {
        /// As a shell would end.
        code: i32,
        /// As a shell would say it.
        message: String,
    },
}

/// A process, and what there is of it on our side.
pub(super) struct Process {
    pub(super) pid: GuestPid,
    pub(super) cgroup: Cgroup,
    pub(super) input: Input,
    pub(super) outputs: Vec<Output>,
}

fn complaint(name: &str, why: &str) -> String {
    format!("iii-super: {name}: {why}\n")
}

/// Starts `command` in a new cgroup at `cgroup`. On an error nothing is left of it.
pub(super) fn start(
    command: &Command,
    surroundings: &Surroundings,
    cgroup: PathBuf,
) -> Result<Start, StartError> {
    let name = command.command.first().ok_or(StartError::EmptyCommand)?;
    let argv = c_strings(command.command.iter().cloned())?;
    let identity = match &command.user {
        Some(user) => users::named(user)?,
        None => surroundings.identity.clone(),
    };
    let env = program::environment(&variables(command, surroundings)?, &identity);
    let cwd = match &command.cwd {
        Some(cwd) if !cwd.starts_with('/') => {
            return Err(StartError::RelativeDirectory(cwd.clone()));
        }
        Some(cwd) => cwd,
        None => &surroundings.cwd,
    };
    let path = match program::find(name, OsStr::new(env.search()), Path::new(cwd)) {
        Ok(path) => path,
        Err(missing) => return Ok(no_program(name, &missing, env.search())),
    };
    let program = CString::new(path.as_os_str().as_bytes())?;
    let working_directory = CString::new(cwd.as_str())?;
    let environment = env.strings()?;
    let streams = Streams::make(command, &identity, surroundings)?;
    let cgroup = Cgroup::make(cgroup).map_err(|errno| ("make a cgroup", errno))?;
    let plan = ChildPlan {
        path: &program,
        argv: &argv,
        env: &environment,
        cwd: &working_directory,
        stdin: streams.stdin.as_fd(),
        stdout: streams.stdout.as_fd(),
        stderr: streams.stderr.as_ref().unwrap_or(&streams.stdout).as_fd(),
        terminal: command.terminal.is_some(),
        cgroup: Some(cgroup.directory()),
        credentials: identity.credentials.as_ref(),
        open_files: surroundings.open_files,
        reset_scheduling: surroundings.reset_scheduling,
    };
    let failure = match sys::spawn(&plan, &mut ChildStack::new()) {
        Ok(pid) => {
            return Ok(Start::Process(Box::new(Process {
                pid: GuestPid(pid.as_raw()),
                cgroup,
                input: streams.input,
                outputs: streams.outputs,
            })));
        }
        Err(failure) => failure,
    };
    cgroup.remove();
    let (step, errno) = match failure {
        StepFailure::Clone(errno) => return Err((MAKE_PROCESS, errno).into()),
        StepFailure::Step(step, errno) => (step, errno),
    };
    let why = ChildFailure { step, errno }.describe(&path, Path::new(cwd), &identity.name);
    match step {
        ChildStep::Execute => Ok(Start::NoProgram {
            code: NOT_EXECUTABLE,
            message: complaint(name, &why),
        }),
        ChildStep::Session
        | ChildStep::Descriptors
        | ChildStep::Terminal
        | ChildStep::Scheduling
        | ChildStep::Limits
        | ChildStep::Credentials
        | ChildStep::Directory => Err(StartError::Child(why)),
    }
}

/// The workload's variables, with those of the command in their place or behind them.
fn variables(
    command: &Command,
    surroundings: &Surroundings,
) -> Result<Vec<(String, String)>, StartError> {
    let mut env = surroundings.env.clone();
    for (name, value) in &command.env {
        if name.is_empty() || name.contains('=') {
            return Err(StartError::VariableName(name.clone()));
        }
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    if command.terminal.is_some() && !env.iter().any(|(name, _)| name == "TERM") {
        env.push((String::from("TERM"), String::from(DEFAULT_TERM)));
    }
    Ok(env)
}

fn no_program(name: &str, missing: &NoProgram, search: &str) -> Start {
    let (code, why) = match &missing.candidate {
        Some(path) => (
            NOT_EXECUTABLE,
            format!("{} may not be executed", path.display()),
        ),
        None if name.contains('/') => (NOT_FOUND, String::from("no such file in the guest")),
        None => (NOT_FOUND, format!("not found in PATH ({search})")),
    };
    Start::NoProgram {
        code,
        message: complaint(name, &why),
    }
}

/// Both ends of what a process reads and writes.
struct Streams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// Where it is another than `stdout`.
    stderr: Option<OwnedFd>,
    input: Input,
    outputs: Vec<Output>,
}

impl Streams {
    fn make(
        command: &Command,
        identity: &Identity,
        surroundings: &Surroundings,
    ) -> Result<Self, StartError> {
        match command.terminal {
            Some(size) => Self::terminal(size, identity, command.stdin),
            None => Self::pipes(command.stdin, identity, surroundings),
        }
    }

    fn pipes(
        stdin: bool,
        identity: &Identity,
        surroundings: &Surroundings,
    ) -> Result<Self, StartError> {
        let (stdin, input) = if stdin {
            let (theirs, ours) = launch::input_pipe(identity)?;
            enlarge(&ours);
            (theirs, Input::pipe(ours))
        } else {
            (duplicate(&surroundings.null)?, Input::none())
        };
        let (stdout_ours, stdout) = launch::output_pipe(identity)?;
        let (stderr_ours, stderr) = launch::output_pipe(identity)?;
        for pipe in [&stdout, &stderr] {
            enlarge(pipe);
        }
        Ok(Self {
            stdin,
            stdout,
            stderr: Some(stderr),
            input,
            outputs: vec![
                Output::new(stdout_ours, Stream::Stdout),
                Output::new(stderr_ours, Stream::Stderr),
            ],
        })
    }

    fn terminal(size: TerminalSize, identity: &Identity, stdin: bool) -> Result<Self, StartError> {
        let (master, slave) =
            sys::terminal::open_terminal(size).map_err(|errno| ("make a terminal", errno))?;
        if let Some(credentials) = &identity.credentials {
            // Its group stays `tty`, as login(1) leaves it.
            fchown(&slave, Some(Uid::from_raw(credentials.uid)), None)
                .map_err(|errno| ("give the terminal to the user", errno))?;
        }
        let input = if stdin {
            Input::terminal(duplicate(&master)?)
        } else {
            Input::none()
        };
        Ok(Self {
            stdin: duplicate(&slave)?,
            stdout: slave,
            stderr: None,
            input,
            outputs: vec![Output::new(master, Stream::Stdout)],
        })
    }
}

/// Makes room for as much as the window lets pass: it is then moved in whole chunks.
fn enlarge(pipe: &OwnedFd) {
    // Without it the command is only slower.
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WINDOW as libc::c_int)).unwrap_or(0);
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, StartError> {
    fd.try_clone()
        .map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            ("duplicate a descriptor", errno)
        })
        .map_err(StartError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(env: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            env: env
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            cwd: "/".into(),
            identity: Identity {
                name: "me".into(),
                home: "/home/me".into(),
                credentials: None,
            },
            open_files: None,
            reset_scheduling: false,
            null: std::fs::File::open("/dev/null").unwrap().into(),
        }
    }

    fn command(words: &[&str]) -> Command {
        Command {
            command: words.iter().map(|w| (*w).to_owned()).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
        }
    }

    fn refusal(command: &Command) -> String {
        let nowhere = PathBuf::from("/nowhere/exec1");
        match start(command, &surroundings(&[]), nowhere) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("started"),
        }
    }

    #[test]
    fn a_commands_variables_take_the_place_of_the_workloads() {
        let mut wanted = command(&["true"]);
        wanted.env = vec![("A".into(), "2".into()), ("C".into(), "3".into())];
        let known = surroundings(&[("A", "1"), ("B", "b")]);
        let env = |command: &Command| {
            let env = variables(command, &known).unwrap();
            env.iter()
                .map(|(n, v)| format!("{n}={v}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(env(&wanted), ["B=b", "A=2", "C=3"]);
        wanted.terminal = Some(TerminalSize {
            rows: 1,
            columns: 1,
        });
        assert_eq!(env(&wanted), ["B=b", "A=2", "C=3", "TERM=xterm"]);
        wanted.env = vec![("TERM".into(), "vt100".into())];
        assert_eq!(env(&wanted), ["A=1", "B=b", "TERM=vt100"]);
    }

    #[test]
    fn what_cannot_be_started_is_refused_with_its_reason() {
        assert_eq!(refusal(&command(&[])), "its command is empty");
        let mut odd = command(&["true"]);
        odd.env = vec![("A=B".into(), "c".into())];
        assert!(refusal(&odd).contains("\"A=B\""));
        let mut odd = command(&["true"]);
        odd.cwd = Some("here".into());
        assert!(refusal(&odd).contains("not an absolute path"));
        let mut odd = command(&["true"]);
        odd.user = Some("nobody-of-this-name".into());
        assert!(refusal(&odd).contains("nobody-of-this-name"));
        assert!(refusal(&command(&["true", "a\0b"])).contains("NUL"));
        // All is well but for the cgroup: nothing was started.
        assert!(refusal(&command(&["true"])).contains("failed to make a cgroup"));
    }

    #[test]
    fn a_program_that_is_not_there_ends_as_in_a_shell() {
        let nowhere = || PathBuf::from("/nowhere/exec1");
        for (name, expected) in [("no-such-program", 127), ("/no/such", 127)] {
            match start(&command(&[name]), &surroundings(&[]), nowhere()) {
                Ok(Start::NoProgram { code, message }) => {
                    assert_eq!(code, expected);
                    assert!(message.contains(name), "{message}");
                }
                _ => panic!("{name} was found"),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), "").unwrap();
        let path = dir.path().to_str().unwrap();
        match start(
            &command(&["data"]),
            &surroundings(&[("PATH", path)]),
            nowhere(),
        ) {
            Ok(Start::NoProgram { code: 126, message }) => {
                assert!(message.contains("may not be executed"), "{message}");
            }
            _ => panic!("executed"),
        }
    }
}
