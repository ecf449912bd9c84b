//! The frequency of the host's time-stamp counter.
//!
//! A guest under TCG reads the host's counter, but has nothing at hand to calibrate it against but
//! an emulated timer, which under load comes out so wrong that the guest gives the counter up for a
//! clock of 4 ms. So the guest is told the frequency. It is measured against CLOCK_MONOTONIC_RAW
//! between a first sample, taken when the process starts, and a second one at launch: the later,
//! the more exact, and no time is spent waiting.

use std::sync::OnceLock;
use std::time::Duration;

use crate::host::cpu_flags;
use crate::sys::counter::{Sample, sample};

/// Least distance of two samples: reading both clocks takes some 100 ns, which is 20 ppm of this.
const LEAST_INTERVAL: Duration = Duration::from_millis(5);

static FIRST: OnceLock<Option<Sample>> = OnceLock::new();

/// Takes the first sample. Call it early; [`frequency_khz`] does it itself if nobody has, and then
/// spins for 5 ms.
pub fn start() {
    first();
}

fn first() -> Option<Sample> {
    *FIRST.get_or_init(|| {
        let invariant = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| invariant(&info));
        if invariant { sample() } else { None }
    })
}

/// The counter's frequency in kHz; `None` where it is not invariant (it stops or changes with the
/// CPU's power states), and a guest must not lean on it.
pub fn frequency_khz() -> Option<u64> {
    let first = first()?;
    loop {
        let now = sample()?;
        if now.raw.saturating_sub(first.raw) >= LEAST_INTERVAL {
            return khz(first, now);
        }
        std::hint::spin_loop();
    }
}

fn invariant(cpuinfo: &str) -> bool {
    let has = |wanted| cpu_flags(cpuinfo).any(|flag| flag == wanted);
    has("constant_tsc") && has("nonstop_tsc")
}

fn khz(from: Sample, to: Sample) -> Option<u64> {
    let ticks = u128::from(to.ticks.checked_sub(from.ticks)?);
    let nanoseconds = to.raw.checked_sub(from.raw)?.as_nanos();
    let khz = (ticks * 1_000_000 + nanoseconds / 2).checked_div(nanoseconds)?;
    u64::try_from(khz).ok().filter(|&khz| khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ticks: u64, raw: Duration) -> Sample {
        Sample { ticks, raw }
    }

    #[test]
    fn the_frequency_is_ticks_over_time_rounded() {
        let zero = at(1_000, Duration::from_secs(7));
        let later = |ticks: u64, ms| {
            at(
                1_000 + ticks,
                Duration::from_secs(7) + Duration::from_millis(ms),
            )
        };
        assert_eq!(khz(zero, later(24_000_000, 10)), Some(2_400_000));
        assert_eq!(khz(zero, later(24_000_006, 10)), Some(2_400_001));
        assert_eq!(khz(zero, later(0, 10)), None);
        assert_eq!(khz(zero, later(5, 0)), None);
        assert_eq!(khz(later(5, 5), zero), None);
    }

    #[test]
    fn only_an_invariant_counter_counts() {
        assert!(invariant("flags : tsc constant_tsc nonstop_tsc\n"));
        assert!(!invariant("flags : tsc constant_tsc\n"));
        assert!(!invariant("flags : tsc nonstop_tsc\n"));
        assert!(!invariant(""));
    }

    #[test]
    fn two_measurements_of_this_host_agree() {
        start();
        let (Some(a), Some(b)) = (frequency_khz(), frequency_khz()) else {
            assert!(first().is_none(), "an invariant counter has a frequency");
            return;
        };
        // 0.1 %: far beyond the error of a sample, far below any mistake in the arithmetic.
        assert!(a.abs_diff(b) <= a / 1000, "{a} {b}");
    }
}
