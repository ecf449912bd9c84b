//! When to probe a workload and what its answers mean. Pure: time is an argument.
//!
//! * Failures before the grace is over do not count. The grace is the check's start period, and at
//!   least one interval, since a workload that was started this instant cannot answer yet.
//! * Until the first success and within the grace, probes follow each other after 50 ms, 100 ms,
//!   200 ms … up to the interval, so that a fast workload is ready at once.
//! * The first success ends the grace. From then on `retries` failures in a row make the workload
//!   unhealthy; a workload that never became ready is unhealthy by the same count after the grace.

use std::time::Duration;

use iii_proto::guest::HealthCheck;

const FIRST_DELAY: Duration = Duration::from_millis(50);
/// A check with no interval would probe in a busy loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting { at: Duration },
    Probing { until: Duration },
}

/// What [`Health::tick`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// Nothing is due.
    Nothing,
    /// Run the probe.
    StartProbe,
    /// The running probe took too long: cancel it and call [`Health::failed`].
    TimedOut,
}

/// The probes of one life of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    interval: Duration,
    timeout: Duration,
    retries: u32,
    grace_until: Duration,
    early_delay: Duration,
    ready: bool,
    failures: u32,
    phase: Phase,
}

impl Health {
    /// The workload's program began at `now`.
    pub fn new(check: &HealthCheck, now: Duration) -> Self {
        let interval = Duration::from_millis(check.interval_ms).max(SHORTEST_INTERVAL);
        let start_period = Duration::from_millis(check.start_period_ms);
        Self {
            interval,
            timeout: Duration::from_millis(check.timeout_ms.max(1)),
            retries: check.retries.max(1),
            grace_until: now.saturating_add(start_period.max(interval)),
            early_delay: FIRST_DELAY,
            ready: false,
            failures: 0,
            phase: Phase::Waiting {
                at: now + FIRST_DELAY.min(interval),
            },
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Duration {
        match self.phase {
            Phase::Waiting { at } => at,
            Phase::Probing { until } => until,
        }
    }

    /// A probe runs.
    pub fn probing(&self) -> bool {
        match self.phase {
            Phase::Waiting { .. } => false,
            Phase::Probing { .. } => true,
        }
    }

    /// What is due at `now`.
    pub fn tick(&mut self, now: Duration) -> Tick {
        match self.phase {
            Phase::Waiting { at } if now >= at => {
                self.phase = Phase::Probing {
                    until: now.saturating_add(self.timeout),
                };
                Tick::StartProbe
            }
            Phase::Probing { until } if now >= until => Tick::TimedOut,
            Phase::Waiting { .. } | Phase::Probing { .. } => Tick::Nothing,
        }
    }

    /// The running probe succeeded. True if it is the first one: the workload is ready.
    pub fn passed(&mut self, now: Duration) -> bool {
        let first = !self.ready;
        self.ready = true;
        self.failures = 0;
        self.phase = Phase::Waiting {
            at: now + self.interval,
        };
        first
    }

    /// The running probe failed. True if the workload is unhealthy by that.
    pub fn failed(&mut self, now: Duration) -> bool {
        if !self.ready && now < self.grace_until {
            self.early_delay = (self.early_delay * 2).min(self.interval);
            self.phase = Phase::Waiting {
                at: now + self.early_delay,
            };
            return false;
        }
        self.failures += 1;
        self.phase = Phase::Waiting {
            at: now + self.interval,
        };
        self.failures >= self.retries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::guest::Probe;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp(80),
            interval_ms: 1000,
            timeout_ms: 300,
            retries: 3,
            start_period_ms: 5000,
        }
    }

    #[test]
    fn early_probes_double_up_to_the_interval_and_do_not_count() {
        let mut health = Health::new(&check(), ms(0));
        let mut delays = Vec::new();
        let mut now = ms(0);
        while now < ms(5000) {
            delays.push((health.deadline() - now).as_millis());
            now = health.deadline();
            assert_eq!(health.tick(now), Tick::StartProbe);
            if now < ms(5000) {
                assert!(!health.failed(now));
            }
        }
        assert_eq!(delays, [50, 100, 200, 400, 800, 1000, 1000, 1000, 1000]);
    }

    #[test]
    fn never_ready_is_unhealthy_after_the_start_period_plus_retries() {
        let mut health = Health::new(&check(), ms(0));
        assert!(!health.failed(ms(4999)));
        assert!(!health.failed(ms(5000)));
        assert!(!health.failed(ms(6000)));
        assert!(health.failed(ms(7000)));
    }

    #[test]
    fn only_failures_in_a_row_count_once_ready() {
        let mut health = Health::new(&check(), ms(0));
        assert!(health.passed(ms(50)));
        assert!(!health.failed(ms(1050)));
        assert!(!health.failed(ms(2050)));
        assert!(!health.passed(ms(3050)));
        assert!(!health.failed(ms(4050)));
        assert!(!health.failed(ms(5050)));
        assert!(health.failed(ms(6050)));
    }

    #[test]
    fn a_probe_times_out_once() {
        let mut health = Health::new(&check(), ms(0));
        assert_eq!(health.tick(ms(49)), Tick::Nothing);
        assert_eq!(health.tick(ms(50)), Tick::StartProbe);
        assert!(health.probing());
        assert_eq!(health.tick(ms(349)), Tick::Nothing);
        assert_eq!(health.tick(ms(350)), Tick::TimedOut);
        health.failed(ms(350));
        assert!(!health.probing());
    }
}
