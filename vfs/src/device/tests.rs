//! Requests through real queues in guest memory, honest and hostile.

use std::fs;

use fuse_backend_rs::abi::fuse_abi::Opcode;
use iii_proto::vfs::VfsExport;
use proptest::prelude::*;
use vhost_user_backend::VringRwLock;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::budget::{Budget, Limits};
use crate::events::event_queue;
use crate::export::Common;

const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;
const MEMORY: usize = 0x40_0000;

struct Fixture {
    directory: tempfile::TempDir,
    device: Device,
    vring: VringRwLock,
    memory: Memory,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sink, _) = event_queue().unwrap();
        let refusals = Arc::new(Refusals::new(sink.clone()));
        let limits = Limits {
            patience: std::time::Duration::ZERO,
            ..Limits::from_descriptors(1024, 1, true)
        };
        let common = Common {
            budget: Arc::new(Budget::new(limits, sink)),
            refusals: Arc::clone(&refusals),
            server: (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ),
            file_handles: false,
        };
        let spec = VfsExport {
            tag: "t".to_owned(),
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
        Self {
            directory,
            device: Device::new(export, memory.clone(), refusals),
            vring: VringRwLock::new(memory.clone(), 16).unwrap(),
            memory,
        }
    }

    /// Puts descriptors into the queue and has the device look at it; the used length of the
    /// first, if the device used one.
    fn offer(&self, descriptors: &[RawDescriptor]) -> Option<u32> {
        let memory = self.memory.memory();
        memory.write_slice(&[0; 4096], GuestAddress(0)).unwrap();
        let queue = MockSplitQueue::new(&*memory, 16);
        queue.add_desc_chains(descriptors, 0).unwrap();
        self.serve(&queue);
        (queue.used().idx().load() == 1)
            .then(|| queue.used().ring().ref_at(0).unwrap().load().len())
    }

    fn serve(&self, queue: &MockSplitQueue<'_, GuestMemoryMmap>) {
        self.vring.set_queue_size(16);
        self.vring.set_queue_next_avail(0);
        self.vring.set_queue_next_used(0);
        self.vring
            .get_mut()
            .set_queue_info(
                queue.desc_table_addr().0,
                queue.avail_addr().0,
                queue.used_addr().0,
            )
            .unwrap();
        self.vring.set_queue_ready(true);
        let vrings = [self.vring.clone()];
        self.device
            .handle_event(0, EventSet::IN, &vrings, 0)
            .unwrap();
    }

    /// Sends one FUSE message; the answer, `None` if there is none.
    fn send(&self, message: &[u8]) -> Option<Vec<u8>> {
        let memory = self.memory.memory();
        memory.write_slice(message, GuestAddress(REQUEST)).unwrap();
        let length = self.offer(&[
            descriptor(REQUEST, message.len() as u32, VRING_DESC_F_NEXT, 1),
            descriptor(ANSWER, 4096, VRING_DESC_F_WRITE, 0),
        ])?;
        let mut answer = vec![0; length as usize];
        memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .unwrap();
        (length > 0).then_some(answer)
    }

    fn refused(&self, refusal: Refusal) -> u64 {
        self.device.refusals.total(refusal)
    }
}

fn descriptor(address: u64, length: u32, flags: u32, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, flags as u16, next))
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(((size_of::<InHeader>() + body.len()) as u32).to_le_bytes());
    message.extend(opcode.to_le_bytes());
    message.extend(77u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

fn header(answer: &[u8]) -> (u32, i32, u64) {
    (
        u32::from_le_bytes(answer[..4].try_into().unwrap()),
        i32::from_le_bytes(answer[4..8].try_into().unwrap()),
        u64::from_le_bytes(answer[8..16].try_into().unwrap()),
    )
}

#[test]
fn a_lookup_is_answered() {
    let fixture = Fixture::new();
    fs::write(fixture.directory.path().join("file"), "12345").unwrap();
    let answer = fixture
        .send(&message(Opcode::Lookup as u32, 1, b"file\0"))
        .unwrap();
    // fuse_out_header, then fuse_entry_out of 40 bytes, then fuse_attr: ino, size…
    assert_eq!(header(&answer), (16 + 40 + 88, 0, 77));
    assert_eq!(answer[16 + 40 + 8..][..8], 5u64.to_le_bytes());
    let answer = fixture
        .send(&message(Opcode::Lookup as u32, 1, b"missing\0"))
        .unwrap();
    assert_eq!(header(&answer), (16, -libc::ENOENT, 77));
}

#[test]
fn syncfs_is_answered_and_not_switched_off() {
    let fixture = Fixture::new();
    let answer = fixture.send(&message(OPCODE_SYNCFS, 1, &[0; 8])).unwrap();
    assert_eq!(header(&answer), (16, 0, 77));
}

#[test]
fn forget_has_no_answer_but_is_used() {
    let fixture = Fixture::new();
    let forget = message(Opcode::Forget as u32, 5, &1u64.to_le_bytes());
    assert_eq!(fixture.send(&forget), None);
    assert_eq!(fixture.refused(Refusal::Message), 0);
}

#[test]
fn broken_messages_are_counted_and_the_queue_goes_on() {
    let fixture = Fixture::new();
    assert_eq!(fixture.send(b"short"), None);
    // A length that does not fit what is there.
    let mut lying = message(Opcode::Lookup as u32, 1, b"file\0");
    lying[..4].copy_from_slice(&1000u32.to_le_bytes());
    fixture.send(&lying);
    let mut lying = message(Opcode::Setxattr as u32, 1, &[0xff; 16]);
    lying[..4].copy_from_slice(&3u32.to_le_bytes());
    fixture.send(&lying);
    assert!(fixture.refused(Refusal::Message) >= 3);
    let lookup = message(Opcode::Lookup as u32, 1, b"missing\0");
    assert!(fixture.send(&lookup).is_some());
}

#[test]
fn descriptors_outside_of_memory_are_refused() {
    let fixture = Fixture::new();
    for (address, length) in [
        (MEMORY as u64, 40),
        (u64::MAX - 8, 40),
        (MEMORY as u64 - 8, 40),
        (REQUEST, u32::MAX),
    ] {
        let used = fixture.offer(&[descriptor(address, length, 0, 0)]);
        assert_eq!(used, Some(0), "{address:x} {length:x}");
    }
    assert_eq!(fixture.refused(Refusal::Descriptor), 4);
}

#[test]
fn a_request_that_names_the_same_memory_over_and_over_is_refused() {
    // An IOCTL whose input is everything that the chain names: the server would copy it.
    let fixture = Fixture::new();
    let memory = fixture.memory.memory();
    let ioctl = message(Opcode::Ioctl as u32, 1, &[0xff; 32]);
    memory.write_slice(&ioctl, GuestAddress(REQUEST)).unwrap();
    let mut chain = vec![descriptor(REQUEST, 72, VRING_DESC_F_NEXT, 1)];
    for next in 2..15 {
        chain.push(descriptor(0, MEMORY as u32, VRING_DESC_F_NEXT, next));
    }
    chain.push(descriptor(ANSWER, 4096, VRING_DESC_F_WRITE, 0));
    assert_eq!(fixture.offer(&chain), Some(0));
    assert_eq!(fixture.refused(Refusal::Descriptor), 1);
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let fixture = Fixture::new();
    let memory = fixture.memory.memory();
    let lookup = message(Opcode::Lookup as u32, 1, b"file\0");
    memory.write_slice(&lookup, GuestAddress(REQUEST)).unwrap();
    assert!(
        fixture
            .offer(&[descriptor(REQUEST, 45, VRING_DESC_F_NEXT, 0)])
            .is_some()
    );
}

#[test]
fn a_queue_that_announces_what_is_not_there_is_left_alone() {
    let fixture = Fixture::new();
    let memory = fixture.memory.memory();
    memory.write_slice(&[0; 4096], GuestAddress(0)).unwrap();
    let queue = MockSplitQueue::new(&*memory, 16);
    queue.avail().idx().store(9999);
    // That it returns at all is the point.
    fixture.serve(&queue);
    assert_eq!(fixture.refused(Refusal::Descriptor), 1);
}

#[test]
fn init_negotiates_large_requests_and_no_dax() {
    let fixture = Fixture::new();
    let mut body = Vec::new();
    for word in [7u32, 38, 131_072, u32::MAX, u32::MAX] {
        body.extend(word.to_le_bytes());
    }
    body.extend([0; 44]);
    let answer = fixture
        .send(&message(Opcode::Init as u32, 0, &body))
        .unwrap();
    assert_eq!(header(&answer).1, 0);
    let word = |at: usize| u32::from_le_bytes(answer[16 + at..][..4].try_into().unwrap());
    let flags = u64::from(word(12)) | u64::from(word(32)) << 32;
    assert_eq!(word(20), 1 << 20, "max_write");
    for (bit, wanted) in [
        (0, true),   // ASYNC_READ
        (1, false),  // POSIX_LOCKS: the guest keeps its own
        (3, true),   // ATOMIC_O_TRUNC
        (5, true),   // BIG_WRITES
        (6, false),  // DONT_MASK: the guest applies its umask
        (10, false), // FLOCK_LOCKS
        (12, true),  // AUTO_INVAL_DATA
        (16, false), // WRITEBACK_CACHE: the host writes too
        (22, true),  // MAX_PAGES
        (28, true),  // HANDLE_KILLPRIV_V2
        (33, false), // HAS_INODE_DAX
    ] {
        assert_eq!(flags >> bit & 1 == 1, wanted, "bit {bit} of {flags:x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No message, whatever its opcode, makes the server panic or leave the export.
    #[test]
    fn arbitrary_messages_do_no_harm(
        messages in prop::collection::vec(
            (0u32..60, 0u64..4, prop::collection::vec(any::<u8>(), 0..120)), 1..20)
    ) {
        let fixture = Fixture::new();
        for (opcode, node, body) in messages {
            fixture.send(&message(opcode, node, &body));
        }
    }

    #[test]
    fn arbitrary_descriptors_do_no_harm(
        chain in prop::collection::vec(
            (any::<u64>(), 0u64..MEMORY as u64, any::<bool>(), any::<u32>(), 0u32..8, 0u16..20), 1..12)
    ) {
        let fixture = Fixture::new();
        let flags = |bits| bits & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT);
        let chain: Vec<_> = chain
            .into_iter()
            .map(|(far, near, outside, length, bits, next)| {
                let (address, length) = if outside { (far, length) } else { (near, length % 5000) };
                descriptor(address, length, flags(bits), next)
            })
            .collect();
        fixture.offer(&chain);
    }
}
