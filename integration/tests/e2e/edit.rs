//! Edits of a workers file by many processes, by killed ones, beside an editor, on a full disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use iii_integration::chaos::disk::SmallDisk;
use iii_integration::program::{NOBODY, as_user, program};
use iii_integration::traced::{Stop, Traced};
use tempfile::TempDir;

const FILE: &str = "iii.workers.yaml";

/// A file with comments, and a home for the locks.
struct Project {
    home: TempDir,
    app: PathBuf,
}

impl Project {
    fn new(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let app = home.path().join("app");
        Self::at(home, app, text)
    }

    fn at(home: TempDir, app: PathBuf, text: &str) -> Self {
        fs::create_dir_all(&app).unwrap();
        fs::write(app.join(FILE), text).unwrap();
        Self { home, app }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = program();
        command
            .args(words)
            .current_dir(&self.app)
            .env("HOME", self.home.path())
            .env_remove("III_HOME")
            .env_remove("III_LOG");
        command
    }

    fn text(&self) -> String {
        fs::read_to_string(self.app.join(FILE)).unwrap()
    }

    /// Nothing but the file, no lock and no directory of the project's.
    fn nothing_is_left(&self) {
        let names: Vec<_> = fs::read_dir(&self.app).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let projects = self.home.path().join(".iii/projects");
        assert_eq!(fs::read_dir(projects).into_iter().flatten().count(), 0);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn fifty_at_once_lose_nothing() {
    let leaving: Vec<String> = (0..25).map(|n| format!("old-{n}")).collect();
    let coming: Vec<String> = (0..25).map(|n| format!("new-{n}")).collect();
    let mut text = String::from("# head\nworkers:\n");
    for name in &leaving {
        text += &format!("  # of {name}\n  {name}: {{command: x}}\n\n");
    }
    text += "  # stays\n  stays: {command: \"y\"} # too\n# end\n";
    let project = Project::new(&text);
    let adds = coming
        .iter()
        .map(|name| ["add", name, "--command", "x"].to_vec());
    let removes = leaving.iter().map(|name| ["remove", name].to_vec());
    let children: Vec<_> = adds
        .zip(removes)
        .flat_map(|(add, remove)| [add, remove])
        .map(|words| {
            let mut command = project.command(&words);
            command.stdout(std::process::Stdio::null());
            command.stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let text = project.text();
    // The comment above what was the first may be about all of them, so it stays.
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let mut added: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.trim().strip_suffix(':')?.strip_prefix("new-"))
        .collect();
    added.sort_by_key(|n| n.parse::<u32>().unwrap());
    let all: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert_eq!(added, all, "{text}");
    lines.retain(|line| !line.contains("new-") && *line != "    command: x");
    let comments = lines
        .iter()
        .filter(|line| line.contains("# of old-"))
        .count();
    assert!(comments <= 25, "{text}");
    lines.retain(|line| !line.contains("# of old-"));
    assert_eq!(
        lines,
        [
            "# head",
            "workers:",
            "  # stays",
            "  stays: {command: \"y\"} # too",
            "# end"
        ],
        "{text}"
    );
    project.nothing_is_left();
}

/// A call after which nothing but the edit itself is done: the lock's.
const FIRST: i64 = nix::libc::SYS_flock;

#[test]
fn killed_at_any_system_call_it_leaves_the_old_file_or_the_new() {
    const OLD: &str = "workers:\n  a: {command: x} # c\n";
    let words = ["add", "b", "--command", "y"];
    let new = {
        let project = Project::new(OLD);
        assert!(project.command(&words).status().unwrap().success());
        project.text()
    };
    let mut kills = 0;
    let mut seen = [false; 2];
    loop {
        let project = Project::new(OLD);
        let mut process = Traced::start(&project.command(&words));
        process.until(FIRST);
        let ended = (0..kills).find_map(|_| process.next_stop().err());
        if let Some(code) = ended {
            assert_eq!(code, 0);
            break;
        }
        drop(process);
        let text = project.text();
        let which = usize::from(text != OLD);
        assert!(which == 0 || text == new, "after {kills} stops: {text:?}");
        seen[which] = true;
        // What the killed one left hinders nobody and is cleaned up.
        let output = project
            .command(&["add", "c", "--command", "z"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "after {kills} stops: {}",
            said(&output)
        );
        assert!(project.text().contains("  c:\n    command: z\n"));
        project.nothing_is_left();
        kills += 1;
    }
    assert_eq!(seen, [true, true]);
    assert!(kills > 20, "{kills}");
}

#[test]
fn an_editors_save_in_the_middle_is_kept() {
    let project = Project::new("workers:\n  a: {command: x}\n");
    let file = project.app.join(FILE);
    let mut process = Traced::start(&project.command(&["add", "b", "--command", "y"]));
    // The new file is written, and the old one is about to be looked at again.
    process.until(nix::libc::SYS_fsync);
    let saved = "# saved meanwhile\nworkers:\n  a: {command: z}\n";
    let theirs = project.app.join("theirs");
    fs::write(&theirs, saved).unwrap();
    fs::rename(&theirs, &file).unwrap();
    assert_eq!(process.finish(), 0);
    assert_eq!(project.text(), format!("{saved}  b:\n    command: \"y\"\n"));
    project.nothing_is_left();

    // One that is there suddenly, where there was none.
    fs::remove_file(&file).unwrap();
    let mut process = Traced::start(&project.command(&["add", "b", "--command", "y"]));
    process.until(nix::libc::SYS_fsync);
    fs::write(&file, saved).unwrap();
    assert_eq!(process.finish(), 0);
    assert_eq!(project.text(), format!("{saved}  b:\n    command: \"y\"\n"));
    project.nothing_is_left();
}

#[test]
fn a_stop_between_two_calls_makes_the_others_wait() {
    let project = Project::new("workers:\n  a: {command: x}\n");
    let mut process = Traced::start(&project.command(&["add", "b", "--command", "y"]));
    process.until(nix::libc::SYS_fsync);
    assert_ne!(process.next_stop(), Ok(Stop::Before(0)));
    let second = project
        .command(&["add", "c", "--command", "z"])
        .spawn()
        .unwrap();
    assert_eq!(process.finish(), 0);
    assert!(second.wait_with_output().unwrap().status.success());
    let text = project.text();
    assert!(text.contains("  b:\n") && text.contains("  c:\n"), "{text}");
    project.nothing_is_left();
}

#[test]
fn a_full_disk_leaves_the_old_file_and_says_so() {
    let Some(disk) = SmallDisk::mount() else {
        // Only root can have a disk of its own to fill.
        return;
    };
    let text = format!(
        "workers:\n  a: {{command: x}}\n# {}\n",
        "long ".repeat(2000)
    );
    let project = Project::at(tempfile::tempdir().unwrap(), disk.path().join("app"), &text);
    disk.fill();
    let output = project
        .command(&["add", "b", "--command", "y"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("is unchanged"), "{said}");
    assert_eq!(project.text(), text);
    project.nothing_is_left();
    disk.free();
    let output = project
        .command(&["add", "b", "--command", "y"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(project.text().contains("  b:\n"));
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_a_user_may_not_change_is_told_and_stays() {
    if !nix::unistd::geteuid().is_root() {
        // Nobody but root can be another user.
        return;
    }
    let text = "workers:\n  a: {command: x}\n";
    let project = Project::new(text);
    open_to_all(project.home.path(), 0o777);
    let binary = project.home.path().join("iii-super");
    fs::copy(program().get_program(), &binary).unwrap();
    let refused = |project: &Project, part: &str| {
        let mut command = Command::new(&binary);
        let words = project.command(&["add", "b", "--command", "y"]);
        command.args(words.get_args()).current_dir(&project.app);
        command.env("HOME", project.home.path());
        let output = as_user(NOBODY, &command).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(part), "{}", said(&output));
        assert_eq!(project.text(), text);
        project.nothing_is_left();
    };
    // A directory that is not theirs.
    open_to_all(&project.app, 0o755);
    refused(&project, "Permission denied");
    // A directory that is, and a file that is somebody else's and must stay so.
    open_to_all(&project.app, 0o777);
    open_to_all(&project.app.join(FILE), 0o666);
    refused(&project, "its owner 0:0 cannot be kept");
    assert_eq!(fs::metadata(project.app.join(FILE)).unwrap().uid(), 0);
}
