//! Hurting a worker, so that its repair can be seen.

use actix::prelude::*;
use iii_proto::control::GuestFault;

use super::{Children, WorkerSupervisor};
use crate::event::ActorKind;
use crate::fs::InjectServerDeath;
use crate::messages::InjectPanic;
use crate::net_poll::InjectLoop;
use crate::vm::{InjectVm, Tell};

/// A way to hurt a worker, so that its repair can be seen. Obeyed only if the worker's spec allows
/// faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The actor's next message panics.
    PanicActor(ActorKind),
    /// The network loop's thread panics.
    PanicNetworkLoop,
    /// The network loop's thread stops doing anything.
    StallNetworkLoop,
    /// SIGKILL to `iii-vfs`.
    KillFileServer,
    /// SIGKILL to the VMM.
    KillVmm,
    /// SIGKILL to the workload's main process.
    KillWorkload,
    /// The guest's kernel panics.
    GuestPanic,
    /// vm-init spins and answers nothing.
    GuestHang,
    /// SIGSTOP to the VMM: it looks alive and does nothing.
    StopVmm,
    /// The supervisor's end of the control port is closed.
    DropControlPort,
    /// The WorkerSupervisor itself panics.
    PanicWorkerSupervisor,
}

/// To a WorkerSupervisor: hurt something.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Inject(pub(crate) Fault);

impl Handler<Inject> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, Inject(fault): Inject, _: &mut Self::Context) {
        let Children { dns, net, fs, vm } = &self.children;
        let tell = |fault| vm.as_ref().map(|c| c.address.do_send(Tell::Fault(fault)));
        let hit = match fault {
            Fault::PanicActor(ActorKind::Dns) => {
                dns.as_ref().map(|c| c.address.do_send(InjectPanic))
            }
            Fault::PanicActor(ActorKind::NetPoll) => {
                net.as_ref().map(|c| c.address.do_send(InjectPanic))
            }
            Fault::PanicActor(ActorKind::Fs) => fs.as_ref().map(|c| c.address.do_send(InjectPanic)),
            Fault::PanicActor(ActorKind::Vm) => vm.as_ref().map(|c| c.address.do_send(InjectPanic)),
            Fault::PanicNetworkLoop => net
                .as_ref()
                .map(|c| c.address.do_send(InjectLoop(iii_net::Fault::Panic))),
            Fault::StallNetworkLoop => net
                .as_ref()
                .map(|c| c.address.do_send(InjectLoop(iii_net::Fault::Stall))),
            Fault::KillFileServer => fs.as_ref().map(|c| c.address.do_send(InjectServerDeath)),
            Fault::KillVmm => vm.as_ref().map(|c| c.address.do_send(InjectVm::Kill)),
            Fault::StopVmm => vm.as_ref().map(|c| c.address.do_send(InjectVm::Stop)),
            Fault::DropControlPort => vm
                .as_ref()
                .map(|c| c.address.do_send(InjectVm::DropControl)),
            Fault::KillWorkload => tell(GuestFault::KillWorkload),
            Fault::GuestPanic => tell(GuestFault::KernelPanic),
            Fault::GuestHang => tell(GuestFault::Hang),
            Fault::PanicWorkerSupervisor => panic!("injected fault"),
        };
        if hit.is_none() {
            tracing::warn!(worker = %self.plan.spec.name, ?fault, "nothing there to hurt");
        }
    }
}
