//! What runs in the guest: a script for `sh` that installs, if what is to be installed has changed,
//! and becomes the worker.

use super::project::Steps;

/// Where the guest sees the cache.
pub(crate) const CACHE: &str = "/var/cache/iii";

/// The script. `key` stands for everything that the install depends on; `path` is put before PATH
/// for the start.
pub(crate) fn script(steps: &Steps, key: &str, path: &[String]) -> String {
    let mut text = String::new();
    let once: Vec<&String> = steps.setup.iter().chain(&steps.install).collect();
    if !once.is_empty() {
        // No program is started to find out that nothing is to be done: each would delay a restart.
        text += &format!(
            "have=\n[ -f {CACHE}/key ] && read -r have < {CACHE}/key\n\
             if [ \"$have\" != {key} ]; then\nrm -f {CACHE}/key\n"
        );
        for command in once {
            let said = shell_words::quote(command);
            text += &format!(
                "printf '> %s\\n' {said}\nsh -c {said} || {{ code=$?; printf \
                 '> failed with exit code %s: %s\\n' \"$code\" {said} >&2; exit \"$code\"; }}\n"
            );
        }
        // The key must not be on the disk before what it stands for is.
        text += &format!("sync\nprintf '%s\\n' {key} > {CACHE}/key\nfi\n");
    }
    if !path.is_empty() {
        text += &format!("export PATH={}:\"$PATH\"\n", path.join(":"));
    }
    text += "exec ";
    if is_simple(&steps.start) {
        text += &steps.start;
    } else {
        text += &format!("sh -c {}", shell_words::quote(&steps.start));
    }
    text.push('\n');
    text
}

/// Whether a command is one program with arguments, which needs no shell around it.
fn is_simple(command: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " _-./:@,+=".contains(c);
    let first = command.split(' ').next().unwrap_or_default();
    command.chars().all(plain) && !first.is_empty() && !first.contains('=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::{Command, Output};

    fn steps(install: Option<&str>, start: &str) -> Steps {
        Steps {
            setup: None,
            install: install.map(str::to_owned),
            start: start.to_owned(),
        }
    }

    /// Runs the script as a guest would, with a directory of the host for its cache.
    fn run(cache: &Path, steps: &Steps, key: &str) -> Output {
        let text = script(steps, key, &[]).replace(CACHE, &cache.display().to_string());
        Command::new("sh").arg("-c").arg(text).output().unwrap()
    }

    fn said(output: &Output) -> String {
        let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
        format!("{out}{err}")
    }

    #[test]
    fn an_install_runs_when_the_key_has_changed_and_only_then() {
        let cache = tempfile::tempdir().unwrap();
        let steps = steps(Some("echo 'it'\"'\"'s installed'"), "echo started");
        for (key, installs) in [("a", true), ("a", false), ("b", true), ("b", false)] {
            let output = run(cache.path(), &steps, key);
            assert!(output.status.success());
            let said = said(&output);
            assert_eq!(said.contains("\nit's installed\n"), installs, "{said}");
            assert!(said.ends_with("started\n"), "{said}");
        }
    }

    #[test]
    fn an_install_that_fails_ends_with_its_code_and_is_tried_again() {
        let cache = tempfile::tempdir().unwrap();
        let failing = steps(Some("echo the cause >&2; exit 7"), "echo started");
        for _ in 0..2 {
            let output = run(cache.path(), &failing, "a");
            assert_eq!(output.status.code(), Some(7));
            let said = said(&output);
            assert!(
                said.contains("the cause\n> failed with exit code 7: echo the cause"),
                "{said}"
            );
            assert!(!said.contains("started\n"), "{said}");
        }
    }

    #[test]
    fn a_start_that_is_one_program_is_that_process() {
        let text = script(&steps(None, "node index.js"), "a", &["/x/bin".into()]);
        assert_eq!(text, "export PATH=/x/bin:\"$PATH\"\nexec node index.js\n");
        let text = script(&steps(None, "A=1 node index.js"), "a", &[]);
        assert_eq!(text, "exec sh -c 'A=1 node index.js'\n");
        let output = run(Path::new("/"), &steps(None, "echo a && echo b"), "a");
        assert_eq!(said(&output), "a\nb\n");
    }
}
