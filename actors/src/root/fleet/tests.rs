use super::*;
use iii_proto::restart::{RestartLimit, RestartMode, RestartPolicy};
use proptest::prelude::*;

fn name(text: &str) -> WorkerName {
    WorkerName::new(text).unwrap()
}

fn on(worker: &str, condition: Condition, restart: bool) -> Dependency {
    Dependency {
        worker: name(worker),
        condition,
        restart,
    }
}

fn tracker() -> RestartTracker {
    RestartTracker::new(RestartPolicy {
        mode: RestartMode::Always,
        initial: Duration::from_secs(1),
        factor: 1.0,
        jitter: 0.0,
        limit: Some(RestartLimit {
            restarts: 1,
            window: Duration::from_secs(60),
        }),
        ..RestartPolicy::default()
    })
}

fn fault() -> Exit {
    Exit::Fault { cause: "x".into() }
}

fn done(code: i32) -> FleetInput {
    FleetInput::TreeEnded(Outcome::Done(Exit::Code { code }))
}

/// Drives a fleet and writes down what it orders, without what it only tells.
struct Drive {
    fleet: Fleet,
    now: Duration,
}

impl Drive {
    fn new(workers: &[(&str, &[Dependency])]) -> Self {
        let mut fleet = Fleet::default();
        for (worker, depends_on) in workers {
            let added = fleet.add(name(worker), depends_on.to_vec(), tracker(), None);
            added.unwrap();
        }
        let now = Duration::ZERO;
        Self { fleet, now }
    }

    fn feed(&mut self, worker: &str, input: FleetInput) -> Vec<String> {
        orders(&self.fleet.on(&name(worker), input, self.now, 0))
    }

    fn ready(&mut self, worker: &str) -> Vec<String> {
        let mut all = self.feed(worker, FleetInput::WorkloadStarted);
        all.extend(self.feed(worker, FleetInput::WorkloadReady));
        all
    }

    /// What is ordered when the worker's tree has ended, beside telling that it has.
    fn ended(&mut self, worker: &str) -> Vec<String> {
        let mut orders = self.feed(worker, FleetInput::TreeEnded(Outcome::Stopped));
        orders.retain(|order| !order.ends_with(" is Stopped"));
        orders
    }

    fn state(&self, worker: &str) -> WorkerState {
        self.fleet.state(&name(worker)).unwrap()
    }

    /// All wanted, all ready.
    fn up(workers: &[(&str, &[Dependency])]) -> Self {
        let mut drive = Self::new(workers);
        for (worker, _) in workers {
            drive.feed(worker, FleetInput::Start);
            drive.ready(worker);
            assert_eq!(drive.state(worker), WorkerState::Ready, "{worker}");
        }
        drive
    }
}

fn orders(actions: &[FleetAction]) -> Vec<String> {
    actions
        .iter()
        .filter_map(|action| match action {
            FleetAction::StartTree(name) => Some(format!("start {name}")),
            FleetAction::StopTree { name, urgent } => {
                Some(format!("{} {name}", if *urgent { "kill" } else { "stop" }))
            }
            FleetAction::Ended { name, outcome } => Some(format!("{name} is {outcome:?}")),
            FleetAction::Waiting { .. } | FleetAction::Restarting { .. } => None,
        })
        .collect()
}

#[test]
fn a_worker_waits_until_its_dependency_is_ready() {
    let mut d = Drive::new(&[("db", &[]), ("api", &[on("db", Condition::Ready, false)])]);
    let told = d.fleet.on(&name("api"), FleetInput::Start, d.now, 0);
    let waiting = FleetAction::Waiting {
        name: name("api"),
        on: vec![name("db")],
    };
    assert_eq!(told, [waiting]);
    assert_eq!(d.feed("db", FleetInput::Start), ["start db"]);
    assert!(d.feed("db", FleetInput::WorkloadStarted).is_empty());
    assert_eq!(d.feed("db", FleetInput::WorkloadReady), ["start api"]);
}

#[test]
fn started_is_less_than_ready_and_done_is_success_alone() {
    let mut d = Drive::new(&[
        ("db", &[]),
        ("tail", &[on("db", Condition::Started, false)]),
        ("after", &[on("db", Condition::Done, false)]),
    ]);
    for worker in ["tail", "after", "db"] {
        d.feed(worker, FleetInput::Start);
    }
    assert_eq!(d.feed("db", FleetInput::WorkloadStarted), ["start tail"]);
    assert!(d.feed("db", FleetInput::WorkloadReady).is_empty());
    let after = d.feed("db", done(0));
    assert_eq!(after[1], "start after", "{after:?}");
}

#[test]
fn a_dependency_that_failed_fails_those_who_wait_with_its_reason() {
    let mut d = Drive::new(&[
        ("db", &[]),
        ("api", &[on("db", Condition::Ready, false)]),
        ("web", &[on("api", Condition::Ready, false)]),
    ]);
    for worker in ["web", "api", "db"] {
        d.feed(worker, FleetInput::Start);
    }
    d.feed(
        "db",
        FleetInput::TreeEnded(Outcome::Failed("broken".into())),
    );
    assert!(d.fleet.is_idle());
    match d.fleet.outcome(&name("web")) {
        Some(Outcome::Failed(reason)) => {
            assert!(
                reason.contains("api") && reason.contains("broken"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dependency_that_ended_where_it_should_run_says_what_may_be_meant() {
    let mut d = Drive::new(&[("job", &[]), ("api", &[on("job", Condition::Ready, false)])]);
    d.feed("api", FleetInput::Start);
    d.feed("job", FleetInput::Start);
    d.feed("job", done(0));
    let reason = format!("{:?}", d.fleet.outcome(&name("api")));
    assert!(reason.contains("`job: done`"), "{reason}");
    let mut d = Drive::new(&[("job", &[]), ("api", &[on("job", Condition::Done, false)])]);
    d.feed("api", FleetInput::Start);
    d.feed("job", FleetInput::Start);
    d.feed("job", done(3));
    let reason = format!("{:?}", d.fleet.outcome(&name("api")));
    assert!(reason.contains("did not succeed: exit code 3"), "{reason}");
}

#[test]
fn everything_stops_in_the_reverse_order_of_the_start() {
    let ready = |on_whom| on(on_whom, Condition::Ready, false);
    let mut d = Drive::up(&[
        ("db", &[]),
        ("api", &[ready("db")]),
        ("web", &[ready("api")]),
        ("other", &[]),
    ]);
    assert_eq!(
        orders(&d.fleet.stop_all(false, d.now)),
        ["stop other", "stop web"]
    );
    assert_eq!(d.ended("web"), ["stop api"]);
    assert_eq!(d.ended("api"), ["stop db"]);
    assert!(d.ended("other").is_empty() && !d.fleet.is_idle());
    assert!(d.ended("db").is_empty() && d.fleet.is_idle());
}

#[test]
fn of_several_that_are_stopped_by_name_dependents_go_first() {
    let ready = |on_whom| on(on_whom, Condition::Ready, false);
    let mut d = Drive::up(&[("db", &[]), ("api", &[ready("db")]), ("other", &[])]);
    let names = ["db", "api"].map(|name| WorkerName::new(name).unwrap());
    assert_eq!(orders(&d.fleet.stop(&names, d.now)), ["stop api"]);
    assert_eq!(d.ended("api"), ["stop db"]);
    assert!(d.ended("db").is_empty());
    assert_eq!(d.state("other"), WorkerState::Ready);
}

#[test]
fn a_stop_without_grace_keeps_no_order_and_forgets_what_was_wished() {
    let ready = |on_whom| on(on_whom, Condition::Ready, true);
    let mut d = Drive::up(&[("db", &[]), ("api", &[ready("db")])]);
    assert_eq!(d.feed("db", FleetInput::Restart), ["stop api"]);
    assert_eq!(
        orders(&d.fleet.stop_all(true, d.now)),
        ["kill api", "kill db"]
    );
    d.ended("db");
    d.ended("api");
    assert!(d.fleet.is_idle());
    assert_eq!(d.state("api"), WorkerState::Stopped);
}

#[test]
fn without_restart_a_dependent_goes_on_when_its_dependency_is_repaired() {
    let mut d = Drive::up(&[("db", &[]), ("api", &[on("db", Condition::Ready, false)])]);
    assert!(d.feed("db", FleetInput::WorkloadDown).is_empty());
    assert!(d.ready("db").is_empty());
    assert_eq!(d.state("api"), WorkerState::Ready);
}

#[test]
fn with_restart_a_dependent_is_stopped_waits_and_is_started_again() {
    let mut d = Drive::up(&[("db", &[]), ("api", &[on("db", Condition::Ready, true)])]);
    assert_eq!(d.feed("db", FleetInput::WorkloadDown), ["stop api"]);
    assert!(d.ended("api").is_empty());
    assert_eq!(d.state("api"), WorkerState::Waiting);
    assert_eq!(d.ready("db"), ["start api"]);
}

#[test]
fn a_dependent_whose_dependency_is_back_before_it_has_stopped_is_started_at_once() {
    let mut d = Drive::up(&[("db", &[]), ("api", &[on("db", Condition::Ready, true)])]);
    assert_eq!(d.feed("db", FleetInput::WorkloadDown), ["stop api"]);
    assert!(d.ready("db").is_empty());
    assert_eq!(d.ended("api"), ["start api"]);
}

#[test]
fn a_restart_takes_those_with_it_that_may_not_outlive_it_the_last_first() {
    let bound = |on_whom| on(on_whom, Condition::Ready, true);
    let mut d = Drive::up(&[
        ("db", &[]),
        ("api", &[bound("db")]),
        ("web", &[bound("api")]),
        ("free", &[on("db", Condition::Ready, false)]),
    ]);
    assert_eq!(d.feed("db", FleetInput::Restart), ["stop web"]);
    assert_eq!(d.ended("web"), ["stop api"]);
    assert_eq!(d.ended("api"), ["stop db"]);
    assert_eq!(d.ended("db"), ["start db"]);
    assert_eq!(d.ready("db"), ["start api"]);
    assert_eq!(d.ready("api"), ["start web"]);
    assert_eq!(d.state("free"), WorkerState::Ready);
}

#[test]
fn a_dependency_stopped_by_request_is_waited_for_and_that_is_idle() {
    let mut d = Drive::up(&[("db", &[]), ("api", &[on("db", Condition::Ready, true)])]);
    assert_eq!(
        d.feed("db", FleetInput::Stop { urgent: false }),
        ["stop api"]
    );
    assert_eq!(d.ended("api"), ["stop db"]);
    d.ended("db");
    assert_eq!(d.state("api"), WorkerState::Waiting);
    assert!(d.fleet.is_idle());
    assert_eq!(d.feed("db", FleetInput::Start), ["start db"]);
    assert!(!d.fleet.is_idle());
    assert_eq!(d.ready("db"), ["start api"]);
}

#[test]
fn a_supervisor_that_dies_is_replaced_after_a_delay_and_not_for_ever() {
    let mut d = Drive::up(&[("db", &[])]);
    assert!(d.feed("db", FleetInput::SupervisorDied(fault())).is_empty());
    assert_eq!(d.fleet.wake_at(), Some(Duration::from_secs(1)));
    assert!(d.fleet.tick(Duration::from_millis(999)).is_empty());
    assert_eq!(orders(&d.fleet.tick(Duration::from_secs(1))), ["start db"]);
    assert_eq!(d.fleet.wake_at(), None);
    let end = d.feed("db", FleetInput::SupervisorDied(fault()));
    assert!(
        end[0].contains("its supervisor failed too often"),
        "{end:?}"
    );
    assert_eq!(d.state("db"), WorkerState::Failed);
    assert_eq!(
        d.feed("db", FleetInput::Start),
        ["start db"],
        "a request begins anew"
    );
    assert!(d.feed("db", FleetInput::SupervisorDied(fault())).is_empty());
}

#[test]
fn a_stop_while_a_replacement_is_due_ends_it() {
    let mut d = Drive::up(&[("db", &[])]);
    d.feed("db", FleetInput::SupervisorDied(fault()));
    let end = d.feed("db", FleetInput::Stop { urgent: false });
    assert_eq!(end, ["db is Stopped"]);
    assert_eq!(d.fleet.wake_at(), None);
}

#[test]
fn names_are_unique_dependencies_come_first_and_stay() {
    let mut d = Drive::new(&[("db", &[]), ("api", &[on("db", Condition::Ready, false)])]);
    let again = d.fleet.add(name("db"), vec![], tracker(), None);
    assert_eq!(again, Err(FleetError::Duplicate));
    let missing = vec![on("cache", Condition::Ready, false)];
    let early = d.fleet.add(name("web"), missing, tracker(), None);
    assert_eq!(early, Err(FleetError::UnknownDependency(name("cache"))));
    let required = d.fleet.may_remove(&name("db"));
    assert_eq!(required, Err(FleetError::RequiredBy(name("api"))));
    assert_eq!(d.fleet.may_remove(&name("api")), Ok(()));
    assert_eq!(d.fleet.may_remove(&name("no")), Err(FleetError::Unknown));
}

#[test]
fn what_had_failed_under_an_earlier_supervisor_stays_failed_until_it_is_asked_for() {
    let mut fleet = Fleet::default();
    let failed = Some(Outcome::Failed("limit".into()));
    fleet.add(name("db"), vec![], tracker(), failed).unwrap();
    assert_eq!(fleet.state(&name("db")), Some(WorkerState::Failed));
    assert!(fleet.is_idle());
    let started = fleet.on(&name("db"), FleetInput::Start, Duration::ZERO, 0);
    assert_eq!(started, [FleetAction::StartTree(name("db"))]);
}

proptest! {
    /// Whatever is reported and asked in whatever order: a tree is started only once those it
    /// depends on were as it demands, never twice, and after `stop_all` and the trees' ends nothing
    /// is left.
    #[test]
    fn any_script_ends_at_rest(
        script in prop::collection::vec((0usize..4, 0u8..10), 0..150),
        restarts in prop::collection::vec(any::<bool>(), 4),
    ) {
        let names = ["a", "b", "c", "d"];
        let depends: [Vec<Dependency>; 4] = [
            vec![],
            vec![on("a", Condition::Ready, restarts[0])],
            vec![on("a", Condition::Started, restarts[1]), on("b", Condition::Ready, restarts[2])],
            vec![on("c", Condition::Done, false)],
        ];
        let all: Vec<(&str, &[Dependency])> =
            names.iter().zip(&depends).map(|(n, d)| (*n, &d[..])).collect();
        let mut d = Drive::new(&all);
        let mut running = [false; 4];
        let note = |running: &mut [bool; 4], orders: &[String]| -> Result<(), TestCaseError> {
            for order in orders {
                if let Some(who) = order.strip_prefix("start ") {
                    let at = names.iter().position(|n| *n == who).unwrap();
                    prop_assert!(!running[at], "{who} was started twice");
                    running[at] = true;
                }
            }
            Ok(())
        };
        for (at, what) in script {
            let who = names[at];
            let input = match what {
                0 | 1 => FleetInput::Start,
                2 => FleetInput::Stop { urgent: false },
                3 => FleetInput::Restart,
                4 if running[at] => FleetInput::WorkloadStarted,
                5 | 6 if running[at] => FleetInput::WorkloadReady,
                7 if running[at] => FleetInput::WorkloadDown,
                8 if running[at] => {
                    running[at] = false;
                    FleetInput::TreeEnded(Outcome::Stopped)
                }
                9 if running[at] => {
                    running[at] = false;
                    FleetInput::SupervisorDied(fault())
                }
                _ => continue,
            };
            d.now += Duration::from_millis(500);
            let orders = d.feed(who, input);
            note(&mut running, &orders)?;
            let due = orders_of_tick(&mut d);
            note(&mut running, &due)?;
        }
        let _orders = d.fleet.stop_all(false, d.now);
        for _ in 0..8 {
            for (at, who) in names.iter().enumerate() {
                if running[at] && d.state(who) == WorkerState::Stopping {
                    running[at] = false;
                    let orders = d.ended(who);
                    prop_assert!(!orders.iter().any(|o| o.starts_with("start")), "{orders:?}");
                }
            }
        }
        prop_assert!(d.fleet.is_idle());
        prop_assert_eq!(running, [false; 4]);
    }
}

fn orders_of_tick(d: &mut Drive) -> Vec<String> {
    orders(&d.fleet.tick(d.now))
}

#[test]
fn redefined_dependencies_hold_at_the_next_start_and_make_no_circle() {
    fn ready(worker: &str) -> Dependency {
        on(worker, Condition::Ready, false)
    }
    let mut drive = Drive::up(&[("db", &[]), ("cache", &[]), ("api", &[ready("db")])]);
    let api = name("api");
    drive
        .fleet
        .redefine(&api, vec![ready("cache")], tracker())
        .unwrap();
    // What it depended on before is none of its concern any more.
    assert_eq!(drive.fleet.may_remove(&name("db")), Ok(()));
    assert_eq!(
        drive.fleet.may_remove(&name("cache")),
        Err(FleetError::RequiredBy(api.clone()))
    );
    drive.feed("cache", FleetInput::Stop { urgent: false });
    assert_eq!(drive.feed("api", FleetInput::Restart), ["stop api"]);
    assert_eq!(drive.ended("api"), Vec::<String>::new());
    assert_eq!(drive.fleet.waits_for(&api), [name("cache")]);

    let circle = |fleet: &mut Fleet, worker: &str, on: &str| {
        fleet.redefine(&name(worker), vec![ready(on)], tracker())
    };
    for (worker, on) in [("cache", "api"), ("cache", "cache")] {
        assert_eq!(
            circle(&mut drive.fleet, worker, on),
            Err(FleetError::Circle(name(on)))
        );
    }
    assert_eq!(
        circle(&mut drive.fleet, "db", "nobody"),
        Err(FleetError::UnknownDependency(name("nobody")))
    );
    assert_eq!(
        circle(&mut drive.fleet, "nobody", "db"),
        Err(FleetError::Unknown)
    );
}
