use std::path::PathBuf;

use iii_actors::WorkerState;
use iii_actors::event::{ActorKind, LogSource};
use iii_proto::control::GuestMemory;
use iii_proto::ids::{GuestPid, WorkerName};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;

use super::state::{Input, Key, LogText, Order, State};
use super::view;
use crate::control::protocol::{Greeting, WorkerInfo, WorkerUsage};
use crate::{NetworkUsage, Outcome, Usage};

const EPOCH: u64 = 1_800_000_000_000;

fn name(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

fn greeting(pid: u32) -> Greeting {
    Greeting {
        protocol: 1,
        version: "0.1.0".into(),
        pid,
        file: PathBuf::from("/srv/app/iii.workers.yaml"),
        started_unix_ms: EPOCH,
    }
}

fn worker(who: &str, state: WorkerState, second: u64) -> WorkerUsage {
    let mut info: WorkerInfo = crate::cli::ps::tests::worker(who);
    info.state = state;
    let runs = !state.is_at_rest();
    info.workload_pid = runs.then_some(GuestPid(31));
    info.workload_since_unix_ms = runs.then_some(EPOCH + 1_000);
    let part = |actor, pid, cpu_ns: Option<u64>| {
        serde_json::json!({
            "actor": actor, "state": "up", "restarts": 0, "pid": pid, "cpu_ns": cpu_ns,
            "memory": cpu_ns.map(|_| 180 << 20),
        })
    };
    let parts = serde_json::json!([
        part(ActorKind::Dns, None::<u32>, None),
        part(ActorKind::NetPoll, None, None),
        part(ActorKind::Fs, Some(4710), Some(0)),
        part(ActorKind::Vm, Some(4711), Some(second * 500_000_000)),
    ]);
    let network = NetworkUsage::default();
    let network = serde_json::json!({
        "received_bytes": second * 2048, "sent_bytes": second * 100,
        "connections": 3, "refused": network.refused,
    });
    let usage: Usage = serde_json::from_value(serde_json::json!({
        "clock_ns": second * 1_000_000_000,
        "cpu_ns": null, "memory": runs.then_some(180u64 << 20), "cpus": 1,
        "vm_memory": 256u64 << 20,
        "guest_memory": runs.then_some(GuestMemory { total: 230 << 20, available: 200 << 20 }),
        "network": network,
        "parts": if runs { parts } else { serde_json::json!([]) },
    }))
    .unwrap();
    WorkerUsage {
        worker: info,
        usage,
    }
}

fn sample(pid: u32, second: u64, workers: &[(&str, WorkerState)]) -> Input {
    let workers = workers
        .iter()
        .map(|(who, state)| worker(who, *state, second));
    Input::Sample {
        greeting: greeting(pid),
        workers: workers.collect(),
        at_unix_ms: EPOCH + 61_000 + second * 1_000,
    }
}

const THREE: [(&str, WorkerState); 3] = [
    ("api", WorkerState::Ready),
    ("flaky", WorkerState::Repairing),
    ("old", WorkerState::Stopped),
];

fn three() -> State {
    let mut state = State::new(true);
    assert_eq!(state.on(sample(7, 1, &THREE)), [Order::Follow(name("api"))]);
    assert_eq!(state.on(sample(7, 2, &THREE)), []);
    state
}

fn line(who: &str, text: &str) -> Input {
    Input::Line(LogText {
        worker: name(who),
        stream: LogSource::Stdout,
        time: "12:04:31".into(),
        text: text.into(),
    })
}

/// The screen as it would be, a line each.
fn frame(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view::draw(state, frame.area(), frame.buffer_mut()))
        .unwrap();
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn a_frame_shows_the_tree_what_is_used_and_the_log_of_the_selected() {
    let mut state = three();
    state.on(line("api", "listening on 3000"));
    state.on(line("flaky", "not of the selected"));
    let lines = frame(&state, 130, 24);
    assert_eq!(
        lines[0],
        "/srv/app/iii.workers.yaml  process 7, up 1m03s  1 ready, 1 repairing, 1 stopped"
    );
    assert_eq!(
        words(&lines[1]),
        [
            "WORKER", "STATE", "UP", "RESTARTS", "CPU", "MEMORY", "IN", "GUEST", "IN/s", "OUT/s",
            "CONNS"
        ]
    );
    assert_eq!(
        words(&lines[2]),
        [
            "api",
            "ready",
            "1m02s",
            "0",
            "50.0%",
            "180MiB",
            "30MiB/230MiB",
            "2KiB",
            "100B",
            "3"
        ]
    );
    assert_eq!(words(&lines[3]), ["├", "resolver", "up", "0"]);
    assert_eq!(words(&lines[4]), ["├", "network", "up", "0"]);
    assert_eq!(
        words(&lines[5]),
        ["├", "files", "4710", "up", "0", "0.0%", "180MiB"]
    );
    assert_eq!(
        words(&lines[6]),
        ["└", "vm", "4711", "up", "0", "50.0%", "180MiB"]
    );
    assert_eq!(
        words(&lines[7]),
        ["└", "workload", "31", "runs", "1m02s", "0"]
    );
    assert_eq!(words(&lines[8])[..2], ["flaky", "repairing"]);
    assert_eq!(
        words(&lines[9]),
        [
            "old", "stopped", "-", "0", "-", "-", "-", "2KiB", "100B", "3"
        ]
    );
    assert!(lines[10].starts_with(" log of api ─"), "{}", lines[10]);
    assert_eq!(lines[11], "12:04:31 | listening on 3000");
    assert!(!lines.join("\n").contains("not of the selected"));
    assert!(lines[23].starts_with("up/down select  r restart"));
}

#[test]
fn narrow_screens_leave_columns_out_and_none_is_too_small() {
    let mut state = three();
    for n in 0..50 {
        state.on(line("api", &format!("line {n} {}", "wide ".repeat(50))));
    }
    let lines = frame(&state, 80, 24);
    assert_eq!(
        words(&lines[1]),
        ["WORKER", "STATE", "UP", "CPU", "MEMORY", "IN/s", "OUT/s"]
    );
    let lines = frame(&state, 50, 24);
    assert_eq!(words(&lines[1]), ["WORKER", "STATE", "CPU", "MEMORY"]);
    for help in [false, true] {
        state.help = help;
        for width in 0..90 {
            for height in 0..30 {
                frame(&state, width, height);
            }
        }
    }
}

#[test]
fn the_selected_worker_stays_on_the_screen_however_many_there_are() {
    let names: Vec<String> = (0..100).map(|n| format!("worker-{n:02}")).collect();
    let workers: Vec<_> = (names.iter())
        .map(|name| (name.as_str(), WorkerState::Ready))
        .collect();
    let mut state = State::new(false);
    state.on(sample(7, 1, &workers));
    for expanded in [false, true] {
        state.expanded = expanded;
        state.on(Input::Key(Key::First));
        for name in &names {
            for height in [8, 12, 40] {
                let lines = frame(&state, 100, height);
                assert!(
                    lines.iter().any(|line| line.starts_with(name.as_str())),
                    "{name}:\n{}",
                    lines.join("\n")
                );
            }
            state.on(Input::Key(Key::Down));
        }
    }
}

#[test]
fn the_selected_line_is_set_apart_also_without_colours() {
    let mut state = three();
    state.colour = false;
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal
        .draw(|frame| view::draw(&state, frame.area(), frame.buffer_mut()))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let reversed = |y| buffer[(0, y)].modifier.contains(Modifier::REVERSED);
    assert!(reversed(2) && !reversed(8));
    let colours = (0..24).flat_map(|y| (0..80).map(move |x| (x, y)));
    let mut cells = colours.map(|at| &buffer[at]);
    assert!(cells.all(|cell| cell.fg == ratatui::style::Color::Reset));
}

#[test]
fn keys_select_restart_stop_start_and_quit() {
    let mut state = three();
    let mut press = |key| state.on(Input::Key(key));
    assert_eq!(press(Key::Up), [], "it is the first");
    assert_eq!(press(Key::Restart), [Order::Restart(name("api"))]);
    assert_eq!(press(Key::StopOrStart), [Order::Stop(name("api"))]);
    assert_eq!(press(Key::Down), [Order::Follow(name("flaky"))]);
    assert_eq!(press(Key::Last), [Order::Follow(name("old"))]);
    assert_eq!(press(Key::Down), [], "it is the last");
    assert_eq!(press(Key::StopOrStart), [Order::Start(name("old"))]);
    assert_eq!(press(Key::First), [Order::Follow(name("api"))]);
    assert_eq!(press(Key::Suspend), [Order::Suspend]);
    assert_eq!(press(Key::Redraw), [Order::Redraw]);
    assert_eq!(press(Key::Quit), [Order::Quit]);
    assert_eq!(press(Key::Help), []);
    assert!(
        frame(&state, 80, 24)
            .join("\n")
            .contains("stop it; start it")
    );
    assert_eq!(state.on(Input::Key(Key::Quit)), [], "it takes help away");
    assert!(
        !frame(&state, 80, 24)
            .join("\n")
            .contains("stop it; start it")
    );
    assert_eq!(state.on(Input::Key(Key::Quit)), [Order::Quit]);
    // Nothing to do anything with.
    let mut nobody = State::new(true);
    for key in [
        Key::Down,
        Key::Last,
        Key::Restart,
        Key::StopOrStart,
        Key::Expand,
    ] {
        assert_eq!(nobody.on(Input::Key(key)), []);
    }
}

#[test]
fn what_came_of_an_order_is_told_and_a_failure_is_seen() {
    let mut state = three();
    state.on(Input::Key(Key::Restart));
    let last = |state: &State| frame(state, 100, 24).pop().unwrap();
    assert!(last(&state).starts_with("restarting api …"));
    state.on(Input::Told(Ok("api restarts".into())));
    assert!(last(&state).starts_with("api restarts  up/down"));
    state.on(Input::Told(Err("failed to do \x1b[2J it\nat all".into())));
    assert_eq!(last(&state), "failed to do \\x1b[2J it at all");
}

#[test]
fn why_a_worker_failed_stands_above_its_log() {
    let mut state = State::new(true);
    let mut failed = worker("api", WorkerState::Failed, 1);
    failed.worker.outcome = Some(Outcome::Failed("its VM failed again".into()));
    state.on(Input::Sample {
        greeting: greeting(7),
        workers: vec![failed],
        at_unix_ms: EPOCH,
    });
    state.on(line("api", "last words"));
    let lines = frame(&state, 80, 12);
    assert!(
        lines.contains(&"failed: its VM failed again".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"12:04:31 | last words".to_owned()),
        "{lines:?}"
    );
}

#[test]
fn a_supervisor_that_ends_is_told_and_its_successor_is_shown() {
    let mut state = three();
    state.on(Input::Key(Key::Down));
    state.on(line("flaky", "before"));
    state.on(Input::Lost("no supervisor runs".into()));
    let lines = frame(&state, 80, 24);
    assert_eq!(lines[2], "no supervisor runs");
    assert!(!lines.join("\n").contains("ready"), "{lines:?}");
    for key in [Key::Restart, Key::StopOrStart] {
        assert_eq!(state.on(Input::Key(key)), [], "there is nobody to ask");
    }
    // What the selected one writes is followed anew.
    let orders = state.on(sample(8, 9, &THREE));
    assert_eq!(orders, [Order::Follow(name("flaky"))]);
    let lines = frame(&state, 80, 24);
    assert!(lines[0].contains("process 8"), "{lines:?}");
    assert!(!lines.join("\n").contains("before"), "{lines:?}");
    // One that has gone is not selected any more.
    let orders = state.on(sample(8, 10, &THREE[..1]));
    assert_eq!(orders, [Order::Follow(name("api"))]);
    assert_eq!(state.on(sample(8, 11, &[])), []);
    assert_eq!(state.selected, None);
}

#[test]
fn the_log_is_scrolled_back_and_stays_there_while_more_comes() {
    let mut state = three();
    for n in 0..40 {
        state.on(line("api", &format!("line {n}.")));
    }
    let shows = |state: &State, text: &str| frame(state, 80, 20).join("\n").contains(text);
    assert!(shows(&state, "line 39."));
    state.on(Input::Key(Key::LogUp));
    assert!(!shows(&state, "line 39.") && shows(&state, "line 34."));
    state.on(line("api", "line 40."));
    assert!(!shows(&state, "line 35.") && shows(&state, "line 34."));
    for _ in 0..100 {
        state.on(Input::Key(Key::LogUp));
    }
    assert!(
        shows(&state, "line 0."),
        "the first line is the end of the way"
    );
    let back = state.back;
    assert!((1..40).contains(&back), "{back}");
    for _ in 0..back.div_ceil(5) {
        state.on(Input::Key(Key::LogDown));
    }
    assert!(shows(&state, "line 40."));
    for n in 0..5_000 {
        state.on(line("api", &format!("more {n}")));
    }
    assert!(state.log.len() <= 1000, "it does not grow");
    state.on(Input::Missed(name("api"), 12));
    assert!(shows(&state, "12 lines were not shown"));
}

#[test]
fn a_log_that_fits_is_not_scrolled() {
    let mut state = three();
    state.on(line("api", "the only line."));
    for _ in 0..3 {
        let shown = frame(&state, 80, 30).join("\n");
        assert!(shown.contains("the only line."), "{shown}");
        assert!(!shown.contains("back"), "{shown}");
        state.on(Input::Key(Key::LogUp));
    }
}

#[test]
fn plain_text_has_all_workers_with_their_parts() {
    let text = view::plain(&three(), 130);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 3 + 5 + 5, "{text}");
    assert!(lines[2].starts_with("api "));
    assert!(lines[8].starts_with("flaky "));
    assert!(lines[14].starts_with("old "));
    assert!(!text.contains('\x1b'));
}
