//! `iii-super doctor`.

use std::sync::Arc;

use clap::Args;

use super::arguments::Colour;
use super::progress::StderrProgress;
use super::say::{print, say};
use super::{FAILED, REFUSED};
use crate::Supervisor;
use crate::doctor::{BootReport, Report, boot, render, render_boot};

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// Boot a VM as well, and show when it came how far
    #[arg(long)]
    boot: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &DoctorArguments, colour: &Colour) -> u8 {
    let mut report = Report::collect();
    if !arguments.json {
        let printed = print(&render(&report, colour.of_stdout()));
        if !report.can_run {
            return FAILED;
        }
        if !arguments.boot || printed != super::OK {
            return printed;
        }
        // An empty line between the two, and words for whoever waits.
        say("booting a VM, as a run would");
    }
    if arguments.boot && report.can_run {
        match boot_one() {
            Ok(boot) => report.boot = Some(boot),
            Err(error) => {
                say(format_args!("failed to start threads: {error}"));
                return REFUSED;
            }
        }
    }
    let booted = report.boot.as_ref().is_none_or(|boot| boot.booted);
    let text = match (&report.boot, arguments.json) {
        (Some(boot), false) => render_boot(boot),
        (_, true) => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => {
                say(format_args!("failed to write the report: {error}"));
                return FAILED;
            }
        },
        (None, false) => String::new(),
    };
    let printed = print(&text);
    if report.can_run && booted {
        printed
    } else {
        FAILED
    }
}

fn boot_one() -> std::io::Result<BootReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let progress = Arc::new(StderrProgress::new());
    let builder = Supervisor::builder().progress(progress.clone());
    let report = runtime.block_on(boot(builder));
    progress.finish();
    Ok(report)
}
