//! A VM that is really booted, with the smallest workload there is, and when it came how far.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iii_actors::event::{Event, EventKind};
use iii_proto::control::{BootStage, PowerOffReason};
use iii_proto::restart::RestartMode;
use serde::Serialize;

use crate::{
    AddWorkerError, LogLine, LogReader, Outcome, PrepareError, Shutdown, Supervisor,
    SupervisorBuilder, WorkerName, WorkerSpec,
};

/// What the workload writes.
const WORD: &str = "a workload runs";
/// Nothing of a boot takes as long: its own deadlines are far shorter.
const PATIENCE: Duration = Duration::from_secs(300);

/// One thing that happened on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What, for programs.
    pub id: &'static str,
    /// What, for people.
    pub title: String,
    /// Since the VMM's process was spawned, in milliseconds.
    pub at_ms: u64,
    /// By the guest's own clock since its kernel started, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_ms: Option<u64>,
}

/// Why it did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootFailure {
    /// In one sentence.
    pub cause: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The end of the guest's console.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub console_tail: String,
}

/// A boot from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BootReport {
    /// Whether the workload ran, wrote its line and ended, and the VM with it.
    pub booted: bool,
    /// Milliseconds in which the host was looked at, and the firmware fetched if it was missing.
    pub host_ms: u64,
    /// Milliseconds in which the worker was checked and its boot medium made.
    pub prepare_ms: u64,
    /// In the order in which they happened.
    pub steps: Vec<Step>,
    /// Why it did not boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<BootFailure>,
}

impl BootReport {
    fn failed(mut self, cause: impl Into<String>) -> Self {
        self.failure = Some(BootFailure {
            cause: cause.into(),
            fix: None,
            console_tail: String::new(),
        });
        self
    }
}

/// Boots a VM, runs a workload of one line in it, and powers it off.
pub async fn boot(builder: SupervisorBuilder) -> BootReport {
    let mut report = BootReport::default();
    let begin = Instant::now();
    let supervisor = match builder.start().await {
        Ok(supervisor) => supervisor,
        Err(error) => return report.failed(error.to_string()),
    };
    report.host_ms = millis(begin.elapsed());
    let mut events = supervisor.events();
    let mut lines = supervisor.take_logs();
    let begin = Instant::now();
    match start(&supervisor).await {
        Ok(()) => report.prepare_ms = millis(begin.elapsed()),
        Err(cause) => return report.failed(cause),
    }
    let mut timeline = Timeline::default();
    let limit = tokio::time::sleep(PATIENCE);
    tokio::pin!(limit);
    let idle = supervisor.idle();
    tokio::pin!(idle);
    let outcomes = loop {
        tokio::select! {
            biased;
            Some(event) = events.next() => {
                if let Ok(event) = event {
                    timeline.event(&event);
                }
            }
            Some(line) = next(&mut lines) => timeline.line(&line.text),
            outcomes = &mut idle => break Some(outcomes),
            () = &mut limit => break None,
        }
    };
    supervisor.shutdown(Shutdown::Now).await;
    while let Some(Ok(event)) = events.try_next() {
        timeline.event(&event);
    }
    while let Some(line) = lines.as_mut().and_then(|lines| lines.try_recv()) {
        timeline.line(&line.text);
    }
    report.steps = timeline.steps;
    let outcome = outcomes.as_ref().and_then(|outcomes| outcomes.first());
    let done = matches!(outcome, Some((_, Outcome::Done(exit))) if exit.is_success());
    report.booted = done && timeline.wrote && timeline.failure.is_none();
    if !report.booted {
        let unsaid = || BootFailure {
            cause: match outcomes {
                None => format!("it did not end within {} s", PATIENCE.as_secs()),
                Some(_) if done => String::from("its line did not arrive"),
                Some(_) => String::from("the workload failed"),
            },
            fix: None,
            console_tail: String::new(),
        };
        report.failure = Some(timeline.failure.unwrap_or_else(unsaid));
    }
    report
}

async fn start(supervisor: &Supervisor) -> Result<(), String> {
    let name = WorkerName::new("doctor").map_err(|error| error.to_string())?;
    let script = format!("echo '{WORD}'");
    let command = ["/bin/sh", "-c", &script].map(String::from);
    let mut spec = WorkerSpec::new(name, command.to_vec());
    spec.restart.mode = RestartMode::Never;
    spec.vm_restart.mode = RestartMode::Never;
    match supervisor.add(spec).await {
        Ok(_) => Ok(()),
        Err(AddWorkerError::Prepare(errors)) => {
            let errors: Vec<String> = errors.iter().map(PrepareError::to_string).collect();
            Err(errors.join("\n"))
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn next(lines: &mut Option<LogReader>) -> Option<Arc<LogLine>> {
    match lines {
        Some(lines) => lines.recv().await,
        None => None,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Timeline {
    /// When the VMM was spawned, by the events' clock and by ours.
    spawned: Option<(Duration, Instant)>,
    accel: String,
    wrote: bool,
    steps: Vec<Step>,
    failure: Option<BootFailure>,
}

impl Timeline {
    fn push(&mut self, id: &'static str, title: impl Into<String>, at: Duration) {
        self.steps.push(Step {
            id,
            title: title.into(),
            at_ms: millis(at),
            guest_ms: None,
        });
    }

    fn line(&mut self, text: &[u8]) {
        if text == WORD.as_bytes() && !self.wrote {
            self.wrote = true;
            let at = self.spawned.map_or(Duration::ZERO, |(_, at)| at.elapsed());
            self.push("first-line", "the workload's first line is here", at);
        }
    }

    fn event(&mut self, event: &Event) {
        let at = self.spawned.map_or(Duration::ZERO, |(spawned, _)| {
            event.at.saturating_sub(spawned)
        });
        match &event.kind {
            EventKind::VmStarted {
                vmm, accel, pid, ..
            } => {
                self.spawned = Some((event.at, Instant::now()));
                self.accel.clone_from(accel);
                let title = format!("{vmm} is started ({accel}, pid {pid})");
                self.push("vmm-started", title, Duration::ZERO);
            }
            EventKind::GuestUp { kernel, .. } => {
                self.push(
                    "hello",
                    format!("the guest says hello (Linux {kernel})"),
                    at,
                );
            }
            EventKind::GuestStage { stage, uptime } => {
                let (id, title) = stage_name(*stage);
                self.push(id, title, at);
                if let Some(step) = self.steps.last_mut() {
                    step.guest_ms = Some(millis(*uptime));
                }
            }
            EventKind::WorkloadStarted { .. } => {
                self.push("workload-started", "the workload is started", at);
            }
            EventKind::WorkloadExited { exit, .. } => {
                self.push(
                    "workload-exited",
                    format!("the workload has ended ({exit})"),
                    at,
                );
            }
            EventKind::GuestPoweringOff { reason } => {
                self.push("powering-off", "the guest powers off", at);
                if let PowerOffReason::SetupFailed { stage, message } = reason {
                    self.failure = Some(BootFailure {
                        cause: format!("the guest failed to {}: {message}", to_reach(*stage)),
                        fix: None,
                        console_tail: String::new(),
                    });
                }
            }
            EventKind::VmStopped => self.push("vm-stopped", "the VM has ended", at),
            EventKind::VmCrashed {
                cause,
                exit,
                last_stage,
                console_tail,
                ..
            } => {
                let exit = exit
                    .as_ref()
                    .map_or(String::new(), |exit| format!(" ({exit})"));
                self.push("vm-crashed", "the VM has crashed", at);
                self.failure = Some(BootFailure {
                    cause: format!("{cause}{exit}"),
                    fix: Some(fix(*last_stage, &self.accel, console_tail)),
                    console_tail: console_tail.clone(),
                });
            }
            // About other things than the way of one boot, or told by one of those above.
            _ => {}
        }
    }
}

fn stage_name(stage: BootStage) -> (&'static str, &'static str) {
    match stage {
        BootStage::Init => ("init", "the guest's kernel has started its init"),
        BootStage::SpecRead => ("spec-read", "the guest has read its orders"),
        BootStage::Mounted => ("mounted", "file systems are mounted"),
        BootStage::NetworkUp => ("network-up", "the network is up"),
        BootStage::Prepared => ("prepared", "user and limits are prepared"),
    }
}

fn to_reach(stage: BootStage) -> &'static str {
    match stage {
        BootStage::Init => "start its init",
        BootStage::SpecRead => "read its orders",
        BootStage::Mounted => "mount its file systems",
        BootStage::NetworkUp => "bring up its network",
        BootStage::Prepared => "prepare user and limits",
    }
}

/// What to do, by how far it came.
fn fix(last_stage: Option<BootStage>, accel: &str, console: &str) -> String {
    let fix = match last_stage {
        None if accel == "kvm" => {
            "the guest did not come as far as its init. If its console is empty, this host's KVM \
             may not run guests: see `kvm` above"
        }
        None if console.is_empty() => {
            "the guest did not come as far as its init and said nothing. Either QEMU failed: try \
             another version of it; or its init died before there was a console: unset \
             III_INIT_PATH and III_LIBKRUNFW_PATH"
        }
        None => {
            "the guest did not come as far as its init; its kernel's last words say why. Unset \
             III_INIT_PATH and III_LIBKRUNFW_PATH, if they are set"
        }
        Some(BootStage::Init | BootStage::SpecRead) => {
            "the guest did not mount its files: III_LOG=debug shows what its file server, iii-vfs, \
             says"
        }
        Some(BootStage::Mounted | BootStage::NetworkUp | BootStage::Prepared) => {
            "the guest came up and then stopped: III_LOG=debug shows more. A host that is very \
             busy needs a longer boot_deadline"
        }
    };
    fix.to_owned()
}

/// The boot as text with its last newline.
pub fn render_boot(report: &BootReport) -> String {
    let mut out = String::new();
    let seconds = |ms: u64| format!("{:.3}", ms as f64 / 1000.0);
    // Writing to a text cannot fail.
    let mut put = |line: String| writeln!(out, "{line}").unwrap_or_default();
    put(format!(
        "host checked in {} s, worker prepared in {} s",
        seconds(report.host_ms),
        seconds(report.prepare_ms)
    ));
    let mut before = 0;
    for step in &report.steps {
        let guest = step.guest_ms.map_or(String::new(), |ms| {
            format!(", {} s by its own clock", seconds(ms))
        });
        put(format!(
            "{:>9} s  {:>+7.3}  {}{guest}",
            seconds(step.at_ms),
            step.at_ms.saturating_sub(before) as f64 / 1000.0,
            step.title
        ));
        before = step.at_ms;
    }
    if report.booted {
        put(String::from(
            "\nA VM boots, runs a workload and powers off.",
        ));
    }
    if let Some(failure) = &report.failure {
        if !failure.console_tail.is_empty() {
            put(String::from("\nThe end of the guest's console:"));
            for line in failure.console_tail.lines() {
                put(format!("    {line}"));
            }
        }
        put(format!("\nThe VM did not boot: {}", failure.cause));
        if let Some(fix) = &failure.fix {
            put(format!("→ {fix}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, kind: EventKind) -> Event {
        let bus = iii_actors::event::EventBus::new();
        let mut events = bus.subscribe();
        bus.emit(None, None, kind);
        let mut event = events.blocking_recv().unwrap();
        event.at = Duration::from_millis(at);
        event
    }

    fn started(at: u64, accel: &str) -> Event {
        let kind = EventKind::VmStarted {
            vmm: "qemu".into(),
            accel: accel.into(),
            pid: 7,
            boots: 1,
        };
        event(at, kind)
    }

    #[test]
    fn times_count_from_the_spawn() {
        let mut timeline = Timeline::default();
        timeline.event(&started(1000, "tcg"));
        let stage = BootStage::Mounted;
        let uptime = Duration::from_millis(321);
        timeline.event(&event(1450, EventKind::GuestStage { stage, uptime }));
        timeline.line(b"something of the kernel's");
        assert!(!timeline.wrote);
        timeline.line(WORD.as_bytes());
        assert!(timeline.wrote);
        timeline.steps.pop();
        let report = BootReport {
            booted: true,
            host_ms: 5,
            prepare_ms: 60,
            steps: timeline.steps,
            failure: None,
        };
        assert_eq!(
            render_boot(&report),
            "\
host checked in 0.005 s, worker prepared in 0.060 s
    0.000 s   +0.000  qemu is started (tcg, pid 7)
    0.450 s   +0.450  file systems are mounted, 0.321 s by its own clock

A VM boots, runs a workload and powers off.
"
        );
    }

    #[test]
    fn a_crash_shows_the_console_and_what_to_do() {
        let crash = |accel: &str, last_stage| {
            let mut timeline = Timeline::default();
            timeline.event(&started(0, accel));
            let kind = EventKind::VmCrashed {
                cause: "no word from the guest within 60 s".into(),
                exit: Some("signal 9".into()),
                last_stage,
                console_tail: "one\ntwo\n".into(),
                announced: false,
            };
            timeline.event(&event(60_000, kind));
            render_boot(&BootReport {
                failure: timeline.failure,
                ..BootReport::default()
            })
        };
        let text = crash("kvm", None);
        assert!(text.contains("console:\n    one\n    two\n"), "{text}");
        assert!(text.contains("did not boot: no word from the guest within 60 s (signal 9)\n→"));
        assert!(text.contains("KVM may not run guests"), "{text}");
        assert!(fix(None, "tcg", "").contains("Either QEMU failed"));
        assert!(crash("tcg", None).contains("last words say why"));
        assert!(crash("tcg", Some(BootStage::Init)).contains("iii-vfs"));
        assert!(crash("tcg", Some(BootStage::Prepared)).contains("boot_deadline"));
    }
}
