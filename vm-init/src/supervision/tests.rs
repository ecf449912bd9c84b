//! Every arrow of the state machine, on a clock that the tests move.

use super::*;
use iii_proto::guest::Probe;
use iii_proto::restart::{RestartLimit, RestartMode};
use proptest::prelude::*;

const GRACE: Duration = Duration::from_secs(10);
const DELAY: Duration = Duration::from_millis(100);

fn policy() -> RestartPolicy {
    RestartPolicy {
        initial: DELAY,
        jitter: 0.0,
        ..RestartPolicy::default()
    }
}

fn check() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp(80),
        interval_ms: 1000,
        timeout_ms: 500,
        retries: 2,
        start_period_ms: 0,
    }
}

struct Bench {
    core: Supervision,
    now: Duration,
    next_pid: i32,
}

impl Bench {
    fn new(policy: RestartPolicy, health: Option<HealthCheck>) -> Self {
        Self {
            core: Supervision::new(policy, health, GRACE, AtRest::PowerOff),
            now: Duration::from_secs(1),
            next_pid: 100,
        }
    }

    fn does(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.handle(event, self.now, 0, &mut out);
        out
    }

    fn advance(&mut self, by: Duration) -> Vec<Action> {
        self.now += by;
        self.does(Event::Timer)
    }

    /// From `Starting` to `Running`, without `Executed`.
    fn spawn(&mut self) -> GuestPid {
        assert!(self.core.wants_start());
        let pid = GuestPid(self.next_pid);
        self.next_pid += 1;
        assert_eq!(self.does(Event::Spawned { pid }), []);
        assert_eq!(self.core.main_pid(), Some(pid));
        pid
    }

    fn run(&mut self) -> GuestPid {
        let pid = self.spawn();
        let first = self.does(Event::Executed).remove(0);
        assert!(matches!(first, Action::Send(GuestMessage::Started { pid: p, .. }) if p == pid));
        pid
    }

    fn booted(policy: RestartPolicy, health: Option<HealthCheck>) -> (Self, GuestPid) {
        let mut bench = Self::new(policy, health);
        bench.does(Event::Boot);
        let pid = bench.run();
        (bench, pid)
    }

    fn ends(&mut self, pid: GuestPid, code: i32) -> Vec<Action> {
        let exit = Exit::Code { code };
        self.does(Event::MainExited { pid, exit })
    }
}

fn exited(pid: GuestPid, exit: Exit, ran_ms: u64, decision: Decision, restarts: u32) -> Action {
    Action::Send(GuestMessage::Exited {
        pid,
        exit,
        ran_ms,
        decision,
        restarts,
    })
}

fn again(delay: Duration) -> Decision {
    Decision::RestartAfter { delay }
}

const FAILED: Exit = Exit::Code { code: 1 };
const STOP: Event = Event::Stop { grace: GRACE };
const RESTART: Event = Event::Restart { grace: GRACE };

/// A guest that stays up when its workload does not run.
fn waiting() -> (Bench, GuestPid) {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.core.at_rest = AtRest::Wait { quick_ms: 5000 };
    (bench, pid)
}

#[test]
fn a_guest_that_waits_stays_up_after_a_quick_failure_and_after_a_success() {
    for (code, ran, decision) in [
        (1, 4999, Decision::Wait),
        (0, 60_000, Decision::Wait),
        (78, 60_000, Decision::Wait),
        (1, 5000, again(DELAY)),
    ] {
        let (mut bench, pid) = waiting();
        bench.now += Duration::from_millis(ran);
        bench.ends(pid, code);
        let said = bench.does(Event::LifeCleared);
        let exit = Exit::Code { code };
        assert_eq!(said[1], exited(pid, exit, ran, decision.clone(), 0));
        assert!(!bench.core.ending());
        if decision != Decision::Wait {
            continue;
        }
        assert_eq!((bench.core.deadline(), bench.core.main_pid()), (None, None));
        assert_eq!(bench.advance(Duration::from_secs(1000)), []);
        assert!(!bench.core.wants_start());
        bench.does(RESTART);
        let next = bench.run();
        assert!(next > pid);
    }
}

#[test]
fn a_guest_that_waits_can_be_restarted_while_its_life_is_cleared_and_can_be_stopped() {
    let (mut bench, pid) = waiting();
    bench.ends(pid, 1);
    bench.does(RESTART);
    bench.does(Event::LifeCleared);
    assert!(bench.core.wants_start());

    let (mut bench, pid) = waiting();
    bench.ends(pid, 1);
    bench.does(Event::LifeCleared);
    bench.does(STOP);
    assert!(bench.core.flushing());
    let off = Action::PowerOff(PowerOffReason::Stopped);
    assert_eq!(bench.does(Event::LogsSettled), [off]);

    let (mut bench, pid) = waiting();
    bench.ends(pid, 1);
    bench.does(STOP);
    bench.does(Event::LifeCleared);
    assert!(bench.core.flushing());
}

#[test]
fn started_is_said_after_execve_and_ready_right_behind_without_a_probe() {
    let mut bench = Bench::new(policy(), None);
    assert_eq!(bench.does(Event::Boot), []);
    let pid = bench.spawn();
    assert_eq!(
        bench.does(Event::Executed),
        [
            Action::Send(GuestMessage::Started { pid, restarts: 0 }),
            Action::Send(GuestMessage::Ready { pid }),
        ]
    );
}

#[test]
fn a_crash_kills_the_rest_seals_the_output_and_waits_its_delay() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.now += Duration::from_millis(1500);
    assert_eq!(bench.ends(pid, 1), [Action::KillLife { pid }]);
    assert_eq!(bench.core.clearing(), Some(pid));
    assert_eq!(
        bench.does(Event::LifeCleared),
        [
            Action::SealOutput,
            exited(pid, FAILED, 1500, again(DELAY), 0)
        ]
    );
    assert!(!bench.core.wants_start());
    assert_eq!(bench.core.deadline(), Some(bench.now + DELAY));
    bench.advance(DELAY - Duration::from_nanos(1));
    assert!(!bench.core.wants_start());
    bench.advance(Duration::from_nanos(1));
    let successor = bench.spawn();
    assert_eq!(
        bench.does(Event::Executed)[0],
        Action::Send(GuestMessage::Started {
            pid: successor,
            restarts: 1
        })
    );
}

#[test]
fn the_delay_counts_from_the_end_and_not_from_the_clearing() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    bench.now += DELAY;
    bench.does(Event::LifeCleared);
    assert!(bench.core.wants_start());
}

#[test]
fn success_is_done_and_powers_off_once_the_logs_are_settled() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 0);
    let exit = Exit::Code { code: 0 };
    assert_eq!(
        bench.does(Event::LifeCleared),
        [
            Action::SealOutput,
            exited(pid, exit.clone(), 0, Decision::Done, 0)
        ]
    );
    assert!(bench.core.flushing());
    assert_eq!(
        bench.does(Event::LogsSettled),
        [Action::PowerOff(PowerOffReason::Done { exit })]
    );
    assert_eq!(bench.core.deadline(), None);
}

#[test]
fn unacknowledged_logs_hold_the_power_off_for_a_second_at_most() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 0);
    bench.does(Event::LifeCleared);
    assert_eq!(bench.core.deadline(), Some(bench.now + FLUSH_TIME));
    assert_eq!(bench.advance(FLUSH_TIME / 2), []);
    let exit = Exit::Code { code: 0 };
    assert_eq!(
        bench.advance(FLUSH_TIME / 2),
        [Action::PowerOff(PowerOffReason::Done { exit })]
    );
}

#[test]
fn the_limit_used_up_gives_up_with_the_count() {
    let limit = Some(RestartLimit {
        restarts: 1,
        window: Duration::from_secs(100),
    });
    let (mut bench, pid) = Bench::booted(RestartPolicy { limit, ..policy() }, None);
    bench.ends(pid, 1);
    bench.does(Event::LifeCleared);
    bench.advance(DELAY);
    let pid = bench.run();
    bench.ends(pid, 1);
    assert_eq!(
        bench.does(Event::LifeCleared)[1],
        exited(pid, FAILED, 0, Decision::GiveUp, 1)
    );
    let gave_up = PowerOffReason::GaveUp {
        exit: FAILED,
        restarts: 1,
    };
    assert_eq!(bench.does(Event::LogsSettled), [Action::PowerOff(gave_up)]);
}

#[test]
fn a_start_that_fails_counts_as_a_crash() {
    let mut bench = Bench::new(policy(), None);
    bench.does(Event::Boot);
    let cause = String::from("no memory");
    let exit = Exit::Fault {
        cause: cause.clone(),
    };
    assert_eq!(
        bench.does(Event::SpawnFailed { cause }),
        [
            Action::SealOutput,
            exited(GuestPid(0), exit, 0, again(DELAY), 0)
        ]
    );
    bench.advance(DELAY);
    assert!(bench.core.wants_start());
}

#[test]
fn a_stop_terminates_waits_and_then_kills() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    assert_eq!(
        bench.does(STOP),
        [Action::SignalGroup {
            pid,
            signal: SIGTERM
        }]
    );
    assert_eq!(bench.core.deadline(), Some(bench.now + GRACE));
    assert_eq!(bench.advance(GRACE / 2), []);
    assert_eq!(bench.advance(GRACE / 2), [Action::KillLife { pid }]);
    assert_eq!(bench.core.deadline(), None);
    let exit = Exit::Signal { signal: 9 };
    let event = Event::MainExited {
        pid,
        exit: exit.clone(),
    };
    assert_eq!(bench.does(event), [Action::KillLife { pid }]);
    assert_eq!(
        bench.does(Event::LifeCleared)[1],
        exited(pid, exit, 10_000, Decision::Done, 0)
    );
    assert_eq!(
        bench.does(Event::LogsSettled),
        [Action::PowerOff(PowerOffReason::Stopped)]
    );
}

#[test]
fn after_a_graceful_end_the_rest_keeps_what_is_left_of_the_grace() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.does(STOP);
    bench.now += GRACE / 4;
    assert_eq!(bench.ends(pid, 0), [Action::TerminateStrays { pid }]);
    assert_eq!(bench.advance(GRACE / 4), []);
    assert_eq!(bench.advance(GRACE / 2), [Action::KillLife { pid }]);
}

#[test]
fn a_second_stop_can_shorten_the_grace_but_not_lengthen_it() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.does(STOP);
    let start = bench.now;
    bench.does(Event::Stop { grace: GRACE * 9 });
    assert_eq!(bench.core.deadline(), Some(start + GRACE));
    bench.does(Event::Stop {
        grace: Duration::ZERO,
    });
    assert_eq!(bench.advance(Duration::ZERO), [Action::KillLife { pid }]);
}

#[test]
fn stop_while_waiting_or_before_the_start_needs_no_process() {
    for before in 0..3 {
        let mut bench = Bench::new(policy(), None);
        if before > 0 {
            bench.does(Event::Boot);
        }
        if before > 1 {
            let pid = bench.run();
            bench.ends(pid, 1);
            bench.does(Event::LifeCleared);
        }
        assert_eq!(bench.does(STOP), []);
        assert!(!bench.core.wants_start());
        assert_eq!(
            bench.does(Event::LogsSettled),
            [Action::PowerOff(PowerOffReason::Stopped)]
        );
    }
}

#[test]
fn a_restart_on_request_is_no_failure_and_ends_the_row() {
    let limit = Some(RestartLimit {
        restarts: 1,
        window: Duration::from_secs(1000),
    });
    let (mut bench, mut pid) = Bench::booted(RestartPolicy { limit, ..policy() }, None);
    for restarts in 0..5 {
        bench.does(RESTART);
        bench.ends(pid, 1);
        assert_eq!(
            bench.does(Event::LifeCleared)[1],
            exited(pid, FAILED, 0, again(Duration::ZERO), restarts)
        );
        pid = bench.run();
    }
    bench.ends(pid, 1);
    assert_eq!(
        bench.does(Event::LifeCleared)[1],
        exited(pid, FAILED, 0, again(DELAY), 5)
    );
}

#[test]
fn the_old_childs_end_is_not_taken_for_the_new_ones() {
    let (mut bench, old) = Bench::booted(policy(), None);
    bench.does(RESTART);
    bench.ends(old, 0);
    bench.does(Event::LifeCleared);
    let new = bench.run();
    assert_eq!(bench.ends(old, 0), []);
    assert_eq!(bench.core.main_pid(), Some(new));
    bench.does(STOP);
    assert_eq!(bench.ends(old, 0), []);
    assert_eq!(bench.core.main_pid(), Some(new));
}

#[test]
fn a_restart_during_backoff_starts_at_once() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    bench.does(Event::LifeCleared);
    bench.does(RESTART);
    assert!(bench.core.wants_start());
}

#[test]
fn a_stop_during_a_restart_wins_and_a_restart_during_a_stop_does_not() {
    for events in [[STOP, RESTART], [RESTART, STOP]] {
        let (mut bench, pid) = Bench::booted(policy(), None);
        for event in events {
            bench.does(event);
        }
        bench.ends(pid, 0);
        bench.does(Event::LifeCleared);
        assert_eq!(
            bench.does(Event::LogsSettled),
            [Action::PowerOff(PowerOffReason::Stopped)]
        );
    }
}

#[test]
fn stop_and_restart_while_the_rest_of_a_crash_is_cleared() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    bench.does(STOP);
    assert_eq!(
        bench.does(Event::LifeCleared)[1],
        exited(pid, FAILED, 0, Decision::Done, 0)
    );
    assert!(bench.core.flushing());

    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    bench.does(RESTART);
    assert_eq!(
        bench.does(Event::LifeCleared)[1],
        exited(pid, FAILED, 0, again(Duration::ZERO), 0)
    );
    assert!(bench.core.wants_start());
}

#[test]
fn what_cannot_be_killed_is_left_behind_with_a_warning() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    assert_eq!(bench.advance(CLEAR_TIME / 2), []);
    let out = bench.advance(CLEAR_TIME / 2);
    assert!(matches!(
        &out[0],
        Action::Send(GuestMessage::Warning { .. })
    ));
    assert_eq!(out[1], Action::SealOutput);
    assert!(bench.core.wants_start());
}

#[test]
fn a_host_that_is_gone_ends_the_guest_from_every_state() {
    let gone = [Action::PowerOff(PowerOffReason::HostGone)];
    let mut bench = Bench::new(policy(), None);
    assert_eq!(bench.does(Event::HostGone), gone);

    let mut bench = Bench::new(policy(), None);
    bench.does(Event::Boot);
    assert_eq!(bench.does(Event::HostGone), gone);

    for stopping in [false, true] {
        let (mut bench, pid) = Bench::booted(policy(), None);
        if stopping {
            bench.does(STOP);
        }
        assert_eq!(bench.does(Event::HostGone), [Action::KillLife { pid }]);
        bench.ends(pid, 0);
        assert_eq!(bench.does(Event::LifeCleared).last(), gone.last());
    }

    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    assert_eq!(bench.does(Event::HostGone), [Action::KillLife { pid }]);
    assert_eq!(bench.does(Event::LifeCleared).last(), gone.last());

    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.ends(pid, 1);
    bench.does(Event::LifeCleared);
    assert_eq!(bench.does(Event::HostGone), gone);

    let (mut bench, pid) = Bench::booted(policy(), None);
    bench.does(STOP);
    bench.ends(pid, 0);
    bench.does(Event::LifeCleared);
    assert_eq!(
        bench.does(Event::HostGone),
        [Action::PowerOff(PowerOffReason::Stopped)]
    );
    assert_eq!(bench.does(Event::HostGone), []);
}

#[test]
fn signals_and_injected_deaths_reach_a_life_and_nothing_else() {
    let (mut bench, pid) = Bench::booted(policy(), None);
    let signal = Event::Signal { signal: 10 };
    let group = [Action::SignalGroup { pid, signal: 10 }];
    let main = [Action::SignalMain {
        pid,
        signal: SIGKILL,
    }];
    assert_eq!(bench.does(signal.clone()), group);
    assert_eq!(bench.does(Event::KillMain), main);
    bench.does(STOP);
    assert_eq!(bench.does(signal.clone()), group);
    assert_eq!(bench.does(Event::KillMain), main);
    bench.ends(pid, 0);
    assert_eq!(bench.does(signal), []);
    assert_eq!(bench.does(Event::KillMain), []);
}

#[test]
fn ready_follows_the_first_passed_probe_alone() {
    let (mut bench, pid) = Bench::booted(policy(), Some(check()));
    let due = bench.core.deadline().unwrap() - bench.now;
    assert_eq!(bench.advance(due), [Action::StartProbe]);
    assert_eq!(
        bench.does(Event::ProbePassed),
        [Action::Send(GuestMessage::Ready { pid })]
    );
    let due = bench.core.deadline().unwrap() - bench.now;
    assert_eq!(bench.advance(due), [Action::StartProbe]);
    assert_eq!(bench.does(Event::ProbePassed), []);
}

#[test]
fn unhealthy_ends_the_life_as_a_crash() {
    let (mut bench, pid) = Bench::booted(policy(), Some(check()));
    let due = bench.core.deadline().unwrap() - bench.now;
    bench.advance(due);
    bench.does(Event::ProbePassed);
    let failed = || Event::ProbeFailed {
        detail: String::from("HTTP status 500"),
    };
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.does(failed()), []);
    bench.advance(Duration::from_secs(1));
    assert_eq!(
        bench.does(failed()),
        [
            Action::Send(GuestMessage::Unhealthy {
                pid,
                detail: String::from("HTTP status 500")
            }),
            Action::SignalGroup {
                pid,
                signal: SIGTERM
            },
        ]
    );
    assert_eq!(bench.core.deadline(), Some(bench.now + GRACE));
    bench.ends(pid, 0);
    let out = bench.does(Event::LifeCleared);
    assert!(matches!(
        &out[1],
        Action::Send(GuestMessage::Exited { exit: Exit::Unhealthy, decision, .. })
            if *decision == again(DELAY)
    ));
}

#[test]
fn a_probe_that_hangs_is_cancelled_and_counts_as_failed() {
    let (mut bench, pid) = Bench::booted(policy(), Some(check()));
    let due = bench.core.deadline().unwrap() - bench.now;
    bench.advance(due);
    bench.does(Event::ProbePassed);
    bench.advance(Duration::from_secs(1));
    assert_eq!(
        bench.advance(Duration::from_millis(500)),
        [Action::CancelProbe]
    );
    bench.advance(Duration::from_secs(1));
    let out = bench.advance(Duration::from_millis(500));
    assert_eq!(out[0], Action::CancelProbe);
    assert!(matches!(
        &out[1],
        Action::Send(GuestMessage::Unhealthy { pid: p, .. }) if *p == pid
    ));
}

#[test]
fn the_end_of_a_life_cancels_its_probe_and_a_late_answer_is_ignored() {
    let (mut bench, pid) = Bench::booted(policy(), Some(check()));
    let due = bench.core.deadline().unwrap() - bench.now;
    bench.advance(due);
    assert_eq!(
        bench.ends(pid, 1),
        [Action::CancelProbe, Action::KillLife { pid }]
    );
    assert_eq!(bench.does(Event::ProbePassed), []);
    bench.does(Event::LifeCleared);
    bench.advance(DELAY);
    bench.spawn();
    // The successor has not become the program yet: nothing makes it ready.
    assert_eq!(bench.does(Event::ProbePassed), []);
}

fn any_event() -> impl Strategy<Value = Event> {
    let pid = (99i32..110).prop_map(GuestPid);
    prop_oneof![
        Just(Event::Boot),
        pid.clone().prop_map(|pid| Event::Spawned { pid }),
        Just(Event::SpawnFailed {
            cause: String::new()
        }),
        Just(Event::Executed),
        (pid, 0..3i32).prop_map(|(pid, code)| Event::MainExited {
            pid,
            exit: Exit::Code { code }
        }),
        Just(Event::LifeCleared),
        Just(Event::ProbePassed),
        Just(Event::ProbeFailed {
            detail: String::new()
        }),
        (0..20_000u64).prop_map(|ms| Event::Stop {
            grace: Duration::from_millis(ms)
        }),
        (0..20_000u64).prop_map(|ms| Event::Restart {
            grace: Duration::from_millis(ms)
        }),
        Just(Event::Signal { signal: 1 }),
        Just(Event::KillMain),
        Just(Event::HostGone),
        Just(Event::LogsSettled),
        Just(Event::Timer),
    ]
}

proptest! {
    /// Whatever happens in whatever order: power is cut at most once and nothing is done after it,
    /// a start is wanted only while nothing of an earlier life is left, and every `Exited` comes
    /// behind the sealing of its output.
    #[test]
    fn any_order_of_events_keeps_the_promises(
        events in prop::collection::vec((any_event(), 0u64..5000), 0..200),
        mode in prop_oneof![
            Just(RestartMode::Always), Just(RestartMode::OnFailure), Just(RestartMode::Never)
        ],
        with_health: bool,
    ) {
        let policy = RestartPolicy { mode, ..policy() };
        let mut bench = Bench::new(policy, with_health.then(check));
        let mut off = false;
        for (event, ms) in events {
            bench.now += Duration::from_millis(ms);
            let out = bench.does(event);
            prop_assert!(!off || out.is_empty());
            for (index, action) in out.iter().enumerate() {
                off |= matches!(action, Action::PowerOff(_));
                if matches!(action, Action::Send(GuestMessage::Exited { .. })) {
                    prop_assert!(out[..index].contains(&Action::SealOutput));
                }
            }
            prop_assert!(out.iter().filter(|a| matches!(a, Action::PowerOff(_))).count() <= 1);
            if bench.core.wants_start() {
                prop_assert!(bench.core.main_pid().is_none() && bench.core.clearing().is_none());
            }
        }
    }

    /// With everything answered, a stop leads to the power-off within the grace and the two
    /// bounded waits behind it.
    #[test]
    fn a_stop_always_ends(events in prop::collection::vec((any_event(), 0u64..5000), 0..100)) {
        let mut bench = Bench::new(policy(), Some(check()));
        let mut out = bench.does(Event::Boot);
        for (event, ms) in events {
            bench.now += Duration::from_millis(ms);
            out.extend(bench.does(event));
        }
        out.extend(bench.does(STOP));
        for _ in 0..10 {
            if let Some(pid) = bench.core.main_pid() {
                out.extend(bench.advance(GRACE));
                out.extend(bench.ends(pid, 0));
            }
            let wait = bench.core.deadline().map_or(Duration::ZERO, |at| at.saturating_sub(bench.now));
            out.extend(bench.advance(wait));
        }
        prop_assert_eq!(out.iter().filter(|a| matches!(a, Action::PowerOff(_))).count(), 1);
    }
}
