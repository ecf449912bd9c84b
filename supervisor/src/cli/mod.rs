//! The program's commands.
//!
//! Exit codes: 0 all is well; 1 a worker failed, or a command could not do what it was asked; 2 bad
//! input or a host that cannot run it, and nothing was started; 3 no supervisor runs, and the
//! command needs one; 130 ended at once by a second Ctrl-C, or by the first while nothing was
//! started yet.

mod arguments;
mod complete;
mod config;
mod contact;
mod dev;
mod doctor;
mod edit;
pub(crate) mod engine;
mod events;
mod exec;
mod firmware;
mod image;
mod keys;
mod list;
mod logs;
mod man;
mod progress;
mod project;
mod prune;
mod ps;
mod reset;
mod run;
mod say;
mod service;
mod signals;
mod since;
mod top;
mod usage;
mod vmm;
mod workers;

#[cfg(test)]
mod docs_tests;

use std::process::ExitCode;

use clap::Parser as _;

use crate::workers_file::SCHEMA;

use arguments::{Arguments, Command};
use say::print;

/// All is well.
const OK: u8 = 0;
/// A worker failed, or a command could not do what it was asked.
const FAILED: u8 = 1;
/// Nothing was started: bad input, or a host that cannot run it.
const REFUSED: u8 = 2;
/// No supervisor runs, and the command needs one.
const NOT_RUNNING: u8 = 3;
/// Its time was up, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Ended at once by Ctrl-C: 128 and SIGINT, as shells have it.
const KILLED: u8 = 130;

/// Variable that sets what is logged to stderr, as `debug` or `iii_net=trace`.
const LOG_VARIABLE: &str = "III_LOG";

/// Runs the program on this process's arguments.
pub fn main() -> ExitCode {
    complete::answer();
    let arguments = Arguments::parse();
    log_to_stderr();
    let code = match arguments.command {
        Command::Run(args) => run::run(&args, &arguments.colour),
        Command::Dev(args) => dev::run(&args, &arguments.colour),
        Command::Ps(args) => ps::run(&args, &arguments.colour),
        Command::Top(args) => top::run(&args, &arguments.colour),
        Command::Events(args) => events::run(&args, &arguments.colour),
        Command::Start(args) => workers::start(&args),
        Command::Stop(args) => workers::stop(&args),
        Command::Restart(args) => workers::restart(&args),
        Command::Exec(args) => exec::run(&args),
        Command::Logs(args) => logs::run(&args, &arguments.colour),
        Command::List(args) => list::run(&args, &arguments.colour),
        Command::Config(args) => config::run(&args),
        Command::Add(args) => edit::add(&args),
        Command::Remove(args) => edit::remove(&args),
        Command::Doctor(args) => doctor::run(&args, &arguments.colour),
        Command::Reset(args) => reset::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Firmware(args) => firmware::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Schema => print(SCHEMA),
        Command::Completions { shell } => complete::script(shell),
        Command::Man(args) => man::run(&args),
    };
    ExitCode::from(code)
}

/// Logs of our own, apart from a worker's output and from events.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_VARIABLE)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
