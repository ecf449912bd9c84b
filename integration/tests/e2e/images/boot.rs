//! Workers on images, in VMs: what the image's makers meant is what the workload sees, whoever
//! started iii-super.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_actors::spec::{HealthCheck, ImageSpec, MountSpec, Probe, RootSpec, WorkerSpec};
use iii_image::Importer;
use iii_image::store::collect::RemoveError;
use iii_integration::images::{Layer, Registry, layout, who_runs_it};
use iii_integration::program::{Run, as_user, workers_file};
use iii_integration::{Bench, binaries, worker_name};
use iii_supervisor::Supervisor;
use nix::sys::signal::Signal;

use super::puller;

/// An entry point as images have them: it looks around, and becomes what it is given.
const ENTRY: &str = r#"#!/bin/sh
echo "user $(id -u):$(id -g) $HOME"
echo "args $*"
echo "mode $MODE"
echo "cwd $(pwd)"
echo "owned $(stat -c %u:%g:%a /data/owned)"
echo "set-id $(/who)"
echo "run $(stat -c %u:%a /run/app)"
echo "device $(stat -c %t:%T /null)"
echo "hosts $(grep -c host.iii.internal /etc/hosts) $(cat /etc/hostname)"
echo "linked $(stat -c %h /one)"
touch /data/new && echo "write ok"
touch /etc/new 2>&1 | grep -c denied
echo "init $(cat /proc/1/comm)"
exec "$@"
"#;

/// What it says in worker `name`.
fn expected(name: &str) -> Vec<String> {
    [
        "user 999:998 /home/app",
        "args sleep 1000",
        "mode image",
        "cwd /srv/work",
        "owned 999:999:640",
        "set-id uid 999 euid 0",
        "run 999:750",
        "device 1:3",
        &format!("hosts 1 {name}"),
        "linked 2",
        "write ok",
        "init vm-init",
    ]
    .map(str::to_owned)
    .to_vec()
}

const CONFIG: [(&str, &str); 7] = [
    ("stopsignal", "SIGINT"),
    ("user", "app"),
    ("env", "MODE=image"),
    ("entrypoint", "/entry"),
    ("cmd", "sleep"),
    ("cmd", "1000"),
    // Not in the image: it is made.
    ("workingdir", "/srv/work"),
];

fn application(directory: &Path) -> PathBuf {
    let who = who_runs_it(directory);
    let lower = Layer::busybox()
        .directory("etc", 0o755, 0)
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n", 0o644, 0)
        .directory("data", 0o755, 999)
        .file("data/owned", b"999's\n", 0o644, 0)
        .file("who", &who, 0o4755, 0)
        .file("one", b"twice\n", 0o644, 0)
        .link("two", "one")
        .device("null", 1, 3);
    let upper = Layer::new()
        .file(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\napp:x:999:998::/home/app:/bin/sh\n",
            0o644,
            0,
        )
        .file("data/owned", b"999's\n", 0o640, 999)
        .directory("run/app", 0o750, 999)
        .file("entry", ENTRY.as_bytes(), 0o755, 0);
    layout(directory, vec![lower, upper], &CONFIG)
}

/// A supervisor with a store of its own that holds the application as `app:1`.
async fn bench(directory: &Path) -> Bench {
    let layout = application(directory);
    let puller = puller(directory);
    let name = "app:1".parse().unwrap();
    let importer = Importer::open(&puller, &layout, &()).unwrap();
    importer.import(Some(&name)).unwrap();
    Bench::build(Supervisor::builder().images_dir(directory.join("images"))).await
}

fn on_image(worker: &str, command: &[&str]) -> WorkerSpec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let mut spec = WorkerSpec::new(worker_name(worker), command);
    spec.root = RootSpec::Image(ImageSpec::new("app:1".parse().unwrap()));
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_one_image_see_it_as_it_was_made_and_keep_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path()).await;
    let mut probed = on_image("probed", &[]);
    probed.health = Some(HealthCheck {
        probe: Probe::Exec(vec!["test".into(), "-f".into(), "/data/owned".into()]),
        interval_ms: 200,
        timeout_ms: 30_000,
        retries: 3,
        start_period_ms: 60_000,
    });
    // As the project of somebody else on the host.
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("input"), "from the host\n").unwrap();
    chown(&project, Some(1234), Some(1234)).ok();
    chown(project.join("input"), Some(1234), Some(1234)).ok();
    let mut mounted = on_image("mounted", &["sh", "-c", "cat /app/input; sleep 1000"]);
    mounted.cwd = Some("/app".into());
    mounted.env = vec![("MODE".into(), "own".into())];
    mounted.mounts = vec![MountSpec {
        host: project.clone(),
        guest: "/app".into(),
        read_only: false,
    }];
    bench.add(vec![probed, mounted]).await;
    for line in expected("probed") {
        bench.line("probed", &line).await;
    }
    bench.ready(0, "probed").await;
    for line in [
        "user 999:998",
        "args sh -c cat",
        "mode own",
        "cwd /app",
        "from the host",
    ] {
        bench.line("mounted", line).await;
    }
    // Its own changes are its own.
    assert_eq!(bench.output("probed", "ls /data").await, "new\nowned");
    assert_eq!(
        bench.output("probed", "touch /data/mine && id -u").await,
        "999"
    );
    assert_eq!(bench.output("mounted", "ls /data").await, "new\nowned");
    // Files on the mount are the workload's in the guest and the user's on the host.
    assert_eq!(
        bench.output("mounted", "stat -c %u:%g . input").await,
        "999:998\n999:998"
    );
    bench.output("mounted", "echo made > made").await;
    let made = fs::metadata(project.join("made")).unwrap();
    let of_project = fs::metadata(&project).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(
        (made.uid(), made.gid()),
        (of_project.uid(), of_project.gid())
    );

    // One file for both, and nobody takes it away.
    let puller = puller(directory.path());
    assert_eq!(super::count(&puller, "roots"), 1);
    let name = "app:1".parse().unwrap();
    let record = puller.store.record(&name).unwrap().unwrap();
    assert!(puller.store.is_in_use(&record).unwrap());
    let error = puller.store.remove(&name).unwrap_err();
    assert!(matches!(error, RemoveError::InUse(_)), "{error}");
    // A new VM of the worker still has it.
    let (before, _, _) = bench.ready(0, "mounted").await;
    let from = bench.mark();
    let lines = bench.lines.len();
    bench
        .worker("mounted")
        .restart(iii_supervisor::Scope::Vm)
        .await
        .unwrap();
    let (after, _, _) = bench.ready(from, "mounted").await;
    assert_ne!(before, after);
    bench.line_from(lines, "mounted", "from the host").await;
    let bench = bench.stop().await;
    drop(bench);
    assert!(!puller.store.is_in_use(&record).unwrap());
    puller.store.remove(&name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_persists_lies_over_the_image_and_its_run_is_fresh() {
    let directory = tempfile::tempdir().unwrap();
    let layout = application(directory.path());
    let puller = puller(directory.path());
    let name = "app:1".parse().unwrap();
    let importer = Importer::open(&puller, &layout, &()).unwrap();
    importer.import(Some(&name)).unwrap();
    let builder = Supervisor::builder()
        .images_dir(directory.path().join("images"))
        .state_dir(directory.path().join("state"));
    let mut bench = Bench::build(builder).await;
    let mut worker = on_image("kept", &[]);
    worker.persist = Some(64 << 20);
    bench.add(vec![worker]).await;
    let (_, _, _) = bench.ready(0, "kept").await;
    bench
        .output(
            "kept",
            "echo 1 > /data/kept; echo 1 > /run/app/pid; echo 1 > /tmp/t; sync",
        )
        .await;
    let from = bench.mark();
    let worker = bench.worker("kept");
    worker.restart(iii_supervisor::Scope::Vm).await.unwrap();
    bench.ready(from, "kept").await;
    let script = "cat /data/kept; ls /run/app /tmp; stat -c %u:%a /run/app /tmp /who";
    let said = bench.output("kept", script).await;
    assert_eq!(said, "1\n/run/app:\n\n/tmp:\n999:750\n0:1777\n0:4755");
    drop(bench.stop().await);
}

/// A copy of what `iii-super` needs, which anybody may read, and a home filled with the firmware
/// that the other tests use.
fn anybody(directory: &Path, owner: u32) -> (Command, PathBuf) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let own = binaries();
    for name in ["iii-super", "iii-shim", "iii-vfs"] {
        fs::copy(own.join(name), directory.join(name)).unwrap();
    }
    let cache = std::env::var_os("III_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".iii"),
        PathBuf::from,
    );
    let home = directory.join("home");
    fs::create_dir(&home).unwrap();
    for part in ["lib", "cache"] {
        let copied = Command::new("cp")
            .arg("-r")
            .arg(cache.join(part))
            .arg(&home)
            .status();
        assert!(copied.unwrap().success());
    }
    let owned = Command::new("chown")
        .args(["-R", &format!("{owner}:{owner}")])
        .arg(&home)
        .status();
    assert!(owned.unwrap().success());
    let mut command = as_user(owner, &Command::new(directory.join("iii-super")));
    command.env("III_HOME", &home).env("HOME", &home);
    (command, home)
}

#[test]
fn an_ordinary_user_runs_what_a_registry_has_with_owners_and_set_id_bits() {
    if !nix::unistd::geteuid().is_root() {
        // Then the other tests here are those of an ordinary user.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    let name = registry.push(&application(directory.path()), "team/app:1", &[]);
    let (mut command, home) = anybody(directory.path(), 65534);
    let (_dir, file) = workers_file(&format!("workers:\n  ordinary:\n    image: {name}\n"));
    fs::set_permissions(file.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    command.arg("run").arg("-f").arg(&file);
    let mut run = Run::start(command);
    run.line(&format!("pulling {name}: 2 layers"));
    for line in expected("ordinary") {
        run.said(&line);
    }
    // Of all this nothing was unpacked onto the host.
    let image = home.join("images/roots");
    assert_eq!(fs::read_dir(&image).unwrap().count(), 1);
    run.signal(Signal::SIGINT);
    let status = run.wait();
    assert_eq!(status.code(), Some(0), "{}", run.seen.join("\n"));
}

#[test]
fn what_an_image_lacks_is_told_before_anything_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    let layout = application(directory.path());
    let mut import = super::image(&home, &["import", "--name", "app:1"]);
    assert!(import.arg(&layout).status().unwrap().success());
    for part in ["lib", "cache"] {
        let cache = std::env::var_os("III_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".iii"),
            PathBuf::from,
        );
        std::os::unix::fs::symlink(cache.join(part), home.join(part)).unwrap();
    }
    for (worker, expected) in [
        (
            "image: app:1\n    entrypoint: [node, a.js]",
            "the image app:1 has none in its PATH",
        ),
        (
            "image: app:1\n    entrypoint: []\n    command: slep 5",
            "did you mean `sleep`?",
        ),
        (
            "image: app:1\n    entrypoint: []",
            "the image app:1 names none; name one",
        ),
        ("image: app:1\n    user: postgres", "one of: root, app"),
        (
            "image: app:2\n    pull: never",
            "`pull: never` forbids to pull it",
        ),
        (
            "image: 127.0.0.1:1/app",
            "failed to reach the registry 127.0.0.1:1",
        ),
    ] {
        let (_dir, file) = workers_file(&format!("workers:\n  w:\n    {worker}\n"));
        let mut command = iii_integration::program::program();
        command
            .arg("run")
            .arg("-f")
            .arg(&file)
            .env("III_HOME", &home);
        let output = command.output().unwrap();
        let said = super::said(&output);
        assert_eq!(output.status.code(), Some(2), "{worker}: {said}");
        assert!(said.contains(expected), "{worker}: {said}");
        assert!(said.contains("worker \"w\""), "{said}");
    }
}
