//! Takes events and output lines and writes them, as fast as the reader of our output reads.
//!
//! One writer, so that no two lines mix. Output is not lost when the reader is slow: the queue of
//! each worker's lines is bounded and who fills it waits. Events are few; a reader that stalls for thousands of
//! them is told how many it missed.

use std::io;

use iii_actors::event::{Event, LogLine};
use iii_actors::logs::LogReader;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::screen::Screen;
use super::stamp::{date_and_time, time_of_day};
use super::{human, json};
use crate::streams::{EventStream, Missed};

/// Lines that are written with one call while more are waiting.
const BATCH: usize = 256;

/// How lines are written.
#[derive(Clone, Debug)]
pub enum Format {
    /// For people.
    Human(Screen),
    /// One JSON object per line.
    Json,
}

/// Prints until `finish` says that nothing more will come, then what is left. An error is that of
/// writing: with [`io::ErrorKind::BrokenPipe`] nobody reads any more.
pub async fn print(
    format: Format,
    mut events: EventStream,
    mut logs: LogReader,
    mut finish: oneshot::Receiver<()>,
    mut out: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut text = String::new();
    let (mut events_open, mut logs_open) = (true, true);
    loop {
        tokio::select! {
            // Events first: they are few, and a flood of output must not hide them.
            biased;
            event = events.next(), if events_open => match event {
                Some(Ok(event)) => {
                    // What a workload wrote before it ended is shown before its end is.
                    for _ in 0..logs.len() {
                        let Some(line) = logs.try_recv() else { break };
                        format.log(&line, &mut text)?;
                    }
                    format.event(&event, &mut text)?;
                }
                Some(Err(Missed(missed))) => format.missed(missed, &mut text),
                None => events_open = false,
            },
            line = logs.recv(), if logs_open => match line {
                Some(line) => {
                    format.log(&line, &mut text)?;
                    for _ in 1..BATCH {
                        let Some(line) = logs.try_recv() else { break };
                        format.log(&line, &mut text)?;
                    }
                }
                None => logs_open = false,
            },
            _ = &mut finish => break,
        }
        flush(&mut out, &mut text).await?;
        if !events_open && !logs_open {
            return Ok(());
        }
    }
    while let Some(line) = logs.try_recv() {
        format.log(&line, &mut text)?;
    }
    while let Some(event) = events.try_next() {
        match event {
            Ok(event) => format.event(&event, &mut text)?,
            Err(Missed(missed)) => format.missed(missed, &mut text),
        }
    }
    flush(&mut out, &mut text).await
}

/// Puts out events alone, each with its date, until `finish` says that nothing more will come.
pub async fn print_events(
    format: &Format,
    mut events: EventStream,
    mut finish: oneshot::Receiver<()>,
    mut put: impl FnMut(&str),
) -> io::Result<()> {
    let mut text = String::new();
    let mut over = false;
    while !over {
        let mut next = tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => Some(event),
                None => return Ok(()),
            },
            _ = &mut finish => {
                over = true;
                events.try_next()
            }
        };
        while let Some(event) = next {
            match event {
                Ok(event) => format.dated_event(&event, &mut text)?,
                Err(Missed(missed)) => format.missed(missed, &mut text),
            }
            next = events.try_next();
        }
        put(&std::mem::take(&mut text));
    }
    Ok(())
}

async fn flush(out: &mut (impl AsyncWrite + Unpin), text: &mut String) -> io::Result<()> {
    if !text.is_empty() {
        out.write_all(text.as_bytes()).await?;
        out.flush().await?;
        text.clear();
    }
    Ok(())
}

impl Format {
    pub(super) fn log(&self, line: &LogLine, out: &mut String) -> io::Result<()> {
        match self {
            Self::Human(screen) => {
                *out += &human::log(line, screen, &time_of_day(line.received_unix_ns));
            }
            Self::Json => *out += &json::log(line)?,
        }
        out.push('\n');
        Ok(())
    }

    pub(super) fn event(&self, event: &Event, out: &mut String) -> io::Result<()> {
        self.stamped_event(event, time_of_day, out)
    }

    fn dated_event(&self, event: &Event, out: &mut String) -> io::Result<()> {
        self.stamped_event(event, date_and_time, out)
    }

    fn stamped_event(
        &self,
        event: &Event,
        stamp: fn(u64) -> String,
        out: &mut String,
    ) -> io::Result<()> {
        let stamp = stamp(event.time_unix_ms.saturating_mul(1_000_000));
        match self {
            Self::Human(screen) => match human::event(event, screen, &stamp) {
                Some(text) => *out += &text,
                None => return Ok(()),
            },
            Self::Json => *out += &json::event(event)?,
        }
        out.push('\n');
        Ok(())
    }

    pub(super) fn missed(&self, count: u64, out: &mut String) {
        match self {
            Self::Human(_) => *out += &format!("({count} events are not shown: too slow a reader)"),
            Self::Json => *out += &format!(r#"{{"event":"missed","count":{count}}}"#),
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_actors::event::{EventBus, EventKind, LogSource};
    use iii_actors::logs::LogBus;
    use iii_proto::ids::{BootId, GuestPid, WorkerName};

    fn line(n: usize) -> LogLine {
        LogLine {
            worker: WorkerName::new("web").unwrap(),
            boot: BootId::from_random(1),
            pid: GuestPid(1),
            stream: LogSource::Stdout,
            time_unix_ns: 0,
            received_unix_ns: 0,
            text: n.to_string().into_bytes(),
            complete: true,
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    fn order(out: &[u8]) -> Vec<String> {
        std::str::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                match value["text"].as_str() {
                    Some(text) => text.to_owned(),
                    None => value["event"].as_str().unwrap().to_owned(),
                }
            })
            .collect()
    }

    #[test]
    fn output_comes_before_the_event_that_follows_it_and_nothing_is_lost() {
        let bus = EventBus::new();
        let lines = LogBus::default();
        let logs = lines.take().unwrap();
        for n in 0..1000 {
            runtime().block_on(lines.put(line(n)));
        }
        let events = EventStream::new(bus.subscribe());
        bus.emit(None, None, EventKind::VmStopped);
        drop(bus);
        drop(lines);
        let (_keep, finish) = oneshot::channel();
        let mut out = Vec::new();
        runtime()
            .block_on(print(Format::Json, events, logs, finish, &mut out))
            .unwrap();
        let mut expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        expected.push("vm-stopped".into());
        assert_eq!(order(&out), expected);
    }

    #[test]
    fn what_is_left_is_printed_at_the_end() {
        let bus = EventBus::new();
        let lines = LogBus::default();
        let logs = lines.take().unwrap();
        let events = EventStream::new(bus.subscribe());
        let (done, finish) = oneshot::channel();
        runtime().block_on(lines.put(line(1)));
        bus.emit(None, None, EventKind::SupervisorStopped);
        done.send(()).unwrap();
        let mut out = Vec::new();
        runtime()
            .block_on(print(Format::Json, events, logs, finish, &mut out))
            .unwrap();
        assert_eq!(order(&out), ["1", "supervisor-stopped"]);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_and_no_panic() {
        let bus = EventBus::new();
        let lines = LogBus::default();
        let logs = lines.take().unwrap();
        runtime().block_on(lines.put(line(1)));
        let (_keep, finish) = oneshot::channel();
        let (writer, reader) = tokio::io::duplex(16);
        drop(reader);
        let error = runtime()
            .block_on(print(
                Format::Json,
                EventStream::new(bus.subscribe()),
                logs,
                finish,
                writer,
            ))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
