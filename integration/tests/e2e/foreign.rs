//! Workers of another platform than the host's: an aarch64 guest on an x86-64 host, under QEMU's
//! translator. From its kernel to its workload nothing in it is x86-64's, so that a mistake in what
//! the architectures differ in (a system call's number, a structure's layout, the way to power off)
//! shows here.
//!
//! They need qemu-system-aarch64, the Rust target and `vm-init-aarch64`, all of which `make test`
//! provides. Without them they are left out, which is said on standard error, unless
//! `III_TEST_AARCH64=required`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use iii_actors::spec::{GuestArch, ImageSpec, PublishSpec, RootSpec, WorkerSpec};
use iii_image::oci::Platform;
use iii_image::registry::RegistryOptions;
use iii_image::{ImageStore, Importer, Puller};
use iii_integration::agent::mount;
use iii_integration::http::HttpConnection;
use iii_integration::images::{Layer, done, layout};
use iii_integration::program::program;
use iii_integration::{Bench, PATIENCE, binaries, is, quick, worker_name};
use iii_proto::restart::{Exit, RestartMode, RestartPolicy};
use iii_supervisor::{Event, EventKind, ExecOutput, ExecRequest, Fault, Outcome, Supervisor};
use tokio::io::AsyncWriteExt as _;

const TARGET: &str = "aarch64-unknown-linux-musl";
const INIT: &str = "vm-init-aarch64";

/// Why these tests cannot be run here.
fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the host is not x86-64".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("qemu-system-aarch64").is_file()) {
        return Some("there is no qemu-system-aarch64 (apt-get install qemu-system-arm)".into());
    }
    if !binaries().join(INIT).is_file() {
        return Some(format!("there is no {INIT} (scripts/guest-init aarch64)"));
    }
    None
}

/// Whether they can be run; says why not.
fn can_run() -> bool {
    let Some(reason) = missing() else { return true };
    let required = std::env::var_os("III_TEST_AARCH64").is_some_and(|value| value == "required");
    assert!(!required, "aarch64 guests must be tested here: {reason}");
    // Past the harness, which shows what a test prints only if it fails.
    let text = format!("foreign: skipped, unproven here: {reason}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    false
}

/// The workload: tells what it runs on, does what it is told, or serves.
const PROGRAM: &str = r#"
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::{env, fs, io, process, thread};

fn read(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => format!("{path}: {error}"),
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["look"] => {
            println!("machine {} {}", env::consts::ARCH, read("/proc/sys/kernel/arch"));
            println!("kernel {}", read("/proc/sys/kernel/osrelease"));
            println!("init {} {}", read("/proc/1/comm"), process::id());
            println!("cpus {}", thread::available_parallelism().unwrap());
            println!("boot {}", env::var("III_BOOT_ID").unwrap());
            println!("eth0 {} {}", read("/sys/class/net/eth0/address"), read("/sys/class/net/eth0/mtu"));
            println!("clock {}", read("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
            println!("mount {}", read("/data/from-host"));
            println!("written {:?}", fs::write("/data/from-guest", "guest").map_err(|e| e.kind()));
            let kept = fs::read_to_string("/kept").unwrap_or_default() + "x";
            let mut file = fs::File::create("/kept").unwrap();
            file.write_all(kept.as_bytes()).unwrap();
            file.sync_all().unwrap();
            println!("boots {}", kept.len());
            println!("refused {:?}", fs::write("/shared/new", "x").map_err(|e| e.kind()));
            let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
            println!("serves");
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    request.push(byte[0]);
                }
                let body = vec![b'x'; 1_000_000];
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
                stream.write_all(&body).unwrap();
            }
        }
        ["copy"] => drop(io::copy(&mut io::stdin(), &mut io::stdout()).unwrap()),
        ["host", port] => {
            let address = format!("host.iii.internal:{port}").to_socket_addrs().unwrap().next().unwrap();
            let mut text = String::new();
            TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
            println!("{text}");
        }
        ["exit", code] => process::exit(code.parse().unwrap()),
        _ => panic!("{arguments:?}"),
    }
}
"#;

fn built(directory: &Path) -> Vec<u8> {
    let (source, program) = (directory.join("look.rs"), directory.join("look"));
    fs::write(&source, PROGRAM).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--target", TARGET])
        .args(["-Clinker=rust-lld", "-Clink-self-contained=yes"])
        .args(["-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
        .args([&program, &source])
        .status()
        .expect("rustc is there, since cargo is");
    assert!(status.success(), "the Rust target {TARGET} is needed");
    fs::read(program).unwrap()
}

/// An image for linux/arm64 without anything but the program.
fn image(directory: &Path) -> std::path::PathBuf {
    let layer = Layer::new()
        .directory("tmp", 0o1777, 0)
        .file("look", &built(directory), 0o755, 0);
    let layout = layout(directory, vec![layer], &[("entrypoint", "/look")]);
    let image = format!("{}:app", layout.display());
    done(Command::new("umoci").args([
        "config",
        "--os",
        "linux",
        "--architecture",
        "arm64",
        "--image",
        &image,
    ]));
    layout
}

fn arm64() -> Platform {
    Platform::of("aarch64")
}

fn import(directory: &Path) {
    let layout = image(directory);
    let puller = Puller {
        store: ImageStore::of_platform(&directory.join("images"), &arm64()).unwrap(),
        registry: RegistryOptions::default(),
        platform: arm64(),
    };
    let importer = Importer::open(&puller, &layout, &()).unwrap();
    importer.import(Some(&"look:1".parse().unwrap())).unwrap();
}

fn worker(name: &str, command: &[&str]) -> WorkerSpec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let mut spec = WorkerSpec::new(worker_name(name), command);
    let mut image = ImageSpec::new("look:1".parse().unwrap());
    image.platform = Some(GuestArch::Aarch64);
    spec.root = RootSpec::Image(image);
    spec.allow_faults = true;
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aarch64_guest_has_all_that_a_guest_has_and_is_repaired() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    import(directory.path());
    let (data, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(data.path().join("from-host"), "host\n").unwrap();
    let mut spec = worker("a", &["look"]);
    spec.resources.cpus = 2;
    spec.persist = Some(64 << 20);
    spec.ports.push(PublishSpec::loopback(0, 8080));
    spec.mounts.push(mount(data.path(), "/data", false));
    spec.mounts.push(mount(shared.path(), "/shared", true));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spec.network.host_ports.insert(port);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"the host's port").await.unwrap();
        }
    });
    let builder = Supervisor::builder()
        .images_dir(directory.path().join("images"))
        .state_dir(directory.path().join("state"));
    let mut bench = Bench::build(builder).await;
    bench.add(vec![spec]).await;

    // Its own Linux, its time, its network, its exports.
    bench.line("a", "serves").await;
    let (first, pid, next) = bench.ready(0, "a").await;
    let seen: Vec<String> = (bench.lines.iter())
        .map(|line| String::from_utf8_lossy(&line.text).into_owned())
        .collect();
    for expected in [
        "machine aarch64 aarch64",
        &format!("init vm-init {}", pid.0),
        "cpus 2",
        &format!("boot {first}"),
        "boots 1",
        "clock arch_sys_counter",
        "mount host",
        "written Ok(())",
        "refused Err(ReadOnlyFilesystem)",
    ] {
        assert!(
            seen.iter().any(|line| line == expected),
            "{expected}: {seen:?}"
        );
    }
    assert!(
        seen.iter().any(|line| line.starts_with("kernel 6.12.")),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|l| l.starts_with("eth0 ") && l.ends_with(" 65520")),
        "{seen:?}"
    );
    let written = fs::read_to_string(data.path().join("from-guest")).unwrap();
    assert_eq!(written, "guest");
    let started = |bench: &Bench| {
        let about = bench.seen.iter().filter(|event| is(event, "a"));
        about
            .filter_map(|event| match &event.kind {
                EventKind::VmStarted { vmm, accel, .. } => Some(format!("{vmm}/{accel}")),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(started(&bench), ["qemu/tcg"]);

    // In by the published port, and out to the host's.
    let (server, _) = bench
        .event(0, "the published port", |event| match &event.kind {
            EventKind::Published { host, .. } => Some(*host),
            _ => None,
        })
        .await;
    let get = async || HttpConnection::open(server).await.get("/").await;
    let (status, body) = get().await;
    assert_eq!((status, body.len()), (200, 1_000_000));
    let said = exec(&bench, &["/look", "host", &port.to_string()], b"").await;
    assert_eq!(said, b"the host's port\n");

    // Commands beside the workload, byte for byte.
    let bytes: Vec<u8> = (0..1 << 20)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    assert!(
        exec(&bench, &["/look", "copy"], &bytes).await == bytes,
        "a mebibyte and back"
    );

    // A new VM for one that was killed, on the disk that the first has left.
    let lines = bench.lines.len();
    bench.hurt("a", Fault::KillVmm).await;
    let (second, _, _) = bench.ready(next, "a").await;
    assert_ne!(first, second);
    bench.line_from(lines, "a", &format!("boot {second}")).await;
    bench.line_from(lines, "a", "boots 2").await;
    bench.line_from(lines, "a", "serves").await;
    assert_eq!(get().await.0, 200);
    assert_eq!(started(&bench), ["qemu/tcg", "qemu/tcg"]);

    // Its power-off is one: nothing else crashes.
    let bench = bench.stop().await;
    let crashes = bench
        .seen
        .iter()
        .filter(|event| matches!(event.kind, EventKind::VmCrashed { .. }));
    assert_eq!(crashes.count(), 1, "{}", bench.story());
}

async fn exec(bench: &Bench, command: &[&str], input: &[u8]) -> Vec<u8> {
    let request = ExecRequest::new(command.iter().copied()).stdin();
    let opening = bench.supervisor.exec(worker_name("a"), request).await;
    let mut session = opening.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = session.stdin.take().unwrap();
    let mut output = session.output.take().unwrap();
    let input = input.to_owned();
    let sent = tokio::spawn(async move {
        stdin.write_all(&input).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut bytes = Vec::new();
    while let Some(ExecOutput::Stdout(piece) | ExecOutput::Stderr(piece)) = output.recv().await {
        bytes.extend(piece);
    }
    sent.await.unwrap();
    assert_eq!(
        session.wait().await.unwrap(),
        Exit::Code { code: 0 },
        "{command:?}"
    );
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aarch64_guests_workload_and_kernel_are_repaired_each_at_its_level() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    import(directory.path());
    let mut spec = worker("a", &["look"]);
    spec.resources.memory = 128 << 20;
    // To panic, the guest fills its memory first; meanwhile it answers nothing.
    spec.heartbeat_timeout = PATIENCE;
    spec.restart = quick();
    let builder = Supervisor::builder().images_dir(directory.path().join("images"));
    let mut bench = Bench::build(builder).await;
    bench.add(vec![spec]).await;
    let (boot, pid, next) = bench.ready(0, "a").await;

    bench.hurt("a", Fault::KillWorkload).await;
    let (same, other, next) = bench.ready(next, "a").await;
    assert_eq!(boot, same, "{}", bench.story());
    assert_ne!(pid, other);

    bench.hurt("a", Fault::GuestPanic).await;
    let crash = |event: &Event| match &event.kind {
        EventKind::VmCrashed { cause, .. } => Some(cause.clone()),
        _ => None,
    };
    let (cause, next) = bench.event(next, "the kernel's panic", crash).await;
    assert!(cause.contains("Kernel panic"), "{cause}");
    let (new, _, _) = bench.ready(next, "a").await;
    assert_ne!(boot, new);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aarch64_workloads_end_is_told_as_any_others() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    import(directory.path());
    let mut spec = worker("a", &["exit", "7"]);
    spec.restart = RestartPolicy {
        mode: RestartMode::Never,
        ..RestartPolicy::default()
    };
    let builder = Supervisor::builder().images_dir(directory.path().join("images"));
    let mut bench = Bench::build(builder).await;
    bench.add(vec![spec]).await;
    let status = bench.worker("a").at_rest().await.unwrap();
    assert_eq!(status.outcome, Some(Outcome::Done(Exit::Code { code: 7 })));
    bench.mark();
    let crashed = |kind: &EventKind| matches!(kind, EventKind::VmCrashed { .. });
    assert!(
        !bench.seen.iter().any(|event| crashed(&event.kind)),
        "{}",
        bench.story()
    );
    bench.stop().await;
}

#[test]
fn each_platform_has_images_of_its_own() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layout = image(directory.path());
    let home = directory.path().join("home");
    let image = |words: &[&str]| {
        let mut command = program();
        command.arg("image").args(words).env("III_HOME", &home);
        let output = command.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            said(&output.stdout) + &said(&output.stderr),
        )
    };
    let file = layout.to_str().unwrap();
    // It is not for this host, which is said, unless it is asked for.
    let (code, said) = image(&["import", file, "--name", "look:1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("linux/arm64"), "{said}");
    let platform = ["--platform", "linux/arm64"];
    let (code, said) = image(&[&["import", file, "--name", "look:1"], &platform[..]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(
        image(&[&["ls"], &platform[..]].concat())
            .1
            .contains("look:1")
    );
    assert!(!image(&["ls"]).1.contains("look:1"));
    let (code, said) = image(&["ls", "--platform", "linux/s390x"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("linux/amd64, linux/arm64"), "{said}");
}

#[test]
fn what_guests_of_another_platform_lack_is_told_before_anything_is_started() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("iii.workers.yaml");
    let text = "workers: {w: {image: 'look:1', platform: linux/arm64, pull: never}}";
    fs::write(&file, text).unwrap();
    // A PATH on which there is the host's QEMU alone, then one with both.
    let (bare, both) = (directory.path().join("bare"), directory.path().join("both"));
    for place in [&bare, &both] {
        fs::create_dir(place).unwrap();
        fake_qemu(place, "qemu-system-x86_64");
    }
    fake_qemu(&both, "qemu-system-aarch64");
    // The helpers without a vm-init for these guests.
    let helpers = directory.path().join("helpers");
    fs::create_dir(&helpers).unwrap();
    for helper in ["iii-shim", "iii-vfs"] {
        std::os::unix::fs::symlink(binaries().join(helper), helpers.join(helper)).unwrap();
    }
    let refused = |path: &Path, helpers: &Path| {
        let mut command = program();
        command.arg("run").arg("-f").arg(&file);
        command.env("PATH", path).env("III_HELPER_DIR", helpers);
        command
            .env("III_VMM", "qemu")
            .env_remove("III_INIT_PATH_AARCH64");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let said = refused(&bare, &helpers);
    for part in ["\"w\"", "aarch64 guest", "qemu-system-arm"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = refused(&both, &helpers);
    for part in [INIT, "III_INIT_PATH_AARCH64", "scripts/guest-init aarch64"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// What says that it is QEMU, and is not.
fn fake_qemu(directory: &Path, name: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let staged = directory.join("staged");
    fs::write(&staged, "#!/bin/sh\necho QEMU emulator version 7.2.0\n").unwrap();
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&staged, directory.join(name)).unwrap();
}
