//! The restart policy and the one tracker that applies it: to a workload (in vm-init), to a VM and
//! to an actor (in the supervision tree).
//!
//! # Arithmetic
//!
//! * A child that ended is restarted if the policy's [`RestartMode`] says so for its [`Exit`] and
//!   its exit code is not one of [`RestartPolicy::stop_codes`].
//! * The n-th restart in a row waits `min(initial × factor^(n-1), max)`, spread by `±jitter`.
//! * A child that ran for at least [`RestartPolicy::reset_after`] begins a new row: its next
//!   restart waits `initial` again. The limit's window does not forget by that.
//! * At most [`RestartLimit::restarts`] restarts are granted in any [`RestartLimit::window`]; the
//!   next one within it is [`Decision::GiveUp`]. The window slides: a restart leaves it when its
//!   grant is `window` old.
//!
//! Time is a [`Duration`] since an origin of the caller's choice that never goes backwards; a time
//! that does go backwards is taken as no time passed. Entropy is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// sysexits' EX_CONFIG: the configuration is wrong, and running again will not mend it.
pub const EX_CONFIG: i32 = 78;

/// When an ended child is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartMode {
    /// However it ended (OTP: permanent).
    Always,
    /// Unless it ended with exit code 0 (OTP: transient).
    OnFailure,
    /// Never (OTP: temporary).
    Never,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this code.
    Code {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// It had to be ended because its health probe failed or readiness never came.
    Unhealthy,
    /// It could not be started, or its supervisor ended it for the cause given.
    Fault {
        /// For the user.
        cause: String,
    },
}

impl Exit {
    /// Exit code 0, and nothing else.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Code { code: 0 })
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exit code {code}"),
            Self::Signal { signal } => write!(f, "signal {signal} ({})", signal_name(*signal)),
            Self::Unhealthy => f.write_str("unhealthy"),
            Self::Fault { cause } => f.write_str(cause),
        }
    }
}

/// The name of a Linux signal number (signal(7), x86-64 and arm64).
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => "unnamed",
    }
}

/// How many restarts are granted within how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct RestartLimit {
    /// Restarts granted within the window.
    pub restarts: u32,
    /// The sliding window.
    pub window: Duration,
}

/// When, how fast and how often an ended child is started again.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which exits.
    pub mode: RestartMode,
    /// Delay of the first restart in a row.
    pub initial: Duration,
    /// What each further delay is multiplied by; below 1 counts as 1.
    pub factor: f64,
    /// Longest delay, before jitter.
    pub max: Duration,
    /// Share of the delay by which it is spread either way, 0 to 1.
    pub jitter: f64,
    /// `None`: restarts for ever.
    pub limit: Option<RestartLimit>,
    /// A child that ran this long begins a new row.
    pub reset_after: Duration,
    /// Exit codes that mean "do not restart", in every mode.
    pub stop_codes: Vec<i32>,
}

impl Default for RestartPolicy {
    /// `on-failure`, 100 ms doubling to 30 s with 10 % jitter, 10 restarts in 5 minutes, a new row
    /// after 60 s, exit code 78 final.
    fn default() -> Self {
        Self {
            mode: RestartMode::OnFailure,
            initial: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: 0.1,
            limit: Some(RestartLimit {
                restarts: 10,
                window: Duration::from_secs(300),
            }),
            reset_after: Duration::from_secs(60),
            stop_codes: vec![EX_CONFIG],
        }
    }
}

/// What to do about a child that ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Decision {
    /// Start it again after this delay.
    RestartAfter {
        /// The delay.
        delay: Duration,
    },
    /// Leave it: its policy does not restart this exit.
    Done,
    /// Leave it and report upwards: the limit is used up.
    GiveUp,
    /// Leave it until it is asked for. No tracker says this: vm-init does, where the guest is told
    /// to stay up.
    Wait,
}

/// What a [`RestartTracker`] remembers: enough for a successor to go on counting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartMemory {
    /// Restarts in the present row.
    pub row: u32,
    /// When restarts were granted that may still be within the window.
    pub granted: Vec<Duration>,
    /// Restarts granted in all.
    pub total: u64,
}

/// Applies a [`RestartPolicy`] to one child. Plain data: can be stored and taken up again.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct RestartTracker {
    policy: RestartPolicy,
    started_at: Option<Duration>,
    row: u32,
    granted: VecDeque<Duration>,
    total: u64,
}

impl RestartTracker {
    /// A tracker that has granted nothing yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            started_at: None,
            row: 0,
            granted: VecDeque::new(),
            total: 0,
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> &RestartPolicy {
        &self.policy
    }

    /// Restarts granted in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is worth keeping beyond the life of this tracker.
    pub fn memory(&self) -> RestartMemory {
        RestartMemory {
            row: self.row,
            granted: self.granted.iter().copied().collect(),
            total: self.total,
        }
    }

    /// A tracker that goes on where another one ended. The times in `memory` have the same origin
    /// as those that this one will be given.
    pub fn resume(policy: RestartPolicy, memory: RestartMemory) -> Self {
        Self {
            row: memory.row,
            granted: memory.granted.into(),
            total: memory.total,
            ..Self::new(policy)
        }
    }

    /// The child was started at `now`. Without this call before [`Self::on_exit`] the child counts
    /// as having run for no time.
    pub fn on_start(&mut self, now: Duration) {
        self.started_at = Some(now);
    }

    /// The child ended at `now`. `entropy` is any 64 random bits; it spreads the delay.
    pub fn on_exit(&mut self, exit: &Exit, now: Duration, entropy: u64) -> Decision {
        let ran = self
            .started_at
            .take()
            .map_or(Duration::ZERO, |at| now.saturating_sub(at));
        if ran >= self.policy.reset_after {
            self.row = 0;
        }
        if !self.restarts(exit) {
            return Decision::Done;
        }
        if let Some(limit) = self.policy.limit {
            // `granted` may hold times later than `now` if the clock went backwards:
            // saturating_sub keeps those inside the window.
            while self
                .granted
                .front()
                .is_some_and(|&at| now.saturating_sub(at) >= limit.window)
            {
                self.granted.pop_front();
            }
            if self.granted.len() >= limit.restarts as usize {
                return Decision::GiveUp;
            }
            self.granted.push_back(now);
        }
        let delay = self.delay(entropy);
        self.row = self.row.saturating_add(1);
        self.total += 1;
        Decision::RestartAfter { delay }
    }

    /// Forgets rows and grants: a user asked for a start.
    pub fn reset(&mut self) {
        self.row = 0;
        self.granted.clear();
        self.started_at = None;
    }

    fn restarts(&self, exit: &Exit) -> bool {
        if let Exit::Code { code } = exit
            && self.policy.stop_codes.contains(code)
        {
            return false;
        }
        match self.policy.mode {
            RestartMode::Always => true,
            RestartMode::OnFailure => !exit.is_success(),
            RestartMode::Never => false,
        }
    }

    fn delay(&self, entropy: u64) -> Duration {
        let max = self.policy.max.as_secs_f64();
        // `f64::max` also turns a NaN factor into 1.
        let factor = self.policy.factor.max(1.0);
        let grown = self.policy.initial.as_secs_f64() * factor.powf(f64::from(self.row));
        // An overflow to infinity is cut by `min`; 0 × infinity is NaN, which `min` turns into max.
        let base = grown.min(max);
        // 53 bits are what an f64's mantissa holds: a value in 0..1, then -1..1.
        let spread = (entropy >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0;
        let jitter = if self.policy.jitter.is_finite() {
            self.policy.jitter.clamp(0.0, 1.0)
        } else {
            0.0
        };
        Duration::try_from_secs_f64(base * (1.0 + spread * jitter)).unwrap_or(self.policy.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIDDLE: u64 = 1 << 63;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn policy() -> RestartPolicy {
        RestartPolicy {
            jitter: 0.0,
            ..RestartPolicy::default()
        }
    }

    fn failure() -> Exit {
        Exit::Code { code: 1 }
    }

    fn delay_of(decision: Decision) -> Duration {
        match decision {
            Decision::RestartAfter { delay } => delay,
            other => panic!("no restart: {other:?}"),
        }
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut t = RestartTracker::new(RestartPolicy {
            limit: None,
            ..policy()
        });
        let delays: Vec<u128> = (0..10)
            .map(|n| delay_of(t.on_exit(&failure(), secs(n), MIDDLE)).as_millis())
            .collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]
        );
    }

    #[test]
    fn a_stable_run_begins_a_new_row() {
        let mut t = RestartTracker::new(policy());
        t.on_start(secs(0));
        assert_eq!(
            delay_of(t.on_exit(&failure(), secs(1), MIDDLE)).as_millis(),
            100
        );
        t.on_start(secs(2));
        assert_eq!(
            delay_of(t.on_exit(&failure(), secs(61), MIDDLE)).as_millis(),
            200
        );
        t.on_start(secs(62));
        assert_eq!(
            delay_of(t.on_exit(&failure(), secs(122), MIDDLE)).as_millis(),
            100
        );
    }

    #[test]
    fn the_limit_gives_up_and_the_window_slides() {
        let limit = Some(RestartLimit {
            restarts: 2,
            window: secs(10),
        });
        let mut t = RestartTracker::new(RestartPolicy { limit, ..policy() });
        delay_of(t.on_exit(&failure(), secs(0), 0));
        delay_of(t.on_exit(&failure(), secs(5), 0));
        assert_eq!(t.on_exit(&failure(), secs(9), 0), Decision::GiveUp);
        delay_of(t.on_exit(&failure(), secs(10), 0));
        assert_eq!(t.on_exit(&failure(), secs(14), 0), Decision::GiveUp);
        delay_of(t.on_exit(&failure(), secs(15), 0));
    }

    #[test]
    fn modes_and_stop_codes() {
        let cases = [
            (RestartMode::Always, 0, true),
            (RestartMode::Always, 1, true),
            (RestartMode::Always, 78, false),
            (RestartMode::OnFailure, 0, false),
            (RestartMode::OnFailure, 1, true),
            (RestartMode::OnFailure, 78, false),
            (RestartMode::Never, 0, false),
            (RestartMode::Never, 1, false),
        ];
        for (mode, code, restarted) in cases {
            let mut t = RestartTracker::new(RestartPolicy { mode, ..policy() });
            let decision = t.on_exit(&Exit::Code { code }, secs(0), 0);
            assert_eq!(decision != Decision::Done, restarted, "{mode:?} {code}");
        }
    }

    #[test]
    fn a_successor_goes_on_counting() {
        let limit = Some(RestartLimit {
            restarts: 2,
            window: secs(10),
        });
        let policy = RestartPolicy { limit, ..policy() };
        let mut t = RestartTracker::new(policy.clone());
        delay_of(t.on_exit(&failure(), secs(100), MIDDLE));
        let mut t = RestartTracker::resume(policy, t.memory());
        let second = delay_of(t.on_exit(&failure(), secs(101), MIDDLE));
        assert_eq!(second.as_millis(), 200, "the row goes on");
        assert_eq!(t.on_exit(&failure(), secs(102), MIDDLE), Decision::GiveUp);
        assert_eq!(t.total(), 2);
        delay_of(t.on_exit(&failure(), secs(110), MIDDLE));
    }

    #[test]
    fn a_backward_clock_neither_panics_nor_empties_the_window() {
        let limit = Some(RestartLimit {
            restarts: 1,
            window: secs(10),
        });
        let mut t = RestartTracker::new(RestartPolicy { limit, ..policy() });
        t.on_start(secs(100));
        delay_of(t.on_exit(&failure(), secs(100), 0));
        t.on_start(secs(50));
        assert_eq!(t.on_exit(&failure(), secs(40), 0), Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_within_the_window(
            restarts in 0u32..6,
            window in 1u64..100,
            gaps in prop::collection::vec(0u64..40, 1..200),
        ) {
            let window = secs(window);
            let limit = Some(RestartLimit { restarts, window });
            let mut t = RestartTracker::new(RestartPolicy { limit, ..policy() });
            let mut now = Duration::ZERO;
            let mut granted: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += secs(gap);
                t.on_start(now);
                if matches!(t.on_exit(&failure(), now, gap), Decision::RestartAfter { .. }) {
                    granted.push(now);
                }
                let within = granted.iter().filter(|&&at| now - at < window).count();
                prop_assert!(within <= restarts as usize);
            }
        }

        #[test]
        fn delays_are_monotone_up_to_the_cap(
            initial in 0u64..5_000, factor in 0.0f64..10.0, max in 1u64..60_000, n in 1usize..80,
        ) {
            let max = Duration::from_millis(max);
            let mut t = RestartTracker::new(RestartPolicy {
                initial: Duration::from_millis(initial), factor, max, limit: None, ..policy()
            });
            let mut last = Duration::ZERO;
            for _ in 0..n {
                let delay = delay_of(t.on_exit(&failure(), Duration::ZERO, MIDDLE));
                prop_assert!(delay >= last && delay <= max);
                last = delay;
            }
        }

        #[test]
        fn jitter_stays_within_its_share(entropy: u64, jitter in 0.0f64..1.0) {
            let mut t = RestartTracker::new(RestartPolicy { jitter, ..policy() });
            let delay = delay_of(t.on_exit(&failure(), Duration::ZERO, entropy)).as_secs_f64();
            prop_assert!(delay >= 0.1 * (1.0 - jitter) - 1e-9 && delay <= 0.1 * (1.0 + jitter) + 1e-9);
        }

        #[test]
        fn any_policy_is_survived(factor: f64, jitter: f64, initial: u32, max: u32, entropy: u64, n in 1usize..70) {
            let mut t = RestartTracker::new(RestartPolicy {
                initial: Duration::from_millis(initial.into()),
                max: Duration::from_millis(max.into()),
                factor, jitter, limit: None, ..policy()
            });
            for _ in 0..n {
                t.on_exit(&failure(), Duration::ZERO, entropy);
            }
        }
    }
}
