//! A child's life as a state machine, without any I/O.
//!
//! The spawner turns what epoll says into an [`Event`], and does what the returned [`Action`]s say.

use iii_proto::shim::{ShimExit, ShimStage};

use super::handle::ChildExit;

/// Why a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartFailure {
    /// The shim said so.
    Reported { stage: ShimStage, errno: i32 },
    /// The deadline passed.
    TimedOut,
    /// The shim ended without a word.
    ShimDied,
}

/// Which of a child's processes are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// The shim, with how it ended.
    pub(super) shim: Option<ChildExit>,
    /// The init.
    pub(super) init: bool,
    /// The program.
    pub(super) program: bool,
}

/// Where a child is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The shim was started; nothing was heard of the program.
    Starting,
    /// The start has failed; the shim is not reaped yet.
    Failing(StartFailure),
    /// The program was executed. Its status, once reported.
    Running {
        report: Option<ShimExit>,
        gone: Gone,
    },
    /// Nothing is left of it.
    Ended,
}

/// What happens to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The shim reports that the program was executed.
    Started,
    /// The shim reports that it was not.
    Failed { stage: ShimStage, errno: i32 },
    /// The shim reports the program's end.
    Reported(ShimExit),
    /// The start took too long.
    Deadline,
    /// The shim was reaped.
    ShimReaped(ChildExit),
    /// The init is gone.
    InitGone,
    /// The program is gone.
    ProgramGone,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Hand out the handle.
    AnnounceStart,
    /// Tell the caller that there is no child. `Some` is the shim's end.
    AnnounceFailure(StartFailure, ChildExit),
    /// SIGKILL to the shim.
    KillShim,
    /// SIGKILL to init and program: their shim is gone, and they should be too.
    KillRest,
    /// Nothing is left: tell whoever waits.
    AnnounceExit(ChildExit),
}

/// One step.
pub(super) fn step(state: State, event: Event) -> (State, Option<Action>) {
    match (state, event) {
        (State::Starting, Event::Started) => (
            State::Running {
                report: None,
                gone: Gone::default(),
            },
            Some(Action::AnnounceStart),
        ),
        (State::Starting, Event::Failed { stage, errno }) => (
            State::Failing(StartFailure::Reported { stage, errno }),
            None,
        ),
        (State::Starting, Event::Deadline) => (
            State::Failing(StartFailure::TimedOut),
            Some(Action::KillShim),
        ),
        // The init was killed before it could execute the program.
        (State::Starting, Event::Reported(_)) => (State::Failing(StartFailure::ShimDied), None),
        (State::Starting, Event::ShimReaped(exit)) => (
            State::Ended,
            Some(Action::AnnounceFailure(StartFailure::ShimDied, exit)),
        ),
        // Their pidfds come with `Started`.
        (State::Starting, Event::InitGone | Event::ProgramGone) => (State::Starting, None),

        (State::Failing(failure), Event::ShimReaped(exit)) => {
            (State::Ended, Some(Action::AnnounceFailure(failure, exit)))
        }
        // `Started` can cross a deadline: the shim is being killed, and the program with it.
        (
            State::Failing(failure),
            Event::Started
            | Event::Failed { .. }
            | Event::Reported(_)
            | Event::Deadline
            | Event::InitGone
            | Event::ProgramGone,
        ) => (State::Failing(failure), None),

        (State::Running { report: _, gone }, Event::Reported(status)) => (
            State::Running {
                report: Some(status),
                gone,
            },
            None,
        ),
        (State::Running { report, gone }, Event::ShimReaped(exit)) => {
            let gone = Gone {
                shim: Some(exit),
                ..gone
            };
            match settle(report, gone) {
                (running @ State::Running { .. }, None) => (running, Some(Action::KillRest)),
                settled => settled,
            }
        }
        (State::Running { report, gone }, Event::InitGone) => {
            settle(report, Gone { init: true, ..gone })
        }
        (State::Running { report, gone }, Event::ProgramGone) => settle(
            report,
            Gone {
                program: true,
                ..gone
            },
        ),
        // A shim says these once, and before the program runs; one that repeats itself changes
        // nothing.
        (
            running @ State::Running { .. },
            Event::Started | Event::Failed { .. } | Event::Deadline,
        ) => (running, None),

        (
            State::Ended,
            Event::Started
            | Event::Failed { .. }
            | Event::Reported(_)
            | Event::Deadline
            | Event::ShimReaped(_)
            | Event::InitGone
            | Event::ProgramGone,
        ) => (State::Ended, None),
    }
}

/// Ends the life once all three processes are gone.
fn settle(report: Option<ShimExit>, gone: Gone) -> (State, Option<Action>) {
    match gone {
        Gone {
            shim: Some(shim),
            init: true,
            program: true,
        } => {
            // The shim's own end repeats the program's; what it said holds also if that was lost.
            let exit = report.map_or(shim, ChildExit::from);
            (State::Ended, Some(Action::AnnounceExit(exit)))
        }
        _ => (State::Running { report, gone }, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENOENT: i32 = 2;

    fn run(events: &[Event]) -> (State, Vec<Action>) {
        let mut state = State::Starting;
        let mut actions = Vec::new();
        for &event in events {
            let (next, action) = step(state, event);
            state = next;
            actions.extend(action);
        }
        (state, actions)
    }

    #[test]
    fn an_exit_is_announced_only_when_all_three_are_gone() {
        let exit = ShimExit::Code(3);
        let (state, actions) = run(&[
            Event::Started,
            Event::ProgramGone,
            Event::Reported(exit),
            Event::InitGone,
        ]);
        assert_ne!(state, State::Ended);
        assert_eq!(actions, [Action::AnnounceStart]);
        let (state, action) = step(state, Event::ShimReaped(ChildExit::Code(3)));
        assert_eq!(state, State::Ended);
        assert_eq!(action, Some(Action::AnnounceExit(ChildExit::Code(3))));
    }

    #[test]
    fn a_killed_shim_takes_the_rest_with_it_before_the_exit_is_announced() {
        let (_, actions) = run(&[
            Event::Started,
            Event::ShimReaped(ChildExit::Signal(9)),
            Event::InitGone,
            Event::ProgramGone,
        ]);
        assert_eq!(
            actions,
            [
                Action::AnnounceStart,
                Action::KillRest,
                Action::AnnounceExit(ChildExit::Signal(9))
            ]
        );
    }

    #[test]
    fn the_report_outweighs_a_lost_status() {
        let (_, actions) = run(&[
            Event::Started,
            Event::Reported(ShimExit::Code(7)),
            Event::InitGone,
            Event::ProgramGone,
            Event::ShimReaped(ChildExit::Unknown),
        ]);
        assert_eq!(
            actions.last(),
            Some(&Action::AnnounceExit(ChildExit::Code(7)))
        );
    }

    #[test]
    fn failures_are_announced_once_the_shim_is_reaped() {
        let stage = ShimStage::Execute;
        let failed = Event::Failed {
            stage,
            errno: ENOENT,
        };
        let (state, actions) = run(&[failed]);
        assert!(actions.is_empty());
        let failure = StartFailure::Reported {
            stage,
            errno: ENOENT,
        };
        assert_eq!(
            step(state, Event::ShimReaped(ChildExit::Code(0))).1,
            Some(Action::AnnounceFailure(failure, ChildExit::Code(0)))
        );

        let (_, actions) = run(&[
            Event::Deadline,
            Event::Started,
            Event::ShimReaped(ChildExit::Signal(9)),
        ]);
        assert_eq!(
            actions,
            [
                Action::KillShim,
                Action::AnnounceFailure(StartFailure::TimedOut, ChildExit::Signal(9))
            ]
        );
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            Just(Event::Failed {
                stage: ShimStage::Fork,
                errno: 11
            }),
            (0..256i32).prop_map(|code| Event::Reported(ShimExit::Code(code))),
            Just(Event::Deadline),
            Just(Event::ShimReaped(ChildExit::Signal(9))),
            Just(Event::InitGone),
            Just(Event::ProgramGone),
        ]
    }

    proptest! {
        #[test]
        fn exactly_one_end_is_announced(events in prop::collection::vec(any_event(), 0..20)) {
            let (state, actions) = run(&events);
            let starts = actions.iter().filter(|a| matches!(a, Action::AnnounceStart)).count();
            let failures =
                actions.iter().filter(|a| matches!(a, Action::AnnounceFailure(..))).count();
            let exits = actions.iter().filter(|a| matches!(a, Action::AnnounceExit(_))).count();
            prop_assert!(starts + failures <= 1);
            prop_assert!(exits <= starts);
            prop_assert_eq!(state == State::Ended, failures + exits == 1);
        }
    }
}
