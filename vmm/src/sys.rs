//! The only unsafe code of the library.
#![allow(unsafe_code)]

/// The time-stamp counter.
pub(crate) mod counter {
    use std::time::Duration;

    /// Both clocks at one moment.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Sample {
        /// The counter.
        pub(crate) ticks: u64,
        /// CLOCK_MONOTONIC_RAW.
        pub(crate) raw: Duration,
    }

    /// Reads both; `None` on an architecture without this counter.
    ///
    /// The raw clock is read between two reads of the counter, and of a few attempts the one with
    /// the narrowest bracket is taken: a preemption between the reads would shift one against the
    /// other by milliseconds.
    pub(crate) fn sample() -> Option<Sample> {
        (0..5)
            .filter_map(|_| {
                let before = ticks()?;
                let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
                let width = ticks()?.checked_sub(before)?;
                let raw = Duration::try_from(time).ok()?;
                let ticks = before + width / 2;
                Some((width, Sample { ticks, raw }))
            })
            .min_by_key(|(width, _)| *width)
            .map(|(_, sample)| sample)
    }

    #[cfg(target_arch = "x86_64")]
    fn ticks() -> Option<u64> {
        // SAFETY: RDTSC touches no memory, and every x86-64 CPU has it; a process that has switched
        // it off by prctl(PR_SET_TSC) gets SIGSEGV, which is no memory fault, and nothing here does.
        Some(unsafe { std::arch::x86_64::_rdtsc() })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn ticks() -> Option<u64> {
        None
    }
}
