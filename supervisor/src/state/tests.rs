use super::*;
use iii_actors::event::ActorKind;
use iii_actors::memory::Keeper;
use iii_actors::{Outcome, WorkerState};
use iii_proto::restart::RestartMemory;
use std::time::Duration;

fn spec(name: &str) -> WorkerSpec {
    WorkerSpec::new(WorkerName::new(name).unwrap(), vec!["/bin/true".into()])
}

fn memory() -> WorkerMemory {
    let mut memory = WorkerMemory::default();
    memory.state = WorkerState::Failed;
    memory.outcome = Some(Outcome::Failed("limit".into()));
    memory.boots = 7;
    let restarts = RestartMemory {
        row: 1,
        granted: vec![Duration::from_secs(5)],
        total: 9,
    };
    memory.restarts.insert(ActorKind::Vm, restarts);
    memory
}

/// A supervisor that keeps one worker's memory and then ends.
fn run(path: &Path, clean: bool) {
    let state = StateDirectory::open(path, false).unwrap();
    let keeper = state.keeper(EventBus::new()).unwrap();
    keeper.declare(&spec("a"));
    keeper.keep(&spec("a").name, Some(memory()));
    if clean {
        keeper.clean();
    }
}

#[test]
fn a_supervisor_that_was_killed_leaves_what_it_knew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/state");
    run(&path, false);
    let state = StateDirectory::open(&path, false).unwrap();
    assert_eq!(state.left_of(&spec("a")), Some(memory()));
    assert_eq!(state.left_of(&spec("b")), None);
    let mut changed = spec("a");
    changed.command.push("now".into());
    assert_eq!(state.left_of(&changed), None, "another spec begins anew");
}

#[test]
fn nothing_that_is_written_depends_on_a_secret() {
    let digest = |value: &str, secret: bool| {
        let mut spec = spec("a");
        spec.env = vec![("TOKEN".into(), value.into())];
        if secret {
            spec.secret_env.insert("TOKEN".into());
        }
        record::digest(&spec)
    };
    assert_eq!(digest("one", true), digest("two", true));
    assert_ne!(digest("one", false), digest("two", false));
    assert_ne!(digest("one", true), digest("one", false));
}

#[test]
fn one_that_ended_in_order_leaves_nothing_and_neither_does_one_to_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), true);
    let state = StateDirectory::open(dir.path(), false).unwrap();
    assert_eq!(state.left_of(&spec("a")), None);
    drop(state);
    assert!(!dir.path().exists(), "nothing is left behind");
    run(dir.path(), false);
    let state = StateDirectory::open(dir.path(), true).unwrap();
    assert_eq!(state.left_of(&spec("a")), None);
}

#[test]
fn after_a_reboot_counters_begin_anew_and_what_was_is_told() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), false);
    let file = dir.path().join(RECORD);
    let text = std::fs::read_to_string(&file).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["host_boot"] = "another".into();
    std::fs::write(&file, json.to_string()).unwrap();
    let state = StateDirectory::open(dir.path(), false).unwrap();
    let left = state.left_of(&spec("a")).unwrap();
    assert_eq!((left.state, left.boots), (WorkerState::Failed, 7));
    assert!(left.outcome.is_none() && left.restarts.is_empty());
}

#[test]
fn a_second_supervisor_is_refused_and_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let _first = StateDirectory::open(dir.path(), false).unwrap();
    let error = StateDirectory::open(dir.path(), false).unwrap_err();
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
}

#[test]
fn garbage_and_other_versions_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for garbage in [
        "",
        "{",
        "null",
        "{\"version\":99,\"host_boot\":\"\",\"pid\":1,\"workers\":{}}",
    ] {
        std::fs::write(dir.path().join(RECORD), garbage).unwrap();
        let state = StateDirectory::open(dir.path(), false).unwrap();
        assert_eq!(state.left_of(&spec("a")), None, "{garbage}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_told_once_and_again_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = StateDirectory::open(&path, false).unwrap();
    let bus = EventBus::new();
    let mut events = bus.subscribe();
    let mut warning = || match events.blocking_recv().unwrap().kind {
        iii_actors::event::EventKind::Warning { message } => message,
        other => panic!("{other:?}"),
    };
    // A directory in the place of the file stops root too.
    std::fs::create_dir(path.join(RECORD)).unwrap();
    let keeper = state.keeper(bus.clone()).unwrap();
    assert!(warning().contains("restart counters are lost"));
    keeper.keep(&spec("a").name, Some(memory()));
    std::fs::remove_dir(path.join(RECORD)).unwrap();
    keeper.keep(&spec("a").name, Some(memory()));
    assert!(warning().contains("again"));
}
