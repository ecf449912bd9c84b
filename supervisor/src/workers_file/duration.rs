//! Durations as people write them: `250ms`, `10s`, `1m30s`, `0.5h`.

use std::time::Duration;

/// Longest duration: nothing here waits for more than a year, so a longer one is a slip.
const MAX: Duration = Duration::from_secs(366 * 24 * 3600);

const UNITS: [(&str, f64); 6] = [
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// Parses one or more numbers, each with its unit. `0` needs none.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (written, tail) = rest.split_at(digits);
        // `10 s` can mean but one thing.
        let tail = tail.trim_start();
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let Ok(number) = written.parse::<f64>() else {
            return Err(not_a_duration(text));
        };
        if unit.is_empty() {
            let behind = match written == text {
                true => String::new(),
                false => format!(" behind {written}"),
            };
            return Err(format!(
                "{text:?} has no unit{behind}: write {written}s for seconds or {written}ms for \
                 milliseconds"
            ));
        }
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(not_a_duration(text));
        };
        seconds += number * factor;
        rest = tail.trim_start();
    }
    // Microseconds are the finest unit; rounding to them undoes the error of binary fractions.
    match Duration::try_from_secs_f64((seconds * 1e6).round() / 1e6) {
        _ if text.is_empty() => Err(not_a_duration(text)),
        Ok(duration) if duration <= MAX => Ok(duration),
        _ => Err(format!("{text:?} is longer than a year")),
    }
}

fn not_a_duration(text: &str) -> String {
    format!("{text:?} is not a duration: write it like 250ms, 10s, 5m, 1m30s or 2h")
}

/// The shortest way to write a duration that [`parse`] reads back.
pub(crate) fn format(duration: Duration) -> String {
    let us = duration.as_micros();
    if us == 0 {
        return String::from("0s");
    }
    for (size, unit) in [
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ] {
        if us.is_multiple_of(size) {
            return format!("{}{unit}", us / size);
        }
    }
    format!("{us}us")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_ways() {
        for (text, ms) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("10 s", 10_000),
            ("1 m 30 s", 90_000),
            ("0.5h", 1_800_000),
            ("1d", 86_400_000),
            ("0", 0),
            ("0s", 0),
            ("1.1s", 1_100),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn faults_say_how_to_write_it() {
        for (text, part) in [
            ("10", "10s for seconds"),
            ("", "not a duration"),
            ("s", "not a duration"),
            ("-1s", "not a duration"),
            ("1x", "not a duration"),
            ("1.2.3s", "not a duration"),
            ("1s2", "write 2s for seconds"),
            ("10 20s", "write 10s for seconds"),
            ("10 s s", "not a duration"),
            ("9999999d", "longer than a year"),
            ("1S", "not a duration"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(us in 0u64..86_400_000_000) {
            let duration = Duration::from_micros(us);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}") {
            if let Ok(duration) = parse(&text) {
                prop_assert!(duration <= MAX);
            }
        }
    }
}
