//! Counters of a loop, readable from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::refusal::Notices;

macro_rules! counters {
    ($(#[$outer:meta])* $snapshot:ident, $live:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(crate) struct $live { $(pub(crate) $name: Counter,)* }

        impl $live {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $snapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

/// Written by the loop's thread alone, so that relaxed loads and stores are exact.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Returns whether this is the first time: hostile input is logged once.
    pub(crate) fn count(&self) -> bool {
        self.0.fetch_add(1, Relaxed) == 0
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

counters! {
    /// What was refused, by reason.
    Refusals, LiveRefusals {
        /// Frames too short, truncated, or with headers that contradict each other.
        malformed,
        /// Frames whose hardware or IP source is not the guest's.
        spoofed,
        /// Frames of protocols that the gateway does not speak.
        unsupported,
        /// Fragments and packets larger than the MTU.
        fragments,
        /// Connections and datagrams that the policy forbids.
        policy,
        /// DNS names that the policy forbids.
        dns_policy,
        /// Malformed DNS messages.
        dns_malformed,
        /// DNS questions answered SERVFAIL because the service was busy, down or too slow.
        dns_unavailable,
        /// Connections over a cap (connections, held SYNs, buffers).
        capacity,
        /// Connections and mappings for which the host had no descriptor or memory left.
        host_resources,
        /// Connects that the other side refused or that ended in a time-out.
        connect,
        /// Segments of connections that nobody knows, answered with a reset.
        unknown_flow,
        /// ICMP echo that the host cannot send for an ordinary user.
        icmp,
        /// Frames lost because the other end of the link is gone.
        link_down,
    }
}

counters! {
    /// A snapshot of a loop's counters.
    Traffic, LiveTraffic {
        /// Frames from the guest.
        frames_in,
        /// Frames to the guest.
        frames_out,
        /// Bytes of the frames from the guest.
        bytes_in,
        /// Bytes of the frames to the guest.
        bytes_out,
        /// TCP connections now.
        tcp_flows,
        /// TCP connections ever, both directions.
        tcp_opened,
        /// UDP and ICMP mappings now.
        datagram_flows,
        /// DNS questions waiting for the service now.
        dns_in_flight,
        /// DNS questions ever.
        dns_queries,
        /// Bytes of TCP buffers now.
        buffer_bytes,
        /// Bytes of buffers for frames from the guest now; none while the loop is at rest.
        frame_bytes,
    }
}

/// All counters of a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// What went through.
    pub traffic: Traffic,
    /// What did not.
    pub refused: Refusals,
}

/// The counters of a loop, for one who neither owns the loop nor keeps anything of it alive but them.
#[derive(Clone, Debug)]
pub struct StatsReader(pub(crate) Arc<LiveStats>);

impl StatsReader {
    /// What they are now; after the loop's end, what they were then.
    pub fn read(&self) -> NetStats {
        self.0.snapshot()
    }
}

#[derive(Debug, Default)]
pub(crate) struct LiveStats {
    pub(crate) traffic: LiveTraffic,
    pub(crate) refused: LiveRefusals,
    /// What of it was the policy's doing, for whoever wants to know more than a number.
    pub(crate) notices: Notices,
}

impl LiveStats {
    pub(crate) fn snapshot(&self) -> NetStats {
        NetStats {
            traffic: self.traffic.snapshot(),
            refused: self.refused.snapshot(),
        }
    }
}
