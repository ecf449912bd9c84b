use super::*;
use iii_proto::restart::Exit;

fn outcomes() -> [Outcome; 3] {
    let code = 0;
    [
        Outcome::Stopped,
        Outcome::Done(Exit::Code { code }),
        Outcome::Failed("x".into()),
    ]
}

/// Every input, under the name that the table in the documentation gives it.
fn inputs() -> Vec<(&'static str, WorkerInput)> {
    let [stopped, done, failed] = outcomes();
    vec![
        ("start", WorkerInput::Start),
        ("stop", WorkerInput::Stop { urgent: false }),
        ("restart", WorkerInput::Restart),
        ("dependencies met", WorkerInput::DependenciesMet),
        (
            "a dependency failed",
            WorkerInput::DependencyFailed("x".into()),
        ),
        ("workload started", WorkerInput::WorkloadStarted),
        ("workload ready", WorkerInput::WorkloadReady),
        ("workload or VM down", WorkerInput::WorkloadDown),
        ("tree ended: stopped", WorkerInput::TreeEnded(stopped)),
        ("tree ended: done", WorkerInput::TreeEnded(done)),
        ("tree ended: failed", WorkerInput::TreeEnded(failed)),
        ("its supervisor died", WorkerInput::SupervisorDied),
        (
            "its supervisor died too often",
            WorkerInput::SupervisorGaveUp("x".into()),
        ),
        ("replacement due", WorkerInput::ReplacementDue),
    ]
}

/// A machine in this state; a stop under way is one that is to be followed by nothing.
fn machine(state: WorkerState) -> WorkerLifecycle {
    let [_, done, failed] = outcomes();
    let outcome = match state {
        WorkerState::Done => Some(done),
        WorkerState::Failed => Some(failed),
        WorkerState::Stopped
        | WorkerState::Waiting
        | WorkerState::Starting
        | WorkerState::Started
        | WorkerState::Ready
        | WorkerState::Repairing
        | WorkerState::Stopping
        | WorkerState::Replacing => None,
    };
    WorkerLifecycle {
        state,
        next: Next::Rest,
        outcome,
    }
}

/// The table as the documentation shows it: a row per input, a column per state; an empty cell
/// changes nothing.
fn table() -> String {
    let mut text = String::from("| |");
    for state in WorkerState::ALL {
        text += &format!(" {state} |");
    }
    text += "\n| --- |";
    text += &" --- |".repeat(WorkerState::ALL.len());
    text += "\n";
    for (name, input) in inputs() {
        text += &format!("| **{name}** |");
        for state in WorkerState::ALL {
            let mut machine = machine(state);
            let next = machine.next;
            let effect = machine.on(input.clone());
            let to = machine.state();
            let mut cell = String::new();
            if to != state {
                cell += &format!(" {to}");
            } else if machine.next != next {
                cell += " then start";
            }
            cell += match effect {
                Some(WorkerEffect::StartTree) => " (start)",
                Some(WorkerEffect::StopTree { .. }) => " (stop)",
                Some(WorkerEffect::Ended(_)) | None => "",
            };
            text += &format!("{cell} |");
        }
        text += "\n";
    }
    text
}

#[test]
fn the_documentation_shows_the_table_of_this_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/supervision.md");
    let page = std::fs::read_to_string(path).unwrap();
    let table = table();
    assert!(
        page.contains(&table),
        "put this table into docs/supervision.md:\n\n{table}"
    );
}

#[test]
fn a_start_during_a_stop_is_not_forgotten() {
    let mut worker = machine(WorkerState::Ready);
    worker.on(WorkerInput::Stop { urgent: false });
    assert_eq!(worker.on(WorkerInput::Start), None);
    worker.on(WorkerInput::TreeEnded(Outcome::Stopped));
    assert_eq!(worker.state(), WorkerState::Waiting);
}

#[test]
fn a_stop_after_it_is_not_either() {
    let mut worker = machine(WorkerState::Ready);
    worker.on(WorkerInput::Restart);
    let urgent = worker.on(WorkerInput::Stop { urgent: true });
    assert_eq!(urgent, Some(WorkerEffect::StopTree { urgent: true }));
    worker.on(WorkerInput::TreeEnded(Outcome::Stopped));
    assert_eq!(worker.state(), WorkerState::Stopped);
}

#[test]
fn the_end_is_kept_until_the_next_start() {
    let mut worker = machine(WorkerState::Ready);
    worker.on(WorkerInput::TreeEnded(Outcome::Failed("why".into())));
    worker.on(WorkerInput::Stop { urgent: false });
    assert_eq!(worker.outcome(), Some(&Outcome::Failed("why".into())));
    worker.on(WorkerInput::Start);
    assert_eq!(worker.outcome(), None);
}
