//! Points in time as users write them.

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime};

use crate::output::words::now_unix_ms;
use crate::workers_file::parse_duration;

/// A point in time: `10m` (ago), `2026-11-25T10:00:00Z`, `2026-11-25 10:00`, `10:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PointInTime(u64);

impl PointInTime {
    /// In milliseconds of the Unix epoch.
    pub(super) fn unix_ms(self) -> u64 {
        self.0
    }

    fn parse(text: &str, now_unix_ms: u64) -> Result<Self, String> {
        let at = |time: Option<i64>| {
            let time = time.ok_or_else(|| format!("{text:?} is no time of this place"))?;
            // What was before 1970 is before everything that is asked about.
            Ok(Self(u64::try_from(time).unwrap_or(0)))
        };
        if let Ok(ago) = parse_duration(text) {
            let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            return Ok(Self(now_unix_ms.saturating_sub(ago)));
        }
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return at(Some(time.timestamp_millis()));
        }
        match local(text, now_unix_ms) {
            // Where clocks are set back an hour comes twice; the earlier one shows more.
            Some(time) => at(time
                .and_local_timezone(Local)
                .earliest()
                .map(|time| time.timestamp_millis())),
            None => Err(format!(
                "{text:?} is no point in time: write how long ago, as 10m or 2h30m, or when, as \
                 2026-11-25T10:00:00Z, \"2026-11-25 10:00\" or 10:00"
            )),
        }
    }
}

fn local(text: &str, now_unix_ms: u64) -> Option<NaiveDateTime> {
    let text = text.replace('T', " ");
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(&text, format) {
            return Some(time);
        }
    }
    if let Ok(date) = NaiveDate::parse_from_str(&text, "%Y-%m-%d") {
        return Some(date.and_time(NaiveTime::MIN));
    }
    let time = NaiveTime::parse_from_str(&text, "%H:%M:%S")
        .or_else(|_| NaiveTime::parse_from_str(&text, "%H:%M"))
        .ok()?;
    let now = DateTime::from_timestamp_millis(i64::try_from(now_unix_ms).ok()?)?;
    Some(now.with_timezone(&Local).date_naive().and_time(time))
}

impl std::str::FromStr for PointInTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, now_unix_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_600_000_000;

    #[test]
    fn times_are_understood_as_people_write_them() {
        let parse = |text: &str| PointInTime::parse(text, NOW).unwrap().0;
        assert_eq!(parse("10m"), NOW - 600_000);
        assert_eq!(parse("1h30m"), NOW - 5_400_000);
        assert_eq!(parse("2026-11-25T10:00:00Z"), 1_795_600_800_000);
        assert_eq!(parse("2026-11-25T10:00:00.5+01:00"), 1_795_597_200_500);
        let local = |text: &str| {
            let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
            time.and_local_timezone(Local)
                .earliest()
                .unwrap()
                .timestamp_millis() as u64
        };
        assert_eq!(parse("2026-11-25 10:00"), local("2026-11-25 10:00:00"));
        assert_eq!(parse("2026-11-25T10:00:07"), local("2026-11-25 10:00:07"));
        assert_eq!(parse("2026-11-25"), local("2026-11-25 00:00:00"));
        let today = DateTime::from_timestamp_millis(NOW as i64)
            .unwrap()
            .with_timezone(&Local)
            .format("%Y-%m-%d");
        assert_eq!(parse("10:30"), local(&format!("{today} 10:30:00")));
        assert!(PointInTime::parse("yesterday", NOW).is_err());
        assert!(PointInTime::parse("", NOW).is_err());
    }
}
