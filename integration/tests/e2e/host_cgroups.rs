//! A cgroup of the host's around each VM: its limits hold, an end by them is named, and nothing is
//! left. On cgroups of version 2, whatever this host has: the guest's kernel is the host of these
//! tests, where a supervisor runs VMMs that are none.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use iii_integration::{Bench, binaries, shell};
use iii_supervisor::{ExecOutput, ExecRequest};

use iii_actors::spec::MountSpec;
use iii_integration::program::home;

const HOST: &str = "host";

/// A directory of the build's programs, and one with a home and a VMM that takes memory without end.
struct Guest {
    bench: Bench,
    _given: tempfile::TempDir,
}

fn mount(host: &std::path::Path, guest: &str, read_only: bool) -> MountSpec {
    MountSpec {
        host: host.to_owned(),
        guest: guest.to_owned(),
        read_only,
    }
}

impl Guest {
    async fn boot() -> Self {
        let given = tempfile::tempdir().unwrap();
        let (programs, user) = (given.path().join("bin"), given.path().join("home"));
        fs::create_dir(&programs).unwrap();
        fs::copy(binaries().join("iii-attacker"), programs.join("iii-hog")).unwrap();
        symlink("iii-hog", programs.join("qemu-system-x86_64")).unwrap();
        // With the firmware itself: the guest sees nothing of where a link would lead.
        let firmware = home();
        let copied = Command::new("cp")
            .arg("-rL")
            .arg(firmware.path())
            .arg(&user)
            .status();
        assert!(copied.unwrap().success());
        let workers = "workers: {api: {command: [sleep, '1000'], network: none, \
            resources: {memory: 64MiB}, vm_restart: {mode: never}, boot_deadline: 1h}}";
        fs::write(user.join("iii.workers.yaml"), workers).unwrap();
        let open = Command::new("chmod")
            .args(["-R", "a+rwX"])
            .arg(given.path())
            .status();
        assert!(open.unwrap().success());

        let mut spec = shell(HOST, "exec sleep infinity");
        spec.resources.memory = 2 << 30;
        spec.resources.cpus = 2;
        spec.mounts = vec![
            mount(&binaries(), "/programs", true),
            mount(given.path(), "/given", false),
        ];
        let mut bench = Bench::start(vec![spec]).await;
        bench.ready(0, HOST).await;
        Self {
            bench,
            _given: given,
        }
    }

    /// What a script says, run by root of the guest.
    async fn says(&self, script: &str) -> String {
        let request = ExecRequest::new(["/bin/sh", "-c", script]).user("root");
        let worker = iii_integration::worker_name(HOST);
        let opening = self.bench.supervisor.exec(worker, request).await;
        let mut session = opening.unwrap_or_else(|error| panic!("{error}"));
        drop(session.stdin.take());
        let mut output = session.output.take().unwrap();
        let mut text = Vec::new();
        while let Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) = output.recv().await
        {
            text.extend(bytes);
        }
        session.wait().await.unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// A cgroup is made and handed over, and a child of this shell, which stays where it is, enters it.
const HANDED: &str = "\
    set -e; cd /sys/fs/cgroup; echo '+memory +pids +cpu' > cgroup.subtree_control; \
    mkdir -p handed/vm-old-1; \
    (exec sh -c 'echo $$ > handed/vm-old-1/cgroup.procs; exec sleep 1000') & \
    until grep -q . handed/vm-old-1/cgroup.procs; do :; done; \
    export III_HELPER_DIR=/programs;";

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_leaf_hold_and_an_end_by_them_is_named() {
    let guest = Guest::boot().await;
    let script = format!(
        "{HANDED} export III_CGROUPS=on; \
         sh -c 'echo $$ > handed/cgroup.procs; exec /programs/iii-leaf /programs/iii-attacker --bomb --hog'; \
         ls -d handed/*/"
    );
    let said = guest.says(&script).await;
    let lines: Vec<&str> = said.lines().collect();
    let [taken, bomb, hog, left @ ..] = &lines[..] else {
        panic!("{said}");
    };
    assert_eq!(
        *taken,
        "taken: /sys/fs/cgroup/handed with memory pids cpu; now in 0::/handed/supervisor"
    );
    let limits = "joined Some(Applied); memory.max 1074266112, pids.max 257, \
        cpu.max 200000 100000, cpu.weight 100, memory.oom.group 1;";
    for line in [bomb, hog] {
        assert!(line.contains(limits), "{line}");
        assert!(line.ends_with("the leaf is gone"), "{line}");
    }
    // The shim's two processes and the bomb itself are in there too.
    assert!(bomb.contains("made 254 processes: EAGAIN"), "{bomb}");
    assert!(bomb.contains("exit code 0; memory sufficed"), "{bomb}");
    assert!(hog.contains("said \"\"; ended with SIGKILL"), "{hog}");
    assert!(
        hog.contains("want of memory: with its file server it reached the 1024 MiB"),
        "{hog}"
    );
    // What the supervisor before had left is gone as well.
    assert_eq!(left, ["handed/supervisor/"], "{said}");
    guest.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_the_host_kills_for_want_of_memory_is_named_by_its_supervisor() {
    let guest = Guest::boot().await;
    // To an ordinary user, as a service manager does it: nothing but the owner says so.
    let script = format!(
        "{HANDED} chown 1000 handed handed/cgroup.procs handed/cgroup.subtree_control \
         handed/cgroup.threads handed/vm-old-1 handed/vm-old-1/*; \
         export III_HOME=/given/home HOME=/given/home PATH=/given/bin:$PATH; \
         for arguments in 'doctor --json' 'run --json --vmm qemu'; do \
         (echo $(exec sh -c 'echo $PPID') > handed/cgroup.procs; cd /given/home; \
         exec setpriv --reuid=1000 --regid=1000 --clear-groups /programs/iii-super $arguments) 2>&1 || :; \
         done; ls -d handed/*/"
    );
    let said = guest.says(&script).await;
    let delegated = "each VM is limited in /sys/fs/cgroup/handed (memory, pids, cpu)";
    assert!(said.contains(delegated), "{said}");
    // Of the VM as a whole, whichever of its processes is reaped first.
    let crash = said.lines().find(|line| line.contains("\"vm-crashed\""));
    let crash = crash.unwrap_or_else(|| panic!("no crash:\n{said}"));
    assert!(
        crash.contains("the host's kernel killed it for want of memory"),
        "{crash}"
    );
    assert!(crash.contains("(memory.max)"), "{crash}");
    assert!(!said.contains("actor-failed"), "{said}");
    let left: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("handed/"))
        .collect();
    assert_eq!(left, ["handed/supervisor/"], "{said}");
    guest.bench.stop().await;
}
