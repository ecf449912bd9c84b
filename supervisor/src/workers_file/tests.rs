//! Whole files: what is understood, and what is said about faults.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use iii_actors::spec::{
    GuestArch, LogSpec, MountSpec, NetworkMode, PublishSpec, PullPolicy, RootSpec, UserSpec,
};
use iii_proto::guest::Probe;
use iii_proto::restart::{RestartLimit, RestartMode};

use super::*;

/// Every key in one of its forms, for the directory that [`directory`] makes.
pub(super) const EVERYTHING: &str = r#"
x-defaults: &defaults
  stop_grace: 3s
engine: ws://localhost:49134
workers:
  web:
    <<: *defaults
    root: host
    path: ./app
    command: python3 -m http.server "8 0"
    cwd: /app/sub
    env:
      PLAIN: value
      NUMBER: 1.10
      FROM_HOST: "${HOST_VALUE}"
      DEFAULTED: ${UNSET:-fallback}
      TAKEN:
      OVERRIDDEN: open
    env_file: ./secrets.env
    secrets: [FROM_HOST, TOKEN]
    resources: {cpus: 2, memory: 300MB, pids: 100, open_files: 1024, disk: 1GiB}
    ports: ["8080:80", 9000, "0.0.0.0:7000:70"]
    mounts: [./data:/data:ro, "./data:/more"]
    restart:
      mode: always
      initial: 250ms
      factor: 1.5
      max: 10s
      jitter: 0.2
      limit: 10/5m
      reset_after: 30s
      stop_codes: [78, 3]
    vm_restart: {limit: {restarts: 2, window: 1m}}
    health: {http: "80/health", interval: 5s, timeout: 1s, retries: 2, start_period: 20s}
    network:
      mode: engine
      allow: [example.com, "10.0.0.0/8:5432"]
      host_ports: [49134]
      dns: ["127.0.0.1:5353"]
    logs: {max_size: 1MiB, max_files: 3}
    user: "1000:100"
    boot_deadline: 2m
    heartbeat_timeout: 1m
  job:
    command: [sh, -c, "echo $HOME | cat"]
    env: [A=1, B=x=y, TAKEN]
    restart: never
    network: none
    health: {tcp: 80}
  probe:
    root: {persist: 2GiB}
    command: [sleep, "1000"]
    restart: {limit: none}
    health: {exec: test -e /tmp/ok}
"#;

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("app")).unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(
        dir.path().join("secrets.env"),
        "TOKEN=s3cret\nOVERRIDDEN=s3cret\n",
    )
    .unwrap();
    dir
}

fn lookup(name: &str) -> Option<String> {
    match name {
        "HOST_VALUE" => Some("from-host".into()),
        "TAKEN" => Some("taken".into()),
        "HOME" => Some("/home/user".into()),
        "SECRET" => Some("hunter2".into()),
        _ => None,
    }
}

fn parse(text: &str, dir: &Path) -> Result<WorkersFile, WorkersFileError> {
    WorkersFile::parse(text, Path::new("w.yaml"), dir, &lookup)
}

#[test]
fn every_key_is_understood() {
    let dir = directory();
    let file = parse(EVERYTHING, dir.path()).unwrap();
    let [web, job, probe] = &file.workers[..] else {
        panic!()
    };
    let engine = file.engine.address().unwrap();
    assert_eq!(engine.in_guest(), "ws://host.iii.internal:49134");
    assert_eq!(probe.engine.as_ref(), Some(engine), "each worker has it");
    assert_eq!(web.command, ["python3", "-m", "http.server", "8 0"]);
    assert_eq!(web.cwd.as_deref(), Some("/app/sub"));
    let env: Vec<(&str, &str)> = web.env.iter().map(|(n, v)| (&**n, &**v)).collect();
    let expected = [
        ("TOKEN", "s3cret"),
        ("OVERRIDDEN", "open"),
        ("PLAIN", "value"),
        ("NUMBER", "1.10"),
        ("FROM_HOST", "from-host"),
        ("DEFAULTED", "fallback"),
        ("TAKEN", "taken"),
    ];
    assert_eq!(env, expected);
    assert_eq!(
        web.secret_env.iter().collect::<Vec<_>>(),
        ["FROM_HOST", "TOKEN"]
    );
    assert_eq!((web.persist, probe.persist), (None, Some(2 << 30)));
    assert_eq!(web.resources.cpus, 2);
    assert_eq!(web.resources.memory, 287 << 20, "rounded up to whole MiB");
    assert_eq!(web.resources.disk, Some(1 << 30));
    let logs = LogSpec {
        max_size: 1 << 20,
        max_files: 3,
    };
    assert_eq!(web.logs, logs);
    let any = PublishSpec {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        host_port: 7000,
        guest_port: 70,
    };
    assert_eq!(
        web.ports,
        [
            PublishSpec::loopback(8080, 80),
            PublishSpec::loopback(9000, 9000),
            any
        ]
    );
    let mount = |host: &str, guest: &str, read_only| MountSpec {
        host: dir.path().join(host),
        guest: guest.into(),
        read_only,
    };
    assert_eq!(
        web.mounts,
        [
            mount("app", "/app", false),
            mount("data", "/data", true),
            mount("data", "/more", false)
        ]
    );
    assert_eq!(web.restart.mode, RestartMode::Always);
    assert_eq!(web.restart.initial, Duration::from_millis(250));
    assert_eq!(web.restart.stop_codes, [78, 3]);
    let limit = |restarts, window| {
        Some(RestartLimit {
            restarts,
            window: Duration::from_secs(window),
        })
    };
    assert_eq!(web.restart.limit, limit(10, 300));
    assert_eq!(web.vm_restart.limit, limit(2, 60));
    let health = web.health.as_ref().unwrap();
    assert_eq!(
        health.probe,
        Probe::Http {
            port: 80,
            path: "/health".into()
        }
    );
    assert_eq!((health.interval_ms, health.retries), (5000, 2));
    assert_eq!(web.network.mode, NetworkMode::Engine);
    assert_eq!(web.network.host_ports.iter().collect::<Vec<_>>(), [&49134]);
    assert_eq!(
        web.user,
        Some(UserSpec::Ids {
            uid: 1000,
            gid: 100
        })
    );
    assert_eq!(web.stop_grace, Duration::from_secs(3), "by the merge key");
    assert_eq!(web.boot_deadline, Duration::from_secs(120));
    assert_eq!(web.heartbeat_timeout, Duration::from_secs(60));

    assert_eq!(job.command, ["sh", "-c", "echo $HOME | cat"]);
    assert_eq!(job.env[1], ("B".into(), "x=y".into()));
    assert_eq!(job.restart.mode, RestartMode::Never);
    assert_eq!(job.network.mode, NetworkMode::None);
    assert_eq!(probe.restart.limit, None);
    let exec = ["test", "-e", "/tmp/ok"].map(String::from).to_vec();
    assert_eq!(probe.health.as_ref().unwrap().probe, Probe::Exec(exec));
}

#[test]
fn all_faults_are_reported_together_with_place_and_path() {
    let dir = directory();
    let text = "\
workers:
  web:
    comand: x
    resources:
      memory: 512M
      cpus: 0.5
    ports: ['8080:80']
    mounts: [./missing:/x, './secrets.env:/y']
    image: Alpine
  api:
    command: echo hi | cat
    ports: ['0.0.0.0:8080:80']
    restart: on-failur
    stop_grace: 10
    volumes: [a]
  Bad_Name:
    command: x
";
    let error = parse(text, dir.path()).unwrap_err().to_string();
    let missing = dir.path().join("missing");
    let secrets = dir.path().join("secrets.env");
    let expected = format!(
        "\
w.yaml:3:5: workers.web.comand: unknown key `comand`, did you mean `command`?
w.yaml:3:5: workers.web: has no `command`
    say what runs in the VM, as command: [python3, app.py], or name an image that does
w.yaml:5:15: workers.web.resources.memory: \"512M\" can mean two sizes: write 512MiB (powers of 1024) or 512MB (powers of 1000)
w.yaml:6:13: workers.web.resources.cpus: \"0.5\" is not a whole number from 1 to 32
w.yaml:8:14: workers.web.mounts[0]: the directory {missing} does not exist
    make it: mkdir -p {missing}
w.yaml:8:28: workers.web.mounts[1]: {secrets} is not a directory
    only directories can be shown to a guest: name the directory that holds the file
w.yaml:9:12: workers.web.image: \"Alpine\" is no image name: a repository has no capital letters; a name is [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as debian:12-slim or localhost:5000/team/app@sha256:…
w.yaml:11:14: workers.api.command: `|` is shell syntax, and no shell runs this command
    write it as a list: [sh, -c, \"…\"]; a literal word is quoted in a list
w.yaml:12:13: workers.api.ports[0]: host port 8080 is taken by workers.web.ports[0] at line 7
w.yaml:13:14: workers.api.restart: \"on-failur\" is not one of always, on-failure, never, did you mean `on-failure`?
w.yaml:14:17: workers.api.stop_grace: \"10\" has no unit: write 10s for seconds or 10ms for milliseconds
w.yaml:15:5: workers.api.volumes: unknown key `volumes`, did you mean `mounts`?
w.yaml:16:3: workers.Bad_Name: a worker's name is made of a-z, 0-9 and '-', and does not start or end with '-': 'B'",
        missing = missing.display(),
        secrets = secrets.display(),
    );
    assert_eq!(error, expected);
}

#[test]
fn dependencies_are_named_listed_or_mapped() {
    let dir = directory();
    let text = "workers:
  db: {command: x}
  job: {command: x}
  one: {command: x, depends_on: db}
  list: {command: x, depends_on: [db, job]}
  map:
    command: x
    depends_on:
      job: done
      db: {condition: started, restart: true}
";
    let file = parse(text, dir.path()).unwrap();
    let of = |name: &str| {
        let worker = file.workers.iter().find(|w| w.name.as_str() == name);
        let depends_on = worker.unwrap().depends_on.iter();
        depends_on
            .map(|d| format!("{} {:?} {}", d.worker, d.condition, d.restart))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("one"), ["db Ready false"]);
    assert_eq!(of("list"), ["db Ready false", "job Ready false"]);
    assert_eq!(of("map"), ["job Done false", "db Started true"]);
    let names = |of: &[&str]| {
        let of: Vec<String> = of.iter().map(|n| (*n).to_owned()).collect();
        let selected = file.select(&of).unwrap();
        selected
            .iter()
            .map(|w| w.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&["one"]), ["db", "one"], "with what it depends on");
}

#[test]
fn each_circle_is_told() {
    let dir = directory();
    let text = "workers:
  a: {command: x, depends_on: [b, c]}
  b: {command: x, depends_on: [a]}
  c: {command: x, depends_on: [a]}
  d: {command: x, depends_on: [d]}
";
    let error = parse(text, dir.path()).unwrap_err().to_string();
    for circle in ["a → b → a", "a → c → a", "d → d"] {
        assert!(
            error.contains(&format!("is a circle: {circle};")),
            "{error}"
        );
    }
    assert_eq!(error.matches("is a circle").count(), 3, "{error}");

    // Each of many depends on all: the faults stay few enough to be read.
    let names: Vec<String> = (0..40).map(|n| format!("w{n}")).collect();
    let all = names.join(", ");
    let workers = names
        .iter()
        .map(|name| format!("  {name}: {{command: x, depends_on: [{all}]}}\n"));
    let text = format!("workers:\n{}", workers.collect::<String>());
    let error = parse(&text, dir.path()).unwrap_err().to_string();
    assert_eq!(error.matches("is a circle").count(), 16, "{error}");
}

#[test]
fn a_circle_is_told_once_with_its_place_and_members() {
    let dir = directory();
    let text = "workers:
  a: {command: x, depends_on: [b]}
  b: {command: x, depends_on: [c]}
  c: {command: x, depends_on: [a]}
";
    let error = parse(text, dir.path()).unwrap_err().to_string();
    assert_eq!(
        error,
        "w.yaml:2:32: workers.a.depends_on[0]: is a circle: a → b → c → a; none of them could \
         ever start"
    );
}

#[test]
fn images() {
    let dir = directory();
    let image = |text: &str| {
        let text = format!("workers: {{w: {{{text}}}}}");
        let worker = parse(&text, dir.path()).unwrap().workers.remove(0);
        match worker.root {
            RootSpec::Image(image) => (image, worker.command),
            other => panic!("{other:?}"),
        }
    };
    let (own, command) = image("image: 'node:22'");
    assert_eq!(own.reference.to_string(), "docker.io/library/node:22");
    assert_eq!(
        (own.pull, own.entrypoint, command),
        (PullPolicy::Missing, None, vec![])
    );
    let (given, command) =
        image("image: '127.0.0.1:5000/a/b:x', pull: never, entrypoint: sh -c, command: [exit 0]");
    assert_eq!(given.reference.registry(), "127.0.0.1:5000");
    assert_eq!(given.pull, PullPolicy::Never);
    assert_eq!(given.entrypoint.unwrap(), ["sh", "-c"]);
    assert_eq!(command, ["exit 0"]);
    assert_eq!(given.platform, None);
    let (arm, _) = image("image: x, platform: linux/arm64");
    assert_eq!(arm.platform, Some(GuestArch::Aarch64));
    let (none, _) = image("image: x, entrypoint: []");
    assert_eq!(none.entrypoint, Some(Vec::new()));
}

#[test]
fn single_faults() {
    let dir = directory();
    for (worker, part) in [
        ("command: []", "names no program"),
        ("command: ''", "names no program"),
        ("command: \"a 'b\"", "never closed"),
        ("command: {a: b}", "expected a single value, found a map"),
        ("command:", "has no value"),
        ("{}", "has no `command`"),
        ("command: x\n    root: debian", "is not one of host"),
        (
            "command: x\n    root: {persist: 1MiB}",
            "1MiB is outside of 16MiB to 16TiB",
        ),
        (
            "command: x\n    root: {persits: 1GiB}",
            "did you mean `persist`?",
        ),
        (
            "command: x\n    root: {persist: 1GiB}\n    resources: {disk: 1GiB}",
            "take `disk` out",
        ),
        (
            "command: x\n    image: node:22\n    root: host",
            "cannot both be",
        ),
        ("command: x\n    pull: always", "`pull` is for images"),
        (
            "command: x\n    platform: linux/arm64",
            "`platform` is for images",
        ),
        (
            "image: x\n    platform: arm64",
            "is not one of linux/amd64, linux/arm64",
        ),
        (
            "command: x\n    entrypoint: []",
            "`entrypoint` is for images",
        ),
        (
            "image: x\n    pull: sometimes",
            "is not one of missing, always, never",
        ),
        ("image: x\n    command: []", "names no program"),
        (
            "command: x\n    depends_on: [nobody]",
            "there is no worker `nobody`",
        ),
        ("command: x\n    depends_on: [w]", "is a circle: w → w"),
        (
            "command: x\n    depends_on: {w: up}",
            "is not one of started, ready, done",
        ),
        (
            "command: x\n    depends_on: {w: {condition: done, restart: true}}",
            "has no meaning with `condition: done`",
        ),
        ("command: x\n    command: y", "given twice, first at line 3"),
        (
            "command: x\n    resources: {memory: 1MiB}",
            "1MiB is outside of 64MiB to 1TiB",
        ),
        (
            "command: x\n    resources: {cpus: 99}",
            "99 is outside of 1 to 32",
        ),
        ("command: x\n    env: {1A: x}", "name of a variable"),
        (
            "command: x\n    env: {A: '${NOPE}'}",
            "NOPE is not set in the environment",
        ),
        (
            "command: x\n    env: {A: '${NOPE:?ask Ann for it}'}",
            "ask Ann for it",
        ),
        (
            "command: x\n    env: {A: }",
            "A has no value here and is not set",
        ),
        ("command: x\n    env: {A: [1]}", "expected a single value"),
        ("command: x\n    env_file: nope.env", "failed to read"),
        ("command: x\n    env_file: ./data", "it is not a file"),
        (
            "command: x\n    env: {TOKEN: x}\n    secrets: [TOKNE]",
            "w.yaml:5:15: workers.w.secrets[0]: names no variable of `env` or `env_file`, did you mean `TOKEN`?",
        ),
        ("command: x\n    secrets: TOKEN", "names no variable"),
        (
            "command: x\n    env: {A: x}\n    secrets: [A, A]",
            "w.yaml:5:18: workers.w.secrets[1]: given twice, first at line 5",
        ),
        (
            "command: x\n    env: {A: x}\n    secrets: {A: x}",
            "expected a list, found a map",
        ),
        ("command: x\n    secret: [A]", "did you mean `secrets`?"),
        ("command: x\n    path: ./nope", "does not exist"),
        (
            "command: x\n    path: ./app\n    mounts: ['./data:/app']",
            "taken by another mount",
        ),
        ("command: x\n    mounts: ['./data']", "is not a mount"),
        (
            "command: x\n    mounts: ['./data:/x:rx']",
            "neither `ro` nor `rw`",
        ),
        ("command: x\n    mounts: ['./data:/proc/x']", "its own"),
        ("command: x\n    cwd: ../x", "must be absolute"),
        (
            "command: x\n    restart: {initial: 10s, max: 1s}",
            "shorter than `initial`",
        ),
        ("command: x\n    restart: {limit: 10}", "write it 10/5m"),
        (
            "command: x\n    restart: {limit: {restarts: 1}}",
            "both `restarts` and `window`",
        ),
        (
            "command: x\n    restart: {jitter: 2}",
            "not a number from 0 to 1",
        ),
        (
            "command: x\n    restart: {stop_codes: [300]}",
            "outside of 0 to 255",
        ),
        ("command: x\n    health: {interval: 1s}", "exactly one of"),
        (
            "command: x\n    health: {tcp: 1, http: 80}",
            "exactly one of",
        ),
        (
            "command: x\n    health: {tcp: 1, interval: 0s}",
            "longer than 0",
        ),
        (
            "command: x\n    network: {mode: none, host_ports: [1]}",
            "no network at all",
        ),
        ("command: x\n    network: {dns: [x]}", "DNS server"),
        ("command: x\n    network: pubic", "did you mean `public`?"),
    ] {
        let text = format!("workers:\n  w:\n    {worker}\n");
        let error = parse(&text, dir.path()).expect_err(&text).to_string();
        assert!(error.contains(part), "{text}\n{error}");
        assert!(error.starts_with("w.yaml:"), "{error}");
    }
}

#[test]
fn faults_of_the_whole_file() {
    for (text, part) in [
        ("", "the file is empty"),
        ("workers:\n", "has no value"),
        ("workers: {}\n", "names no worker"),
        ("workers: {a: }\n", "has no settings"),
        ("services: {}\n", "did you mean `workers`?"),
        (
            "engine: localhost:49134\nworkers: {a: {command: x}}\n",
            "it does not begin with ws://",
        ),
        (
            "engine: ${NOPE}\nworkers: {a: {command: x}}\n",
            "NOPE is not set",
        ),
        ("[1]\n", "expected a map, found a list"),
        ("a: [\n", "not valid YAML"),
    ] {
        let error = parse(text, Path::new("/")).expect_err(text).to_string();
        assert!(error.contains(part), "{text}\n{error}");
    }
}

#[test]
fn values_of_the_environment_are_never_shown() {
    let dir = directory();
    std::fs::write(dir.path().join("bad.env"), "hunter2\nA='hunter2\n").unwrap();
    let text = "\
workers:
  w:
    command: x
    env: [\"hun ter2\", \"A=${SECRET}\"]
    env_file: bad.env
    ports: ['${SECRET}']
    mounts: ['${SECRET}', '${SECRET}:/x:${SECRET}']
    network: {allow: ['${SECRET} ${SECRET}']}
";
    let error = parse(text, dir.path()).unwrap_err();
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("hun ter2"), "{shown}");
        assert!(shown.contains("bad.env:1"), "{shown}");
        assert!(shown.contains("bad.env:2"), "{shown}");
    }
}

#[test]
fn what_is_marked_secret_is_never_shown() {
    let dir = directory();
    let text = "\
workers:
  w:
    command: x
    env: {A: '${SECRET}', B: hunter2, OVERRIDDEN: hunter2, OPEN: seen}
    env_file: ./secrets.env
    secrets: [A, B, OVERRIDDEN]
";
    let file = parse(text, dir.path()).unwrap();
    let worker = &file.workers[0];
    let secrets: Vec<&str> = worker.secret_env.iter().map(String::as_str).collect();
    assert_eq!(secrets, ["A", "B", "OVERRIDDEN", "TOKEN"]);
    let value = |name: &str| {
        worker
            .env
            .iter()
            .find(|(n, _)| n == name)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(
        (value("A"), value("B")),
        ("hunter2".into(), "hunter2".into())
    );
    let shown = format!("{file:?}");
    assert!(
        shown.contains("seen") && !shown.contains("hunter2"),
        "{shown}"
    );

    // Nor in what is said of a fault: a value in the place of a name, a reference that is none.
    for (env, secrets) in [
        ("{A: x}", "[hunter2, 'hunter2 x']"),
        ("{A: '${hunter2 x}'}", "[A]"),
        ("{A: '${A:+hunter2}'}", "[A]"),
        ("{A: \"hunter2\\0\"}", "[A]"),
        ("{A: [hunter2]}", "[A]"),
    ] {
        let text =
            format!("workers:\n  w:\n    command: x\n    env: {env}\n    secrets: {secrets}\n");
        let error = parse(&text, dir.path()).unwrap_err();
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    // A variable that is at fault is told once.
    let text = "workers: {w: {command: x, env: {A: '${NOPE}'}, secrets: A}}";
    let error = parse(text, dir.path()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_file_means_the_same_by_whatever_path_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for directory in ["real/project", "real/data", "links/data", "elsewhere/data"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let link = |target: &str, at: &str| {
        std::os::unix::fs::symlink(root.join(target), root.join(at)).unwrap();
    };
    let file = root.join("real/project/w.yaml");
    link("real/project/w.yaml", "links/w.yaml");
    link("real/project", "links/project");
    link("elsewhere/data", "real/project/out");
    std::fs::write(root.join("real/project/s.env"), "A=1\n").unwrap();
    let text = "workers: {w: {command: x, path: ., env_file: s.env, mounts: ['../data:/data', \
                './out/../data:/out', 'out:/link']}}";
    std::fs::write(&file, text).unwrap();
    let expected = [
        ("real/project", "/app"),
        ("real/data", "/data"),
        // What lies above a link is what lies above its target, as for the kernel.
        ("elsewhere/data", "/out"),
        ("real/project/out", "/link"),
    ]
    .map(|(host, guest)| (root.join(host), guest.to_owned()));
    for path in [
        "real/project/w.yaml",
        "links/w.yaml",
        "links/project/w.yaml",
    ] {
        let read = WorkersFile::load_with(&root.join(path), &lookup).unwrap();
        let mounts = read.workers[0].mounts.iter();
        let mounts: Vec<_> = mounts.map(|m| (m.host.clone(), m.guest.clone())).collect();
        assert_eq!(mounts, expected, "{path}");
        assert_eq!(read.workers[0].env, [("A".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn files_that_cannot_be_read() {
    let dir = directory();
    let error = WorkersFile::load(&dir.path().join("none.yaml")).unwrap_err();
    assert!(error.to_string().contains("name the file with --file FILE"));
    let latin1 = dir.path().join("latin1.yaml");
    std::fs::write(&latin1, b"workers:\n  a: {command: \xe9}\n").unwrap();
    let error = WorkersFile::load(&latin1).unwrap_err();
    assert!(error.to_string().contains("line 2 is not UTF-8"), "{error}");
    let error = WorkersFile::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    // Nobody ever writes to it: who waited for that would wait for ever.
    let fifo = dir.path().join("fifo.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = WorkersFile::load(&fifo).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    let large = dir.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = WorkersFile::load(&large).unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
}

#[test]
fn workers_are_selected_by_name_in_the_files_order() {
    let dir = directory();
    let file = parse(EVERYTHING, dir.path()).unwrap();
    let names = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        file.select(&names)
            .map(|all| all.iter().map(|w| w.name.to_string()).collect::<Vec<_>>())
            .map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["web", "job", "probe"]);
    assert_eq!(names(&["probe", "web"]).unwrap(), ["web", "probe"]);
    let errors = names(&["wep", "nothing-like-it"]).unwrap_err();
    assert!(errors[0].contains("did you mean \"web\"?"), "{errors:?}");
    assert!(errors[1].contains("it has: web, job, probe"), "{errors:?}");
}
