//! Times and sizes in few words.

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

/// Bytes in three digits or so: `0B`, `512B`, `1.5KiB`, `64MiB`, `1.21GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut number = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        // What would be rounded to 1024 is one of the next.
        if number < 1023.5 {
            break;
        }
        number /= 1024.0;
        unit = next;
    }
    let digits = match number {
        _ if number.fract() == 0.0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{number:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_three_digits() {
        for (count, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1536, "1.50KiB"),
            (10 * 1024 + 100, "10.1KiB"),
            (1024 * 1024 - 1, "1.00MiB"),
            (64 << 20, "64MiB"),
            ((64 << 20) + 1, "64.0MiB"),
            (300 * (1 << 20) + 5000, "300MiB"),
            (1_300_000_000, "1.21GiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(bytes(count), expected, "{count}");
        }
    }

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
