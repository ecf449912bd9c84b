//! Measurements, each beside a peer and from one run; `make bench` calls it.
//!
//! Absolute times say more about the machine than about us, so every figure that is a claim is a
//! ratio of medians of runs taken in turn. Prints a table, or with `--json` one object per row.
#![deny(unsafe_code)]
// What a benchmark prints is its product.
#![allow(clippy::print_stdout)]

mod bare;
mod dev;
mod memory;
mod peers;
mod product;
mod scale;
mod scripted;
mod scripted_guest;

use std::process::ExitCode;
use std::time::Duration;

use scale::Network;

/// Runs of each kind that are counted; one more of each warms the caches.
const RUNS: usize = 11;

/// What can be measured alone; nothing named: all of it.
const PARTS: [&str; 5] = ["boot", "dev", "memory", "peers", "scale"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &arguments[..]
        && first == scripted::ARGUMENT
    {
        return finish(scripted::run(rest));
    }
    if let [first, rest @ ..] = &arguments[..]
        && first == scale::ARGUMENT
    {
        return finish(scale::run(rest));
    }
    let json = arguments.iter().any(|arg| arg == "--json");
    let named: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|arg| *arg != "--json")
        .collect();
    if let Some(unknown) = named.iter().find(|name| !PARTS.contains(name)) {
        return finish(Err(format!(
            "{unknown} is no part; there are: {}",
            PARTS.join(", ")
        )));
    }
    let wanted = |part| named.is_empty() || named.contains(&part);
    let mut result = Ok(());
    if wanted("boot") {
        result = result.and_then(|()| boot(json));
    }
    if wanted("dev") {
        result = result.and_then(|()| development(json));
    }
    if wanted("memory") {
        result = result.and_then(|()| occupied(json));
    }
    if wanted("peers") {
        result = result.and_then(|()| supervisors(json));
    }
    if wanted("scale") {
        result = result.and_then(|()| thousand(json));
    }
    finish(result)
}

fn finish(result: Result<(), String>) -> ExitCode {
    match result {
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
    what: String,
    times: Vec<Duration>,
}

impl Row {
    fn new(what: impl Into<String>, mut times: Vec<Duration>) -> Self {
        times.sort();
        Self {
            what: what.into(),
            times,
        }
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

/// VMs: their start and their restart.
fn boot(json: bool) -> Result<(), String> {
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
    head(json);
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

fn head(json: bool) {
    if !json {
        println!(
            "{:<58} {:>9} {:>9} {:>9}",
            "milliseconds", "min", "median", "max"
        );
    }
}

/// From a save to the new process's first line.
fn development(json: bool) -> Result<(), String> {
    let [ours, theirs] = dev::saves(RUNS)?;
    head(json);
    Row::new("save to first line: iii-super dev, in its VM", ours).print(json);
    Row::new("save to first line: entr, on the host", theirs).print(json);
    for waits in dev::runtimes(RUNS)? {
        let name = waits.runtime;
        // What is ours of each wait: the pair was measured in the same guest, one behind the other.
        let pairs = waits.first_line.iter().zip(&waits.own);
        let ours = pairs.map(|(all, own)| all.saturating_sub(*own)).collect();
        let all = format!("save to first line: iii-super dev, {name}");
        Row::new(all, waits.first_line).print(json);
        Row::new(format!("  {name}'s own start in that guest"), waits.own).print(json);
        Row::new("  the difference: what dev adds", ours).print(json);
    }
    Ok(())
}

/// What VMs cost in memory, per VM.
fn occupied(json: bool) -> Result<(), String> {
    let mut supervisors = Vec::new();
    for workers in memory::WORKERS {
        let memory = memory::measure(workers)?;
        let per_vm = |kib: u64| kib as f64 / 1024.0 / workers as f64;
        let print = |what: &str, occupied: memory::Occupied, processes: usize| {
            let (pss, rss) = (per_vm(occupied.proportional), per_vm(occupied.resident));
            if json {
                println!(
                    "{}",
                    serde_json::json!({
                        "what": "memory", "workers": workers, "of": what,
                        "pss_mib_per_vm": pss, "rss_mib_per_vm": rss, "processes": processes,
                    })
                );
            } else {
                println!("{what:<58} {pss:>9.1} {rss:>9.1} {processes:>9}");
            }
        };
        if !json {
            let idle = format!("MiB per VM of {} MiB, {workers} idle", memory.vm_mib);
            println!("{idle:<58} {:>9} {:>9} {:>9}", "PSS", "RSS", "processes");
        }
        print(
            "the guest's memory, as far as it was touched",
            memory.guests,
            0,
        );
        for part in &memory.parts {
            print(part.name, part.own, part.processes);
        }
        let sum = memory.sum();
        print("all of it", sum, 0);
        let used = per_vm(memory.used_in_guests);
        let beside = per_vm(sum.proportional) - used;
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "what": "memory", "workers": workers, "of": "used in the guest",
                    "mib_per_vm": used, "beside_it_mib_per_vm": beside,
                })
            );
        } else {
            let guest = "used in the guest, as its kernel says";
            println!("{guest:<58} {used:>9.1}");
            println!("{:<58} {beside:>9.1}", "what the VM costs beside that");
        }
        supervisors.push((workers, memory.supervisor().proportional));
    }
    if let [(few, least), (many, most)] = supervisors[..] {
        let each = most.saturating_sub(least) as f64 / 1024.0 / (many - few) as f64;
        if json {
            println!(
                "{}",
                serde_json::json!({"what": "memory", "of": "iii-super, per further VM", "pss_mib": each})
            );
        } else {
            println!("iii-super, per further VM: {each:.1} MiB");
        }
    }
    Ok(())
}

/// Supervisors beside each other.
fn supervisors(json: bool) -> Result<(), String> {
    let rows: Vec<Row> = peers::restarts()?
        .into_iter()
        .map(|(name, gaps)| Row::new(format!("a child's death to its successor: {name}"), gaps))
        .collect();
    head(json);
    for row in &rows {
        row.print(json);
    }
    let Some((ours, peers)) = rows.split_last() else {
        return Err("nothing was compared".into());
    };
    let fastest = peers.iter().map(Row::median).min().unwrap_or_default();
    let ratio = ours.median().as_secs_f64() / fastest.as_secs_f64();
    if json {
        println!(
            "{}",
            serde_json::json!({"what": "vm-init over the fastest peer", "ratio": ratio})
        );
    } else {
        println!("vm-init over the fastest peer: {ratio:.2} (medians)");
    }
    Ok(())
}

/// The tree with a thousand workers.
fn thousand(json: bool) -> Result<(), String> {
    for network in Network::ALL {
        let scale = scale::measure(network)?;
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "what": "scale", "workers": scale.workers, "network": network.to_string(),
                    "memory_kib_per_worker": scale.memory_kib,
                    "memory_after_restart_kib_per_worker": scale.memory_after_restart_kib,
                    "threads_per_worker": scale.threads,
                    "idle_cpu_percent": scale.idle_cpu_percent,
                    "start_s": scale.start.as_secs_f64(),
                    "restart_all_s": scale.restart.as_secs_f64(),
                    "events_per_second": scale.events_per_second,
                })
            );
        } else {
            println!(
                "{} workers {network}, scripted VMMs: {:.0} KiB ({:.0} after a restart of all) and \
                 {:.2} threads per worker, idle {:.2} % of a core; start of all {:.1} s, restart \
                 of all at once {:.1} s, {:.0} events/s",
                scale.workers,
                scale.memory_kib,
                scale.memory_after_restart_kib,
                scale.threads,
                scale.idle_cpu_percent,
                scale.start.as_secs_f64(),
                scale.restart.as_secs_f64(),
                scale.events_per_second,
            );
        }
    }
    Ok(())
}
