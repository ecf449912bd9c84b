//! Somebody has taken over the VMM of a worker: what is left to them. `iii-attacker` stands in
//! QEMU's place, found in PATH as QEMU is, or in that of iii-krun, the launcher of libkrun, found
//! beside the other helpers, and is started as they are.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::sync::LazyLock;

use iii_integration::binaries;
use iii_integration::program::{NOBODY, Run, as_user, descendants};
use iii_integration::project::Project;
use nix::sys::signal::Signal;

const WORKER: &str = "
workers:
  api:
    command: [sleep, '1000']
    env: {API_KEY: a-secret-of-the-workload}
    vm_restart: {mode: never}
";

/// The same with what libkrun serves itself: directories, and a disk.
const SERVED: &str = "
workers:
  api:
    command: [sleep, '1000']
    env: {API_KEY: a-secret-of-the-workload}
    root: {persist: 64MiB}
    mounts: ['./mine:/mine', './theirs:/theirs:ro']
    vm_restart: {mode: never}
";

/// What came of each attack: whether it was held, and why.
type Report = BTreeMap<String, (bool, String)>;

/// In whose place the attacker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Qemu,
    Krun,
}

/// A worker whose VMM is the attacker.
struct Attacked {
    project: Project,
    report: Report,
}

/// Runs a worker whose VMM is the attacker. `by_user`: by an ordinary user, who has a copy of the
/// programs, since those of a build are in the builder's home.
fn attacked(place: Place, by_user: bool, confinement: Option<&str>) -> Attacked {
    let project = Project::new(match place {
        Place::Qemu => WORKER,
        Place::Krun => SERVED,
    });
    let others = project.home().join("other-worker");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("state"), "of another").unwrap();
    for name in ["mine", "theirs"] {
        let directory = project.directory().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("given"), "given").unwrap();
        // What it is to attack: another worker's, and what lies beside the exports.
        let targets = [others.join("state"), project.file()];
        let targets = targets.map(|path| path.canonicalize().unwrap().display().to_string());
        fs::write(directory.join("iii-attack-targets"), targets.join("\n")).unwrap();
    }
    let programs = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("iii-super", "iii-super"),
        ("iii-shim", "iii-shim"),
        ("iii-vfs", "iii-vfs"),
        ("iii-attacker", "iii-krun"),
        ("iii-attacker", "qemu-system-x86_64"),
    ] {
        fs::copy(binaries().join(from), programs.path().join(to)).unwrap();
    }
    let mut command = Command::new(programs.path().join("iii-super"));
    if by_user {
        // The firmware is the builder's too.
        for link in ["lib", "cache"] {
            let link = project.home().join(link);
            let from = fs::read_link(&link).unwrap();
            fs::remove_file(&link).unwrap();
            run(Command::new("cp").arg("-rL").arg(from).arg(&link));
        }
        for directory in [project.home(), project.directory(), programs.path()] {
            run(Command::new("chown")
                .args(["-R", &format!("{NOBODY}:{NOBODY}")])
                .arg(directory));
        }
        command = as_user(NOBODY, &command);
    }
    let path = std::env::var("PATH").unwrap();
    let vmm = match place {
        Place::Qemu => "qemu",
        Place::Krun => "krun",
    };
    command
        .args(["run", "--json", "--vmm", vmm])
        .current_dir(project.directory())
        .env("III_HOME", project.home())
        .env("HOME", project.home())
        .env("A_SECRET_OF_THE_SUPERVISOR", "1")
        .env("PATH", format!("{}:{path}", programs.path().display()))
        .env_remove("III_HELPER_DIR");
    match place {
        Place::Qemu => command.env_remove("III_VMM_ACCEL"),
        // Whatever is known of this host's virtualisation: nothing is run by it.
        Place::Krun => command.env("III_VMM_ACCEL", "kvm"),
    };
    match confinement {
        Some(value) => command.env("III_CONFINEMENT", value),
        None => command.env_remove("III_CONFINEMENT"),
    };
    let mut run = Run::start(command);
    let event = run.line("console_tail");
    run.wait();
    let event: serde_json::Value = serde_json::from_str(&event).unwrap();
    let tail = event["console_tail"].as_str().unwrap();
    assert!(tail.contains("a thread of its own: true"), "{event}");
    let report = report(tail);
    Attacked { project, report }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn report(tail: &str) -> Report {
    tail.lines()
        .filter_map(|line| {
            let (name, what) = line.strip_prefix("attack ")?.split_once(": ")?;
            let held = what.starts_with("held");
            Some((name.to_owned(), (held, what.to_owned())))
        })
        .collect()
}

const ATTACKS: [&str; 16] = [
    "environment",
    "capabilities",
    "secrets",
    "names",
    "programs",
    "write",
    "connect",
    "abstract",
    "clone3",
    "processes",
    "memory",
    "namespaces",
    "core",
    "lock",
    "fork",
    "execute",
];

fn are_held(report: &Report, names: &[&str]) {
    for name in names {
        let (held, why) = &report[*name];
        assert!(held, "{name}: {why}");
    }
}

fn got_through(report: &Report, names: &[&str]) {
    for name in names {
        let (held, why) = &report[*name];
        assert!(!held, "{name}: {why}");
    }
}

#[test]
fn no_process_of_a_worker_has_a_variable_of_the_supervisors() {
    let project = Project::new(WORKER);
    let mut command = project.command(&["run", "--json"]);
    command.env("A_SECRET_OF_THE_SUPERVISOR", "1");
    let mut run = Run::start(command);
    run.line("workload-started");
    let processes = descendants(run.child.id());
    // QEMU, its file server, and two shims of each.
    assert!(processes.len() >= 6, "{processes:?}");
    for pid in processes {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&environment);
        assert_eq!(text, "", "of {pid}, {name}");
    }
    run.signal(Signal::SIGTERM);
    run.wait();
}

/// Listens on the attacked abstract socket, for all tests of this process.
fn listen() {
    static TARGET: LazyLock<UnixListener> = LazyLock::new(|| {
        let address = SocketAddr::from_abstract_name("iii-attack-target").unwrap();
        UnixListener::bind_addr(&address).unwrap()
    });
    LazyLock::force(&TARGET);
}

/// By whom: by this user, and, where that is root, by an ordinary one too.
fn users() -> Vec<bool> {
    match nix::unistd::geteuid().is_root() {
        true => vec![false, true],
        false => vec![false],
    }
}

#[test]
fn a_vmm_of_an_attacker_reaches_nothing() {
    listen();
    for by_user in users() {
        let Attacked { report, .. } = attacked(Place::Qemu, by_user, None);
        are_held(&report, &ATTACKS);
        if by_user {
            // Root is exempt from the limit, which then is a cgroup's matter.
            are_held(&report, &["threads"]);
        }
    }
}

#[test]
fn a_launcher_of_libkrun_reaches_its_exports_as_its_guest_may_and_nothing_else() {
    listen();
    for by_user in users() {
        let Attacked { project, report } = attacked(Place::Krun, by_user, None);
        are_held(&report, &ATTACKS);
        // Its exports are `/usr` and the two mounts, in this order.
        got_through(
            &report,
            &["list usr", "serve mount0", "list mount1", "disk"],
        );
        are_held(&report, &["change usr", "change mount1", "set-id mount0"]);
        are_held(&report, &["target 0", "target 1", "target 2", "target 3"]);
        if by_user {
            are_held(&report, &["threads"]);
        }
        let read = |name: &str| fs::read_to_string(project.directory().join(name));
        assert_eq!(read("mine/directory/moved").unwrap(), "XIVEN");
        assert_eq!(read("theirs/given").unwrap(), "given");
        assert!(read("mine/given").is_err() && read("theirs/iii-attack-new").is_err());
        let others = project.home().join("other-worker/state");
        assert_eq!(fs::read_to_string(others).unwrap(), "of another");
    }
}

#[test]
fn without_confinement_the_same_attacks_get_through() {
    // Else the tests above would show nothing.
    listen();
    let everywhere = [
        "secrets", "names", "programs", "write", "connect", "abstract", "clone3", "fork", "lock",
    ];
    let Attacked { report, .. } = attacked(Place::Qemu, false, Some("off"));
    got_through(&report, &everywhere);
    // These need no confinement: the environment is made anew for every child, and no VMM leaves a
    // core behind.
    are_held(&report, &["environment", "core"]);

    let Attacked { report, .. } = attacked(Place::Krun, false, Some("off"));
    got_through(&report, &everywhere);
    got_through(&report, &["serve mount0", "change mount1", "set-id mount0"]);
    got_through(&report, &["target 0", "target 1"]);
}
