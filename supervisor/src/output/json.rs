//! Events and output as one JSON object per line, for programs.
//!
//! An event is as [`Event`] serialises: `seq`, `at` (seconds since the start), `time_unix_ms`,
//! `worker`, `boot`, `event` (the kind) and the kind's own fields. A line of output has
//! `"event":"log"` with `time_unix_ms` (when it was begun, by the guest's clock), `received_unix_ms`
//! (when its end arrived, by the host's), `pid`, `stream`, `complete` and the bytes: as `text` if they
//! are UTF-8, else as `text_base64`, so that nothing is lost. `"event":"log-lost"` stands, in what is
//! kept, for `lines` that a full disk did not take.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use iii_actors::event::{Event, LogLine, LogSource};
use iii_proto::ids::{BootId, GuestPid, WorkerName};
use iii_proto::log::Stream;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Log<'a> {
    event: &'static str,
    /// By the guest's clock.
    time_unix_ms: u64,
    /// By the host's clock.
    received_unix_ms: u64,
    worker: &'a WorkerName,
    boot: BootId,
    pid: GuestPid,
    stream: LogSource,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_base64: Option<String>,
}

/// An event without the newline.
pub fn event(event: &Event) -> serde_json::Result<String> {
    serde_json::to_string(event).map(escape_c1)
}

/// A line of output without the newline.
pub fn log(line: &LogLine) -> serde_json::Result<String> {
    let text = std::str::from_utf8(&line.text).ok();
    let log = Log {
        event: "log",
        time_unix_ms: line.time_unix_ns / 1_000_000,
        received_unix_ms: line.received_unix_ns / 1_000_000,
        worker: &line.worker,
        boot: line.boot,
        pid: line.pid,
        stream: line.stream,
        complete: line.complete,
        text,
        text_base64: text.is_none().then(|| STANDARD.encode(&line.text)),
    };
    serde_json::to_string(&log).map(escape_c1)
}

/// A line of output as it is read back.
#[derive(Deserialize)]
struct ReadLog {
    time_unix_ms: u64,
    received_unix_ms: u64,
    worker: WorkerName,
    boot: BootId,
    pid: GuestPid,
    stream: LogSource,
    complete: bool,
    text: Option<String>,
    text_base64: Option<String>,
}

/// What [`log`] wrote; its time to the millisecond.
pub fn parse_log(json: &str) -> serde_json::Result<LogLine> {
    let log: ReadLog = serde_json::from_str(json)?;
    let text = match (log.text, log.text_base64) {
        (Some(text), _) => text.into_bytes(),
        (None, Some(text)) => STANDARD.decode(text).map_err(serde::de::Error::custom)?,
        (None, None) => return Err(serde::de::Error::missing_field("text")),
    };
    Ok(LogLine {
        worker: log.worker,
        boot: log.boot,
        pid: log.pid,
        stream: log.stream,
        time_unix_ns: log.time_unix_ms.saturating_mul(1_000_000),
        received_unix_ns: log.received_unix_ms.saturating_mul(1_000_000),
        text,
        complete: log.complete,
    })
}

#[derive(Serialize)]
struct Piece<'a> {
    stream: Stream,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_base64: Option<String>,
}

/// A piece of what a command writes, as it came: it may end in the middle of a line, and of a
/// character, which makes it no text. Without the newline.
pub(crate) fn piece(stream: Stream, bytes: &[u8]) -> serde_json::Result<String> {
    let text = std::str::from_utf8(bytes).ok();
    let piece = Piece {
        stream,
        text,
        text_base64: text.is_none().then(|| STANDARD.encode(bytes)),
    };
    serde_json::to_string(&piece).map(escape_c1)
}

#[derive(Serialize)]
struct Lost<'a> {
    event: &'static str,
    received_unix_ms: u64,
    worker: &'a WorkerName,
    lines: u64,
}

/// Lines that are missing among what is kept, without the newline.
pub fn lost(worker: &WorkerName, lines: u64, received_unix_ns: u64) -> serde_json::Result<String> {
    serde_json::to_string(&Lost {
        event: "log-lost",
        received_unix_ms: received_unix_ns / 1_000_000,
        worker,
        lines,
    })
}

/// JSON must escape C0 only, but a terminal that shows the line obeys DEL and C1 as well. Outside
/// of strings JSON has none of them.
pub(crate) fn escape_c1(json: String) -> String {
    let hostile = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if !json.contains(hostile) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if hostile(c) {
            out += &format!("\\u{:04x}", c as u32);
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_actors::event::EventKind;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::Duration;

    fn line(text: &[u8]) -> LogLine {
        LogLine {
            worker: WorkerName::new("web").unwrap(),
            boot: BootId::from_random(7),
            pid: GuestPid(57),
            stream: LogSource::Stderr,
            time_unix_ns: 1_700_000_000_123_456_789,
            received_unix_ns: 1_700_000_000_200_000_001,
            text: text.to_vec(),
            complete: true,
        }
    }

    #[test]
    fn golden_lines() {
        assert_eq!(
            log(&line(b"hi \x1b[2J")).unwrap(),
            r#"{"event":"log","time_unix_ms":1700000000123,"received_unix_ms":1700000000200,"worker":"web","boot":"0000000000000007","pid":57,"stream":"stderr","complete":true,"text":"hi \u001b[2J"}"#
        );
        assert!(
            log(&line(b"\xff"))
                .unwrap()
                .ends_with(r#""text_base64":"/w=="}"#)
        );
        assert_eq!(
            lost(
                &WorkerName::new("web").unwrap(),
                12,
                1_700_000_000_200_000_001
            )
            .unwrap(),
            r#"{"event":"log-lost","received_unix_ms":1700000000200,"worker":"web","lines":12}"#
        );
        let bus = iii_actors::event::EventBus::new();
        let mut receiver = bus.subscribe();
        let name = WorkerName::new("web").unwrap();
        let kind = EventKind::VmRestarting {
            delay: Duration::from_millis(200),
            cause: "c\u{9b}".into(),
        };
        bus.emit(Some(&name), None, kind);
        let json = event(&receiver.try_recv().unwrap()).unwrap();
        assert!(
            json.ends_with(
                r#""worker":"web","event":"vm-restarting","delay":0.2,"cause":"c\u009b"}"#
            ),
            "{json}"
        );
    }

    proptest! {
        #[test]
        fn no_byte_is_lost(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let json = log(&line(&bytes)).unwrap();
            prop_assert!(!json.chars().any(char::is_control));
            let value: Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(value["text"].is_string(), std::str::from_utf8(&bytes).is_ok());
            let back = parse_log(&json).unwrap();
            prop_assert_eq!(log(&back).unwrap(), json);
            prop_assert_eq!(back.text, bytes);
        }
    }
}
