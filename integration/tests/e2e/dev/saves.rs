//! What a save does.

use std::fs;
use std::process::Command;

use super::{Dev, Project, names};

/// Says its version and stays.
fn version(n: u32) -> String {
    format!("import time\nprint('version {n}')\ntime.sleep(1000)\n")
}

#[test]
fn a_python_project_is_restarted_in_its_vm_and_shows_its_own_errors() {
    let project = Project::new("py", &[("main.py", &version(1))]);
    let mut dev = project.dev(&[]);
    let found = dev.event(0, "project-found");
    assert_eq!(dev.told[found]["start"], "python3 main.py");
    let first = dev.line(0, "version 1");

    project.save("main.py", &version(2));
    let second = dev.line(first, "version 2");
    assert_eq!(dev.boot(first), dev.boot(second), "the VM stays up");
    let saved = dev.event(first, "source-changed");
    assert_eq!(dev.told[saved]["paths"], serde_json::json!(["main.py"]));
    assert_eq!(dev.told[saved]["action"], "restart");

    // A slip: Python's words, and no second attempt before it is mended.
    project.save("main.py", "def slip(:\n");
    let error = dev.line(second, "SyntaxError");
    let waits = dev.until(second, "an end that waits", |value| {
        value["event"] == "workload-exited" && value["decision"] == "wait"
    });
    assert_eq!(dev.told[waits]["exit"]["code"], 1);
    project.save("main.py", &version(3));
    let third = dev.line(error.max(waits), "version 3");
    assert_eq!(dev.boot(first), dev.boot(third));
    let tries = dev
        .lines()
        .iter()
        .filter(|line| line.starts_with("SyntaxError"))
        .count();
    assert_eq!(tries, 1, "{}", dev.story());

    // What nobody means, then what somebody does: one more restart, not several.
    project.write("trace.log", "x");
    project.write("node_modules/a/index.js", "x");
    project.write(".main.py.swp", "x");
    project.write("__pycache__/main.cpython-311.pyc", "x");
    project.write(".iiiignore", "ours\n");
    project.write("ours", "x");
    project.save("main.py", &version(4));
    dev.line(third, "version 4");
    dev.quit();
    assert_eq!(dev.count("source-changed"), 4, "{}", dev.story());
    assert_eq!(dev.count("vm-started"), 1);
}

#[test]
fn a_crash_later_on_is_restarted_and_a_success_waits() {
    // It has run for longer than what counts as an error of what was saved.
    let script = "#!/bin/sh\necho run $$\nsleep 6\necho long\nexit 3\n";
    let project = Project::new("sh", &[("start", script)]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(project.path("start"), mode).unwrap();
    let mut dev = project.dev(&[]);
    let first = dev.line(0, "long");
    let crashed = dev.event(first, "workload-exited");
    assert_eq!(
        dev.told[crashed]["decision"],
        "restart-after",
        "{}",
        dev.story()
    );
    let again = dev.line(crashed, "run");
    assert_eq!(dev.boot(first), dev.boot(again));
    project.write("start", "#!/bin/sh\necho done\n");
    let done = dev.line(again, "done");
    let waits = dev.until(done, "an end that waits", |value| {
        value["event"] == "workload-exited" && value["decision"] == "wait"
    });
    assert_eq!(dev.told[waits]["exit"]["code"], 0);
    dev.quit();
    assert_eq!(dev.boot(first), dev.boot(waits));
}

#[test]
fn a_worker_that_writes_into_its_own_project_is_told_of_and_not_restarted_for_ever() {
    let project = Project::new("circle", &[]);
    let script = |more: &str| format!("scripts:\n  start: {more}exec sleep 1000\n");
    project.write("iii.worker.yaml", &script("echo x >> state.json; "));
    let mut dev = project.dev(&[]);
    let told = dev.event(0, "warning");
    let message = dev.told[told]["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("state.json") && message.contains(".iiiignore"),
        "{message}"
    );
    project.write(".iiiignore", "state.json\n");
    project.save("iii.worker.yaml", &script("echo mended; "));
    dev.line(told, "mended");
    dev.quit();
}

#[test]
fn what_decides_the_install_makes_a_new_vm_and_its_faults_wait() {
    let manifest = |install: &str| {
        format!(
            "name: made\nscripts:\n  install: {install}\n  start: cat /var/cache/iii/made; exec sleep 1000\n"
        )
    };
    let good = |n: u32| {
        manifest(&format!(
            "echo installing {n}; echo made {n} > /var/cache/iii/made"
        ))
    };
    let project = Project::new("manifest", &[("iii.worker.yaml", &good(1))]);
    let mut dev = project.dev(&[]);
    let first = dev.line(0, "made 1");
    project.save("iii.worker.yaml", &good(2));
    let second = dev.line(first, "made 2");
    assert_ne!(dev.boot(first), dev.boot(second));
    let saved = dev.event(first, "source-changed");
    assert_eq!(dev.told[saved]["action"], "new-vm");

    // A fault of the manifest is told, and what runs goes on.
    project.save("iii.worker.yaml", "scirpts: {}\n");
    let warning = dev.event(second, "warning");
    let message = dev.told[warning]["message"].as_str().unwrap();
    assert!(message.contains("did you mean `scripts`?"), "{message}");

    // An install that fails shows why, and is tried again with the next save.
    project.save("iii.worker.yaml", &manifest("\"echo the cause; exit 9\""));
    let cause = dev.line(warning, "the cause");
    let waits = dev.event(cause, "workload-exited");
    assert_eq!(dev.told[waits]["exit"]["code"], 9);
    assert_eq!(dev.told[waits]["decision"], "wait");
    project.save("iii.worker.yaml", &good(3));
    let third = dev.line(waits, "made 3");

    // A second session of the same project, while this one runs.
    let other = project.command(&[]).output().unwrap();
    assert_eq!(other.status.code(), Some(2));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    let pid = dev.run.child.id();
    assert!(said.contains(&format!("process id {pid}")), "{said}");
    dev.quit();
    assert!(dev.told[third]["worker"] == "made");

    // What was installed is still there, until somebody wants it gone.
    let mut again = project.dev(&[]);
    again.line(0, "made 3");
    again.quit();
    assert!(
        !again
            .lines()
            .iter()
            .any(|line| line.starts_with("installing")),
        "{}",
        again.story()
    );
    let mut fresh = project.dev(&["--fresh"]);
    fresh.line(0, "made 3");
    fresh.quit();
    assert!(fresh.lines().contains(&"installing 3"), "{}", fresh.story());
}

#[test]
fn what_cannot_be_run_is_said_before_anything_is_started() {
    let project = Project::new("nothing", &[("notes.txt", "")]);
    let refused = |project: &Project, more: &[&str]| {
        let output = project.command(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&project, &[]);
    assert!(
        said.contains("failed to recognise") && said.contains("scripts:"),
        "{said}"
    );
    project.write("main.py", "");
    let said = refused(&project, &["--port", "x:1"]);
    assert!(said.contains("--port"), "{said}");
    let said = refused(&project, &["--env-file", "/nowhere.env"]);
    assert!(said.contains("/nowhere.env"), "{said}");
    assert_eq!(names(&project.root), ["main.py", "notes.txt"]);
}

#[test]
fn variables_ports_and_a_single_file_are_taken_from_the_command_line() {
    let server = "import http.server, os\nprint('token', os.environ['TOKEN'], flush=True)\n\
        http.server.test(http.server.SimpleHTTPRequestHandler, port=3000, bind='0.0.0.0')\n";
    let project = Project::new(
        "served",
        &[("tool.py", server), ("vars.env", "TOKEN=from-file\n")],
    );
    let mut command = project.command(&["--json", "--port", "0:3000", "--name", "other"]);
    command.arg("--env-file").arg(project.path("vars.env"));
    // The file itself instead of its directory.
    let mut single = Command::new(command.get_program());
    single.args(
        command
            .get_args()
            .map(|arg| match arg == project.root.as_os_str() {
                true => project.path("tool.py").into_os_string(),
                false => arg.to_owned(),
            }),
    );
    single.env("III_HOME", project.home.path());
    let mut dev = Dev {
        run: iii_integration::program::Run::start(single),
        told: Vec::new(),
    };
    let said = dev.line(0, "token from-file");
    assert_eq!(dev.told[said]["worker"], "other");
    let published = dev.event(0, "published");
    let address = dev.told[published]["host"].as_str().unwrap().to_owned();
    iii_integration::program::eventually("an answer", iii_integration::PATIENCE, || {
        let get = Command::new("/usr/bin/python3")
            .args([
                "-c",
                "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])",
            ])
            .arg(format!("http://{address}/tool.py"))
            .output()
            .unwrap();
        get.status.success()
    });
    dev.quit();
    let whole = dev.story();
    // Only the worker's own line has it.
    assert_eq!(whole.matches("from-file").count(), 1, "{whole}");
}
