//! Output that is kept: nothing that was acknowledged is lost, whoever dies, and nobody is harmed by
//! another's flood or by a full disk.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use iii_integration::chaos::disk::SmallDisk;
use iii_integration::program::{Run, eventually};
use iii_integration::project::Project;
use iii_integration::{Bench, PATIENCE, is, shell, worker_name};
use iii_supervisor::log_store::{Found, Query, Record};
use iii_supervisor::{EventKind, Fault, LogSource};
use nix::sys::signal::Signal;
use serde_json::Value;

fn started(project: &Project, log: &str) -> Run {
    let mut command = project.command(&["run", "--json"]);
    command.env("III_LOG", log);
    Run::start(command)
}

/// What `logs` prints, which must succeed and have nothing to complain about.
fn shown(project: &Project, words: &[&str]) -> String {
    let said = project.says(&[&["logs"], words].concat());
    assert!(said.code == 0 && said.stderr.is_empty(), "{said:?}");
    said.stdout
}

/// The texts of the lines that `logs` prints; of what is no line, its JSON.
fn texts(project: &Project, words: &[&str]) -> Vec<String> {
    shown(project, &[&["--json"], words].concat())
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            match value["event"].as_str() {
                Some("log") => value["text"].as_str().unwrap().to_owned(),
                _ => line.to_owned(),
            }
        })
        .collect()
}

/// `line 1`, `line 2`, … up to some number, which is returned.
fn assert_counts_up(texts: &[String]) -> usize {
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(*text, format!("line {}", n + 1));
    }
    texts.len()
}

const FLOOD: &str = "i=0; while :; do i=$((i+1)); echo \"line $i\"; done";

#[test]
fn a_kill_of_the_supervisor_in_a_flood_loses_nothing_that_was_acknowledged() {
    let project = Project::new(&format!(
        "workers: {{flood: {{command: [/bin/sh, -c, '{FLOOD}']}}}}"
    ));
    let mut run = started(&project, "iii_actors::vm::ports=trace");
    for _ in 0..20 {
        run.line("log frames are taken over");
    }
    run.signal(Signal::SIGKILL);
    run.wait();
    run.seen.extend(run.lines.iter());
    let acknowledged = run
        .seen
        .iter()
        .filter(|line| line.contains("log frames are taken over"))
        .filter_map(|line| line.rsplit_once("lines=")?.1.trim().parse::<usize>().ok())
        .max()
        .unwrap();
    let stored = assert_counts_up(&texts(&project, &["flood"]));
    assert!(
        acknowledged > 20 && stored >= acknowledged,
        "{stored} of {acknowledged}"
    );
    // The next run goes on behind it.
    let mut again = started(&project, "warn");
    again.line("line 1000");
    // What is shown may be kept a moment later.
    let kept = || texts(&project, &[]);
    let behind = |all: &[String]| all.iter().rposition(|text| text == "line 1");
    eventually("the new run's lines are kept", PATIENCE, || {
        let all = kept();
        behind(&all).is_some_and(|restart| restart > 0 && all.len() - restart >= 1000)
    });
    again.signal(Signal::SIGKILL);
    again.wait();
    let all = kept();
    let restart = behind(&all).unwrap();
    assert_eq!(assert_counts_up(&all[..restart]), stored);
    assert!(assert_counts_up(&all[restart..]) >= 1000);
}

#[test]
fn the_last_words_before_a_crash_are_there_also_without_a_newline() {
    let project = Project::new(
        "
workers:
  dies:
    restart: never
    vm_restart: never
    command:
      - /bin/sh
      - -c
      - |
        i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo \"line $i\"; done
        echo complaint >&2
        printf 'last words'
        kill -9 $$
",
    );
    let mut run = started(&project, "warn");
    run.wait();
    let stdout = texts(&project, &["--stream", "stdout", "dies"]);
    assert_eq!(stdout.last().unwrap(), "last words");
    assert_eq!(assert_counts_up(&stdout[..stdout.len() - 1]), 5000);
    assert_eq!(texts(&project, &["--stream", "stderr"]), ["complaint"]);
    let last = shown(&project, &["-n", "1", "--stream", "stdout"]);
    assert!(last.ends_with(" dies | last words…\n"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_vm_dies_what_reached_the_host_and_its_consoles_end_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::keeping(directory.path()).await;
    bench
        .add(vec![shell(
            "victim",
            "echo up; while true; do sleep 1; done",
        )])
        .await;
    let (boot, _, _) = bench.ready(0, "victim").await;
    bench.line("victim", "up").await;
    let mark = bench.mark();
    bench.hurt("victim", Fault::GuestPanic).await;
    let crashed = |event: &iii_supervisor::Event| match event.kind {
        EventKind::VmCrashed { .. } if is(event, "victim") => Some(()),
        _ => None,
    };
    bench.event(mark, "the crash", crashed).await;
    let (again, _, _) = bench.ready(mark, "victim").await;
    let bench = bench.stop().await;
    let mut query = Query::default();
    query.boot = Some(boot.to_string());
    let stored = bench.supervisor.stored_logs().unwrap();
    let mut reading = stored.read(&[worker_name("victim")], &query).unwrap();
    let mut lines = Vec::new();
    while let Some(found) = reading.next().unwrap() {
        match found {
            Found::Record(Record::Line(line)) => lines.push(line),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lines[0].text, b"up");
    assert_eq!(lines[0].stream, LogSource::Stdout);
    let panic = lines.iter().find(|line| {
        line.stream == LogSource::Console
            && String::from_utf8_lossy(&line.text).contains("Kernel panic")
    });
    assert!(panic.is_some(), "{lines:?}");
    assert_ne!(boot, again);
}

#[test]
fn a_flood_rotates_within_its_bounds_and_its_neighbour_loses_nothing() {
    let project = Project::new(&format!(
        "
workers:
  flood:
    command: [/bin/sh, -c, '{FLOOD}']
    logs: {{max_size: 64KiB, max_files: 3}}
  neighbour:
    command: [/bin/sh, -c, 'i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo \"line $i\"; sleep 0.1; done; echo over']
    restart: never
"
    ));
    let mut run = started(&project, "warn");
    run.line("over");
    // The fourth file is the first that costs an older one.
    let stored = project.state().join("logs/flood");
    eventually("some rotations", PATIENCE, || {
        let mut names = fs::read_dir(&stored)
            .unwrap()
            .flatten()
            .map(|e| e.file_name());
        names.any(|name| name.to_str().unwrap() > "00000004.log")
    });
    let sizes = || -> Vec<u64> {
        let files = fs::read_dir(&stored).unwrap().flatten();
        // One may be removed meanwhile.
        files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .collect()
    };
    let sizes = sizes();
    assert!(
        sizes.len() <= 3 && sizes.iter().all(|size| *size <= 64 << 10),
        "{sizes:?}"
    );
    run.signal(Signal::SIGINT);
    run.wait();
    let mut neighbour = texts(&project, &["neighbour"]);
    assert_eq!(neighbour.pop().unwrap(), "over");
    assert_eq!(assert_counts_up(&neighbour), 40);
    let flood = texts(&project, &["flood"]);
    let first: usize = flood[0].strip_prefix("line ").unwrap().parse().unwrap();
    for (n, text) in flood.iter().enumerate() {
        assert_eq!(*text, format!("line {}", first + n));
    }
    assert_eq!(
        texts(&project, &["-n", "7", "flood"]),
        flood[flood.len() - 7..]
    );
}

#[test]
fn a_full_disk_stops_nobody_is_told_once_and_what_is_lost_is_counted() {
    // Where this user may not mount, no disk can be filled without harm to others.
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let project = Project::new(
        "
workers:
  ticks:
    command: [/bin/sh, -c, 'i=0; while :; do i=$((i+1)); echo \"tick $i\"; sleep 0.1; done']
",
    );
    std::os::unix::fs::symlink(disk.path(), project.home().join("projects")).unwrap();
    let mut run = started(&project, "warn");
    // The store may be behind what is shown, by a line or two.
    run.line("tick 9\"");
    disk.fill();
    run.line("failed to write logs");
    let n = |line: &str| -> usize {
        let text = line.rsplit_once("tick ").unwrap().1;
        text.split('"').next().unwrap().parse().unwrap()
    };
    // It goes on all the same.
    let now = n(&run.line("tick "));
    run.line(&format!("tick {}\"", now + 20));
    disk.free();
    let over = run.line("logs are written again");
    let after = n(&run.line("tick ")) + 10;
    run.line(&format!("tick {after}\""));
    run.signal(Signal::SIGINT);
    run.wait();
    let told = run
        .seen
        .iter()
        .filter(|l| l.contains("failed to write logs"));
    assert_eq!(told.count(), 1, "told once");
    let texts = texts(&project, &[]);
    let gaps: Vec<&String> = texts.iter().filter(|t| t.contains("log-lost")).collect();
    let [gap] = gaps[..] else { panic!("{texts:?}") };
    let lost: Value = serde_json::from_str(gap).unwrap();
    let lost = lost["lines"].as_u64().unwrap() as usize;
    assert!(over.contains(&format!("{lost} lines of ticks")), "{over}");
    let at = texts.iter().position(|t| t == gap).unwrap();
    let number = |text: &String| -> usize { text.strip_prefix("tick ").unwrap().parse().unwrap() };
    // What is missing is what was counted.
    assert_eq!(number(&texts[at + 1]) - number(&texts[at - 1]) - 1, lost);
    let last = number(texts.last().unwrap());
    assert_eq!(texts.len() - 1 + lost, last);
}

#[test]
fn a_follower_goes_on_over_the_end_of_the_supervisor_and_ends_when_told() {
    let project = Project::new(
        "workers: {w: {command: [/bin/sh, -c, 'echo \"boot $III_BOOT_ID\"; exec sleep 1000']}}",
    );
    // Before anything was ever stored.
    let mut follower = project.start(&["logs", "-f", "w"]);
    let mut boots = Vec::new();
    for _ in 0..2 {
        let mut run = started(&project, "warn");
        boots.push(follower.line("| boot "));
        run.signal(Signal::SIGKILL);
        run.wait();
    }
    assert_ne!(boots[0], boots[1]);
    follower.signal(Signal::SIGINT);
    assert_eq!(follower.wait().signal(), Some(Signal::SIGINT as i32));

    let mut command = project.command(&["logs", "-f"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    // Nothing more is written; that nobody reads is noticed all the same.
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn bad_input_is_refused_with_a_hint() {
    let project = Project::new("workers: {web: {command: [x]}, queue: {command: [x]}}");
    for (words, expected) in [
        (&["wbe"][..], "did you mean \"web\"?"),
        (&["nothing"], "there are: web, queue"),
        (&["--since", "yesterday"], "10m or 2h30m"),
        (&["--boot", "xyz"], "hexadecimal"),
    ] {
        let said = project.says(&[&["logs"], words].concat());
        assert_eq!(said.code, 2, "{words:?}: {said:?}");
        assert!(said.stderr.contains(expected), "{words:?}: {said:?}");
    }
    let said = project.says(&["logs"]);
    assert_eq!((said.code, &*said.stdout), (0, ""));
    assert!(said.stderr.contains("no output is kept"), "{said:?}");
}
