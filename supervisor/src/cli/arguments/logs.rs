//! What can be said to `iii-super logs`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use iii_actors::event::LogSource;

use crate::cli::since::PointInTime;
use crate::workers_file::FILE_NAME;

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArguments {
    /// Only these workers
    #[arg(value_name = "NAME")]
    pub(in crate::cli) names: Vec<String>,
    /// Go on with what is written from now on, over any end of iii-super
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// The last N lines of each worker, of those that the other options choose
    #[arg(short = 'n', long = "tail", value_name = "N")]
    pub(in crate::cli) last: Option<usize>,
    /// What arrived at this time or later: 10m (ago), 10:00, "2026-11-25 10:00",
    /// 2026-11-25T10:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) since: Option<PointInTime>,
    /// What arrived before this time
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) until: Option<PointInTime>,
    /// Only this source; may be given again
    #[arg(long, value_enum, value_name = "SOURCE", value_delimiter = ',')]
    pub(in crate::cli) stream: Vec<Source>,
    /// Only what a VM of this boot id wrote; its beginning is enough
    #[arg(long, value_name = "ID", value_parser = boot_prefix)]
    pub(in crate::cli) boot: Option<String>,
    /// Show date and time of each line to the millisecond
    #[arg(short, long)]
    pub(in crate::cli) timestamps: bool,
    /// The workers file of the project
    #[arg(long, value_name = "FILE", default_value = FILE_NAME)]
    pub(in crate::cli) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Source {
    /// The workload's standard output
    Stdout,
    /// Its standard error
    Stderr,
    /// The end of the console of a VM that crashed
    Console,
}

impl From<Source> for LogSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Stdout => Self::Stdout,
            Source::Stderr => Self::Stderr,
            Source::Console => Self::Console,
        }
    }
}

fn boot_prefix(text: &str) -> Result<String, String> {
    let hex = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(String::from(
            "a boot id is 16 hexadecimal digits, of which the first are enough; the events of `run --json` name it",
        ))
    }
}
