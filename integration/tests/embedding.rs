//! The library in a program of its own kind: several supervisors, several runtimes, early ends.

// In a test, an unwrap is an assertion; the lint knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

use iii_integration::program::{descendants, is_alive};
use iii_integration::{binaries, shell, worker_name};
use iii_supervisor::{
    AddWorkerError, RequestError, Scope, Shutdown, Supervisor, Worker, WorkerState,
};

async fn supervisor() -> Supervisor {
    Supervisor::builder()
        .helper_dir(binaries())
        .start()
        .await
        .unwrap()
}

async fn line(worker: &Worker, holds: &str) -> String {
    let mut lines = worker.logs();
    loop {
        let line = lines.next().await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&line.text).into_owned();
        if text.contains(holds) {
            return text;
        }
    }
}

#[test]
fn two_supervisors_in_one_process_do_not_know_of_each_other() {
    let many = tokio::runtime::Runtime::new().unwrap();
    let single = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let script = "echo \"boot $III_BOOT_ID\"; exec sleep 1000";
    // The same name twice: names are a supervisor's own.
    let first = many.block_on(supervisor());
    let mine = many.block_on(first.add(shell("same", script))).unwrap();
    let second = single.block_on(supervisor());
    let yours = single.block_on(second.add(shell("same", script))).unwrap();
    let kept = single.block_on(yours.ready()).unwrap();
    assert_eq!(kept.state, WorkerState::Ready);
    many.block_on(mine.ready()).unwrap();
    let (a, b) = (
        many.block_on(line(&mine, "boot ")),
        single.block_on(line(&yours, "boot ")),
    );
    assert_ne!(a, b, "each has a VM of its own");

    let before = descendants(std::process::id());
    drop(first);
    let gone = before.iter().filter(|pid| !is_alive(**pid)).count();
    assert!(
        gone >= 4,
        "the shims and programs of QEMU and iii-vfs have ended with it"
    );
    assert!(matches!(
        many.block_on(mine.status()),
        Err(RequestError::Ended)
    ));

    let status = single.block_on(yours.status()).unwrap();
    assert_eq!((status.boot, status.workload), (kept.boot, kept.workload));
    assert!(is_alive(status.vmm_pid.unwrap()));
    // A runtime that goes takes nothing with it that the supervisor needs.
    drop(single);
    let next = tokio::runtime::Runtime::new().unwrap();
    next.block_on(yours.restart(Scope::Vm)).unwrap();
    next.block_on(second.shutdown(Shutdown::Now));
    assert_eq!(
        next.block_on(yours.status()).unwrap().state,
        WorkerState::Stopped
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name() {
    let supervisor = supervisor().await;
    let nobody = supervisor.worker(worker_name("nobody"));
    let unknown = nobody.start().await.unwrap_err().to_string();
    assert!(unknown.contains("nobody"), "{unknown}");
    let mut spec = shell("api", "exec sleep 1000");
    spec.depends_on
        .push(iii_supervisor::spec::Dependency::ready(worker_name("db")));
    match supervisor.add(spec).await {
        Err(AddWorkerError::Prepare(faults)) => {
            assert!(faults[0].to_string().contains("db"), "{}", faults[0]);
        }
        other => panic!("{other:?}"),
    }
    let mut circle = [shell("a", "exit 0"), shell("b", "exit 0")];
    for (worker, on) in [(0, "b"), (1, "a")] {
        let dependency = iii_supervisor::spec::Dependency::ready(worker_name(on));
        circle[worker].depends_on.push(dependency);
    }
    let faults = supervisor.prepare(circle.to_vec()).await.unwrap_err();
    assert!(faults[0].to_string().contains("a → b → a"), "{}", faults[0]);
    let worker = supervisor.add(shell("a", "exec sleep 1000")).await.unwrap();
    assert!(matches!(
        supervisor.add(shell("a", "exit 0")).await,
        Err(AddWorkerError::Add(_))
    ));
    worker.stop(Shutdown::Now).await.unwrap();
    let refused = worker.restart(Scope::Workload).await.unwrap_err();
    assert!(
        matches!(refused, RequestError::NotRunning { .. }),
        "{refused}"
    );
}
