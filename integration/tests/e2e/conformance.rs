//! The same `WorkerSpec` gives the same guest, whatever runs it: each test here is run under every
//! VMM that this host can really run. Which are not, and why, is said on standard error: a VMM that
//! nobody has run is not proven by a test that was skipped.

use std::fs;
use std::io::Write;
use std::sync::Once;

use iii_actors::spec::{PublishSpec, WorkerSpec};
use iii_integration::agent::mount;
use iii_integration::http::HttpConnection;
use iii_integration::{Bench, binaries, is, shell, worker_name};
use iii_proto::restart::{Exit, RestartMode, RestartPolicy};
use iii_supervisor::{
    AccelerationWish, EventKind, ExecOutput, ExecRequest, Fault, Outcome, Scope, Supervisor,
    VmmChoice,
};
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::host::{Acceleration, HostFacts, virtualisation};
use iii_vmm::krun::Krun;
use iii_vmm::vmm::Vmm as _;
use tokio::io::AsyncWriteExt as _;

/// A VMM, and how it runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    QemuInSoftware,
    QemuWithKvm,
    Krun,
}

impl Candidate {
    const ALL: [Self; 3] = [Self::QemuInSoftware, Self::QemuWithKvm, Self::Krun];

    /// As events name it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::QemuInSoftware => ("qemu", "tcg"),
            Self::QemuWithKvm => ("qemu", "kvm"),
            Self::Krun => ("krun", "kvm"),
        }
    }

    /// Why it cannot run on this host.
    fn missing(self) -> Option<String> {
        let verdict = virtualisation(&HostFacts::collect());
        let hardware = match verdict.acceleration {
            Acceleration::Kvm => None,
            Acceleration::Tcg => Some(verdict.reason.to_owned()),
        };
        match self {
            Self::QemuInSoftware => None,
            Self::QemuWithKvm => hardware,
            Self::Krun => hardware.or_else(|| {
                let places = HelperPlaces::in_directory(binaries());
                Krun::new(places).check().err().map(|e| e.to_string())
            }),
        }
    }

    async fn bench(self, specs: Vec<WorkerSpec>) -> Bench {
        let (vmm, acceleration) = match self {
            Self::QemuInSoftware => (VmmChoice::Qemu, AccelerationWish::Tcg),
            Self::QemuWithKvm => (VmmChoice::Qemu, AccelerationWish::Kvm),
            Self::Krun => (VmmChoice::Krun, AccelerationWish::Kvm),
        };
        let builder = Supervisor::builder().vmm(vmm).acceleration(acceleration);
        let mut bench = Bench::build(builder).await;
        bench.add(specs).await;
        bench
    }
}

/// Those that this host can run; the first call says of the others why not.
fn runnable() -> Vec<Candidate> {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        for candidate in Candidate::ALL {
            if let Some(reason) = candidate.missing() {
                // Past the harness, which shows what a test prints only if it fails.
                let text = format!("conformance: skipped {candidate:?}, unproven here: {reason}\n");
                std::io::stderr().write_all(text.as_bytes()).unwrap();
            }
        }
    });
    Candidate::ALL
        .into_iter()
        .filter(|candidate| candidate.missing().is_none())
        .collect()
}

#[test]
fn some_vmm_is_always_run_and_krun_never_without_hardware() {
    let runnable = runnable();
    assert!(runnable.contains(&Candidate::QemuInSoftware));
    let hardware = virtualisation(&HostFacts::collect()).acceleration == Acceleration::Kvm;
    assert!(hardware || !runnable.contains(&Candidate::Krun));
}

fn vms_started(bench: &Bench, worker: &str) -> Vec<(String, String)> {
    let about = bench.seen.iter().filter(|event| is(event, worker));
    about
        .filter_map(|event| match &event.kind {
            EventKind::VmStarted { vmm, accel, .. } => Some((vmm.clone(), accel.clone())),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn boot() {
    for candidate in runnable() {
        let mut bench = candidate.bench(vec![shell("a", "exec sleep 1000")]).await;
        let (boot, _, _) = bench.ready(0, "a").await;
        let (vmm, accel) = candidate.names();
        assert_eq!(vms_started(&bench, "a"), [(vmm.into(), accel.into())]);
        let seen = bench.output(
            "a",
            "uname -r; cat /proc/1/comm; echo $III_BOOT_ID; id -u; cat /proc/sys/kernel/hostname",
        );
        let seen = seen.await;
        let seen: Vec<&str> = seen.lines().collect();
        assert!(seen[0].starts_with("6.12."), "{candidate:?}: {seen:?}");
        let boot = boot.to_string();
        assert_eq!(seen[1..], ["vm-init", boot.as_str(), "1000", "a"]);
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports() {
    for candidate in runnable() {
        // More than a port's buffers hold, both ways: lines of 1,000 bytes.
        let script = "seq -f %01000.0f 1 500; echo end; exec sleep 1000";
        let mut bench = candidate.bench(vec![shell("a", script)]).await;
        bench.line("a", "end").await;
        let lines = bench.lines.iter().map(|line| line.text.clone());
        let expected = (1..=500).map(|n| format!("{n:01000}").into_bytes());
        assert!(
            lines.take(500).eq(expected),
            "{candidate:?}: every line, in order"
        );
        bench.ready(0, "a").await;
        let mut session = bench
            .supervisor
            .exec(
                worker_name("a"),
                ExecRequest::new(["/usr/bin/sha256sum"]).stdin(),
            )
            .await
            .unwrap();
        let mut stdin = session.stdin.take().unwrap();
        let mut answer = session.output.take().unwrap();
        let sent = tokio::spawn(async move {
            for _ in 0..32 {
                stdin.write_all(&[b'x'; 64 * 1024]).await.unwrap();
            }
            stdin.shutdown().await.unwrap();
        });
        let mut text = Vec::new();
        while let Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) = answer.recv().await
        {
            text.extend(bytes);
        }
        sent.await.unwrap();
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(vec![b'x'; 32 * 64 * 1024]);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, format!("{digest}  -\n"), "{candidate:?}");
        bench.stop().await;
    }
}

const SERVER: &str = r#"
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"x" * 1_000_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
print("serves", flush=True)
server.serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn network() {
    for candidate in runnable() {
        let command = ["/usr/bin/python3", "-uc", SERVER].map(String::from);
        let mut spec = WorkerSpec::new(worker_name("a"), command.to_vec());
        spec.ports.push(PublishSpec::loopback(0, 8080));
        let mut alone = shell("alone", "ls /sys/class/net; echo end; exec sleep 1000");
        alone.network.mode = iii_actors::spec::NetworkMode::None;
        let mut bench = candidate.bench(vec![spec, alone]).await;
        bench.line("a", "serves").await;
        let (server, _) = bench
            .event(0, "the published port", |event| match &event.kind {
                EventKind::Published { host, .. } => Some(*host),
                _ => None,
            })
            .await;
        let mut connection = HttpConnection::open(server).await;
        for _ in 0..3 {
            let (status, body) = connection.get("/").await;
            assert_eq!((status, body.len()), (200, 1_000_000), "{candidate:?}");
        }
        // Large packets reach it whole, and the addresses are those of every guest.
        bench.ready(0, "a").await;
        let script = "ip link show eth0 | grep -o 'mtu [0-9]*'; \
                      ip -4 -o addr show eth0 | grep -o '100[^ ]*/[0-9]*'";
        let seen = bench.output("a", script).await;
        assert_eq!(seen, "mtu 65520\n100.96.0.2/30", "{candidate:?}");
        // Without a network there is none, whatever else the VMM could offer.
        bench.line("alone", "end").await;
        let lines = bench.lines.iter().filter(|l| l.worker.as_str() == "alone");
        let lines: Vec<_> = lines.map(|l| String::from_utf8_lossy(&l.text)).collect();
        assert!(lines.iter().any(|line| line == "lo"), "{lines:?}");
        assert!(!lines.iter().any(|line| line == "eth0"), "{lines:?}");
        bench.ready(0, "alone").await;
        let vsock = bench.output("alone",
            "ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport 2>/dev/null | grep -c virtio || true",
        );
        assert_eq!(
            vsock.await,
            "0",
            "{candidate:?} has no way to the host's sockets"
        );
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exports() {
    for candidate in runnable() {
        let (data, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(data.path().join("from-host"), "host").unwrap();
        fs::write(shared.path().join("kept"), "kept").unwrap();
        let mut spec = shell("a", "exec sleep 1000");
        spec.mounts.push(mount(data.path(), "/data", false));
        spec.mounts.push(mount(shared.path(), "/shared", true));
        let mut bench = candidate.bench(vec![spec]).await;
        bench.ready(0, "a").await;
        let script = "cat /data/from-host; echo; echo guest > /data/from-guest; mkdir /data/d; \
                      mv /data/from-guest /data/d/moved; ln -s moved /data/d/link; \
                      cat /data/d/link; cat /shared/kept; echo; \
                      (echo x > /shared/new) 2>&1 | grep -o 'Read-only file system'; \
                      rm -f /shared/kept 2>&1 | grep -o 'Read-only file system'";
        let seen = bench.output("a", script).await;
        let seen: Vec<&str> = seen.lines().collect();
        assert_eq!(
            seen[..],
            [
                "host",
                "guest",
                "kept",
                "Read-only file system",
                "Read-only file system"
            ],
            "{candidate:?}: {seen:?}"
        );
        assert_eq!(
            fs::read_to_string(data.path().join("d/moved")).unwrap(),
            "guest\n"
        );
        assert_eq!(
            fs::read_to_string(shared.path().join("kept")).unwrap(),
            "kept"
        );
        assert!(!shared.path().join("new").exists());
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits() {
    for candidate in runnable() {
        let script = "echo cpus $(nproc); echo files $(ulimit -n); \
                      echo memory $(awk '/MemTotal/ {print $2}' /proc/meminfo); exec sleep 1000";
        let mut spec = shell("a", script);
        spec.resources.cpus = 2;
        spec.resources.memory = 192 << 20;
        spec.resources.open_files = Some(123);
        let mut bench = candidate.bench(vec![spec]).await;
        let memory = bench.line("a", "memory ").await;
        let memory: u64 = memory["memory ".len()..].parse().unwrap();
        // What the kernel keeps for itself is the same everywhere.
        assert!(
            (128 * 1024..=192 * 1024).contains(&memory),
            "{candidate:?}: {memory} KiB"
        );
        assert_eq!(bench.line("a", "cpus ").await, "cpus 2", "{candidate:?}");
        assert_eq!(
            bench.line("a", "files ").await,
            "files 123",
            "{candidate:?}"
        );
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit() {
    for candidate in runnable() {
        let never = |name: &str, script: &str| {
            let mut spec = shell(name, script);
            spec.restart = RestartPolicy {
                mode: RestartMode::Never,
                ..RestartPolicy::default()
            };
            spec
        };
        let bench = candidate
            .bench(vec![never("good", "exit 0"), never("bad", "exit 7")])
            .await;
        for (name, code) in [("good", 0), ("bad", 7)] {
            let status = bench.worker(name).at_rest().await.unwrap();
            let done = Some(Outcome::Done(Exit::Code { code }));
            assert_eq!(status.outcome, done, "{candidate:?} {name}");
        }
        let mut bench = bench.stop().await;
        bench.mark();
        // A VM that was shut down in order is no crash under any VMM.
        let crashed = |kind: &EventKind| matches!(kind, EventKind::VmCrashed { .. });
        assert!(
            !bench.seen.iter().any(|event| crashed(&event.kind)),
            "{candidate:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill() {
    for candidate in runnable() {
        let mut bench = candidate.bench(vec![shell("a", "exec sleep 1000")]).await;
        let (first, _, next) = bench.ready(0, "a").await;
        bench.hurt("a", Fault::KillVmm).await;
        let (second, _, next) = bench.ready(next, "a").await;
        assert_ne!(first, second, "{candidate:?}");
        // By request: in order, nothing crashes and nothing is counted.
        let counted = bench.worker("a").status().await.unwrap().vm_restarts;
        bench.worker("a").restart(Scope::Vm).await.unwrap();
        let (third, _, _) = bench.ready(next, "a").await;
        assert_ne!(second, third, "{candidate:?}");
        let status = bench.worker("a").status().await.unwrap();
        assert_eq!(status.vm_restarts, counted, "{candidate:?}");
        let (vmm, accel) = candidate.names();
        let same = (vmm.to_owned(), accel.to_owned());
        assert_eq!(vms_started(&bench, "a"), [same.clone(), same.clone(), same]);
        bench.stop().await;
    }
}
