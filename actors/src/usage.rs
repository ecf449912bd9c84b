//! What a worker uses, told when somebody asks. Nothing is measured otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Message;
use iii_net::StatsReader;
use iii_proto::control::GuestMemory;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::event::ActorKind;
use crate::tree::ChildState;

/// How long a guest may take to say how its memory is. One that is busy or hangs is told without.
pub(crate) const GUEST_PATIENCE: Duration = Duration::from_millis(500);

/// What a worker uses, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerUsage {
    /// Its parts, in the order of their start; none: no tree of it runs.
    pub parts: Vec<PartUsage>,
    /// What has passed between it and the network; `None`: it has none.
    pub network: Option<NetworkUsage>,
    /// As its guest's kernel says; `None`: none runs, or it did not answer.
    pub guest_memory: Option<GuestMemory>,
    /// CPUs of its VM.
    pub cpus: u8,
    /// Bytes of memory of its VM.
    pub memory: u64,
}

/// One part of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartUsage {
    /// Which.
    pub actor: ActorKind,
    /// Where it stands.
    pub state: ChildState,
    /// Its restarts after failures.
    pub restarts: u64,
    /// The program that it runs: the VMM, the file server. Their process ids are this host's.
    pub pid: Option<u32>,
}

/// What has passed between a worker and the network, from the worker's side. Counted since the
/// supervisor's start, over restarts of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkUsage {
    /// Bytes of the frames that it has received.
    pub received_bytes: u64,
    /// Bytes of the frames that it has sent.
    pub sent_bytes: u64,
    /// TCP connections that it has now, both directions.
    pub connections: u64,
    /// Connections, datagrams and names that its policy has refused.
    pub refused: u64,
}

/// Counts what passes through the network loops of one worker, each the successor of the one before.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkMeter(Arc<Mutex<Meter>>);

#[derive(Debug, Default)]
struct Meter {
    past: NetworkUsage,
    loop_now: Option<StatsReader>,
}

impl NetworkMeter {
    /// A loop has started.
    pub(crate) fn attach(&self, reader: StatsReader) {
        let mut meter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meter.settle();
        meter.loop_now = Some(reader);
    }

    /// The loop has ended.
    pub(crate) fn detach(&self) {
        let mut meter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meter.settle();
    }

    pub(crate) fn read(&self) -> NetworkUsage {
        let meter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meter.sum()
    }
}

impl Meter {
    fn sum(&self) -> NetworkUsage {
        let Some(reader) = &self.loop_now else {
            return self.past;
        };
        let stats = reader.read();
        NetworkUsage {
            received_bytes: self.past.received_bytes + stats.traffic.bytes_out,
            sent_bytes: self.past.sent_bytes + stats.traffic.bytes_in,
            connections: stats.traffic.tcp_flows,
            refused: self.past.refused + stats.refused.policy + stats.refused.dns_policy,
        }
    }

    fn settle(&mut self) {
        self.past = NetworkUsage {
            connections: 0,
            ..self.sum()
        };
        self.loop_now = None;
    }
}

/// To a WorkerSupervisor: how are its parts, and how is its guest's memory? An answer that is dropped
/// means that there is none.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Measure {
    pub(crate) parts: oneshot::Sender<Vec<(ActorKind, ChildState)>>,
    pub(crate) memory: MemoryAnswer,
}

/// Where a guest's answer goes.
pub(crate) type MemoryAnswer = oneshot::Sender<GuestMemory>;
