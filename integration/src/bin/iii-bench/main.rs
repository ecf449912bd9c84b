//! Measurements, each beside a peer and from one run; `make bench` calls it.
//!
//! Absolute times say more about the machine than about us, so every figure that is a claim is a
//! ratio of medians of runs taken in turn. Prints a table, or with `--json` one object per row.
#![deny(unsafe_code)]
// What a benchmark prints is its product.
#![allow(clippy::print_stdout)]

mod bare;
mod product;

use std::process::ExitCode;
use std::time::Duration;

/// Runs of each kind that are counted; one more of each warms the caches.
const RUNS: usize = 11;

fn main() -> ExitCode {
    let json = std::env::args().any(|arg| arg == "--json");
    match measure(json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

// Standard error is where a failed measurement belongs.
#[allow(clippy::print_stderr)]
fn complain(error: &str) {
    eprintln!("iii-bench: {error}");
}

/// What was measured.
struct Row {
    what: &'static str,
    times: Vec<Duration>,
}

impl Row {
    fn new(what: &'static str, mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { what, times }
    }

    fn median(&self) -> Duration {
        self.times[self.times.len() / 2]
    }

    fn print(&self, json: bool) {
        let (min, median, max) = (
            self.times[0],
            self.median(),
            self.times[self.times.len() - 1],
        );
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "what": self.what, "runs": self.times.len(), "min_ms": ms(min),
                    "median_ms": ms(median), "max_ms": ms(max),
                })
            );
        } else {
            println!(
                "{:<58} {:>9.1} {:>9.1} {:>9.1}  ({} runs)",
                self.what,
                ms(min),
                ms(median),
                ms(max),
                self.times.len()
            );
        }
    }
}

fn measure(json: bool) -> Result<(), String> {
    let bare = bare::Bare::prepare()?;
    let mut product_times = Vec::new();
    let mut bare_times = Vec::new();
    for run in 0..=RUNS {
        let ours = product::first_line()?;
        let theirs = bare.boot()?;
        if run > 0 {
            product_times.push(ours);
            bare_times.push(theirs);
        }
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let (in_guest, full) = runtime.block_on(product::restarts(RUNS))?;
    if !json {
        println!(
            "{:<58} {:>9} {:>9} {:>9}",
            "milliseconds", "min", "median", "max"
        );
    }
    let ours = Row::new("iii-super run, to the workload's first line", product_times);
    let theirs = Row::new(
        "bare QEMU, same kernel, flags and devices, to init's line",
        bare_times,
    );
    let in_guest = Row::new("restart inside the VM: line to line, no backoff", in_guest);
    let full = Row::new(
        "restart of the VM: SIGKILL to the workload's first line",
        full,
    );
    for row in [&ours, &theirs, &in_guest, &full] {
        row.print(json);
    }
    let ratio = ours.median().as_secs_f64() / theirs.median().as_secs_f64();
    if json {
        println!(
            "{}",
            serde_json::json!({"what": "run over bare boot", "ratio": ratio})
        );
    } else {
        println!("run over bare boot: {ratio:.2} (medians)");
    }
    Ok(())
}
