//! What readers see of what writers write, the writer being the real one.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iii_actors::event::{EventBus, LogLine, LogSource};
use iii_actors::logs::LogBus;
use iii_actors::spec::LogSpec;
use iii_proto::ids::BootId;
use proptest::prelude::*;

use super::super::block::{BLOCK, FILE_HEAD};
use super::super::testing::{line, query, text, texts, worker};
use super::super::write::LogStore;
use super::super::{Record, files};
use super::*;

/// A store whose files hold 64 KiB each.
struct Store {
    directory: tempfile::TempDir,
    logs: LogBus,
    store: LogStore,
}

impl Store {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogBus::default();
        let store = LogStore::start(directory.path().to_owned(), &logs, EventBus::new()).unwrap();
        let this = Self {
            directory,
            logs,
            store,
        };
        this.limit("a", 1000);
        this
    }

    fn limit(&self, name: &str, max_files: u32) {
        let max_size = BLOCK as u64;
        let limits = LogSpec {
            max_size,
            max_files,
        };
        self.store.declare(&worker(name), limits);
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn put(&self, line: LogLine) {
        wait_for(self.logs.put(line));
    }

    /// Lines `text 0`, `text 1`, … of 1 KiB, one received per second from `from` on.
    fn put_many(&self, name: &str, count: u64, from: u64) {
        for n in 0..count {
            self.put(long(name, n, from + n));
        }
        self.written();
    }

    fn written(&self) {
        wait_for(self.logs.all_stored());
    }

    fn first_words(&self, query: &Query) -> Vec<u64> {
        super::super::testing::query(self.path(), query)
            .iter()
            .map(|record| text(record).split(' ').next().unwrap().parse().unwrap())
            .collect()
    }
}

fn long(name: &str, n: u64, second: u64) -> LogLine {
    let mut line = line(name, &format!("{n:<1000}"));
    line.received_unix_ns = seconds(second);
    line
}

fn seconds(n: u64) -> u64 {
    n * 1_000_000_000
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn last(n: usize) -> Query {
    Query {
        last: Some(n),
        ..Query::default()
    }
}

#[test]
fn the_last_lines_are_found_from_the_end() {
    let store = Store::new();
    store.put_many("a", 300, 1);
    assert!(files::numbers(&store.path().join("a")).unwrap().len() > 3);
    for n in [0, 1, 2, 59, 60, 61, 299, 300, 301, 100_000] {
        let expected: Vec<u64> = (300 - n.min(300) as u64..300).collect();
        assert_eq!(store.first_words(&last(n)), expected, "{n}");
    }
    let none = last(5);
    assert!(query(&store.path().join("none"), &none).is_empty());
}

#[test]
fn times_bound_what_is_read() {
    let store = Store::new();
    store.put_many("a", 300, 1000);
    for (since, until, n) in [
        (None, None, None),
        (Some(0), Some(1), None),
        (Some(1000), Some(1001), None),
        (Some(1100), Some(1101), None),
        (Some(1123), None, None),
        (None, Some(1123), None),
        (Some(1123), Some(1250), None),
        (Some(1123), Some(1250), Some(3)),
        (Some(1299), None, Some(3)),
        (Some(1300), None, None),
        (Some(1300), None, Some(3)),
        (Some(9999), Some(8888), None),
    ] {
        let query = Query {
            since_unix_ns: since.map(seconds),
            until_unix_ns: until.map(seconds),
            last: n,
            ..Query::default()
        };
        let mut expected: Vec<u64> = (0..300)
            .filter(|n| since.is_none_or(|since| 1000 + n >= since))
            .filter(|n| until.is_none_or(|until| 1000 + n < until))
            .collect();
        let surplus = n.map_or(0, |n| expected.len().saturating_sub(n));
        expected.drain(..surplus);
        assert_eq!(store.first_words(&query), expected, "{query:?}");
    }
}

#[test]
fn sources_and_boots_are_chosen() {
    let store = Store::new();
    for (n, (source, boot)) in [
        (LogSource::Stdout, 0x1234),
        (LogSource::Stderr, 0x1234),
        (LogSource::Console, 0x1234),
        (LogSource::Stdout, 0x1299),
    ]
    .into_iter()
    .enumerate()
    {
        let mut line = line("a", &n.to_string());
        line.stream = source;
        line.boot = BootId::from_random(boot << 48);
        store.put(line);
    }
    store.written();
    let of = |sources: &[LogSource], boot: Option<&str>, last| {
        store.first_words(&Query {
            sources: sources.iter().copied().collect(),
            boot: boot.map(str::to_owned),
            last,
            ..Query::default()
        })
    };
    assert_eq!(of(&[], None, None), [0, 1, 2, 3]);
    assert_eq!(of(&[LogSource::Stdout], None, None), [0, 3]);
    assert_eq!(
        of(&[LogSource::Stderr, LogSource::Console], None, None),
        [1, 2]
    );
    assert_eq!(of(&[], Some("1234"), None), [0, 1, 2]);
    assert_eq!(of(&[], Some("1234000000000000"), Some(2)), [1, 2]);
    assert_eq!(of(&[LogSource::Stdout], Some("12"), Some(1)), [3]);
    assert_eq!(of(&[], Some("f"), None), [0u64; 0]);
}

#[test]
fn workers_are_merged_by_time_and_each_keeps_its_order() {
    let store = Store::new();
    for (name, second) in [("a", 1), ("a", 4), ("b", 2), ("b", 3), ("c", 4), ("a", 4)] {
        let mut line = line(name, &format!("{name}{second}"));
        line.received_unix_ns = seconds(second);
        store.put(line);
    }
    store.written();
    assert_eq!(texts(store.path()), ["a1", "b2", "b3", "a4", "a4", "c4"]);
}

#[test]
fn damage_is_told_and_what_is_behind_it_is_read() {
    let store = Store::new();
    let limits = LogSpec {
        max_size: 1 << 20,
        max_files: 2,
    };
    store.store.declare(&worker("a"), limits);
    store.put_many("a", 200, 1);
    let path = files::file(&store.path().join("a"), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[BLOCK + 40 * 1036 + 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let logs = StoredLogs::at(store.path());
    let mut reading = logs.read(&[worker("a")], &Query::default()).unwrap();
    let (mut lines, mut told) = (Vec::new(), Vec::new());
    while let Some(found) = reading.next().unwrap() {
        match found {
            Found::Record(record) => lines.push(text(&record)),
            other => told.push(other),
        }
    }
    // 63 records fit into a block, one less into the first.
    let expected: Vec<String> = (0..63 + 40)
        .chain(63 + 63..200)
        .map(|n| format!("{n:<1000}"))
        .collect();
    assert_eq!(lines.len(), expected.len());
    assert!(lines == expected);
    let damaged = Found::Damaged {
        file: path,
        offset: (BLOCK + 40 * 1036) as u64,
        flaw: super::super::Flaw::Checksum,
    };
    assert_eq!(told, [damaged]);
}

#[test]
fn a_file_of_another_version_is_told_and_left_out() {
    let store = Store::new();
    store.put_many("a", 1, 1);
    let own = store.path().join("a");
    let mut other = FILE_HEAD;
    other[8] = 2;
    std::fs::rename(files::file(&own, 1), files::file(&own, 2)).unwrap();
    std::fs::write(files::file(&own, 1), other).unwrap();
    let logs = StoredLogs::at(store.path());
    let mut reading = logs.read(&[worker("a")], &Query::default()).unwrap();
    let file = files::file(&own, 1);
    assert_eq!(reading.next().unwrap(), Some(Found::Foreign { file }));
    assert!(matches!(reading.next().unwrap(), Some(Found::Record(_))));
    assert_eq!(reading.next().unwrap(), None);
}

/// Records until nothing is there for now.
fn drain(following: &mut Following) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(found) = following.next().unwrap() {
        match found {
            Found::Record(record) => seen.push(text(&record).trim_end().to_owned()),
            other => seen.push(format!("{other:?}")),
        }
    }
    seen
}

/// Waits for so many more.
fn more(following: &mut Following, count: usize) -> Vec<String> {
    let mut seen = drain(following);
    while seen.len() < count {
        let wake = following.wait(None, Some(Duration::from_secs(60))).unwrap();
        assert_eq!(wake, Wake::Written, "{seen:?}");
        seen.extend(drain(following));
    }
    seen
}

#[test]
fn followers_see_what_comes_over_rotation_and_new_workers_and_a_new_writer() {
    let store = Store::new();
    let logs = StoredLogs::at(store.path());
    store.put_many("a", 5, 1);
    let mut following = logs.follow(&[], &last(2)).unwrap();
    assert_eq!(drain(&mut following), ["3", "4"]);
    store.put_many("a", 200, 10);
    let seen = more(&mut following, 200);
    assert_eq!(seen, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    // Of a worker that is new here, everything is.
    store.put_many("b", 3, 300);
    assert_eq!(more(&mut following, 3), ["0", "1", "2"]);
    // The next supervisor, after one that was killed in a write.
    let Store {
        directory, store, ..
    } = store;
    store.close();
    let own = directory.path().join("a");
    let newest = *files::numbers(&own).unwrap().last().unwrap();
    let mut torn = OpenOptions::new()
        .append(true)
        .open(files::file(&own, newest))
        .unwrap();
    // As if it were the head of a longer one; and then as nothing that could be.
    std::io::Write::write_all(&mut torn, &[7; 40]).unwrap();
    assert!(drain(&mut following).is_empty(), "it may still be written");
    let length = torn.metadata().unwrap().len();
    torn.set_len(length - 40).unwrap();
    std::io::Write::write_all(&mut torn, &[0xff; 40]).unwrap();
    assert_eq!(drain(&mut following).len(), 1, "the damage is told");
    assert!(drain(&mut following).is_empty(), "once");
    let logs = LogBus::default();
    let again = LogStore::start(directory.path().to_owned(), &logs, EventBus::new()).unwrap();
    wait_for(logs.put(long("a", 77, 400)));
    assert_eq!(more(&mut following, 1), ["77"]);
    drop(again);
}

#[test]
fn a_follower_that_is_too_slow_is_told_what_it_missed() {
    let store = Store::new();
    store.limit("a", 3);
    store.put_many("a", 10, 1);
    let logs = StoredLogs::at(store.path());
    let mut following = logs.follow(&[worker("a")], &Query::default()).unwrap();
    assert_eq!(drain(&mut following).len(), 10);
    store.put_many("a", 1000, 20);
    let seen = drain(&mut following);
    // The file that it had open is still read to its end.
    assert_eq!(seen[0], "0");
    let at = seen.iter().position(|s| s.contains("Outrun")).unwrap();
    assert!(at < 64, "{at}");
    assert_eq!(seen.last().unwrap(), "999");
}

#[test]
fn a_follower_may_come_before_the_store() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("projects/x");
    let logs = StoredLogs::of_state_dir(&state);
    let mut following = logs.follow(&[worker("a")], &Query::default()).unwrap();
    assert_eq!(following.next().unwrap(), None);
    let timeout = following.wait(None, Some(Duration::ZERO)).unwrap();
    assert_eq!(timeout, Wake::Timeout);
    let bus = LogBus::default();
    let directory = super::super::directory_in(&state);
    let store = LogStore::start(directory, &bus, EventBus::new()).unwrap();
    wait_for(bus.put(line("b", "not asked for")));
    wait_for(bus.put(line("a", "first")));
    assert_eq!(more(&mut following, 1), ["first"]);
    drop(store);
}

#[test]
fn a_follower_notices_that_nobody_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let logs = StoredLogs::at(directory.path());
    let mut following = logs.follow(&[], &Query::default()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    use std::os::fd::AsFd as _;
    let wake = following.wait(Some(writer.as_fd()), None).unwrap();
    assert_eq!(wake, Wake::ReaderGone);
}

/// A disk that is full while there is a directory where the file is to be.
#[test]
fn a_disk_that_takes_nothing_is_told_once_and_nobody_waits_for_it() {
    let store = Store::new();
    let events = EventBus::new();
    let mut heard = events.subscribe();
    let Store {
        directory,
        logs: _,
        store,
    } = store;
    drop(store);
    let own = directory.path().join("a");
    std::fs::write(&own, "in the way").unwrap();
    let logs = LogBus::default();
    let store = LogStore::start(directory.path().to_owned(), &logs, events).unwrap();
    for n in 0..5 {
        wait_for(logs.put(long("a", n, n)));
        wait_for(logs.stored(&worker("a")));
    }
    wait_for(logs.put(long("b", 0, 1)));
    wait_for(logs.all_stored());
    let mut warning = || match heard.blocking_recv().unwrap().kind {
        iii_actors::event::EventKind::Warning { message } => message,
        other => panic!("{other:?}"),
    };
    let first = warning();
    assert!(
        first.contains("failed to write logs") && first.contains("a:"),
        "{first}"
    );
    std::fs::remove_file(&own).unwrap();
    assert_eq!(
        warning(),
        "logs are written again; lost meanwhile: 5 lines of a"
    );
    wait_for(logs.put(long("a", 5, 6)));
    store.close();
    let seen: Vec<Record> = query(directory.path(), &Query::default());
    let of_a: Vec<String> = seen
        .iter()
        .filter(|record| record.worker().as_str() == "a")
        .map(|record| text(record).trim_end().to_owned())
        .collect();
    assert_eq!(of_a, ["lost 5", "5"]);
    assert_eq!(seen.len(), 3, "the neighbour's line is there");
    assert!(heard.try_recv().is_err(), "told once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_reader_beside_the_writer_sees_every_line_once_and_in_order(
        rounds in prop::collection::vec((0usize..40, 0usize..3000), 1..15),
    ) {
        let store = Store::new();
        let logs = StoredLogs::at(store.path());
        let mut following = logs.follow(&[], &Query::default()).unwrap();
        let (mut put, mut seen) = (0u64, Vec::new());
        for (count, length) in rounds {
            for _ in 0..count {
                store.put(line("a", &format!("{put:<length$}")));
                put += 1;
            }
            seen.extend(drain(&mut following));
        }
        store.written();
        if put > 0 {
            // The worker's directory may be new to the follower.
            following.wait(None, Some(Duration::ZERO)).unwrap();
        }
        seen.extend(drain(&mut following));
        let expected: Vec<String> = (0..put).map(|n| n.to_string()).collect();
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn lines_are_shared_and_not_copied_on_their_way() {
    let logs = LogBus::default();
    let mut reader = logs.take().unwrap();
    let feed = logs.feed_store().unwrap();
    wait_for(logs.put(line("a", "x")));
    let iii_actors::logs::Batch::Lines(stored) = feed.next_batch(None) else {
        panic!()
    };
    assert!(Arc::ptr_eq(&stored[0], &reader.try_recv().unwrap()));
}
