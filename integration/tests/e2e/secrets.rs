//! What an `env_file` holds, or a variable that is marked secret, is nowhere but in its guest: a
//! canary is put there, everything is made to happen that makes iii-super talk, and everything it
//! wrote is searched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_integration::program::{Run, descendants, home, program, workers_file};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

const CANARY: &str = "cAnArY-5fQ9zLw2";

/// Forms in which it could be written: as it is, in hexadecimal, and in base64 at each of the three
/// places where it can begin in a longer text.
fn forms() -> Vec<Vec<u8>> {
    let hex: String = CANARY.bytes().map(|b| format!("{b:02x}")).collect();
    let mut forms = vec![CANARY.as_bytes().to_vec(), hex.into_bytes()];
    for skip in 0..3 {
        // Whole groups of three bytes are the same wherever they stand.
        let whole = &CANARY.as_bytes()[skip..];
        let whole = &whole[..whole.len() / 3 * 3];
        forms.push(base64(whole).into_bytes());
    }
    forms
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks_exact(3) {
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(DIGITS[(bits >> shift & 63) as usize]));
        }
    }
    text
}

fn find(bytes: &[u8]) -> Option<usize> {
    forms()
        .iter()
        .find_map(|form| bytes.windows(form.len()).position(|w| w == form))
}

fn assert_clean(what: &str, bytes: &[u8]) {
    if let Some(at) = find(bytes) {
        let around = &bytes[at.saturating_sub(200)..(at + 40).min(bytes.len())];
        panic!("{what}: {}", String::from_utf8_lossy(around));
    }
}

#[test]
fn the_canary_is_found_in_each_form() {
    for before in ["", "x", "xy"] {
        let text = format!("{before}{CANARY}--");
        assert_eq!(find(text.as_bytes()), Some(before.len()));
        assert!(find(base64(text.as_bytes()).as_bytes()).is_some());
    }
    assert!(find(b"7cAnArY-5fQ9zLw").is_none());
}

fn assert_files_clean(directory: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() || path.file_name().unwrap() == "secrets.env" {
            continue;
        }
        if path.is_dir() {
            files += assert_files_clean(&path);
        } else if path.is_file() {
            assert_clean(&path.display().to_string(), &fs::read(&path).unwrap());
            files += 1;
        }
    }
    files
}

/// Everything that a user sees of these processes.
fn assert_processes_clean(pids: &[u32]) {
    for pid in pids {
        for part in ["cmdline", "environ"] {
            // It may just have ended.
            let bytes = fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default();
            assert_clean(&format!("{part} of process {pid}"), &bytes);
        }
    }
}

struct Project {
    directory: tempfile::TempDir,
    file: PathBuf,
    home: tempfile::TempDir,
}

impl Project {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = program();
        command.args(words).arg(&self.file);
        command.env("III_HOME", self.home.path());
        command.env("III_LOG", "trace");
        command
    }

    /// Both outputs of a command, which are clean.
    fn said(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert_clean(&words.join(" "), &text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn a_secret_is_in_nothing_that_is_written() {
    let (directory, file) = workers_file(
        "
workers:
  keeper:
    env_file: secrets.env
    command: [/bin/sh, -c, 'echo \"length ${#TOKEN}\"; sleep 2; exit 3']
    health: {exec: [/bin/sh, -c, 'test ${#TOKEN} -gt 9'], interval: 500ms}
    restart: {initial: 10ms, limit: none}
    network: {dns: ['127.0.0.1:1']}
  hopeless:
    env_file: secrets.env
    command: [/bin/sh, -c, 'exit 1']
    restart: {initial: 10ms, limit: 1/5m}
    vm_restart: {initial: 10ms, limit: 1/5m}
",
    );
    let secrets = directory.path().join("secrets.env");
    fs::write(&secrets, format!("TOKEN={CANARY}\nOTHER='{CANARY} too'\n")).unwrap();
    let project = Project {
        directory,
        file,
        home: home(),
    };
    let length = format!("length {}", CANARY.len());
    let mut everything = Vec::new();
    let run = |words: &[&str]| {
        let mut run = Run::start(project.command(words));
        run.line(&length);
        run
    };
    // A crash of the workload, of a VM, a worker that fails; and the end of the supervisor.
    let mut first = run(&["run", "--verbose", "-f"]);
    first.line("restart 1 in");
    first.line(&length);
    let family = descendants(first.child.id());
    assert!(family.len() >= 4);
    assert_processes_clean(&family);
    let vmm = family.iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(11).any(|w| w == b"qemu-system") && line.windows(6).any(|w| w == b"keeper")
    });
    let vmm = Pid::from_raw(*vmm.unwrap() as i32);
    nix::sys::signal::kill(vmm, Signal::SIGKILL).unwrap();
    first.line("vm crashed");
    first.line(&length);
    first.signal(Signal::SIGKILL);
    first.wait();
    first.seen.extend(first.lines.iter());
    assert!(first.seen.iter().any(|line| line.contains("TRACE")));
    everything.append(&mut first.seen);
    assert!(assert_files_clean(project.home.path()) >= 2);

    let mut second = run(&["run", "--json", "-f"]);
    assert!(second.said("worker-recovered").contains("\"state\""));
    second.signal(Signal::SIGINT);
    second.wait();
    second.seen.extend(second.lines.iter());
    everything.append(&mut second.seen);
    assert_clean("what was said", everything.join("\n").as_bytes());

    assert!(project.said(&["config", "-f"]).contains("*****"));
    assert!(project.said(&["config", "--json", "-f"]).contains("*****"));
    assert!(project.said(&["logs", "--file"]).contains(&length));
    assert!(
        project
            .said(&["logs", "--json", "--file"])
            .contains(&length)
    );

    // What is wrong with such a file, or with the worker that it is for.
    for broken in [
        format!("TOKEN='{CANARY}"),
        format!("TOKEN='{CANARY}' {CANARY}"),
        CANARY.to_owned(),
        format!("{CANARY}=x"),
        format!("TOKEN=\"{CANARY}\0\""),
    ] {
        fs::write(&secrets, &broken).unwrap();
        let said = project.said(&["run", "-f"]);
        assert!(said.contains("secrets.env:1"), "{said}");
    }
    fs::write(&secrets, format!("PATH={CANARY}\nTOKEN={CANARY}\n")).unwrap();
    let text = fs::read_to_string(&project.file).unwrap();
    fs::write(&project.file, text.replace("/bin/sh", "no-such-program")).unwrap();
    assert!(project.said(&["run", "-f"]).contains("no-such-program"));
    assert_files_clean(project.home.path());
    assert_files_clean(project.directory.path());
}

#[test]
fn a_variable_that_is_marked_secret_is_in_nothing_that_is_written() {
    let (directory, file) = workers_file(
        "
workers:
  keeper:
    env: {TOKEN: 'x${HOST_TOKEN}', OPEN: seen}
    secrets: [TOKEN]
    command: [/bin/sh, -c, 'echo \"length ${#TOKEN}\"; sleep 2; exit 3']
    restart: {initial: 10ms, limit: none}
",
    );
    let project = Project {
        directory,
        file,
        home: home(),
    };
    let command = |words: &[&str]| {
        let mut command = project.command(words);
        command.env("HOST_TOKEN", CANARY);
        command
    };
    let said = |words: &[&str]| {
        let output = command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        let text = [output.stdout, output.stderr].concat();
        assert_clean(&words.join(" "), &text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let length = format!("length {}", CANARY.len() + 1);
    for format in ["--verbose", "--json"] {
        let mut run = Run::start(command(&["run", format, "-f"]));
        run.line(&length);
        run.line(&length);
        // The supervisor itself was given it by the user; those that it starts are not.
        assert_processes_clean(&descendants(run.child.id()));
        for words in [
            &["ps", "-f"][..],
            &["ps", "--json", "-f"],
            &["events", "--file"],
            &["events", "--json", "--file"],
        ] {
            assert!(said(words).contains("keeper"), "{words:?}");
        }
        run.signal(Signal::SIGINT);
        run.wait();
        run.seen.extend(run.lines.iter());
        assert_clean("what was said", run.seen.join("\n").as_bytes());
    }
    for words in [&["config", "-f"][..], &["config", "--json", "-f"]] {
        let text = said(words);
        assert!(text.contains("*****") && text.contains("seen"), "{text}");
    }
    assert!(said(&["logs", "--json", "--file"]).contains(&length));
    assert!(assert_files_clean(project.home.path()) >= 2);
    assert_files_clean(project.directory.path());
}
