//! A host program that waits for any child takes ours too. A file of its own, since it would take
//! those of other tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use iii_vmm::process::{ChildExit, Signal};
use nix::errno::Errno;
use nix::sys::wait::waitpid;

#[test]
fn an_exit_status_that_somebody_else_has_waited_for_is_still_known() {
    let child = spawn(shell("exec sleep 1000"));
    let waiter = std::thread::spawn(|| {
        let mut taken = Vec::new();
        loop {
            match waitpid(None, None) {
                Ok(status) => taken.extend(status.pid()),
                Err(Errno::EINTR) => {}
                Err(_) => return taken,
            }
        }
    });
    child.kill(Signal::SIGUSR1).unwrap();
    assert_eq!(
        child.wait_blocking(LONG),
        Some(ChildExit::Signal(Signal::SIGUSR1 as i32))
    );
    let taken = waiter.join().unwrap();
    // Either of the two waiters may have been first; both ways the status was right.
    assert!(taken.len() <= 1, "{taken:?}");
}
