//! Somebody has taken over the VMM of a worker: what is left to them. `iii-attacker` stands in
//! QEMU's place, found in PATH as QEMU is, and is started as QEMU is.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::sync::LazyLock;

use iii_integration::binaries;
use iii_integration::program::{NOBODY, Run, as_user};
use iii_integration::project::Project;

const WORKER: &str = "
workers:
  api:
    command: [sleep, '1000']
    env: {API_KEY: a-secret-of-the-workload}
    vm_restart: {mode: never}
";

/// What came of each attack: whether it was held, and why.
type Report = BTreeMap<String, (bool, String)>;

/// Runs a worker whose VMM is the attacker. `by_user`: by an ordinary user, who has a copy of the
/// programs, since those of a build are in the builder's home.
fn attacked(by_user: bool, confinement: Option<&str>) -> Report {
    let project = Project::new(WORKER);
    let place = tempfile::tempdir().unwrap();
    let mut command;
    if by_user {
        for name in ["iii-super", "iii-shim", "iii-vfs", "iii-attacker"] {
            fs::copy(binaries().join(name), place.path().join(name)).unwrap();
        }
        symlink("iii-attacker", place.path().join("qemu-system-x86_64")).unwrap();
        // The firmware is the builder's too.
        for link in ["lib", "cache"] {
            let link = project.home().join(link);
            let from = fs::read_link(&link).unwrap();
            fs::remove_file(&link).unwrap();
            run(Command::new("cp").arg("-rL").arg(from).arg(&link));
        }
        for directory in [project.home(), project.directory(), place.path()] {
            run(Command::new("chown")
                .args(["-R", &format!("{NOBODY}:{NOBODY}")])
                .arg(directory));
        }
        command = as_user(NOBODY, &Command::new(place.path().join("iii-super")));
        command.current_dir(project.directory());
    } else {
        let attacker = binaries().join("iii-attacker");
        symlink(attacker, place.path().join("qemu-system-x86_64")).unwrap();
        command = project.command(&[]);
    }
    let path = std::env::var("PATH").unwrap();
    command
        .args(["run", "--json"])
        .env("III_HOME", project.home())
        .env("HOME", project.home())
        .env("A_SECRET_OF_THE_SUPERVISOR", "1")
        .env("PATH", format!("{}:{path}", place.path().display()));
    match confinement {
        Some(value) => command.env("III_CONFINEMENT", value),
        None => command.env_remove("III_CONFINEMENT"),
    };
    let mut run = Run::start(command);
    let event = run.line("console_tail");
    run.wait();
    let event: serde_json::Value = serde_json::from_str(&event).unwrap();
    let tail = event["console_tail"].as_str().unwrap();
    assert!(tail.contains("a thread of its own: true"), "{tail}");
    report(tail)
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

const ATTACKS: [&str; 14] = [
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
    "fork",
    "execute",
];

fn all_are_held(report: &Report) {
    for name in ATTACKS {
        let (held, why) = &report[name];
        assert!(held, "{name}: {why}");
    }
}

/// Listens on the attacked abstract socket, for all tests of this process.
fn listen() {
    static TARGET: LazyLock<UnixListener> = LazyLock::new(|| {
        let address = SocketAddr::from_abstract_name("iii-attack-target").unwrap();
        UnixListener::bind_addr(&address).unwrap()
    });
    LazyLock::force(&TARGET);
}

#[test]
fn a_vmm_of_an_attacker_reaches_nothing() {
    listen();
    all_are_held(&attacked(false, None));
    if nix::unistd::geteuid().is_root() {
        all_are_held(&attacked(true, None));
    }
}

#[test]
fn without_confinement_the_same_attacks_get_through() {
    // Else the test above would show nothing.
    listen();
    let report = attacked(false, Some("off"));
    for name in [
        "secrets", "names", "programs", "write", "connect", "abstract", "clone3", "fork",
    ] {
        let (held, why) = &report[name];
        assert!(!held, "{name}: {why}");
    }
    // These need no confinement: the environment is made anew for every child.
    assert!(report["environment"].0, "{:?}", report["environment"]);
}
