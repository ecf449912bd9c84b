//! Disks that outlive a VM: what is on them after any end, who may use them, and how they grow.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use iii_actors::spec::{DiskMountSpec, DiskSpec, WorkerSpec};
use iii_integration::program::{Run, home, program, workers_file};
use iii_integration::{Bench, is, shell, worker_name};
use iii_proto::restart::RestartPolicy;
use iii_supervisor::{EventKind, Fault};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

fn persistent(name: &str, script: &str, size: u64) -> WorkerSpec {
    let mut spec = shell(name, script);
    spec.persist = Some(size);
    spec.vm_restart = RestartPolicy {
        initial: Duration::from_millis(10),
        limit: None,
        ..RestartPolicy::default()
    };
    spec
}

fn disk_of(state: &Path, worker: &str) -> PathBuf {
    state.join("disks").join(format!("{worker}.ext4"))
}

/// Looks for faults and mends none.
fn assert_clean(disk: &Path) {
    let check = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(disk)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
}

/// Writes numbered files of its own, each with a digest of what it holds, and says a number only
/// once its file is on the disk. Says first what an earlier life has left.
const WRITER: &str = r#"
import hashlib, os, sys

def body(n):
    return (b"%d " % n) * (n % 7000 + 1)

os.makedirs("/home/worker/data", exist_ok=True)
os.chdir("/home/worker/data")
whole = []
for name in os.listdir("."):
    if name.isdigit() and open(name, "rb").read() == body(int(name)):
        whole.append(int(name))
print("has", *sorted(whole), flush=True)
n = max(whole, default=0)
directory = os.open(".", os.O_RDONLY)
while True:
    n += 1
    with open("new", "wb") as file:
        file.write(body(n))
        file.flush()
        os.fsync(file.fileno())
    os.rename("new", str(n))
    os.fsync(directory)
    print("wrote", n, flush=True)
"#;

fn numbers(line: &str) -> impl Iterator<Item = u64> + '_ {
    line.split(' ').skip(1).map(|word| word.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fsynced_is_there_after_the_vmm_was_killed_and_the_file_system_is_whole() {
    let state = tempfile::tempdir().unwrap();
    let mut spec = persistent("writer", "", 64 * MIB);
    spec.command = vec!["/usr/bin/python3".into(), "-c".into(), WRITER.into()];
    let mut bench = Bench::keeping(state.path()).await;
    bench.add(vec![spec]).await;
    let mut told = BTreeSet::new();
    let (mut at, mut mark) = (0, 0);
    for life in 1..=4 {
        let (has, next) = bench.line_from(at, "writer", "has").await;
        let has: BTreeSet<u64> = numbers(&has).collect();
        let lost: Vec<&u64> = told.difference(&has).collect();
        assert!(
            lost.is_empty(),
            "life {life} lost {lost:?} of {}",
            told.len()
        );
        at = next;
        for _ in 0..5 * life {
            at = bench.line_from(at, "writer", "wrote").await.1;
        }
        bench.hurt("writer", Fault::KillVmm).await;
        let crashed = |event: &iii_supervisor::Event| {
            matches!(&event.kind, EventKind::VmCrashed { .. } if is(event, "writer")).then_some(())
        };
        mark = bench.event(mark, "crash of the VM", crashed).await.1;
        let wrote = bench
            .lines
            .iter()
            .map(|line| String::from_utf8_lossy(&line.text));
        told.extend(
            wrote
                .filter(|t| t.starts_with("wrote "))
                .flat_map(|t| numbers(&t).collect::<Vec<_>>()),
        );
    }
    bench.line_from(at, "writer", "has").await;
    bench.stop().await;
    // The guest has closed it in order, after three repairs by its journal.
    assert_clean(&disk_of(state.path(), "writer"));
    assert!(told.len() >= 50, "{}", told.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_keeps_its_changes_over_a_restart_and_over_a_new_supervisor() {
    let state = tempfile::tempdir().unwrap();
    // A file beside /usr, one in /usr, a lower directory that is renamed, a file that is deleted.
    let script = "\
        if [ -e /opt/lives ]; then \
            test -e /usr/local/bin/mine && test ! -e /etc/services && test -d /usr/games-renamed; \
        else \
            echo 0 > /opt/lives; touch /usr/local/bin/mine; rm /etc/services; \
            mv /usr/games /usr/games-renamed; \
        fi && echo $(( $(cat /opt/lives) + 1 )) > /opt/lives && echo life $(cat /opt/lives) && \
        grep -q ' keeper$' /etc/hosts && echo named && exec sleep 1000";
    let spec = || {
        let mut spec = persistent("keeper", script, 64 * MIB);
        spec.user = Some(iii_actors::spec::UserSpec::Ids { uid: 0, gid: 0 });
        spec
    };
    for supervisor in 0..2 {
        let mut bench = Bench::keeping(state.path()).await;
        bench.add(vec![spec()]).await;
        let first = format!("life {}", 2 * supervisor + 1);
        let at = bench.line_from(0, "keeper", &first).await.1;
        let at = bench.line_from(at, "keeper", "named").await.1;
        let worker = bench.worker("keeper");
        worker.restart(iii_supervisor::Scope::Vm).await.unwrap();
        let second = format!("life {}", 2 * supervisor + 2);
        let at = bench.line_from(at, "keeper", &second).await.1;
        bench.line_from(at, "keeper", "named").await;
        let disks = bench.supervisor.disks().unwrap();
        assert_eq!(disks.len(), 1);
        assert_eq!(
            (disks[0].worker.as_str(), &disks[0].name),
            ("keeper", &None)
        );
        assert_eq!(disks[0].limit, 64 * MIB);
        assert!(disks[0].used > 0 && disks[0].used < 32 * MIB, "{disks:?}");
        bench.stop().await;
        let disk = disk_of(state.path(), "keeper");
        assert_clean(&disk);
        let mode = std::fs::metadata(&disk).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_a_quota_that_grows_with_its_spec_and_gives_back_what_is_deleted() {
    let state = tempfile::tempdir().unwrap();
    let script = "\
        cd /home/worker; \
        if ! head -c 40000000 /dev/zero | tr '\\0' x > big; then echo full; fi; sync; \
        echo holds $(stat -c %s big); rm big; sync; echo deleted; exec sleep 1000";
    let run = async |size| {
        let mut bench = Bench::keeping(state.path()).await;
        bench.add(vec![persistent("quota", script, size)]).await;
        let (holds, at) = bench.line_from(0, "quota", "holds").await;
        let full = bench.lines.iter().any(|line| line.text == b"full");
        bench.line_from(at, "quota", "deleted").await;
        bench.stop().await;
        assert_clean(&disk_of(state.path(), "quota"));
        (full, numbers(&holds).next().unwrap())
    };
    let (full, small) = run(32 * MIB).await;
    assert!(full && small < 32_000_000, "{small}");
    let (full, large) = run(96 * MIB).await;
    assert!(!full, "the file system has grown");
    assert_eq!(large, 40_000_000);
    let image = std::fs::metadata(disk_of(state.path(), "quota")).unwrap();
    assert!(
        image.blocks() * 512 < 30_000_000,
        "{} blocks",
        image.blocks()
    );

    let bench = Bench::keeping(state.path()).await;
    let smaller = vec![persistent("quota", script, 32 * MIB)];
    let errors = bench.supervisor.prepare(smaller).await.unwrap_err();
    let text = errors[0].to_string();
    assert!(
        text.contains("from 96MiB to 32MiB: a disk only grows"),
        "{text}"
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_a_disk_are_mounted_and_belong_to_the_workload() {
    let state = tempfile::tempdir().unwrap();
    let project = tempfile::tempdir().unwrap();
    std::fs::create_dir(project.path().join("deps")).unwrap();
    std::fs::write(project.path().join("deps/of-the-host"), "").unwrap();
    let script = "\
        cd /app && ls deps && stat -c '%u:%g' deps /var/cache/mine && \
        echo $(cat deps/n 2>/dev/null)x > deps/n && cp deps/n /var/cache/mine/copy && \
        echo $(cat deps/n) && exec sleep 1000";
    let mut spec = shell("cached", script);
    spec.mounts = vec![iii_actors::spec::MountSpec {
        host: project.path().to_owned(),
        guest: "/app".into(),
        read_only: false,
    }];
    let mount = |directory: &str, guest: &str| DiskMountSpec {
        directory: directory.into(),
        guest: guest.into(),
    };
    spec.disks = vec![DiskSpec {
        name: "cache".into(),
        size: 32 * MIB,
        mounts: vec![mount("a/deps", "/app/deps"), mount("", "/var/cache/mine")],
    }];
    for runs in ["x", "xx"] {
        let mut bench = Bench::keeping(state.path()).await;
        bench.add(vec![spec.clone()]).await;
        bench.line("cached", runs).await;
        assert!(bench.lines.iter().all(|line| line.text != b"of-the-host"));
        let owned = bench.lines.iter().filter(|line| line.text == b"1000:1000");
        assert_eq!(owned.count(), 2);
        bench.stop().await;
    }
    let left: Vec<_> = std::fs::read_dir(project.path().join("deps"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 1, "nothing of the guest's is on the host");
    assert_clean(&state.path().join("disks/cached.cache.ext4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_something_else_uses_is_not_given_to_a_vm() {
    let state = tempfile::tempdir().unwrap();
    let mut bench = Bench::keeping(state.path()).await;
    let spec = persistent("shared", "echo up; exec sleep 1000", 32 * MIB);
    let mut prepared = bench.supervisor.prepare(vec![spec]).await.unwrap();
    let other = std::fs::File::open(disk_of(state.path(), "shared")).unwrap();
    other.lock().unwrap();
    bench
        .supervisor
        .launch(prepared.pop().unwrap())
        .await
        .unwrap();
    let refused = |event: &iii_supervisor::Event| match &event.kind {
        EventKind::VmCrashed { cause, .. } if is(event, "shared") => Some(cause.clone()),
        _ => None,
    };
    let (cause, _) = bench.event(0, "refusal", refused).await;
    assert!(cause.contains("another VM or program uses it"), "{cause}");
    drop(other);
    bench.line("shared", "up").await;
    // The VM holds it now.
    let other = std::fs::File::open(disk_of(state.path(), "shared")).unwrap();
    assert!(matches!(
        other.try_lock(),
        Err(std::fs::TryLockError::WouldBlock)
    ));
    bench
        .supervisor
        .remove(worker_name("shared"))
        .await
        .unwrap();
    other.try_lock().unwrap();
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_state_directory_a_disk_is_refused() {
    let bench = Bench::empty().await;
    let spec = persistent("nowhere", "true", 32 * MIB);
    let errors = bench.supervisor.prepare(vec![spec]).await.unwrap_err();
    assert!(errors[0].to_string().contains("state_dir"), "{}", errors[0]);
    bench.stop().await;
}

#[test]
fn reset_empties_a_disk_that_is_not_in_use() {
    let (_directory, file) = workers_file(
        "
workers:
  kept:
    root: {persist: 32MiB}
    command: [/bin/sh, -c, 'echo x >> notes; echo has $(wc -l < notes); exec sleep 1000']
",
    );
    let home = home();
    let start = || {
        let mut command = program();
        command
            .args(["run", "-f"])
            .arg(&file)
            .env("III_HOME", home.path());
        Run::start(command)
    };
    let reset = || {
        let mut command = program();
        command.args(["reset", "kept", "-f"]).arg(&file);
        command.env("III_HOME", home.path()).output().unwrap()
    };
    for expected in ["has 1", "has 2"] {
        let mut run = start();
        run.line(expected);
        let refused = reset();
        assert_eq!(refused.status.code(), Some(1));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("stop worker kept first"), "{said}");
        run.signal(Signal::SIGINT);
        assert_eq!(run.wait().code(), Some(0), "{}", run.seen.join("\n"));
    }
    let done = reset();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.starts_with("kept: root emptied, "), "{said}");
    let mut run = start();
    run.line("has 1");
}
