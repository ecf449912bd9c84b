//! `health:`: the probe that vm-init runs in the guest.

use std::time::Duration;

use iii_proto::guest::{HealthCheck, Probe};

use super::command::command;
use super::reader::{Reader, Setting};

/// Keys of the map.
pub(crate) const KEYS: &[&str] = &[
    "exec",
    "http",
    "tcp",
    "interval",
    "timeout",
    "retries",
    "start_period",
];

/// The defaults of the workers file: every 10 s, 3 s for an answer, 3 failures in a row, none of
/// them counted in the first 10 s.
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(3);
const RETRIES: u64 = 3;
const START_PERIOD: Duration = Duration::from_secs(10);

/// A probe with its timing.
pub(crate) fn health(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<HealthCheck> {
    let fields = reader.fields(setting, KEYS)?;
    let probes: Vec<&str> = ["exec", "http", "tcp"]
        .into_iter()
        .filter(|key| fields.get(key).is_some())
        .collect();
    if probes.len() != 1 {
        reader.fault(setting, "needs exactly one of `exec`, `http` and `tcp`");
    }
    let exec = fields.get("exec").and_then(|s| command(reader, &s));
    let http = fields
        .get("http")
        .and_then(|s| reader.parsed(&s, parse_http));
    let tcp = fields.get("tcp").and_then(|s| reader.number(&s, 1, 65535));
    let mut time = |key, default| match fields.get(key) {
        Some(s) => reader.positive_duration(&s),
        None => Some(default),
    };
    let interval = time("interval", INTERVAL);
    let timeout = time("timeout", TIMEOUT);
    let start_period = match fields.get("start_period") {
        Some(s) => reader.duration(&s),
        None => Some(START_PERIOD),
    };
    let retries = match fields.get("retries") {
        Some(s) => reader.number(&s, 1, 1000),
        None => Some(RETRIES),
    };
    let probe = exec
        .map(Probe::Exec)
        .or(http.map(|(port, path)| Probe::Http { port, path }))
        // Bounded by 65535 just above.
        .or(tcp.map(|port| Probe::Tcp(port as u16)))?;
    Some(HealthCheck {
        probe,
        interval_ms: milliseconds(interval?),
        timeout_ms: milliseconds(timeout?),
        // Bounded by 1000 just above.
        retries: retries? as u32,
        start_period_ms: milliseconds(start_period?),
    })
}

fn milliseconds(duration: Duration) -> u64 {
    // A duration of the file is at most a year. A probe cannot be timed finer than this.
    if duration.is_zero() {
        0
    } else {
        (duration.as_millis() as u64).max(1)
    }
}

/// `PORT/PATH`, with `:` or `http://localhost:` before it if one likes.
fn parse_http(text: &str) -> Result<(u16, String), String> {
    let help = || {
        format!(
            "{text:?} is not a probe: write it 8080/health; it always asks the guest's own loopback"
        )
    };
    let rest = ["http://localhost:", "http://127.0.0.1:", ":"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    let (port, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let port: u16 = port.parse().map_err(|_| help())?;
    // The path is put into a request line: nothing in it may end that line.
    if port == 0 || path.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(help());
    }
    Ok((port, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_probes() {
        for text in [
            "8080/health",
            ":8080/health",
            "http://localhost:8080/health",
            "http://127.0.0.1:8080/health",
        ] {
            assert_eq!(parse_http(text), Ok((8080, "/health".into())), "{text}");
        }
        assert_eq!(parse_http("80"), Ok((80, "/".into())));
        for text in [
            "",
            "0/x",
            "http://example.com/x",
            "https://localhost:1/",
            "80/a b",
            "80/a\r\nb",
            "99999/",
        ] {
            assert!(parse_http(text).is_err(), "{text}");
        }
    }
}
