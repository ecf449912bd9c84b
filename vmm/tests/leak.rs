//! A thousand children leave nothing behind. A file of its own, since it counts the process's
//! descriptors.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc::channel;

use common::*;
use iii_vmm::process::{ChildExit, Spawner};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn a_thousand_children_leave_nothing_behind() {
    let spawner = Spawner::global().unwrap();
    assert_eq!(run(shell("exit 0")).0, ChildExit::Code(0));
    // A child's end is announced before the spawner has closed its descriptors, which is why this
    // is a bound.
    let before = (descriptors(), threads());
    let own = std::process::id().cast_signed();
    for round in 0..125 {
        let (send, received) = channel();
        let handles: Vec<_> = (0..8)
            .map(|n| {
                let send = send.clone();
                // Every eighth cannot be executed.
                let spec = match n {
                    7 => iii_vmm::process::ChildSpec::new("/none/such", "test"),
                    _ => shell(&format!("exit {n}")),
                };
                let (started, start) = channel();
                let failed = send.clone();
                let on_start = move |result: Result<_, _>| {
                    if result.is_err() {
                        failed.send((n, None)).unwrap();
                    }
                    started.send(result).unwrap();
                };
                let on_exit = move |exit| send.send((n, Some(exit))).unwrap();
                spawner
                    .spawn_with(spec, &places(), on_start, on_exit)
                    .unwrap();
                start
            })
            .collect();
        drop(send);
        let mut ends: Vec<_> = received.iter().collect();
        ends.sort_by_key(|(n, _)| *n);
        let expected: Vec<_> = (0..8)
            .map(|n| (n, (n < 7).then_some(ChildExit::Code(n))))
            .collect();
        assert_eq!(ends, expected, "round {round}");
        for (n, start) in handles.into_iter().enumerate() {
            assert_eq!(start.recv().unwrap().is_ok(), n < 7);
        }
    }
    wait_for("no more descriptors than before", || {
        descriptors() <= before.0
    });
    assert!(threads() <= before.1);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let children = task.unwrap().path().join("children");
        assert_eq!(std::fs::read_to_string(children).unwrap(), "", "of {own}");
    }
}
