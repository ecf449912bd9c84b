//! Arguments of the commands that speak to a running supervisor.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use iii_proto::ids::WorkerName;

use crate::cli::complete;
use crate::cli::since::PointInTime;
use crate::control::protocol::RestartScope;
use crate::workers_file::{FILE_NAME, parse_duration};

#[derive(Debug, Args)]
pub(crate) struct PsArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// Every running supervisor of this user, whatever its file
    #[arg(short, long, conflicts_with = "file")]
    pub(crate) all_projects: bool,
    /// What each worker uses: CPU, memory, network
    #[arg(short, long)]
    pub(crate) stats: bool,
    /// What each worker takes of the disk: a root that persists, other disks, output, its image
    #[arg(long)]
    pub(crate) size: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// Print one frame as plain text, with all workers, and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object for each worker, and end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    /// The workers file
    #[arg(long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// Only of these workers
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(crate) names: Vec<WorkerName>,
    /// Go on with what comes, until the supervisor's end
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The last N, of those that the other options choose
    #[arg(short = 'n', long = "tail", value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Not what was before: 10m (ago), 10:00, "2026-11-25 10:00", 2026-11-25T10:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<PointInTime>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// These workers, and those that they wait for; none: all
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(crate) names: Vec<WorkerName>,
    /// Return once each is ready, or has ended
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Wait no longer than this, as 30s or 2m
    #[arg(short, long, value_name = "TIME", requires = "wait", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// These workers; none: all, and the supervisor
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(crate) names: Vec<WorkerName>,
    /// Kill what still runs after this time, as 30s or 0; else each worker has its stop_grace
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// These workers; none: all
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(crate) names: Vec<WorkerName>,
    /// How much of each
    #[arg(short, long, value_enum, default_value_t = Scope::All)]
    pub(crate) scope: Scope,
    /// Return once each is ready again, or has ended
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Wait no longer than this, as 30s or 2m
    #[arg(short, long, value_name = "TIME", requires = "wait", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// The workload's process, inside its VM
    Workload,
    /// The VM and the workload in it
    Vm,
    /// The VM and all that serves it
    All,
}

impl From<Scope> for RestartScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Workload => Self::Workload,
            Scope::Vm => Self::Vm,
            Scope::All => Self::All,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(crate) file: PathBuf,
    /// Give it this program's standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Run it on a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// As this user of the guest: name, name:group, uid or uid:gid
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// In this directory of the guest
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Set a variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// End it after this time, as 30s or 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print JSON: an object per piece of output, and one for the end
    #[arg(long, conflicts_with = "tty")]
    pub(crate) json: bool,
    /// In this worker's guest
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(crate) name: WorkerName,
    /// The program, found in the guest's PATH, and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}
