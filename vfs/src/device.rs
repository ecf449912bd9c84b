//! One vhost-user-fs device: takes requests from its queues and puts answers there.
//!
//! Two queues, each with a thread: FORGET comes on the high-priority queue and must be served
//! while a request waits for room ([`crate::budget`]).

use std::io;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::events::{Refusal, Refusals};
use crate::export::Export;

/// The high-priority queue and one request queue.
const QUEUES: usize = 2;
/// Largest queue that the VMM may configure; QEMU's default is 128.
const QUEUE_SIZE: usize = 1024;

/// Most bytes of one direction of a request: the largest write or read that INIT negotiates, with
/// its headers. Descriptors can name the same guest memory over and over, so without the bound a
/// request could make the server allocate many times the guest's memory.
const MAX_REQUEST: usize = MAX_BUFFER_SIZE as usize + 4096;

/// FUSE_SYNCFS, which fuse-backend-rs does not know: it would answer ENOSYS, and the guest's
/// `sync` would never again reach the host's disk.
const OPCODE_SYNCFS: u32 = 50;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The device of one export.
pub struct Device {
    server: Server<Arc<Export>>,
    export: Arc<Export>,
    memory: Memory,
    refusals: Arc<Refusals>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Device")
            .field("export", &self.export)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// A device without a driver yet. `memory` is the one that the daemon updates.
    pub fn new(export: Export, memory: Memory, refusals: Arc<Refusals>) -> Self {
        let export = Arc::new(export);
        Self {
            server: Server::new(Arc::clone(&export)),
            export,
            memory,
            refusals,
        }
    }

    /// Serves all requests that are in the queue.
    fn serve(&self, vring: &VringRwLock) -> io::Result<()> {
        let (mut fruitless, mut unanswered) = (0, false);
        while fruitless < 2 {
            vring.disable_notification().map_err(io::Error::other)?;
            fruitless += 1;
            loop {
                let chain = vring
                    .get_mut()
                    .get_queue_mut()
                    .pop_descriptor_chain(self.memory.memory());
                let Some(chain) = chain else { break };
                fruitless = 0;
                let head = chain.head_index();
                let length = self.request(chain);
                vring.add_used(head, length).map_err(io::Error::other)?;
                // An answer at once, not after the whole queue: what follows may be an fsync.
                // FORGET has none; a guest that drops its caches sends thousands in a row.
                if length > 0 {
                    Self::signal(vring)?;
                } else {
                    unanswered = true;
                }
            }
            if std::mem::take(&mut unanswered) {
                Self::signal(vring)?;
            }
            // A request that came in between did not kick: look again.
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
        // The guest announces requests that are not there. Looking on would burn a host CPU for
        // as long as it likes.
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn signal(vring: &VringRwLock) -> io::Result<()> {
        if vring.needs_notification().map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    /// Serves one request; the answer's length.
    fn request(&self, chain: Chain) -> u32 {
        let memory = self.memory.memory();
        let (Ok(reader), Ok(writer)) = (
            Reader::from_descriptor_chain(&*memory, chain.clone()),
            VirtioFsWriter::new(&*memory, chain),
        ) else {
            self.refusals.count(Refusal::Descriptor);
            return 0;
        };
        if reader.available_bytes() > MAX_REQUEST || writer.available_bytes() > MAX_REQUEST {
            self.refusals.count(Refusal::Descriptor);
            return 0;
        }
        let Ok(header) = reader.clone().read_obj::<InHeader>() else {
            self.refusals.count(Refusal::Message);
            return 0;
        };
        if header.opcode == OPCODE_SYNCFS {
            return self.sync(header, writer);
        }
        match self
            .server
            .handle_message(reader, Writer::from(writer), None, None)
        {
            // The server never writes more than MAX_REQUEST.
            Ok(length) => length as u32,
            Err(error) => {
                tracing::debug!(%error, "broken FUSE message");
                self.refusals.count(Refusal::Message);
                0
            }
        }
    }

    fn sync(&self, header: InHeader, mut writer: VirtioFsWriter<'_>) -> u32 {
        let error = match self.export.sync() {
            Ok(()) => 0,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        let answer = OutHeader {
            len: size_of::<OutHeader>() as u32,
            error,
            unique: header.unique,
        };
        if writer.write_obj(answer).is_err() {
            self.refusals.count(Refusal::Message);
            return 0;
        }
        answer.len
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queue knows by itself; notifications are suppressed by the same calls either way.
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // It is a clone of ours and shares its contents.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![0b01, 0b10]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .inspect_err(|error| tracing::error!(%error, "failed to make an exit event"))
            .ok()
    }

    fn handle_event(
        &self,
        _event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        // Each thread has exactly one queue. An error would end the thread and leave the guest
        // waiting for ever without a word, so a ring that cannot be used is counted instead.
        if let Some(vring) = vrings.first()
            && let Err(error) = self.serve(vring)
        {
            tracing::debug!(%error, "unusable queue");
            self.refusals.count(Refusal::Descriptor);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
