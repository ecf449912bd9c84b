//! Events and output as lines for people.

use std::time::Duration;

use iii_actors::WorkerState;
use iii_actors::event::{Event, EventKind, LogLine, LogSource, SourceAction};
use iii_net::config::HOST_NAME;
use iii_proto::control::{BootStage, PowerOffReason};
use iii_proto::ids::{BootId, WorkerName};
use iii_proto::restart::{Decision, Exit};

use super::escape;
use super::screen::{Mark, Screen, Tone};

/// What an event says: lines, the first with the fact, further ones with detail.
struct Words {
    tone: Tone,
    text: String,
    /// A console's tail: shown indented below.
    detail: String,
}

fn words(tone: Tone, text: impl Into<String>) -> Words {
    Words {
        tone,
        text: text.into(),
        detail: String::new(),
    }
}

/// An event as one or more lines without the last newline; `None` for one that is shown only when
/// everything is. `stamp` is its time as it is to be shown.
pub fn event(event: &Event, screen: &Screen, stamp: &str) -> Option<String> {
    if !screen.verbose() && !essential(event, screen) {
        return None;
    }
    let words = describe(&event.kind);
    let prefix = screen.prefix(event.worker.as_ref(), Mark::Event, stamp);
    let mut lines = Vec::new();
    for line in escape::text(&words.text).lines() {
        lines.push(format!("{prefix}{}", screen.toned(words.tone, line)));
    }
    for line in escape::text(&words.detail).lines() {
        let line = format!("    {line}");
        lines.push(format!("{prefix}{}", screen.toned(Tone::Dim, &line)));
    }
    Some(lines.join("\n"))
}

/// A line of a workload's output. A piece that no newline ended is marked with `…`.
pub fn log(log: &LogLine, screen: &Screen, stamp: &str) -> String {
    let mark = match log.stream {
        LogSource::Stdout | LogSource::Stderr => Mark::Output,
        LogSource::Console => Mark::Console,
    };
    let prefix = screen.prefix(Some(&log.worker), mark, stamp);
    let text = escape::line(&log.text, screen.colours());
    let end = if log.complete { "" } else { "…" };
    format!("{prefix}{text}{end}")
}

/// Lines that are missing among what is kept.
pub fn lost(worker: &WorkerName, lines: u64, screen: &Screen, stamp: &str) -> String {
    let prefix = screen.prefix(Some(worker), Mark::Event, stamp);
    let text = match lines {
        1 => String::from("1 line is lost here: the disk did not take it"),
        lines => format!("{lines} lines are lost here: the disk did not take them"),
    };
    format!("{prefix}{}", screen.toned(Tone::Warn, &text))
}

/// Whether a user who did not ask for everything wants to know.
fn essential(event: &Event, screen: &Screen) -> bool {
    match &event.kind {
        EventKind::WorkerStarting
        | EventKind::GuestStage { .. }
        | EventKind::ActorRestarted { .. }
        | EventKind::SupervisorStopped => false,
        EventKind::WorkloadReady { .. } => screen.probed(event.worker.as_ref()),
        EventKind::GuestPoweringOff { reason } => match reason {
            // That the VM has ended, and why, follows at once.
            PowerOffReason::Stopped
            | PowerOffReason::Done { .. }
            | PowerOffReason::GaveUp { .. } => false,
            PowerOffReason::SetupFailed { .. } | PowerOffReason::HostGone => true,
        },
        _ => true,
    }
}

fn describe(kind: &EventKind) -> Words {
    match kind {
        EventKind::WorkerStarting => words(Tone::Dim, "starting"),
        EventKind::WorkerWaiting { on } => {
            let names: Vec<&str> = on.iter().map(WorkerName::as_str).collect();
            words(Tone::Dim, format!("waiting for {}", names.join(", ")))
        }
        EventKind::WorkerRestarting { lost: None } => {
            words(Tone::Plain, "restarting, as was asked")
        }
        EventKind::WorkerRestarting { lost: Some(lost) } => words(
            Tone::Warn,
            format!("stopping: {lost}, which it depends on, is being repaired or stopped"),
        ),
        EventKind::WorkerRecovered {
            state,
            lost_boot,
            restarts,
        } => words(Tone::Warn, recovered(*state, *lost_boot, *restarts)),
        EventKind::Published { host, guest_port } => words(
            Tone::Plain,
            format!("port {guest_port} of the guest is {host} on this host"),
        ),
        EventKind::VmStarted {
            vmm,
            accel,
            pid,
            boots,
        } => {
            let again = if *boots > 1 {
                format!(", boot {boots}")
            } else {
                String::new()
            };
            words(
                Tone::Plain,
                format!("vm started ({vmm}/{accel}, pid {pid}{again})"),
            )
        }
        EventKind::GuestUp { kernel, after } => words(
            Tone::Plain,
            format!("guest is up after {} (Linux {kernel})", span(*after)),
        ),
        EventKind::GuestStage { stage, .. } => {
            words(Tone::Dim, format!("guest has {}", stage_reached(*stage)))
        }
        EventKind::WorkloadStarted { pid, restarts } => words(
            Tone::Plain,
            match restarts {
                0 => format!("workload started (pid {pid})"),
                n => format!("workload started again inside its VM (pid {pid}, restart {n})"),
            },
        ),
        EventKind::WorkloadReady { .. } => words(Tone::Good, "workload is ready"),
        EventKind::WorkloadUnhealthy { detail, .. } => words(
            Tone::Warn,
            format!("workload is unhealthy and will be ended: {detail}"),
        ),
        EventKind::WorkloadExited {
            exit,
            ran,
            decision,
            restarts,
            ..
        } => workload_exited(exit, *ran, decision, *restarts),
        EventKind::GuestPoweringOff { reason } => powering_off(reason),
        EventKind::VmStopped => words(Tone::Dim, "vm stopped"),
        EventKind::VmCrashed {
            cause,
            exit,
            last_stage,
            console_tail,
            announced,
        } => {
            let mut text = if *announced {
                format!("vm ended: {cause}")
            } else {
                format!("vm crashed: {cause}")
            };
            // How one ended that did as it said tells nothing.
            if let Some(exit) = exit.as_ref().filter(|_| !announced) {
                text += &format!("; its process: {exit}");
            }
            text += &match last_stage {
                _ if *announced => String::new(),
                Some(stage) => format!("; the guest had {}", stage_reached(*stage)),
                None => String::from("; the guest had not said anything"),
            };
            let detail = if console_tail.trim().is_empty() {
                String::new()
            } else {
                format!("the end of its console:\n{}", console_tail.trim_end())
            };
            Words {
                tone: Tone::Bad,
                text,
                detail,
            }
        }
        EventKind::VmRestarting { delay, cause } => {
            words(Tone::Warn, format!("a new vm in {}: {cause}", span(*delay)))
        }
        EventKind::ActorFailed {
            actor,
            cause,
            stops,
        } => {
            let mut text = format!("{} failed: {cause}", actor.role());
            if !stops.is_empty() {
                let stops: Vec<&str> = stops.iter().map(|actor| actor.role()).collect();
                text += &format!("; stopped with it: {}", stops.join(", "));
            }
            words(Tone::Warn, text)
        }
        EventKind::ActorRestarted { actor, restarts } => words(
            Tone::Dim,
            format!("{} runs again (restart {restarts})", actor.role()),
        ),
        EventKind::WorkerDone { exit } => {
            words(Tone::Good, format!("done: the workload {}", ended(exit)))
        }
        EventKind::WorkerStopped => words(Tone::Plain, "stopped"),
        EventKind::WorkerFailed { reason } => words(
            Tone::Bad,
            format!("failed, and is not started again: {reason}"),
        ),
        EventKind::ProjectFound {
            kind,
            found,
            install,
            start,
            restarts,
            watches_itself,
            keys,
            ..
        } => words(
            Tone::Plain,
            project(
                kind,
                found,
                install.as_deref(),
                start,
                *restarts,
                watches_itself.as_deref(),
                *keys,
            ),
        ),
        EventKind::SourceChanged {
            paths,
            more,
            action,
        } => source_changed(paths, *more, *action),
        EventKind::NetworkRefused {
            protocol,
            destination,
        } => words(Tone::Warn, network_refused(protocol, destination)),
        EventKind::Warning { message } => words(Tone::Warn, format!("warning: {message}")),
        EventKind::Reloaded {
            started,
            restarted,
            removed,
        } => words(Tone::Plain, reloaded(started, restarted, removed)),
        EventKind::SupervisorStopped => words(Tone::Dim, "all workers have ended"),
        // Kinds that are newer than these words are shown as their data.
        other => words(
            Tone::Dim,
            serde_json::to_string(other).unwrap_or_else(|error| error.to_string()),
        ),
    }
}

/// What was found in a project's directory, and how to say otherwise.
fn project(
    kind: &str,
    found: &str,
    install: Option<&str>,
    start: &str,
    restarts: bool,
    watches_itself: Option<&str>,
    keys: bool,
) -> String {
    let mut text = format!("{kind} ({found}): ");
    if let Some(install) = install {
        text += &format!("`{install}`, then ");
    }
    text += &format!("`{start}`; to change it, write `scripts` into iii.worker.yaml");
    match (restarts, watches_itself) {
        (true, _) => text += "\nit is restarted when a file is saved",
        (false, Some(watcher)) => {
            text += &format!("\n{watcher} is told when a file is saved, and restarts it");
        }
        (false, None) => text += "\nit is told when a file is saved, and not restarted",
    }
    if keys {
        text += "; keys: r restart, c clear, q quit";
    }
    text
}

fn source_changed(paths: &[String], more: usize, action: SourceAction) -> Words {
    let mut text = format!("saved {}", paths.join(", "));
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text += match action {
        SourceAction::Restart => ": restarting",
        SourceAction::NewVm => ": a new vm, since this decides how it is installed and started",
        SourceAction::Told => ": told those who watch",
    };
    words(Tone::Good, text)
}

fn workload_exited(exit: &Exit, ran: Duration, decision: &Decision, restarts: u32) -> Words {
    let what = format!("workload {} after {}", ended(exit), span(ran));
    match decision {
        Decision::RestartAfter { delay } => words(
            Tone::Warn,
            format!(
                "{what}; restart {} in {} (inside its VM)",
                restarts.saturating_add(1),
                span(*delay)
            ),
        ),
        Decision::Done if exit.is_success() => words(Tone::Good, what),
        Decision::Done => words(Tone::Warn, format!("{what}; it is not restarted")),
        Decision::Wait if exit.is_success() => words(
            Tone::Good,
            format!("{what}; waiting for a save or a restart"),
        ),
        Decision::Wait => words(
            Tone::Warn,
            format!("{what}; waiting for a save or a restart"),
        ),
        Decision::GiveUp => words(
            Tone::Bad,
            format!(
                "{what}; its limit is used up after {} in this VM",
                counted(restarts, "restart")
            ),
        ),
    }
}

fn powering_off(reason: &PowerOffReason) -> Words {
    match reason {
        PowerOffReason::Stopped => words(Tone::Dim, "guest powers off: it was asked to"),
        PowerOffReason::Done { exit } => words(
            Tone::Dim,
            format!("guest powers off: the workload {}", ended(exit)),
        ),
        PowerOffReason::GaveUp { exit, restarts } => words(
            Tone::Warn,
            format!(
                "guest powers off: the workload {} and was restarted {}",
                ended(exit),
                counted(*restarts, "time")
            ),
        ),
        PowerOffReason::SetupFailed { stage, message } => words(
            Tone::Bad,
            format!(
                "guest could not be set up: {message} (it never had {})",
                stage_reached(*stage)
            ),
        ),
        PowerOffReason::HostGone => words(
            Tone::Bad,
            "guest powers off: it lost its connection to iii-super",
        ),
    }
}

/// `1 restart`, `2 restarts`.
fn counted(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// How something ended, to stand behind its subject.
fn ended(exit: &Exit) -> String {
    match exit {
        Exit::Code { code } => format!("exited with code {code}"),
        Exit::Signal { .. } => format!("was ended by {exit}"),
        Exit::Unhealthy => String::from("was ended as unhealthy"),
        Exit::Fault { cause } => format!("failed: {cause}"),
    }
}

/// A stage, to stand behind "the guest has".
fn stage_reached(stage: BootStage) -> &'static str {
    match stage {
        BootStage::Init => "started its init",
        BootStage::SpecRead => "read its settings",
        BootStage::Mounted => "mounted its file systems",
        BootStage::NetworkUp => "brought up its network",
        BootStage::Prepared => "prepared the workload's user and limits",
    }
}

/// A duration with as many digits as a reader wants.
fn span(duration: Duration) -> String {
    // Rounded first, so that 59.96 s is not shown as 60.0 s.
    let tenths = (duration.as_secs_f64() * 10.0).round() / 10.0;
    if duration < Duration::from_secs(1) {
        format!("{:.2} s", duration.as_secs_f64())
    } else if tenths < 60.0 {
        format!("{tenths:.1} s")
    } else {
        let seconds = duration.as_secs_f64().round() as u64;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            format!("{hours} h {minutes} min")
        } else {
            format!("{minutes} min {seconds} s")
        }
    }
}

#[cfg(test)]
#[path = "human_tests.rs"]
mod tests;

/// What reading the file again has changed.
pub fn reloaded(
    started: &[WorkerName],
    restarted: &[WorkerName],
    removed: &[WorkerName],
) -> String {
    let parts: Vec<String> = [
        ("starting", started),
        ("restarting", restarted),
        ("removed", removed),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| {
        let names: Vec<&str> = names.iter().map(WorkerName::as_str).collect();
        format!("{what} {}", names.join(", "))
    })
    .collect();
    if parts.is_empty() {
        return String::from("the workers file was read again: nothing has changed");
    }
    format!("the workers file was read again: {}", parts.join("; "))
}

/// What a supervisor that was killed has left.
fn recovered(state: WorkerState, lost_boot: Option<BootId>, restarts: usize) -> String {
    let mut text = format!("the supervisor before was killed while this worker was {state}");
    if let Some(boot) = lost_boot {
        text += &format!("; its vm (boot {boot}) and all that it held in memory are lost");
    }
    if restarts > 0 {
        let (restarts, count) = match restarts {
            1 => (String::from("1 restart"), "counts"),
            _ => (format!("{restarts} restarts"), "count"),
        };
        text += &format!("; {restarts} still {count} towards the limit");
    }
    if state == WorkerState::Failed {
        text += "; `iii-super run --reset-failed` begins anew";
    }
    text
}

fn network_refused(protocol: &str, destination: &str) -> String {
    let what = match protocol {
        "dns" => format!("the name {destination}"),
        protocol => format!("{protocol} to {destination}"),
    };
    let decides = if destination.starts_with(HOST_NAME) {
        "network.host_ports says what it may reach there"
    } else {
        "network.mode and network.allow say what it may reach"
    };
    format!("its network policy refuses {what}; {decides}")
}
