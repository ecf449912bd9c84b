//! The program as a user calls it, as far as no VM is needed: what is said, and the exit codes.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may fail like the test"
)]

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iii-super"));
    // What the developer's own environment says must not decide a test.
    for name in [
        "III_LOG",
        "NO_COLOR",
        "III_HELPER_DIR",
        "III_LIBKRUNFW_PATH",
        "III_URL",
        "III_SUPER_COMPLETE",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn directory(file: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("iii.workers.yaml"), file).unwrap();
    dir
}

const SOUND: &str = "workers: {web: {command: sleep 1}, api: {command: sleep 2}}\n";

#[test]
fn help_and_completions_are_there() {
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["ps", "--help"],
        &["top", "--help"],
        &["list", "--help"],
        &["events", "--help"],
        &["start", "--help"],
        &["stop", "--help"],
        &["restart", "--help"],
        &["exec", "--help"],
        &["config", "--help"],
        &["doctor", "--help"],
        &["firmware", "--help"],
        &["schema", "--help"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["add", "--help"],
        &["remove", "--help"],
        &["man", "--help"],
    ] {
        let (code, stdout, stderr) = run(program().args(args));
        assert_eq!(code, 0, "{args:?} {stderr}");
        assert!(stdout.contains("iii-super"), "{args:?}");
    }
    let (code, _, stderr) = run(program().arg("doctr"));
    assert_eq!(code, 2);
    assert!(stderr.contains("'doctor'"), "{stderr}");
}

#[test]
fn all_faults_of_a_file_are_said_and_nothing_is_started() {
    let dir = directory("workers:\n  web:\n    comand: x\n    resources: {cpus: 0}\n");
    for command in ["run", "config"] {
        let (code, stdout, stderr) = run(program().arg(command).current_dir(&dir));
        assert_eq!((code, &*stdout), (2, ""));
        assert!(
            stderr.contains("iii.workers.yaml:3:5: workers.web.comand: unknown key"),
            "{stderr}"
        );
        assert!(stderr.contains("\niii.workers.yaml:4:23:"), "{stderr}");
        assert!(stderr.contains("3 faults in iii.workers.yaml"), "{stderr}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn too_few_open_files_are_told_before_anything_starts() {
    let dir = directory(SOUND);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 64 && exec \"$0\" run"]);
    shell.arg(program().get_program()).current_dir(&dir);
    let (code, _, stderr) = run(&mut shell);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("this process may have 64"), "{stderr}");
    assert!(stderr.contains("ulimit -Hn"), "{stderr}");
}

#[test]
fn a_missing_file_and_an_unknown_name_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(program().arg("run").current_dir(&dir));
    assert_eq!(code, 2);
    assert!(stderr.contains("--file FILE"), "{stderr}");

    let dir = directory(SOUND);
    let (code, _, stderr) = run(program().args(["run", "wbe"]).current_dir(&dir));
    assert_eq!(code, 2);
    assert!(stderr.contains("did you mean \"web\"?"), "{stderr}");
}

#[test]
fn a_host_that_lacks_something_is_refused() {
    let dir = directory(SOUND);
    let empty = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = run(program()
        .arg("run")
        .env("III_HELPER_DIR", empty.path())
        .current_dir(&dir));
    assert_eq!((code, &*stdout), (2, ""));
    assert!(stderr.contains("iii-shim"), "{stderr}");

    let (code, _, stderr) = run(program()
        .args(["firmware", "path"])
        .env("III_LIBKRUNFW_PATH", "/nonexistent.so"));
    assert_eq!(code, 1);
    assert!(stderr.contains("III_LIBKRUNFW_PATH"), "{stderr}");
}

#[test]
fn config_shows_what_was_understood() {
    let dir = directory(SOUND);
    let (code, stdout, _) = run(program()
        .args(["config", "--json", "api"])
        .current_dir(&dir));
    assert_eq!(code, 0);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["workers"]["api"]["command"][1], "2");
    assert_eq!(value["workers"]["web"], serde_json::Value::Null);
}

#[test]
fn doctor_tells_by_its_exit_code_whether_a_worker_can_run() {
    let (code, stdout, _) = run(program().args(["doctor", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, i32::from(report["can_run"] != true));

    // Without QEMU none can.
    let empty = tempfile::tempdir().unwrap();
    let (code, stdout, _) = run(program().arg("doctor").env("PATH", empty.path()));
    assert_eq!(code, 1);
    assert!(stdout.contains("✗ qemu"), "{stdout}");
    assert!(stdout.contains("cannot run workers"), "{stdout}");
}

#[test]
fn the_schema_printed_is_the_one_shipped() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/iii.workers.schema.json");
    let (code, stdout, _) = run(program().arg("schema"));
    assert_eq!(code, 0);
    assert_eq!(stdout, std::fs::read_to_string(file).unwrap());
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = program()
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man/man1");
    let (code, said, stderr) = run(program().args(["man", "--out"]).arg(&out));
    assert_eq!((code, &*stderr), (0, ""));
    let mut names: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(
        said.starts_with(&format!("{} pages", names.len())),
        "{said}"
    );
    let (_, help, _) = run(program().arg("--help"));
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // Continued lines are indented deeper.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    let mut expected: Vec<String> = commands.map(|c| format!("iii-super-{c}.1")).collect();
    expected.push("iii-super.1".into());
    expected.sort();
    assert_eq!(names, expected);
    for name in &names {
        let text = std::fs::read_to_string(out.join(name)).unwrap();
        let title = name.trim_end_matches(".1");
        assert!(text.contains(&format!(".TH {title} 1")), "{text}");
        assert!(text.contains(".SH SYNOPSIS"), "{name}");
    }
    let (code, page, _) = run(program().args(["man", "remove"]));
    assert_eq!(code, 0);
    assert_eq!(
        page,
        std::fs::read_to_string(out.join("iii-super-remove.1")).unwrap()
    );
    let (code, _, stderr) = run(program().args(["man", "rm"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("remove"), "{stderr}");
    let (code, _, stderr) = run(program().args(["man", "--out", "/dev/null/x"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("--out"), "{stderr}");
}

#[test]
fn a_shell_that_asks_gets_the_names_of_workers_and_options() {
    let dir = directory(SOUND);
    let other = dir.path().join("other.yaml");
    std::fs::write(&other, "workers: {job: {command: x}}").unwrap();
    let complete = |line: &[&str]| {
        let mut command = program();
        command
            .args(["--", "iii-super"])
            .args(line)
            .current_dir(&dir)
            .env("III_SUPER_COMPLETE", "bash")
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_INDEX", line.len().to_string());
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!((code, &*stderr), (0, ""));
        let mut words: Vec<String> = stdout.lines().map(str::to_owned).collect();
        words.retain(|word| !word.starts_with('-'));
        words
    };
    assert_eq!(complete(&["run", ""]), ["web", "api"]);
    assert_eq!(complete(&["remove", "w"]), ["web"]);
    assert_eq!(complete(&["config", "-f", "other.yaml", ""]), ["job"]);
    assert_eq!(complete(&["add", "x", "--depends-on", "a"]), ["api"]);
    assert!(complete(&["doc"]).contains(&"doctor".to_owned()));
    // A file that cannot be read offers nothing, and says nothing in the middle of a line.
    assert_eq!(
        complete(&["run", "-f", "none.yaml", ""]),
        Vec::<String>::new()
    );
    let (code, script, _) = run(program().env("III_SUPER_COMPLETE", "bash"));
    assert_eq!(code, 0);
    assert!(
        script.contains("complete") && script.contains("iii-super"),
        "{script}"
    );
}

#[test]
fn who_begins_is_told_how() {
    let empty = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    for command in ["run", "list", "config", "ps", "top"] {
        let mut program = program();
        program.arg(command).current_dir(&empty);
        let (code, stdout, stderr) = run(program.env("III_HOME", home.path()));
        assert_eq!((code, &*stdout), (2, ""), "{command}: {stderr}");
        assert!(
            stderr.contains("make one with `iii-super add NAME -- COMMAND`"),
            "{command}: {stderr}"
        );
    }
}

#[test]
fn workers_are_listed_without_a_supervisor() {
    let dir = directory(SOUND);
    let home = tempfile::tempdir().unwrap();
    let list = |args: &[&str]| {
        let mut program = program();
        program.arg("list").args(args).current_dir(&dir);
        run(program.env("III_HOME", home.path()))
    };
    let (code, stdout, stderr) = list(&[]);
    assert_eq!((code, &*stderr), (0, ""));
    assert_eq!(
        stdout,
        "NAME  STATE  ROOT  PORTS  COMMAND\n\
         web   -      host  -      sleep 1\n\
         api   -      host  -      sleep 2\n"
    );
    let (code, stdout, _) = list(&["--json", "api"]);
    let listed: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 0);
    assert_eq!(listed[0]["command"], serde_json::json!(["sleep", "2"]));
    assert_eq!(listed[0]["state"], serde_json::Value::Null);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let (code, _, stderr) = list(&["apu"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("did you mean"), "{stderr}");
    assert!(!home.path().join("projects").exists(), "it makes nothing");
}
