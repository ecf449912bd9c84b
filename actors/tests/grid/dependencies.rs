//! Dependency set × failing child: within a tree (`requires`) and between workers (`depends_on`
//! with `restart: true`).

use std::collections::BTreeMap;
use std::time::Duration;

use iii_actors::root::lifecycle::WorkerState;
use iii_actors::spec::Dependency;
use iii_actors::tree::{Action, ChildDef, ChildEnd, Input, Tree};
use iii_proto::restart::{Exit, RestartMode};

use crate::world::{Fact, Part, Script, VM, VmLife, World};
use crate::{name, policy, script, secs};

type Set = &'static [(&'static str, &'static [&'static str])];

const NONE: Set = &[("a", &[]), ("b", &[])];
const ONE: Set = &[("a", &[]), ("b", &["a"]), ("z", &[])];
const CHAIN: Set = &[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("z", &[])];
const FAN: Set = &[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("z", &[])];
const DIAMOND: Set = &[
    ("a", &[]),
    ("b", &["a"]),
    ("c", &["a"]),
    ("d", &["b", "c"]),
    ("z", &[]),
];

/// A tree whose children do as they are told.
struct Obedient {
    tree: Tree<&'static str>,
    now: Duration,
    lives: BTreeMap<&'static str, u64>,
    running: Vec<&'static str>,
    /// Orders, in order: `+a`, `-a`.
    orders: Vec<String>,
}

impl Obedient {
    fn new(set: Set) -> Self {
        let def = |(id, requires): &(&'static str, &'static [&'static str])| ChildDef {
            id: *id,
            requires: requires.to_vec(),
            restart: policy(RestartMode::Always, 3),
        };
        Self {
            tree: Tree::new(set.iter().map(def).collect()),
            now: Duration::ZERO,
            lives: BTreeMap::new(),
            running: Vec::new(),
            orders: Vec::new(),
        }
    }

    fn feed(&mut self, input: Input<&'static str>) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for action in self.tree.on(input, self.now, 1 << 63) {
                match action {
                    Action::Start { child, life } => {
                        assert!(!self.running.contains(&child), "{child} runs already");
                        self.orders.push(format!("+{child}"));
                        self.running.push(child);
                        self.lives.insert(child, life);
                        inputs.push(Input::Up { child, life });
                    }
                    Action::Stop { child, life, .. } => {
                        self.orders.push(format!("-{child}"));
                        self.running.retain(|c| *c != child);
                        let end = ChildEnd::Stopped;
                        inputs.push(Input::Down { child, life, end });
                    }
                    Action::Restarting { .. } | Action::Ended(_) => {}
                }
            }
        }
    }

    fn fail(&mut self, child: &'static str) {
        let (life, cause) = (self.lives[child], "x".into());
        self.running.retain(|c| *c != child);
        let end = ChildEnd::Failed(Exit::Fault { cause });
        self.feed(Input::Down { child, life, end });
    }
}

/// `stops`: who is stopped with the failing child, in order.
fn within_a_tree(set: Set, failing: &'static str, stops: &[&str]) {
    let mut world = Obedient::new(set);
    world.feed(Input::Start);
    let order: Vec<String> = set.iter().map(|(id, _)| format!("+{id}")).collect();
    assert_eq!(world.orders, order, "the start, in order");
    world.orders.clear();
    world.now = secs(5);
    world.fail(failing);
    let stopped: Vec<String> = stops.iter().map(|id| format!("-{id}")).collect();
    assert_eq!(world.orders, stopped, "the stops, in reverse order");
    assert_eq!(world.tree.wake_at(), Some(secs(6)));
    world.orders.clear();
    world.now = secs(6);
    world.feed(Input::Tick);
    let mut started = vec![format!("+{failing}")];
    started.extend(stops.iter().rev().map(|id| format!("+{id}")));
    assert_eq!(world.orders, started, "the starts, in order");
    for (id, _) in set {
        assert!(world.tree.is_up(id), "{id}");
        assert_eq!(world.tree.restarts(id), u64::from(*id == failing), "{id}");
    }
}

/// The failing worker's VM is killed once; those that are bound to it are stopped in order, and
/// started again once what they depend on is ready.
fn between_workers(set: Set, failing: &str, restarted: &[&str]) {
    let scripts: Vec<Script> = set
        .iter()
        .map(|(id, depends_on)| {
            let mut script = script(id);
            script.spec.depends_on = depends_on
                .iter()
                .map(|on| Dependency {
                    restart: true,
                    ..Dependency::ready(name(on))
                })
                .collect();
            if *id == failing {
                script.vms = vec![VmLife::Killed(secs(20))];
            }
            script
        })
        .collect();
    let mut world = World::new(scripts);
    world.run(secs(60));
    for (id, depends_on) in set {
        assert_eq!(world.state(id), WorkerState::Ready, "{id}");
        let twice = *id == failing || restarted.contains(id);
        let vms = world.times(id, VM, &Fact::Started);
        let lives = world.times(id, Part::Workload, &Fact::Started);
        let expected = if twice { 2 } else { 1 };
        assert_eq!(
            (vms.len(), lives.len()),
            (expected, expected),
            "{id}: {:#?}",
            world.story
        );
        for on in *depends_on {
            let they = world.times(on, Part::Workload, &Fact::Started);
            assert!(vms[0] > they[0], "{id} starts behind {on}");
            if twice {
                let ends = world.times(id, VM, &Fact::Ended);
                if let Some(&again) = they.get(1) {
                    assert!(ends[0] < again, "{id} has ended before {on} is back");
                    assert!(vms[1] > again, "{id} starts again behind {on}");
                }
            }
        }
    }
    if let Some(own) = world.times(failing, VM, &Fact::Started).get(1) {
        let end = world.times(failing, VM, &Fact::Ended)[0];
        assert_eq!(*own - end, secs(1), "its own delay, whoever depends on it");
    }
}

macro_rules! grid {
    ($($name:ident: $set:ident, $failing:literal => $stops:expr;)*) => {
        mod tree {
            use super::*;
            $(#[test]
            fn $name() {
                within_a_tree($set, $failing, &$stops);
            })*
        }
        mod workers {
            use super::*;
            $(#[test]
            fn $name() {
                between_workers($set, $failing, &$stops);
            })*
        }
    };
}

grid! {
    none_and_the_first_fails: NONE, "a" => [];
    none_and_the_last_fails: NONE, "b" => [];
    one_and_the_required_fails: ONE, "a" => ["b"];
    one_and_the_requiring_fails: ONE, "b" => [];
    one_and_a_stranger_fails: ONE, "z" => [];
    chain_and_its_head_fails: CHAIN, "a" => ["c", "b"];
    chain_and_its_middle_fails: CHAIN, "b" => ["c"];
    chain_and_its_end_fails: CHAIN, "c" => [];
    fan_and_its_root_fails: FAN, "a" => ["c", "b"];
    fan_and_its_left_fails: FAN, "b" => [];
    fan_and_its_right_fails: FAN, "c" => [];
    diamond_and_its_root_fails: DIAMOND, "a" => ["d", "c", "b"];
    diamond_and_its_left_fails: DIAMOND, "b" => ["d"];
    diamond_and_its_right_fails: DIAMOND, "c" => ["d"];
    diamond_and_its_end_fails: DIAMOND, "d" => [];
}
