//! A simulation that couples the real cores of every level: vm-init's `Supervision`, `VmLifecycle`,
//! `Tree` and `Fleet`. Time is a number, what fails and when is a script, and nothing else decides
//! anything. What the actors around the cores do (spawn, kill, pass on) takes fixed times here.
//!
//! At every start it checks what must hold in any run: no successor before its predecessor's end.

mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iii_actors::Outcome;
use iii_actors::event::ActorKind;
use iii_actors::root::fleet::{Fleet, FleetAction, FleetInput};
use iii_actors::root::lifecycle::WorkerState;
use iii_actors::spec::WorkerSpec;
use iii_actors::tree::{Action, ChildDef, ChildEnd, Input, Tree, TreeEnd};
use iii_actors::vm::lifecycle::{VmInput, VmLifecycle};
use iii_proto::control::HostMessage;
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::{Exit, RestartTracker};
use vm_init::supervision::{Event as GuestEvent, Supervision};

/// No jitter: the middle of the spread.
const ENTROPY: u64 = 1 << 63;
/// What a message, a signal or an actor's start takes.
pub(crate) const STEP: Duration = Duration::from_millis(1);
/// From the VMM's start to `Hello`.
pub(crate) const BOOT: Duration = Duration::from_millis(500);
/// From SIGKILL to a reaped VMM.
const REAP: Duration = Duration::from_millis(20);

/// One run of a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life {
    /// It ends by itself with this exit code.
    Exits(Duration, i32),
    /// A signal ends it.
    Signalled(Duration, i32),
    /// Its probe fails from then on.
    Sickens(Duration),
    /// No process can be made of it.
    CannotStart,
    /// For ever.
    Runs,
}

/// One run of a VM.
#[derive(Clone, Copy, Debug)]
pub(crate) enum VmLife {
    /// Its VMM is killed from outside.
    Killed(Duration),
    /// The guest says nothing.
    Silent,
    /// From then on the guest answers nothing.
    Hangs(Duration),
    /// As long as it is let.
    Runs,
}

/// What a worker and its parts do, run after run; behind the end of a list they run.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) spec: WorkerSpec,
    pub(crate) lives: Vec<Life>,
    pub(crate) vms: Vec<VmLife>,
    /// How long each run of an actor takes until it fails.
    pub(crate) actors: BTreeMap<ActorKind, Vec<Duration>>,
    /// How long each run of the WorkerSupervisor takes until it panics.
    pub(crate) supervisors: Vec<Duration>,
}

/// A level of supervision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Workload,
    Actor(ActorKind),
    Supervisor,
}

pub(crate) const VM: Part = Part::Actor(ActorKind::Vm);

/// What happened to a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Started,
    Ended,
    /// The worker as a whole, as users are told.
    Outcome(Outcome),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Duration,
    pub(crate) worker: WorkerName,
    pub(crate) part: Part,
    pub(crate) fact: Fact,
}

/// An event of the queue. Those of a worker's tree carry its incarnation, those of a VM its life.
#[derive(Debug)]
enum Due {
    Up(ActorKind, u64),
    Down(ActorKind, u64, ChildEnd),
    Vm(u64, VmInput),
    HostSays(u64, HostMessage),
    Boot(u64),
    Hang(u64),
    Guest(u64, GuestEvent),
    MainEnds(u64, GuestPid, Exit),
    SupervisorDies,
    SupervisorReaped,
}

struct Guest {
    core: Supervision,
    next_pid: i32,
    main: Option<(GuestPid, Life, Duration)>,
    hung: bool,
}

struct Vm {
    life: u64,
    core: VmLifecycle,
    boot: BootId,
    script: VmLife,
    guest: Option<Guest>,
    reaping: bool,
}

struct Worker {
    script: Script,
    incarnation: u64,
    tree: Option<Tree<ActorKind>>,
    memory: BTreeMap<ActorKind, iii_proto::restart::RestartMemory>,
    vm: Option<Vm>,
    begun: BTreeMap<Part, usize>,
    /// The last life of each actor.
    lives: BTreeMap<ActorKind, u64>,
    running: BTreeSet<Part>,
}

/// All of it.
pub(crate) struct World {
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), (WorkerName, u64, Due)>,
    numbers: u64,
    fleet: Fleet,
    workers: BTreeMap<WorkerName, Worker>,
    pub(crate) story: Vec<Entry>,
}

impl World {
    /// Starts these workers at time 0.
    pub(crate) fn new(scripts: Vec<Script>) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            numbers: 0,
            fleet: Fleet::default(),
            workers: BTreeMap::new(),
            story: Vec::new(),
        };
        let mut names = Vec::new();
        for script in scripts {
            let name = script.spec.name.clone();
            let tracker = RestartTracker::new(script.spec.supervisor_restart.clone());
            let depends_on = script.spec.depends_on.clone();
            world
                .fleet
                .add(name.clone(), depends_on, tracker, None)
                .expect("the scripts are in order");
            world.workers.insert(
                name.clone(),
                Worker {
                    script,
                    incarnation: 0,
                    tree: None,
                    memory: BTreeMap::new(),
                    vm: None,
                    begun: BTreeMap::new(),
                    lives: BTreeMap::new(),
                    running: BTreeSet::new(),
                },
            );
            names.push(name);
        }
        for name in names {
            world.fleet(&name, FleetInput::Start);
        }
        world
    }

    pub(crate) fn state(&self, worker: &str) -> WorkerState {
        let name = WorkerName::new(worker).expect("a valid name");
        self.fleet.state(&name).expect("it is in the fleet")
    }

    /// When this part was started or ended.
    pub(crate) fn times(&self, worker: &str, part: Part, fact: &Fact) -> Vec<Duration> {
        self.story
            .iter()
            .filter(|e| e.worker.as_str() == worker && e.part == part && e.fact == *fact)
            .map(|e| e.at)
            .collect()
    }

    pub(crate) fn starts(&self, worker: &str, part: Part) -> usize {
        self.times(worker, part, &Fact::Started).len()
    }

    pub(crate) fn outcome(&self, worker: &str) -> Option<Outcome> {
        self.story.iter().rev().find_map(|e| match &e.fact {
            Fact::Outcome(outcome) if e.worker.as_str() == worker => Some(outcome.clone()),
            _ => None,
        })
    }

    /// Lets time pass until `end`.
    pub(crate) fn run(&mut self, end: Duration) {
        // A core that wants to be woken at once, whatever it is told, is a busy loop in the product.
        let mut idle_wakes = 0;
        loop {
            let queued = self.queue.first_key_value().map(|(key, _)| key.0);
            let Some(next) = queued.into_iter().chain(self.deadlines()).min() else {
                break;
            };
            if next > end {
                break;
            }
            idle_wakes = if next > self.now { 0 } else { idle_wakes + 1 };
            assert!(
                idle_wakes < 1000,
                "{:?}: no end of wakes: {:#?}",
                self.now,
                self.story
            );
            self.now = self.now.max(next);
            match self.queue.first_key_value() {
                Some((key, _)) if key.0 <= self.now => {
                    let (_, (name, incarnation, due)) =
                        self.queue.pop_first().expect("it was looked at");
                    self.take(&name, incarnation, due);
                }
                Some(_) | None => self.tick(),
            }
        }
        self.now = end;
    }

    /// When the cores want to be woken.
    fn deadlines(&self) -> Vec<Duration> {
        let mut all: Vec<Duration> = self.fleet.wake_at().into_iter().collect();
        for worker in self.workers.values() {
            all.extend(worker.tree.as_ref().and_then(Tree::wake_at));
            if let Some(vm) = &worker.vm {
                all.extend(vm.core.wake_at());
                let guest = vm.guest.as_ref().filter(|g| !g.hung);
                all.extend(guest.and_then(|g| g.core.deadline()));
            }
        }
        all
    }

    fn tick(&mut self) {
        let now = self.now;
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if due(self.fleet.wake_at()) {
            let actions = self.fleet.tick(now);
            self.obey_fleet(actions);
        }
        let names: Vec<WorkerName> = self.workers.keys().cloned().collect();
        for name in names {
            let worker = &self.workers[&name];
            if due(worker.tree.as_ref().and_then(Tree::wake_at)) {
                self.tree(&name, Input::Tick);
            }
            let vm = self.workers[&name].vm.as_ref();
            if due(vm.and_then(|vm| vm.core.wake_at())) {
                self.vm(&name, VmInput::Tick);
            }
            let vm = self.workers[&name].vm.as_ref();
            let guest = vm.and_then(|vm| vm.guest.as_ref()).filter(|g| !g.hung);
            if due(guest.and_then(|g| g.core.deadline())) {
                self.guest(&name, GuestEvent::Timer);
            }
        }
    }

    fn after(&mut self, delay: Duration, name: &WorkerName, due: Due) {
        self.numbers += 1;
        let key = (self.now + delay, self.numbers);
        let incarnation = self.workers[name].incarnation;
        self.queue.insert(key, (name.clone(), incarnation, due));
    }

    fn note(&mut self, name: &WorkerName, part: Part, fact: Fact) {
        let worker = self.workers.get_mut(name).expect("it is there");
        match fact {
            Fact::Started => assert!(
                worker.running.insert(part),
                "{:?}: {name}: {part:?} starts before its predecessor's end: {:#?}",
                self.now,
                self.story
            ),
            Fact::Ended if !worker.running.remove(&part) => return,
            Fact::Ended | Fact::Outcome(_) => {}
        }
        self.story.push(Entry {
            at: self.now,
            worker: name.clone(),
            part,
            fact,
        });
    }

    /// Counts a run of a part, from 0.
    fn begin(&mut self, name: &WorkerName, part: Part) -> usize {
        let worker = self.workers.get_mut(name).expect("it is there");
        let count = worker.begun.entry(part).or_default();
        *count += 1;
        *count - 1
    }

    fn take(&mut self, name: &WorkerName, incarnation: u64, due: Due) {
        let worker = self.workers.get_mut(name).expect("it is there");
        if worker.incarnation != incarnation {
            return;
        }
        let alive = |worker: &Worker, life| worker.vm.as_ref().is_some_and(|vm| vm.life == life);
        match due {
            Due::Up(child, life) => self.tree(name, Input::Up { child, life }),
            Due::Down(child, life, end) => self.down(name, child, life, end),
            Due::Vm(life, input) if alive(worker, life) => self.vm(name, input),
            Due::Boot(life) if alive(worker, life) => self.boot(name),
            Due::Hang(life) if alive(worker, life) => {
                let vm = worker.vm.as_mut().expect("it was looked at");
                if let Some(guest) = &mut vm.guest {
                    guest.hung = true;
                }
            }
            Due::HostSays(life, message) if alive(worker, life) => self.hear(name, message),
            Due::Guest(life, event) if alive(worker, life) => self.guest(name, event),
            Due::MainEnds(life, pid, exit) if alive(worker, life) => {
                let vm = worker.vm.as_mut().expect("it was looked at");
                let Some(guest) = &mut vm.guest else { return };
                if guest.main.is_some_and(|(main, _, _)| main == pid) {
                    guest.main = None;
                    self.note(name, Part::Workload, Fact::Ended);
                    self.guest(name, GuestEvent::MainExited { pid, exit });
                }
            }
            // Of a VM that is gone.
            Due::Vm(..) | Due::Boot(_) | Due::Hang(_) | Due::HostSays(..) => {}
            Due::Guest(..) | Due::MainEnds(..) => {}
            Due::SupervisorDies => self.supervisor_dies(name),
            Due::SupervisorReaped => {
                for part in std::mem::take(&mut self.workers.get_mut(name).expect("there").running)
                {
                    self.story.push(Entry {
                        at: self.now,
                        worker: name.clone(),
                        part,
                        fact: Fact::Ended,
                    });
                }
                let cause = "it panicked".into();
                self.fleet(name, FleetInput::SupervisorDied(Exit::Fault { cause }));
            }
        }
    }

    fn fleet(&mut self, name: &WorkerName, input: FleetInput) {
        let actions = self.fleet.on(name, input, self.now, ENTROPY);
        self.obey_fleet(actions);
    }

    fn obey_fleet(&mut self, actions: Vec<FleetAction>) {
        for action in actions {
            match action {
                FleetAction::StartTree(name) => self.start_tree(&name),
                FleetAction::StopTree { name, .. } => self.tree(&name, Input::Stop),
                FleetAction::Ended { name, outcome } => {
                    self.note(&name, Part::Supervisor, Fact::Outcome(outcome));
                }
                FleetAction::Waiting { .. } | FleetAction::Restarting { .. } => {}
            }
        }
    }

    fn start_tree(&mut self, name: &WorkerName) {
        if self.workers[name].tree.is_none() {
            let worker = self.workers.get_mut(name).expect("it is there");
            let spec = &worker.script.spec;
            let child = |id, requires: &[ActorKind], restart: &_| ChildDef {
                id,
                requires: requires.to_vec(),
                restart: Clone::clone(restart),
            };
            let mut tree = Tree::new(vec![
                child(ActorKind::Dns, &[], &spec.actor_restart),
                child(ActorKind::NetPoll, &[], &spec.actor_restart),
                child(ActorKind::Fs, &[], &spec.actor_restart),
                child(ActorKind::Vm, &[ActorKind::Fs], &spec.vm_restart),
            ]);
            for (child, memory) in worker.memory.clone() {
                tree.resume(child, memory);
            }
            worker.tree = Some(tree);
            worker.incarnation += 1;
            self.note(name, Part::Supervisor, Fact::Started);
            let run = self.begin(name, Part::Supervisor);
            let dies = self.workers[name].script.supervisors.get(run).copied();
            if let Some(after) = dies {
                self.after(after, name, Due::SupervisorDies);
            }
        }
        self.tree(name, Input::Start);
    }

    fn supervisor_dies(&mut self, name: &WorkerName) {
        let worker = self.workers.get_mut(name).expect("it is there");
        worker.tree = None;
        worker.vm = None;
        // What was under way is of no meaning any more; what is left is killed and reaped.
        worker.incarnation += 1;
        self.after(REAP, name, Due::SupervisorReaped);
    }

    fn tree(&mut self, name: &WorkerName, input: Input<ActorKind>) {
        let worker = self.workers.get_mut(name).expect("it is there");
        let Some(tree) = &mut worker.tree else { return };
        let actions = tree.on(input, self.now, ENTROPY);
        worker.memory = tree.memory().collect();
        for action in actions {
            match action {
                Action::Start { child, life } => self.start_child(name, child, life),
                Action::Stop {
                    child,
                    life,
                    urgent,
                } => match child {
                    ActorKind::Vm if urgent => self.vm(name, VmInput::Kill),
                    ActorKind::Vm => {
                        let grace = self.workers[name].script.spec.stop_grace;
                        self.vm(name, VmInput::Stop { grace });
                    }
                    ActorKind::Dns | ActorKind::NetPoll | ActorKind::Fs => {
                        self.after(STEP, name, Due::Down(child, life, ChildEnd::Stopped));
                    }
                },
                Action::Restarting { .. } => {}
                Action::Ended(end) => {
                    let outcome = match end {
                        TreeEnd::Stopped => Outcome::Stopped,
                        TreeEnd::Done { exit, .. } => Outcome::Done(exit),
                        TreeEnd::Failed { child, exit, .. } => {
                            Outcome::Failed(format!("{child}: {exit}"))
                        }
                    };
                    self.note(name, Part::Supervisor, Fact::Outcome(outcome.clone()));
                    self.fleet(name, FleetInput::TreeEnded(outcome));
                }
            }
        }
    }

    fn start_child(&mut self, name: &WorkerName, child: ActorKind, life: u64) {
        let part = Part::Actor(child);
        self.note(name, part, Fact::Started);
        let worker = self.workers.get_mut(name).expect("it is there");
        worker.lives.insert(child, life);
        let run = self.begin(name, part);
        if child == ActorKind::Vm {
            return self.start_vm(name, life, run);
        }
        self.after(STEP, name, Due::Up(child, life));
        let runs = self.workers[name].script.actors.get(&child);
        if let Some(after) = runs.and_then(|runs| runs.get(run)).copied() {
            let cause = "it panicked".into();
            let end = ChildEnd::Failed(Exit::Fault { cause });
            self.after(after, name, Due::Down(child, life, end));
        }
    }

    fn down(&mut self, name: &WorkerName, child: ActorKind, life: u64, end: ChildEnd) {
        let worker = &self.workers[name];
        // Its scripted failure, after it was stopped for another's sake.
        if worker.lives[&child] != life || !worker.running.contains(&Part::Actor(child)) {
            return;
        }
        self.note(name, Part::Actor(child), Fact::Ended);
        if child == ActorKind::Vm {
            self.workers.get_mut(name).expect("it is there").vm = None;
            self.note(name, Part::Workload, Fact::Ended);
            self.fleet(name, FleetInput::WorkloadDown);
        }
        self.tree(name, Input::Down { child, life, end });
    }
}
