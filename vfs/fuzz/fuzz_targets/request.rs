//! One request of a hostile guest: the first bytes describe the chain, the rest is the guest's
//! memory that it names. `cargo fuzz run request`; the property tests of the crate cover the same
//! ground on every `cargo test`.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iii_proto::vfs::VfsExport;
use iii_vfs::budget::{Budget, Limits};
use iii_vfs::device::Device;
use iii_vfs::events::{Refusals, event_queue};
use iii_vfs::export::{Common, Export};
use libfuzzer_sys::fuzz_target;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

const MEMORY: usize = 0x20_0000;
const REQUEST: u64 = 0x10_0000;

type Fixture = (Device, GuestMemoryAtomic<GuestMemoryMmap>, tempfile::TempDir);

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let (sink, _) = event_queue().unwrap();
        let refusals = Arc::new(Refusals::new(sink.clone()));
        let limits = Limits {
            patience: Duration::ZERO,
            ..Limits::from_descriptors(1024, 1, true)
        };
        let common = Common {
            budget: Arc::new(Budget::new(limits, sink)),
            refusals: Arc::clone(&refusals),
            server: (0, 0),
            file_handles: false,
        };
        let spec = VfsExport {
            tag: "fuzz".to_owned(),
            path: directory.path().to_owned(),
            read_only: false,
            guest_uid: 1000,
            guest_gid: 1000,
            listener_fd: -1,
            immutable: false,
            live: false,
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let memory = GuestMemoryAtomic::new(memory);
        let export = Export::open(&spec, common).unwrap();
        (Device::new(export, memory.clone(), refusals), memory, directory)
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((count, rest)) = data.split_first() else { return };
    let count = usize::from(count % 12) + 1;
    let Some((chain, content)) = rest.split_at_checked(count * 8) else { return };
    let (device, memory, _) = fixture();
    let guest = memory.memory();
    let content = &content[..content.len().min(0x8_0000)];
    guest.write_slice(&[0; 4096], GuestAddress(0)).unwrap();
    guest.write_slice(content, GuestAddress(REQUEST)).unwrap();
    let descriptors: Vec<RawDescriptor> = chain
        .chunks_exact(8)
        .map(|field| {
            let offset = u64::from(u16::from_le_bytes([field[0], field[1]]));
            let length = u32::from(u16::from_le_bytes([field[2], field[3]]));
            let flags = u16::from(field[4] & 7);
            let next = u16::from(field[5] % 16);
            let far = if field[6] == 0xff { u64::MAX / 2 } else { 0 };
            let long = if field[7] == 0xff { u32::MAX } else { length };
            RawDescriptor::from(Descriptor::new(REQUEST + offset + far, long, flags, next))
        })
        .collect();
    let queue = MockSplitQueue::new(&*guest, 16);
    queue.add_desc_chains(&descriptors, 0).unwrap();
    let vring = VringRwLock::new(memory.clone(), 16).unwrap();
    vring.set_queue_size(16);
    vring
        .get_mut()
        .set_queue_info(queue.desc_table_addr().0, queue.avail_addr().0, queue.used_addr().0)
        .unwrap();
    vring.set_queue_ready(true);
    device.handle_event(0, EventSet::IN, &[vring], 0).unwrap();
});
