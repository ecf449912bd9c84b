//! Times as they are shown: local.

use chrono::{DateTime, Local, SecondsFormat, Utc};

fn local(unix_ns: u64) -> Option<DateTime<Local>> {
    let seconds = i64::try_from(unix_ns / 1_000_000_000).ok()?;
    // Below a second, so it fits.
    let utc: DateTime<Utc> = DateTime::from_timestamp(seconds, (unix_ns % 1_000_000_000) as u32)?;
    Some(utc.with_timezone(&Local))
}

/// The time of day.
pub fn time_of_day(unix_ns: u64) -> String {
    local(unix_ns).map_or_else(
        || String::from("--:--:--"),
        |time| time.format("%H:%M:%S").to_string(),
    )
}

/// Date and time with their offset, as RFC 3339 has them, to the millisecond.
pub fn date_and_time(unix_ns: u64) -> String {
    local(unix_ns).map_or_else(
        || String::from("-"),
        |time| time.to_rfc3339_opts(SecondsFormat::Millis, false),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_that_time() {
        let ns = 1_700_000_000_123_456_789;
        let shown = date_and_time(ns);
        let read = DateTime::parse_from_rfc3339(&shown).unwrap();
        assert_eq!(read.timestamp_millis(), 1_700_000_000_123, "{shown}");
        assert!(shown.contains(&time_of_day(ns)), "{shown}");
        assert!(!date_and_time(u64::MAX).is_empty());
    }
}
