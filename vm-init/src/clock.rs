//! Keeping the guest's wall clock at the host's. The decision is pure; [`apply`] carries it out.
//!
//! A heartbeat that waited in a buffer (a stopped VMM, a busy supervisor) shows an old time: it can
//! make the guest look ahead, never behind. So a guest that is behind is corrected at once, and one
//! that is ahead only when a second heartbeat in a row says so, by the smaller of the two.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::time::Duration;

use crate::sys;

/// Beyond this the clock is stepped: TLS and tokens fail on a wrong clock long before a slew of
/// 500 ppm would have mended it.
const STEP_NS: i64 = 1_000_000_000;
/// Within this the difference is the transport's jitter.
const DEADBAND_NS: i64 = 20_000_000;

/// What to do with the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// Leave it.
    None,
    /// Slew it by this many nanoseconds.
    Slew(i64),
    /// Step it by this many nanoseconds.
    Step(i64),
}

/// Remembers what the last heartbeat said.
#[derive(Debug, Default)]
pub struct Discipline {
    ahead: Option<i64>,
    /// There was a heartbeat.
    is_set: bool,
}

impl Discipline {
    /// Compares the host's time with the guest's at the moment the heartbeat was read.
    pub fn on_heartbeat(&mut self, host_ns: u64, guest_ns: u64) -> Correction {
        let offset = i128::from(host_ns) - i128::from(guest_ns);
        // Clamped: a host clock centuries away is stepped to in one go all the same.
        let offset = offset.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let is_first = !std::mem::replace(&mut self.is_set, true);
        if offset >= 0 {
            self.ahead = None;
            // The guest was set to a time from before its VMM was started. Slewed, what that took
            // would be made up for in minutes; and nobody has relied on this clock for long.
            return match correction(offset) {
                Correction::Slew(behind) if is_first => Correction::Step(behind),
                correction => correction,
            };
        }
        match self.ahead.take() {
            None => {
                self.ahead = Some(offset);
                Correction::None
            }
            // Both are negative: the larger one is the smaller distance.
            Some(before) => correction(offset.max(before)),
        }
    }
}

fn correction(offset: i64) -> Correction {
    if offset.unsigned_abs() > STEP_NS.unsigned_abs() {
        Correction::Step(offset)
    } else if offset.unsigned_abs() > DEADBAND_NS.unsigned_abs() {
        Correction::Slew(offset)
    } else {
        Correction::None
    }
}

/// Carries a correction out.
pub fn apply(correction: Correction) -> nix::Result<()> {
    match correction {
        Correction::None => Ok(()),
        Correction::Slew(ns) => sys::slew_clock(ns / 1000),
        Correction::Step(ns) => {
            let now = i128::from(wall_ns()) + i128::from(ns);
            set_wall_ns(now.clamp(0, u64::MAX.into()) as u64)
        }
    }
}

/// Sets the wall clock to nanoseconds since the Unix epoch.
pub fn set_wall_ns(ns: u64) -> nix::Result<()> {
    clock_settime(
        ClockId::CLOCK_REALTIME,
        TimeSpec::from_duration(Duration::from_nanos(ns)),
    )
}

/// Nanoseconds since the Unix epoch.
pub fn wall_ns() -> u64 {
    let now = read(ClockId::CLOCK_REALTIME);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since the guest's boot, suspends included; never goes backwards.
pub fn uptime() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

fn read(clock: ClockId) -> Duration {
    // Both clocks exist on every Linux that this program runs on; a failure would be EFAULT or
    // EINVAL, which constant arguments rule out.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_guest_behind_is_corrected_at_once() {
        let mut d = Discipline::default();
        assert_eq!(
            d.on_heartbeat(10 * S, 5 * S),
            Correction::Step(5 * S as i64)
        );
        assert_eq!(
            d.on_heartbeat(10 * S, 10 * S - 100_000_000),
            Correction::Slew(100_000_000)
        );
        assert_eq!(d.on_heartbeat(10 * S, 10 * S - 1000), Correction::None);
    }

    #[test]
    fn what_the_start_of_the_vmm_took_is_made_up_for_at_once() {
        let mut d = Discipline::default();
        let behind = |by: u64| (10 * S, 10 * S - by);
        let (host, guest) = behind(90_000_000);
        assert_eq!(d.on_heartbeat(host, guest), Correction::Step(90_000_000));
        assert_eq!(d.on_heartbeat(host, guest), Correction::Slew(90_000_000));
        let (host, guest) = behind(1_000_000);
        assert_eq!(
            Discipline::default().on_heartbeat(host, guest),
            Correction::None
        );
    }

    #[test]
    fn one_late_heartbeat_does_not_turn_the_clock_back() {
        let mut d = Discipline::default();
        assert_eq!(d.on_heartbeat(10 * S, 20 * S), Correction::None);
        assert_eq!(d.on_heartbeat(21 * S, 21 * S), Correction::None);
        assert_eq!(d.on_heartbeat(12 * S, 22 * S), Correction::None);
    }

    #[test]
    fn a_guest_that_stays_ahead_is_turned_back_by_the_smaller_difference() {
        let mut d = Discipline::default();
        assert_eq!(d.on_heartbeat(10 * S, 20 * S), Correction::None);
        assert_eq!(
            d.on_heartbeat(13 * S, 21 * S),
            Correction::Step(-8 * S as i64)
        );
    }
}
