//! How many inodes and open files the guest may hold.
//!
//! Without inode file handles each inode that the guest knows costs a descriptor, and a guest
//! forgets inodes only when its memory is short or it is told to drop its caches. So there is a
//! soft watermark at which the supervisor is told (it has vm-init drop the guest's caches), and a
//! hard cap at which a lookup waits for the forgets that are on their way and then fails with
//! ENFILE. FORGET comes on the high-priority queue, which has a thread of its own and never waits
//! here: no deadlock.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iii_proto::vfs::VfsEvent;

use crate::events::EventSink;

/// Descriptors that are never given to the guest: the sockets, eventfds and memory of each
/// device, and those that a request needs only while it runs.
const RESERVED_DESCRIPTORS: u64 = 64;
const RESERVED_PER_EXPORT: u64 = 16;

/// Cap where an inode costs no descriptor. It bounds the server's memory, at about half a
/// kilobyte per inode, against a guest that looks up names for ever.
const INODES_BY_HANDLE: u64 = 1_000_000;

/// How often pressure and exhaustion are reported: not more often than a guest can drop its
/// caches, which takes it some ten milliseconds, but often enough that one that fills them again
/// at once is not left waiting.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

/// The numbers of one server process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Inodes from which on the guest is asked to forget.
    pub soft_inodes: u64,
    /// Inodes at most.
    pub inodes: u64,
    /// Open files and directories at most.
    pub handles: u64,
    /// How long a lookup at the cap waits for forgets.
    pub patience: Duration,
}

impl Limits {
    /// Divides RLIMIT_NOFILE: three quarters for inodes, unless they cost none, the rest for open
    /// files.
    pub fn from_descriptors(limit: u64, exports: usize, descriptor_per_inode: bool) -> Self {
        let reserved = RESERVED_DESCRIPTORS + RESERVED_PER_EXPORT * exports as u64;
        let available = limit.saturating_sub(reserved);
        let (inodes, handles) = if descriptor_per_inode {
            (available / 4 * 3, available / 4)
        } else {
            (INODES_BY_HANDLE, available)
        };
        Self {
            soft_inodes: inodes / 2,
            inodes,
            handles,
            patience: Duration::from_secs(2),
        }
    }
}

/// The counts of one server process, shared by its exports.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    held: Mutex<Held>,
    forgotten: Condvar,
    events: EventSink,
}

#[derive(Debug, Default)]
struct Held {
    inodes: u64,
    handles: u64,
    refused: u64,
    /// A lookup has waited in vain and nothing has been forgotten since: the guest really holds
    /// its inodes, and more waiting would only make it slow.
    hopeless: bool,
    pressure_reported: Option<Instant>,
    exhaustion_reported: Option<Instant>,
}

impl Budget {
    /// Nothing is held.
    pub fn new(limits: Limits, events: EventSink) -> Self {
        Self {
            limits,
            held: Mutex::default(),
            forgotten: Condvar::new(),
            events,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Each critical section leaves the counts consistent, also when it unwinds.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inodes that the guest holds.
    pub fn inodes(&self) -> u64 {
        self.held().inodes
    }

    /// Open files and directories that the guest holds.
    pub fn handles(&self) -> u64 {
        self.held().handles
    }

    /// Takes room for an inode that the guest has not asked for (READDIRPLUS), without waiting and
    /// only if there is plenty: the last eighth is for what it does ask for.
    fn offer_inode(&self) -> bool {
        let mut held = self.held();
        if held.inodes >= self.limits.soft_inodes {
            self.report_pressure(&mut held);
        }
        let plenty = held.inodes < self.limits.inodes / 8 * 7;
        held.inodes += u64::from(plenty);
        plenty
    }

    /// Takes room for one more inode; waits for a bounded time if there is little or none.
    fn admit_inode(&self) -> bool {
        let mut held = self.held();
        if held.inodes >= self.limits.soft_inodes {
            self.report_pressure(&mut held);
        }
        let deadline = Instant::now() + self.limits.patience;
        while held.inodes >= self.limits.inodes && !held.hopeless {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                held.hopeless = true;
                break;
            }
            held = self.wait(held, left.min(REPORT_INTERVAL));
            self.report_pressure(&mut held);
        }
        if held.inodes >= self.limits.inodes {
            held.refused += 1;
            self.report_exhaustion(&mut held);
            return false;
        }
        held.inodes += 1;
        true
    }

    fn wait<'a>(&self, held: MutexGuard<'a, Held>, time: Duration) -> MutexGuard<'a, Held> {
        self.forgotten
            .wait_timeout(held, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn release_inodes(&self, count: u64) {
        let mut held = self.held();
        held.inodes = held.inodes.saturating_sub(count);
        held.hopeless = false;
        drop(held);
        self.forgotten.notify_all();
    }

    /// Takes room for one open file; the guest gets ENFILE without.
    pub fn admit_handle(&self) -> bool {
        let mut held = self.held();
        if held.handles >= self.limits.handles {
            return false;
        }
        held.handles += 1;
        true
    }

    /// Gives back the room of open files.
    pub fn release_handles(&self, count: u64) {
        let mut held = self.held();
        held.handles = held.handles.saturating_sub(count);
    }

    fn report_pressure(&self, held: &mut Held) {
        if due(&mut held.pressure_reported) {
            self.events.send(VfsEvent::InodePressure {
                inodes: held.inodes,
                cap: self.limits.inodes,
            });
        }
    }

    fn report_exhaustion(&self, held: &mut Held) {
        if due(&mut held.exhaustion_reported) {
            tracing::warn!(
                refused = held.refused,
                "the guest holds all inodes it may hold"
            );
            self.events.send(VfsEvent::InodesExhausted {
                refused: held.refused,
            });
        }
    }
}

fn due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    if last.is_some_and(|last| now.duration_since(last) < REPORT_INTERVAL) {
        return false;
    }
    *last = Some(now);
    true
}

/// The inodes of one export that the guest holds, with its lookup counts: the mirror of what
/// PassthroughFs keeps to itself. Gives back everything when dropped.
#[derive(Debug)]
pub struct InodeTable {
    lookups: Mutex<HashMap<u64, u64>>,
    budget: Arc<Budget>,
}

impl InodeTable {
    /// An empty table.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            lookups: Mutex::default(),
            budget,
        }
    }

    fn lookups(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one lookup that is about to be answered. `false`: there is no room, and the caller
    /// takes back what it looked up.
    pub fn admit(&self, inode: u64) -> bool {
        self.count(inode, Budget::admit_inode)
    }

    /// The same for an inode that the guest has not asked for; `false` only means that it should
    /// not be offered.
    pub fn offer(&self, inode: u64) -> bool {
        self.count(inode, Budget::offer_inode)
    }

    fn count(&self, inode: u64, room: impl FnOnce(&Budget) -> bool) -> bool {
        if let Some(count) = self.lookups().get_mut(&inode) {
            *count = count.saturating_add(1);
            return true;
        }
        // The table is not locked here: the forgets that this may wait for need it.
        if !room(&self.budget) {
            return false;
        }
        match self.lookups().entry(inode) {
            MapEntry::Occupied(mut count) => {
                *count.get_mut() = count.get().saturating_add(1);
                self.budget.release_inodes(1);
            }
            MapEntry::Vacant(place) => {
                place.insert(1);
            }
        }
        true
    }

    /// Takes away lookups. More than there are is a lie that costs only the liar.
    pub fn forget(&self, inode: u64, count: u64) {
        let mut lookups = self.lookups();
        if let MapEntry::Occupied(mut entry) = lookups.entry(inode) {
            *entry.get_mut() = entry.get().saturating_sub(count);
            if *entry.get() == 0 {
                entry.remove();
                drop(lookups);
                self.budget.release_inodes(1);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let count = std::mem::take(&mut *self.lookups()).len();
        self.budget.release_inodes(count as u64);
    }
}

impl Drop for InodeTable {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EventQueue, event_queue};

    fn table(soft: u64, cap: u64, patience: Duration) -> (InodeTable, Arc<Budget>, EventQueue) {
        let (sink, queue) = event_queue().unwrap();
        let limits = Limits {
            soft_inodes: soft,
            inodes: cap,
            handles: 2,
            patience,
        };
        let budget = Arc::new(Budget::new(limits, sink));
        (InodeTable::new(Arc::clone(&budget)), budget, queue)
    }

    #[test]
    fn the_limits_leave_room_for_the_server_itself() {
        let limits = Limits::from_descriptors(4096, 3, true);
        assert!(limits.inodes + limits.handles <= 4096 - 100);
        assert!(limits.soft_inodes * 2 <= limits.inodes);
        let limits = Limits::from_descriptors(10, 3, true);
        assert_eq!((limits.inodes, limits.handles), (0, 0));
        assert_eq!(
            Limits::from_descriptors(4096, 1, false).inodes,
            INODES_BY_HANDLE
        );
    }

    #[test]
    fn a_known_inode_is_counted_once_and_admitted_at_the_cap() {
        let (table, budget, queue) = table(1, 2, Duration::ZERO);
        assert!(table.admit(10) && table.admit(10) && table.admit(11));
        assert_eq!(budget.inodes(), 2);
        assert!(!table.admit(12));
        assert!(table.admit(10), "a revalidation needs no room");
        table.forget(10, 2);
        assert_eq!(budget.inodes(), 2, "one lookup is left");
        table.forget(10, 99);
        assert_eq!(budget.inodes(), 1);
        assert!(table.admit(12));
        let events = queue.take();
        assert!(matches!(
            events[0],
            VfsEvent::InodePressure { inodes: 1, cap: 2 }
        ));
        assert!(
            events
                .iter()
                .any(|event| matches!(event, VfsEvent::InodesExhausted { refused: 1 }))
        );
        drop(table);
        assert_eq!(budget.inodes(), 0);
    }

    #[test]
    fn offers_leave_room_for_requests() {
        let (table, budget, _queue) = table(8, 16, Duration::ZERO);
        assert_eq!((0..16).filter(|inode| table.offer(*inode)).count(), 14);
        assert!(table.offer(3), "a known inode costs nothing");
        assert!(table.admit(14) && table.admit(15) && !table.admit(16));
        assert_eq!(budget.inodes(), 16);
    }

    #[test]
    fn a_lookup_at_the_cap_waits_for_a_forget() {
        // The patience is a bound for a broken build only: the forget ends the wait.
        let (table, budget, queue) = table(1, 1, Duration::from_secs(60));
        assert!(table.admit(10));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| table.admit(11));
            // The pressure event is the sign that the lookup has arrived at the cap.
            while !queue
                .take()
                .iter()
                .any(|event| matches!(event, VfsEvent::InodePressure { .. }))
            {
                std::thread::yield_now();
            }
            table.forget(10, 1);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(budget.inodes(), 1);
    }

    #[test]
    fn forgets_of_unknown_inodes_change_nothing() {
        let (table, budget, _queue) = table(8, 8, Duration::ZERO);
        assert!(table.admit(1));
        table.forget(2, 1);
        table.forget(1, 0);
        assert_eq!(budget.inodes(), 1);
        table.clear();
        table.forget(1, 1);
        assert_eq!(budget.inodes(), 0);
    }

    #[test]
    fn handles_are_capped() {
        let (_table, budget, _queue) = table(8, 8, Duration::ZERO);
        assert!(budget.admit_handle() && budget.admit_handle());
        assert!(!budget.admit_handle());
        budget.release_handles(1);
        assert!(budget.admit_handle());
        budget.release_handles(99);
        assert_eq!(budget.handles(), 0);
    }
}
