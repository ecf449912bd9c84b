//! Times in few words.

use std::time::{Duration, SystemTime};

/// Milliseconds since the Unix epoch.
pub fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        // A host clock before 1970 is shown as 1970.
        .map_or(0, |since| since.as_millis() as u64)
}

/// From one time to another, for a column; a clock that was set back counts as no time.
pub fn since(from_unix_ms: u64, to_unix_ms: u64) -> String {
    short(Duration::from_millis(
        to_unix_ms.saturating_sub(from_unix_ms),
    ))
}

/// `3d4h`, `2h05m`, `12m34s`, `8s`.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d{hours}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_greatest_units_are_said() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3_661, "1h01m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(since(1_000, 1_000 + seconds * 1_000 + 999), expected);
        }
        assert_eq!(since(5_000, 1_000), "0s");
    }
}
