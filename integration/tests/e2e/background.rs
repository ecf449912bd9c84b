//! `iii-super run` in the background, back in the foreground, and with its file read again.

use iii_integration::PATIENCE;
use iii_integration::program::{eventually, is_alive};
use iii_integration::project::Project;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn worker(name: &str, says: &str) -> String {
    format!("  {name}:\n    command: [/bin/sh, -c, 'echo {says}; exec sleep 1000']\n")
}

fn file(workers: &[(&str, &str)]) -> String {
    let workers: String = workers
        .iter()
        .map(|(name, says)| worker(name, says))
        .collect();
    format!("workers:\n{workers}")
}

fn workers(project: &Project) -> Vec<(String, String, String)> {
    let said = project.says(&["ps", "--json"]).json();
    let text = |worker: &Value, key: &str| worker[key].as_str().unwrap_or_default().to_owned();
    let workers = said["workers"].as_array().unwrap();
    let mut workers: Vec<_> = workers
        .iter()
        .map(|worker| {
            (
                text(worker, "name"),
                text(worker, "state"),
                text(worker, "boot"),
            )
        })
        .collect();
    workers.sort();
    workers
}

fn boot(project: &Project, name: &str) -> String {
    let found = workers(project).into_iter().find(|worker| worker.0 == name);
    found.unwrap_or_else(|| panic!("no worker {name}")).2
}

fn supervisor(project: &Project) -> u32 {
    let pid = &project.says(&["ps", "--json"]).json()["pid"];
    u32::try_from(pid.as_u64().unwrap()).unwrap()
}

/// Whatever becomes of a test, its supervisor ends.
struct Background(Project);

impl Background {
    fn start(text: &str) -> Self {
        let background = Self(Project::new(text));
        let said = background.0.says_with_signals(&["run", "--detach"]);
        assert_eq!(said.code, 0, "{said:?}");
        background
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.says(&["stop", "-t", "0"]);
    }
}

#[test]
fn a_run_goes_to_the_background_and_comes_back() {
    let background = Background::start(&file(&[("a", "up")]));
    let project = &background.0;
    // It has returned with the worker ready, and the supervisor goes on.
    assert_eq!(workers(project)[0].1, "ready");
    let pid = supervisor(project);

    // Another one is refused, and says with whom it would share the project.
    let second = project.says(&["run"]);
    assert_eq!(second.code, 2, "{second:?}");
    assert!(second.stderr.contains(&pid.to_string()), "{second:?}");

    let before = boot(project, "a");
    let mut attached = project.start(&["run", "--attach"]);
    attached.line("attached to process");
    // A terminal that is closed leaves it as it is.
    attached.signal(Signal::SIGHUP);
    attached.wait();
    assert_eq!(boot(project, "a"), before);

    let mut attached = project.start(&["run", "--attach"]);
    attached.line("attached to process");
    project.says(&["restart", "--scope", "workload", "a"]);
    attached.line("up");
    attached.signal(Signal::SIGINT);
    let status = attached.wait();
    assert_eq!(status.code(), Some(0));
    eventually("the end of the supervisor", PATIENCE, || !is_alive(pid));
    assert_eq!(project.says(&["ps"]).code, 3);
}

#[test]
fn what_cannot_be_started_in_the_background_is_told_as_in_the_foreground() {
    let project = Project::new("workers: {a: {comand: x}}");
    let said = project.says(&["run", "--detach"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("did you mean `command`?"), "{said:?}");

    project.write("workers: {a: {command: /no/such/program}}");
    let said = project.says(&["run", "--detach"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("/no/such/program"), "{said:?}");
    assert_eq!(project.says(&["ps"]).code, 3);
}

#[test]
fn a_file_that_is_read_again_changes_what_has_changed_and_touches_nothing_else() {
    let background = Background::start(&file(&[("a", "up"), ("b", "one"), ("c", "up")]));
    let project = &background.0;
    let (a, b) = (boot(project, "a"), boot(project, "b"));

    // A file with a fault changes nothing.
    project.write("workers: {a: {comand: x}}");
    let said = project.says(&["run", "--reload"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("nothing was changed"), "{said:?}");
    assert_eq!(workers(project).len(), 3);

    project.write(&file(&[("a", "up"), ("b", "two"), ("d", "up")]));
    let said = project.says(&["run", "--reload"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        said.stdout,
        "d: started\nb: restarted\nc: removed\na: unchanged\n"
    );
    assert_eq!(project.says(&["start", "--wait"]).code, 0);
    let names: Vec<String> = workers(project)
        .into_iter()
        .map(|worker| worker.0)
        .collect();
    assert_eq!(names, ["a", "b", "d"]);
    assert_eq!(boot(project, "a"), a, "nobody touched it");
    assert_ne!(boot(project, "b"), b, "it goes by its new settings");

    // Nothing has changed since.
    let said = project.says(&["run", "--reload", "--json"]);
    assert_eq!(said.json()["restarted"].as_array().unwrap().len(), 0);

    // SIGHUP asks for the same.
    project.write(&file(&[("a", "up"), ("b", "two")]));
    let pid = Pid::from_raw(i32::try_from(supervisor(project)).unwrap());
    kill(pid, Signal::SIGHUP).unwrap();
    eventually("the worker that is gone", PATIENCE, || {
        workers(project).len() == 2
    });
    assert_eq!(boot(project, "a"), a);
}

#[test]
fn names_of_a_reload_limit_what_is_looked_at_and_join_the_run() {
    let project = Project::new(&file(&[("a", "up"), ("b", "one"), ("c", "up")]));
    let said = project.says_with_signals(&["run", "--detach", "a", "b"]);
    assert_eq!(said.code, 0, "{said:?}");
    let background = Background(project);
    let project = &background.0;
    let a = boot(project, "a");

    // A worker of the file that this run does not have yet: the way in is named, and works.
    let said = project.says(&["start", "c"]);
    assert!(
        said.stderr.contains("`iii-super run --reload c`"),
        "{said:?}"
    );
    let said = project.says(&["add", "d", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    assert!(said.stdout.contains("iii-super run --reload d"), "{said:?}");
    project.write(&file(&[("a", "other"), ("b", "two"), ("c", "up")]));
    let said = project.says(&["run", "--reload", "b", "c"]);
    assert_eq!(
        (said.code, &*said.stdout),
        (0, "c: started\nb: restarted\na: unchanged\n"),
        "{said:?}"
    );
    assert_eq!(project.says(&["start", "--wait"]).code, 0);
    assert_eq!(boot(project, "a"), a, "it was not named");

    // From now on c is of the run, and what was not looked at then is now.
    let said = project.says(&["run", "--reload"]);
    assert_eq!(
        (said.code, &*said.stdout),
        (0, "a: restarted\nb: unchanged\nc: unchanged\n"),
        "{said:?}"
    );
}
