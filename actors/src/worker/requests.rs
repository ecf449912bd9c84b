//! What a worker is asked to do while it runs.

use actix::prelude::*;

use super::WorkerSupervisor;
use crate::event::ActorKind;
use crate::exec;
use crate::tree::Input;
use crate::usage::Measure;
use crate::vm::{MeasureGuest, Tell};

/// What a restart by request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The workload, inside its VM: its memory is lost, the VM's is not.
    Workload,
    /// The VM: everything in it is lost; the network loop and the resolver go on.
    Vm,
    /// The worker with all its actors, and what may not outlive it.
    All,
}

/// To a WorkerSupervisor: restart a part of it, in order. Not a failure: nothing is counted.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum RestartPart {
    Workload,
    Vm,
}

/// To a WorkerSupervisor: the host has changed files that its guest sees.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FilesChanged(pub(crate) Vec<String>);

impl Handler<FilesChanged> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, FilesChanged(paths): FilesChanged, _: &mut Self::Context) {
        // Between two VMs nobody watches anything.
        if let Some(vm) = &self.children.vm {
            vm.address.do_send(Tell::FilesChanged(paths));
        }
    }
}

impl Handler<RestartPart> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, part: RestartPart, ctx: &mut Self::Context) {
        match part {
            RestartPart::Workload => {
                if let Some(vm) = &self.children.vm {
                    vm.address.do_send(Tell::RestartWorkload);
                }
            }
            RestartPart::Vm => {
                let child = ActorKind::Vm;
                self.on(Input::Restart { child }, ctx);
            }
        }
    }
}

/// To a WorkerSupervisor: end the tree.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopWorker {
    /// Without grace.
    pub(crate) urgent: bool,
}

impl Handler<StopWorker> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, StopWorker { urgent }: StopWorker, ctx: &mut Self::Context) {
        if urgent && !self.tree.is_idle() {
            self.urgent = true;
            // It may be in the middle of a graceful stop.
            self.halt(ActorKind::Vm, true);
        }
        self.on(Input::Stop, ctx);
    }
}

impl Handler<exec::Find> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, find: exec::Find, _: &mut Self::Context) {
        match &self.children.vm {
            Some(vm) => vm.address.do_send(find),
            None => find.not_running("between two VMs"),
        }
    }
}

impl Handler<Measure> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, Measure { parts, memory }: Measure, _: &mut Self::Context) {
        // Whoever asked may not wait any more.
        drop(parts.send(self.tree.states().collect()));
        if let Some(vm) = &self.children.vm {
            vm.address.do_send(MeasureGuest(memory));
        }
    }
}
