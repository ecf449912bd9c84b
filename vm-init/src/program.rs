//! What a command line means in the guest: its environment, where its program is, and why that
//! cannot be executed.
//!
//! The environment is what was given, in its order. `PATH`, `HOME`, `USER` and `LOGNAME` are added
//! if it does not name them; nothing else is.

use std::ffi::{CString, NulError, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::launch::Identity;
use crate::sys::{CStringArray, ChildStep};

/// The search path of a program whose environment names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// There is no such program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoProgram {
    /// A file of its name that may not be executed.
    pub(crate) candidate: Option<PathBuf>,
}

/// Looks a program up as a shell does.
pub(crate) fn find(name: &str, search: &OsStr, cwd: &Path) -> Result<PathBuf, NoProgram> {
    if name.contains('/') {
        // As execve would: relative to the directory in which the program starts.
        let path = cwd.join(name);
        return if path.exists() {
            Ok(path)
        } else {
            Err(NoProgram { candidate: None })
        };
    }
    let mut candidate = None;
    for directory in search.as_bytes().split(|&b| b == b':') {
        // POSIX: an empty entry is the current directory.
        let path = cwd.join(OsStr::from_bytes(directory)).join(name);
        match path.metadata() {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                return Ok(path);
            }
            Ok(found) if found.is_file() => {
                candidate.get_or_insert(path);
            }
            Ok(_) | Err(_) => {}
        }
    }
    Err(NoProgram { candidate })
}

/// What was given, and what is missing in it.
pub(crate) fn environment(given: &[(String, String)], identity: &Identity) -> Environment {
    let mut env = given.to_vec();
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", identity.home.as_str()),
        ("USER", identity.name.as_str()),
        ("LOGNAME", identity.name.as_str()),
    ] {
        if !given.iter().any(|(given, _)| given == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    Environment(env)
}

/// A whole environment.
#[derive(Debug)]
pub(crate) struct Environment(Vec<(String, String)>);

impl Environment {
    /// Its PATH.
    pub(crate) fn search(&self) -> &str {
        self.0
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(DEFAULT_PATH, |(_, value)| value)
    }

    /// As execve takes it.
    pub(crate) fn strings(&self) -> Result<CStringArray, NulError> {
        c_strings(self.0.iter().map(|(name, value)| format!("{name}={value}")))
    }
}

/// Strings as execve takes them.
pub(crate) fn c_strings(strings: impl Iterator<Item = String>) -> Result<CStringArray, NulError> {
    strings
        .map(CString::new)
        .collect::<Result<Vec<_>, _>>()
        .map(CStringArray::new)
}

/// Why a child never became its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChildFailure {
    /// Where it ended.
    pub(crate) step: ChildStep,
    /// Why.
    pub(crate) errno: Errno,
}

impl ChildFailure {
    /// In words, for `path` and `cwd` as the user of that name sees them.
    pub(crate) fn describe(self, path: &Path, cwd: &Path, user: &str) -> String {
        let Self { step, errno } = self;
        let step = match step {
            ChildStep::Execute => return execute_failure(path, errno),
            ChildStep::Directory => {
                let hint = match errno {
                    Errno::ENOENT => " in the guest; is it part of the image or of `mounts`?",
                    _ => "",
                };
                return format!(
                    "failed to enter working directory {cwd:?} as user {user:?}: {}{hint}",
                    errno.desc()
                );
            }
            ChildStep::Session => "make a session",
            ChildStep::Descriptors => "set up its output",
            ChildStep::Terminal => "take over its terminal",
            ChildStep::Scheduling => "be scheduled as usual",
            ChildStep::Limits => "set its limit of open files",
            ChildStep::Credentials => "become its user",
        };
        format!("failed to {step}: {}", errno.desc())
    }
}

/// What execve's terse errors mean.
fn execute_failure(path: &Path, errno: Errno) -> String {
    let shown = path.display();
    match errno {
        Errno::ENOENT if path.exists() => match interpreter(path) {
            Some(interpreter) => format!(
                "the interpreter {interpreter:?} that {shown} names does not exist in the guest"
            ),
            None => format!(
                "the dynamic loader of {shown} does not exist in the guest (built for another \
                 libc?)"
            ),
        },
        Errno::ENOENT => format!("there is no {shown} in the guest"),
        Errno::ENOEXEC => {
            format!("{shown} is neither a program for this machine nor a script with a #! line")
        }
        Errno::EACCES => format!("{shown} may not be executed by its user"),
        errno => format!("{shown}: {}", errno.desc()),
    }
}

/// The program that a script's first line names.
fn interpreter(path: &Path) -> Option<String> {
    let mut head = [0; 256];
    let count = std::fs::File::open(path).ok()?.read(&mut head).ok()?;
    parse_interpreter(&head[..count])
}

/// The program in a `#!` line, if `head` begins with one.
pub fn parse_interpreter(head: &[u8]) -> Option<String> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_environment_is_the_specs_and_only_what_is_missing_is_added() {
        let identity = Identity {
            name: String::from("worker"),
            home: String::from("/home/worker"),
            credentials: None,
        };
        let given = [("HOME".into(), "/srv".into()), ("A".into(), "b".into())];
        let env = environment(&given, &identity);
        assert_eq!(env.search(), DEFAULT_PATH);
        let env: Vec<String> = env.0.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            env,
            [
                "HOME=/srv".to_owned(),
                "A=b".to_owned(),
                format!("PATH={DEFAULT_PATH}"),
                "USER=worker".to_owned(),
                "LOGNAME=worker".to_owned(),
            ]
        );
    }

    #[test]
    fn programs_are_found_in_path_order_and_only_if_executable() {
        let dir = tempfile::tempdir().unwrap();
        for (sub, mode) in [("a", 0o644), ("b", 0o755)] {
            let path = dir.path().join(sub);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("prog"), "").unwrap();
            std::fs::set_permissions(path.join("prog"), PermissionsExt::from_mode(mode)).unwrap();
        }
        let find = |name, search| find(name, OsStr::new(search), dir.path());
        assert_eq!(find("prog", "a:b:c"), Ok(dir.path().join("b/prog")));
        let candidate = Some(dir.path().join("a/prog"));
        assert_eq!(find("prog", "c:a"), Err(NoProgram { candidate }));
        let nothing = Err(NoProgram { candidate: None });
        assert_eq!(find("other", "a:b:c"), nothing);
        assert_eq!(find("./other", "a:b:c"), nothing);
        assert_eq!(find("./a/prog", "b"), Ok(dir.path().join("./a/prog")));
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("run");
        std::fs::write(&script, "#! /no/such/python3 -u\nprint()").unwrap();
        let message = execute_failure(&script, Errno::ENOENT);
        assert!(message.contains("\"/no/such/python3\""), "{message}");
        let message = execute_failure(&dir.path().join("other"), Errno::ENOENT);
        assert!(message.starts_with("there is no /"), "{message}");
    }

    proptest! {
        #[test]
        fn any_head_of_a_file_is_survived(head in prop::collection::vec(any::<u8>(), 0..300)) {
            let named = parse_interpreter(&head);
            prop_assert!(named.is_none() || head.starts_with(b"#!"));
        }
    }
}
