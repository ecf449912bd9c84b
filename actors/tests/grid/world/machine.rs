//! What is inside a worker: the VM, the guest, the workload.

use std::time::Duration;

use iii_actors::event::{ActorKind, EventKind};
use iii_actors::root::fleet::FleetInput;
use iii_actors::tree::ChildEnd;
use iii_actors::vm::lifecycle::{Effect, Times, VmEnd, VmInput, VmLifecycle};
use iii_proto::PROTOCOL_VERSION;
use iii_proto::control::{GuestMessage, HostMessage};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::restart::Exit;
use vm_init::supervision::{Action as GuestAction, Event as GuestEvent, Supervision};

use super::{BOOT, Due, ENTROPY, Fact, Guest, Life, Part, REAP, STEP, Vm, VmLife, World};

impl World {
    pub(super) fn start_vm(&mut self, name: &WorkerName, life: u64, run: usize) {
        let worker = self.workers.get_mut(name).expect("it is there");
        let spec = &worker.script.spec;
        let boot = BootId::from_random(run as u64 + 1);
        let times = Times::new(spec.boot_deadline, spec.heartbeat_timeout);
        let script = *worker.script.vms.get(run).unwrap_or(&VmLife::Runs);
        worker.vm = Some(Vm {
            life,
            core: VmLifecycle::new(boot, times),
            boot,
            script,
            guest: None,
            reaping: false,
        });
        self.after(STEP, name, Due::Up(ActorKind::Vm, life));
        self.vm(name, VmInput::Spawned);
        match script {
            VmLife::Killed(after) => {
                self.after(BOOT, name, Due::Boot(life));
                let exit = "SIGKILL".into();
                self.after(after, name, Due::Vm(life, VmInput::Exited { exit }));
            }
            VmLife::Silent => {}
            VmLife::Hangs(after) => {
                self.after(BOOT, name, Due::Boot(life));
                self.after(after, name, Due::Hang(life));
            }
            VmLife::Runs => self.after(BOOT, name, Due::Boot(life)),
        }
    }

    pub(super) fn vm(&mut self, name: &WorkerName, input: VmInput) {
        let Some(vm) = &mut self.workers.get_mut(name).expect("it is there").vm else {
            return;
        };
        if matches!(input, VmInput::Exited { .. }) {
            vm.guest = None;
            self.note(name, Part::Workload, Fact::Ended);
        }
        let vm = self.workers.get_mut(name).expect("there").vm.as_mut();
        let vm = vm.expect("it was looked at");
        let life = vm.life;
        for effect in vm.core.on(input, self.now, 0) {
            match effect {
                Effect::Emit(kind) => self.tell(name, &kind),
                Effect::Measured { .. } => {}
                Effect::Send(message) => self.after(STEP, name, Due::HostSays(life, message)),
                Effect::Kill => self.vmm_ends(name, REAP),
                Effect::Drain => self.after(STEP, name, Due::Vm(life, VmInput::Drained)),
                Effect::Finish(end) => {
                    let end = match end {
                        VmEnd::Stopped => ChildEnd::Stopped,
                        VmEnd::Done(exit) => ChildEnd::Done(exit),
                        VmEnd::Failed(failure) => ChildEnd::Failed(Exit::Fault {
                            cause: failure.cause,
                        }),
                    };
                    self.after(STEP, name, Due::Down(ActorKind::Vm, life, end));
                }
            }
        }
    }

    pub(super) fn vmm_ends(&mut self, name: &WorkerName, after: Duration) {
        let vm = self.workers.get_mut(name).expect("there").vm.as_mut();
        let Some(vm) = vm.filter(|vm| !vm.reaping) else {
            return;
        };
        vm.reaping = true;
        let (life, exit) = (vm.life, "an exit".into());
        self.after(after, name, Due::Vm(life, VmInput::Exited { exit }));
    }

    pub(super) fn tell(&mut self, name: &WorkerName, kind: &EventKind) {
        let input = match kind {
            EventKind::WorkloadStarted { .. } => FleetInput::WorkloadStarted,
            EventKind::WorkloadReady { .. } => FleetInput::WorkloadReady,
            EventKind::WorkloadExited { .. } => FleetInput::WorkloadDown,
            _ => return,
        };
        self.fleet(name, input);
    }

    pub(super) fn boot(&mut self, name: &WorkerName) {
        let worker = self.workers.get_mut(name).expect("it is there");
        let spec = &worker.script.spec;
        let Some(vm) = &mut worker.vm else { return };
        vm.guest = Some(Guest {
            core: Supervision::new(
                spec.restart.clone(),
                spec.health.clone(),
                spec.stop_grace,
                spec.at_rest,
            ),
            next_pid: 100,
            main: None,
            hung: false,
        });
        let hello = GuestMessage::Hello {
            proto: PROTOCOL_VERSION,
            boot_id: vm.boot,
            kernel: format!("{:?}", vm.script),
        };
        self.vm(name, VmInput::Guest(hello));
        self.guest(name, GuestEvent::Boot);
    }

    pub(super) fn hear(&mut self, name: &WorkerName, message: HostMessage) {
        let vm = self.workers[name].vm.as_ref();
        if vm.and_then(|vm| vm.guest.as_ref()).is_none_or(|g| g.hung) {
            return;
        }
        match message {
            HostMessage::Stop { grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.guest(name, GuestEvent::Stop { grace });
            }
            HostMessage::Heartbeat { seq, .. } => self.says(
                name,
                GuestMessage::Alive {
                    seq,
                    guest_time_unix_ns: 0,
                },
            ),
            HostMessage::RestartWorkload { .. }
            | HostMessage::Signal { .. }
            | HostMessage::LogAck { .. }
            | HostMessage::DropCaches
            | HostMessage::FilesChanged { .. }
            | HostMessage::Fault(_)
            | HostMessage::Measure { .. } => {}
        }
    }

    pub(super) fn says(&mut self, name: &WorkerName, message: GuestMessage) {
        let life = self.workers[name].vm.as_ref().map(|vm| vm.life);
        let life = life.expect("a guest that speaks is in a VM");
        self.after(STEP, name, Due::Vm(life, VmInput::Guest(message)));
    }

    pub(super) fn guest(&mut self, name: &WorkerName, event: GuestEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.now;
            let Some(vm) = &mut self.workers.get_mut(name).expect("there").vm else {
                return;
            };
            let life = vm.life;
            let Some(guest) = vm.guest.as_mut().filter(|g| !g.hung) else {
                return;
            };
            let mut actions = Vec::new();
            guest.core.handle(event, now, ENTROPY, &mut actions);
            let main = guest.main;
            for action in actions {
                self.obey_guest(name, life, main, action);
            }
            let vm = self.workers.get_mut(name).expect("there").vm.as_mut();
            let Some(guest) = vm.and_then(|vm| vm.guest.as_mut()) else {
                return;
            };
            if guest.core.clearing().is_some() {
                events.push(GuestEvent::LifeCleared);
            } else if guest.core.flushing() {
                events.push(GuestEvent::LogsSettled);
            } else if guest.core.wants_start() {
                events.extend(self.spawn(name, life));
            }
        }
    }

    /// In reverse: the last is taken first.
    pub(super) fn spawn(&mut self, name: &WorkerName, life: u64) -> Vec<GuestEvent> {
        let run = self.begin(name, Part::Workload);
        let script = *self.workers[name]
            .script
            .lives
            .get(run)
            .unwrap_or(&Life::Runs);
        let (now, pid) = {
            let vm = self.workers.get_mut(name).expect("there").vm.as_mut();
            let guest = vm.and_then(|vm| vm.guest.as_mut()).expect("it wants one");
            guest.next_pid += 1;
            let pid = GuestPid(guest.next_pid);
            if !matches!(script, Life::CannotStart) {
                guest.main = Some((pid, script, self.now));
            }
            (self.now, pid)
        };
        self.note(name, Part::Workload, Fact::Started);
        let mut ends = |after, exit| {
            assert!(after > Duration::ZERO, "{now:?}: a life takes its time");
            self.after(after, name, Due::MainEnds(life, pid, exit));
        };
        match script {
            Life::Exits(after, code) => ends(after, Exit::Code { code }),
            Life::Signalled(after, signal) => ends(after, Exit::Signal { signal }),
            Life::CannotStart => {
                self.note(name, Part::Workload, Fact::Ended);
                let cause = "no such program".into();
                return vec![GuestEvent::SpawnFailed { cause }];
            }
            Life::Sickens(_) | Life::Runs => {}
        }
        vec![GuestEvent::Executed, GuestEvent::Spawned { pid }]
    }

    pub(super) fn obey_guest(
        &mut self,
        name: &WorkerName,
        life: u64,
        main: Option<(GuestPid, Life, Duration)>,
        action: GuestAction,
    ) {
        match action {
            GuestAction::Send(message) => self.says(name, message),
            GuestAction::SignalGroup { pid, signal } | GuestAction::SignalMain { pid, signal } => {
                let exit = Exit::Signal { signal };
                self.after(STEP, name, Due::MainEnds(life, pid, exit));
            }
            GuestAction::KillLife { pid } => {
                let exit = Exit::Signal { signal: 9 };
                self.after(STEP, name, Due::MainEnds(life, pid, exit));
            }
            GuestAction::StartProbe => {
                let sick = match main {
                    Some((_, Life::Sickens(after), since)) => self.now >= since + after,
                    Some(_) | None => false,
                };
                let event = if sick {
                    let detail = "no answer".into();
                    GuestEvent::ProbeFailed { detail }
                } else {
                    GuestEvent::ProbePassed
                };
                self.after(STEP, name, Due::Guest(life, event));
            }
            GuestAction::PowerOff(reason) => {
                self.says(
                    name,
                    GuestMessage::PoweringOff {
                        reason,
                        last_log_seq: 0,
                    },
                );
                self.vmm_ends(name, REAP);
            }
            GuestAction::TerminateStrays { .. }
            | GuestAction::CancelProbe
            | GuestAction::SealOutput => {}
        }
    }
}
