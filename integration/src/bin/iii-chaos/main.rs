//! Hurts workers on real VMs in every way that there is, in an order that the seed decides, and
//! proves each repair; `make chaos` calls it.
//!
//! `iii-chaos [FAULTS]`; the seed is printed, and taken from `III_CHAOS_SEED` if that is set. The
//! first fault of each kind warms up; behind them nothing may become more: no thread, descriptor,
//! process or temporary file. Run it with a `TMPDIR` of its own.
#![deny(unsafe_code)]
// What it prints is its product.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iii_integration::chaos::plan::{Kind, plan};
use iii_integration::chaos::run::{Chaos, Repair};

/// Sixteen of each kind.
const FAULTS: usize = 16 * Kind::ALL.len();

#[tokio::main]
async fn main() -> ExitCode {
    let count = std::env::args().nth(1).map_or(Ok(FAULTS), |n| n.parse());
    let seed = std::env::var("III_CHAOS_SEED").map_or_else(|_| Ok(any_seed()), |s| s.parse());
    let (Ok(count), Ok(seed)) = (count, seed) else {
        complain("usage: iii-chaos [FAULTS], with III_CHAOS_SEED a number if it is set");
        return ExitCode::from(2);
    };
    silence_injected_panics();
    let surplus = run(seed, count).await;
    if surplus.is_empty() {
        println!("nothing is left behind; seed {seed}");
        return ExitCode::SUCCESS;
    }
    complain(&format!("seed {seed} left:\n{}", surplus.join("\n")));
    ExitCode::FAILURE
}

/// The panics that are asked for are no news; any other is.
fn silence_injected_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<&str>();
        if !text.is_some_and(|text| text.contains("fault") && text.contains("injected")) {
            told(info);
        }
    }));
}

fn any_seed() -> u64 {
    // A host clock before 1970 makes seed 0.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64 % 1_000_000_000)
}

// Standard error is where a failed run belongs.
#[allow(clippy::print_stderr)]
fn complain(error: &str) {
    eprintln!("iii-chaos: {error}");
}

async fn run(seed: u64, count: usize) -> Vec<String> {
    let steps = plan(seed, count);
    println!(
        "seed {seed}: {} faults; III_CHAOS_SEED={seed} repeats them",
        steps.len()
    );
    let mut chaos = Chaos::start().await;
    let mut times: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
    let mut skipped = 0;
    for (at, step) in steps.iter().enumerate() {
        if at == Kind::ALL.len() {
            chaos.take_baseline().await;
        }
        let number = format!("{}/{}", at + 1, steps.len());
        let what = format!("{:?} of {}", step.kind, step.victim);
        match chaos.step(*step).await {
            Repair::Ready(took) => {
                println!("{number:>8}  {what:<36} {:>7.2} s", took.as_secs_f64());
                times.entry(step.kind).or_default().push(took);
            }
            Repair::Skipped => {
                println!("{number:>8}  {what:<36} skipped: no disk can be mounted");
                skipped += 1;
            }
        }
    }
    let surplus = chaos.surplus().await;
    chaos.stop().await;
    println!("\n{:<24} {:>5} {:>12}", "fault", "count", "median");
    for (kind, times) in &mut times {
        times.sort();
        let median = times[times.len() / 2].as_secs_f64();
        let kind = format!("{kind:?}");
        println!("{kind:<24} {:>5} {median:>10.2} s", times.len());
    }
    println!("{skipped} skipped");
    surplus
}
