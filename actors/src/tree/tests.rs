use super::*;
use iii_proto::restart::{RestartLimit, RestartMode};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum K {
    Dns,
    Net,
    Fs,
    Vm,
}
use K::*;

fn policy(restarts: u32) -> RestartPolicy {
    RestartPolicy {
        mode: RestartMode::OnFailure,
        initial: Duration::from_secs(1),
        factor: 1.0,
        jitter: 0.0,
        limit: Some(RestartLimit {
            restarts,
            window: Duration::from_secs(1000),
        }),
        ..RestartPolicy::default()
    }
}

fn def(id: K, requires: &[K]) -> ChildDef<K> {
    ChildDef {
        id,
        requires: requires.to_vec(),
        restart: policy(3),
    }
}

fn worker() -> Tree<K> {
    Tree::new(vec![
        def(Dns, &[]),
        def(Net, &[]),
        def(Fs, &[]),
        def(Vm, &[Fs]),
    ])
}

fn fault() -> Exit {
    Exit::Fault { cause: "x".into() }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn start(child: K, life: u64) -> Action<K> {
    Action::Start { child, life }
}

fn stop(child: K, life: u64, urgent: bool) -> Action<K> {
    Action::Stop {
        child,
        life,
        urgent,
    }
}

fn up(child: K, life: u64) -> Input<K> {
    Input::Up { child, life }
}

fn down(child: K, life: u64, end: ChildEnd) -> Input<K> {
    Input::Down { child, life, end }
}

fn running() -> Tree<K> {
    let mut t = worker();
    assert_eq!(t.on(Input::Start, at(0), 0), [start(Dns, 1)]);
    assert_eq!(t.on(up(Dns, 1), at(0), 0), [start(Net, 1)]);
    assert_eq!(t.on(up(Net, 1), at(0), 0), [start(Fs, 1)]);
    assert_eq!(t.on(up(Fs, 1), at(0), 0), [start(Vm, 1)]);
    assert_eq!(t.on(up(Vm, 1), at(0), 0), []);
    t
}

#[test]
fn starts_in_order_and_stops_in_reverse() {
    let mut t = running();
    assert_eq!(t.on(Input::Stop, at(1), 0), [stop(Vm, 1, false)]);
    assert_eq!(
        t.on(down(Vm, 1, ChildEnd::Stopped), at(1), 0),
        [stop(Fs, 1, false)]
    );
    assert_eq!(
        t.on(down(Fs, 1, ChildEnd::Stopped), at(1), 0),
        [stop(Net, 1, false)]
    );
    assert_eq!(
        t.on(down(Net, 1, ChildEnd::Stopped), at(1), 0),
        [stop(Dns, 1, false)]
    );
    assert_eq!(
        t.on(down(Dns, 1, ChildEnd::Stopped), at(1), 0),
        [Action::Ended(TreeEnd::Stopped)]
    );
    assert!(t.is_idle());
}

#[test]
fn a_child_that_nobody_requires_restarts_alone() {
    for child in [Dns, Net, Vm] {
        let mut t = running();
        let actions = t.on(down(child, 1, ChildEnd::Failed(fault())), at(1), 0);
        assert_eq!(
            actions,
            [Action::Restarting {
                child,
                exit: fault(),
                delay: at(1),
                stops: vec![]
            }]
        );
        assert_eq!(t.wake_at(), Some(at(2)));
        assert_eq!(t.on(Input::Tick, at(2), 0), [start(child, 2)]);
        assert_eq!(t.restarts(child), 1);
    }
}

#[test]
fn what_requires_the_failed_child_is_stopped_and_started_with_it() {
    let mut t = running();
    assert_eq!(
        t.on(down(Fs, 1, ChildEnd::Failed(fault())), at(1), 0),
        [
            Action::Restarting {
                child: Fs,
                exit: fault(),
                delay: at(1),
                stops: vec![Vm]
            },
            stop(Vm, 1, true)
        ]
    );
    // Its time has come, but its dependent still runs.
    assert_eq!(t.on(Input::Tick, at(2), 0), []);
    assert_eq!(
        t.on(down(Vm, 1, ChildEnd::Failed(fault())), at(3), 0),
        [start(Fs, 2)]
    );
    assert_eq!(t.on(up(Fs, 2), at(3), 0), [start(Vm, 2)]);
    assert_eq!(t.restarts(Vm), 0, "only the child that failed is counted");
}

#[test]
fn the_dependent_may_die_first() {
    let mut t = running();
    t.on(down(Vm, 1, ChildEnd::Failed(fault())), at(1), 0);
    let actions = t.on(down(Fs, 1, ChildEnd::Failed(fault())), at(1), 0);
    assert_eq!(
        actions,
        [Action::Restarting {
            child: Fs,
            exit: fault(),
            delay: at(1),
            stops: vec![]
        }]
    );
    assert_eq!(t.on(Input::Tick, at(2), 0), [start(Fs, 2)]);
    assert_eq!(t.on(up(Fs, 2), at(2), 0), [start(Vm, 2)]);
}

#[test]
fn a_child_that_fails_to_start_is_retried_and_counted() {
    let mut t = worker();
    t.on(Input::Start, at(0), 0);
    let mut now = 0;
    for life in 1..=3 {
        let actions = t.on(down(Dns, life, ChildEnd::Failed(fault())), at(now), 0);
        assert!(
            matches!(actions[0], Action::Restarting { child: Dns, .. }),
            "{actions:?}"
        );
        if life == 1 {
            // Meanwhile the next one, which does not require it, is started.
            assert_eq!(actions[1..], [start(Net, 1)]);
            t.on(up(Net, 1), at(now), 0);
        }
        now += 1;
        assert!(
            t.on(Input::Tick, at(now), 0)
                .contains(&start(Dns, life + 1))
        );
    }
    let actions = t.on(down(Dns, 4, ChildEnd::Failed(fault())), at(now), 0);
    // Net, Fs (and Vm, which waits for Fs) were started meanwhile: they go in reverse.
    assert_eq!(actions, [stop(Fs, 1, false)]);
    assert_eq!(
        t.on(down(Fs, 1, ChildEnd::Stopped), at(now), 0),
        [stop(Net, 1, false)]
    );
    assert_eq!(
        t.on(down(Net, 1, ChildEnd::Stopped), at(now), 0),
        [Action::Ended(TreeEnd::Failed {
            child: Dns,
            exit: fault(),
            restarts: 3
        })]
    );
}

#[test]
fn done_stops_the_others_and_is_reported_once() {
    let mut t = running();
    let exit = Exit::Code { code: 0 };
    let end = ChildEnd::Done(exit.clone());
    assert_eq!(t.on(down(Vm, 1, end), at(1), 0), [stop(Fs, 1, false)]);
    t.on(down(Fs, 1, ChildEnd::Stopped), at(1), 0);
    // A neighbour that fails on its way down changes nothing.
    t.on(down(Net, 1, ChildEnd::Failed(fault())), at(1), 0);
    assert_eq!(
        t.on(down(Dns, 1, ChildEnd::Stopped), at(1), 0),
        [Action::Ended(TreeEnd::Done { child: Vm, exit })]
    );
}

#[test]
fn a_child_that_is_to_run_again_is_started_at_once_and_nothing_is_counted() {
    let mut t = running();
    for life in 1..20 {
        let actions = t.on(down(Vm, life, ChildEnd::Again), at(1), 0);
        assert_eq!(actions, [start(Vm, life + 1)]);
        t.on(up(Vm, life + 1), at(1), 0);
    }
    assert_eq!(t.restarts(Vm), 0);
    // What requires it is stopped in order, and comes back with it.
    let actions = t.on(down(Fs, 1, ChildEnd::Again), at(2), 0);
    assert_eq!(actions, [stop(Vm, 20, false)]);
    let actions = t.on(down(Vm, 20, ChildEnd::Stopped), at(2), 0);
    assert_eq!(actions, [start(Fs, 2)]);
    // In an ending tree it is an end like any other.
    let mut t = running();
    t.on(Input::Stop, at(1), 0);
    let actions = t.on(down(Vm, 1, ChildEnd::Again), at(1), 0);
    assert_eq!(actions, [stop(Fs, 1, false)]);
}

#[test]
fn reports_about_another_life_are_ignored() {
    let mut t = running();
    t.on(down(Vm, 1, ChildEnd::Failed(fault())), at(1), 0);
    assert_eq!(t.on(Input::Tick, at(2), 0), [start(Vm, 2)]);
    assert_eq!(t.on(down(Vm, 1, ChildEnd::Failed(fault())), at(2), 0), []);
    assert_eq!(t.on(up(Vm, 1), at(2), 0), []);
    assert!(!t.is_up(Vm));
}

#[test]
fn a_stop_while_a_child_waits_ends_without_starting_it() {
    let mut t = running();
    t.on(down(Vm, 1, ChildEnd::Failed(fault())), at(1), 0);
    assert_eq!(t.on(Input::Stop, at(1), 0), [stop(Fs, 1, false)]);
    assert_eq!(t.wake_at(), None);
    assert_eq!(t.on(Input::Tick, at(9), 0), []);
}

#[test]
fn a_started_tree_forgets_its_counters() {
    let mut t = running();
    for life in 1..=3 {
        t.on(down(Vm, life, ChildEnd::Failed(fault())), at(life), 0);
        t.on(Input::Tick, at(life + 1), 0);
        t.on(up(Vm, life + 1), at(life + 1), 0);
    }
    t.on(Input::Stop, at(9), 0);
    for (child, life) in [(Vm, 4), (Fs, 1), (Net, 1), (Dns, 1)] {
        t.on(down(child, life, ChildEnd::Stopped), at(9), 0);
    }
    assert!(t.is_idle());
    t.on(Input::Start, at(10), 0);
    for (child, life) in [(Dns, 2), (Net, 2), (Fs, 2), (Vm, 5)] {
        t.on(up(child, life), at(10), 0);
    }
    let actions = t.on(down(Vm, 5, ChildEnd::Failed(fault())), at(10), 0);
    assert!(
        matches!(actions[0], Action::Restarting { .. }),
        "{actions:?}"
    );
}

proptest! {
    /// A scripted world that answers every action, with failures in between: whatever happens, no
    /// child runs without what it requires having been started, no two lives of a child overlap,
    /// and a stop ends with nothing running.
    #[test]
    fn invariants_hold_under_any_script(script in prop::collection::vec((0u8..6, 0usize..4), 0..120)) {
        let mut t = worker();
        let ids = [Dns, Net, Fs, Vm];
        let mut alive: [Option<u64>; 4] = [None; 4];
        let mut now = 0;
        let mut pending = t.on(Input::Start, at(0), 0);
        let mut ended = false;
        let mut script = script.into_iter();
        loop {
            for action in pending.drain(..) {
                match action {
                    Action::Start { child, life } => {
                        let i = child as usize;
                        prop_assert!(alive[i].is_none(), "two lives of {:?}", child);
                        if child == Vm {
                            prop_assert!(alive[Fs as usize].is_some(), "Vm without Fs");
                        }
                        alive[i] = Some(life);
                    }
                    Action::Stop { child, life, .. } => {
                        prop_assert_eq!(alive[child as usize], Some(life));
                    }
                    Action::Restarting { .. } => {}
                    Action::Ended(_) => ended = true,
                }
            }
            let Some((what, which)) = script.next() else { break };
            now += 1;
            let child = ids[which];
            pending = match (what, alive[which]) {
                (0 | 1, Some(life)) => t.on(up(child, life), at(now), 0),
                (2, Some(life)) => {
                    alive[which] = None;
                    t.on(down(child, life, ChildEnd::Failed(fault())), at(now), 0)
                }
                (3, Some(life)) => {
                    alive[which] = None;
                    t.on(down(child, life, ChildEnd::Stopped), at(now), 0)
                }
                (4, _) => t.on(Input::Tick, at(now), 0),
                _ => t.on(up(child, 999), at(now), 0),
            };
        }
        // Now stop it, answering every stop.
        let mut pending = t.on(Input::Stop, at(now), 0);
        for _ in 0..20 {
            if let Some(Action::Ended(_)) = pending.last() { ended = true; }
            let Some(i) = (0..4).rev().find(|&i| alive[i].is_some()) else { break };
            let life = alive[i].take().unwrap();
            pending = t.on(down(ids[i], life, ChildEnd::Stopped), at(now), 0);
        }
        if let Some(Action::Ended(_)) = pending.last() { ended = true; }
        prop_assert!(ended && t.is_idle());
    }
}
