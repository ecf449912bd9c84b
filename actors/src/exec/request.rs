//! What is to be run.

use std::fmt;

use iii_proto::exec::{Command, TerminalSize};

/// A command to be run in a guest. What is not said is as the workload has it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the guest's PATH.
    pub command: Vec<String>,
    /// Variables beside, or in place of, the workload's.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute in the guest.
    pub cwd: Option<String>,
    /// `name`, `name:group`, `uid` or `uid:gid`, by the guest's own `/etc/passwd`.
    pub user: Option<String>,
    /// Run it on a terminal of this size. Its output is then all on standard output.
    pub terminal: Option<TerminalSize>,
    /// It reads what [`ExecSession::stdin`](super::ExecSession::stdin) is written. Without, it reads
    /// the end of its input at once.
    pub stdin: bool,
}

impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The same fields, without the values of variables.
        self.clone().into_command().fmt(f)
    }
}

impl ExecRequest {
    /// This program with these arguments.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
        }
    }

    /// Adds a variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, cwd: impl Into<String>) -> Self {
        self.cwd = Some(cwd.into());
        self
    }

    /// Sets the user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Runs it on a terminal.
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.terminal = Some(TerminalSize { rows, columns });
        self
    }

    /// Gives it an input.
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub(super) fn into_command(self) -> Command {
        Command {
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            terminal: self.terminal,
            stdin: self.stdin,
        }
    }
}
