use super::*;
use proptest::prelude::*;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ended(code: i32) -> Event {
    Event::MainEnded {
        exit: Exit::Code { code },
    }
}

fn exited(code: i32) -> Action {
    Action::Exited(Exit::Code { code })
}

#[test]
fn an_end_kills_the_rest_and_is_told_when_the_output_is() {
    let mut life = Lifecycle::default();
    assert!(life.has_main());
    assert_eq!(
        life.handle(ended(3), at(10)),
        [Action::Kill, Action::CloseInput]
    );
    assert!(!life.has_main() && life.clearing());
    assert_eq!(life.handle(Event::Cleared, at(20)), [Action::Seal]);
    assert!(life.draining());
    assert_eq!(life.deadline(), None, "a slow client has all the time");
    assert_eq!(life.handle(Event::Drained, at(99_000)), [exited(3)]);
    assert!(life.over());
}

#[test]
fn a_closed_session_gets_its_grace_and_no_more() {
    let mut life = Lifecycle::default();
    assert_eq!(
        life.handle(Event::Close, at(0)),
        [Action::Hangup, Action::CloseStreams]
    );
    assert_eq!(life.deadline(), Some(CLOSE_GRACE));
    assert_eq!(life.handle(Event::Timer, at(1)), []);
    assert_eq!(life.handle(Event::Timer, CLOSE_GRACE), [Action::Kill]);
    assert_eq!(life.deadline(), None);
    assert_eq!(life.handle(ended(1), at(3000)), []);
    assert_eq!(life.handle(Event::Cleared, at(3001)), [exited(1)]);
}

#[test]
fn what_a_closed_main_process_leaves_has_the_rest_of_the_grace() {
    let mut life = Lifecycle::default();
    life.handle(Event::Close, at(0));
    assert_eq!(life.handle(ended(0), at(5)), []);
    assert_eq!(life.deadline(), Some(CLOSE_GRACE));
    assert_eq!(life.handle(Event::Timer, CLOSE_GRACE), [Action::Kill]);
    assert_eq!(life.handle(Event::Cleared, at(2001)), [exited(0)]);
}

#[test]
fn processes_that_cannot_be_killed_are_given_up() {
    let mut life = Lifecycle::default();
    life.handle(ended(0), at(0));
    assert_eq!(life.deadline(), Some(CLEAR_TIME));
    assert_eq!(life.handle(Event::Timer, CLEAR_TIME), [Action::Seal]);
}

#[test]
fn a_client_that_goes_while_output_waits_is_not_waited_for() {
    let mut life = Lifecycle::default();
    life.handle(ended(0), at(0));
    assert_eq!(life.handle(Event::Close, at(1)), [Action::CloseStreams]);
    assert_eq!(life.handle(Event::Cleared, at(2)), [exited(0)]);
    let mut life = Lifecycle::default();
    life.handle(ended(0), at(0));
    life.handle(Event::Cleared, at(1));
    assert_eq!(life.handle(Event::Close, at(2)), [exited(0)]);
}

#[test]
fn the_end_of_the_guest_waits_for_nobody() {
    let mut life = Lifecycle::default();
    life.handle(Event::Close, at(0));
    assert_eq!(life.handle(Event::Kill, at(1)), [Action::Kill]);
    let mut life = Lifecycle::default();
    assert_eq!(
        life.handle(Event::Kill, at(1)),
        [Action::Kill, Action::CloseStreams]
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::MainEnded {
            exit: Exit::Signal { signal: 1 }
        }),
        Just(Event::Cleared),
        Just(Event::Drained),
        Just(Event::Close),
        Just(Event::Kill),
        Just(Event::Timer),
    ]
}

proptest! {
    /// Whatever happens in whatever order: one last word, and nothing after it; and from any point,
    /// a main process that ends and time bring the end about.
    #[test]
    fn any_order_of_events_has_one_end(events in prop::collection::vec(any_event(), 0..20)) {
        let mut life = Lifecycle::default();
        let mut said = Vec::new();
        let mut now = at(0);
        let last = [ended(0), Event::Close, Event::Timer, Event::Timer, Event::Timer];
        for event in events.into_iter().chain(last) {
            now += CLEAR_TIME + CLOSE_GRACE;
            let over = life.over();
            let actions = life.handle(event, now);
            prop_assert!(!over || actions.is_empty());
            said.extend(actions);
        }
        prop_assert!(life.over());
        let exits = said.iter().filter(|a| matches!(a, Action::Exited(_))).count();
        prop_assert_eq!(exits, 1);
    }
}
