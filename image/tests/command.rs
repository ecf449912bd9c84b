//! Commands, looked up on made-up hosts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use iii_image::{CommandError, CommandLookup, HostRoot, MountView, ResolvedCommand};

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let host = Self { dir };
        for name in [
            "usr/bin",
            "usr/sbin",
            "usr/local/bin",
            "usr/lib",
            "etc/alternatives",
        ] {
            fs::create_dir_all(host.path(name)).expect("made");
        }
        for name in ["bin", "sbin", "lib"] {
            symlink(format!("usr/{name}"), host.path(name)).expect("linked");
        }
        for name in ["node", "mawk", "python3", "env", "sh"] {
            host.program(&format!("usr/bin/{name}"), b"\x7fELF");
        }
        host.link("/usr/bin/mawk", "etc/alternatives/awk");
        host.link("/etc/alternatives/awk", "usr/bin/awk");
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn program(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        path
    }

    fn link(&self, target: impl AsRef<Path>, at: &str) {
        let at = self.path(at);
        fs::create_dir_all(at.parent().expect("has one")).expect("made");
        symlink(target, at).expect("linked");
    }

    fn resolve(
        &self,
        program: &str,
        path: &[&str],
        mounts: &[(&str, &str)],
    ) -> Result<ResolvedCommand, CommandError> {
        let root = HostRoot::discover_in(self.dir.path()).expect("merged");
        let path = std::env::join_paths(path.iter().map(|dir| self.path(dir))).expect("no colon");
        let mounts: Vec<MountView> = mounts
            .iter()
            .map(|(host, guest)| MountView {
                host: self.path(host),
                guest: (*guest).to_owned(),
            })
            .collect();
        let lookup = CommandLookup {
            path: Some(OsStr::new(&path)),
            cwd: "/app",
            mounts: &mounts,
        };
        root.resolve_command(program, &lookup)
    }
}

fn guest(result: Result<ResolvedCommand, CommandError>) -> String {
    result.expect("the guest sees it").guest
}

#[test]
fn a_name_is_found_as_a_shell_would_find_it() {
    let host = Host::new();
    assert_eq!(
        guest(host.resolve("node", &["usr/local/bin", "usr/bin"], &[])),
        "/usr/bin/node"
    );
    host.program("usr/local/bin/node", b"\x7fELF");
    assert_eq!(
        guest(host.resolve("node", &["usr/local/bin", "usr/bin"], &[])),
        "/usr/local/bin/node"
    );
    assert_eq!(guest(host.resolve("node", &["bin"], &[])), "/bin/node");
    assert_eq!(guest(host.resolve("node", &[], &[])), "/usr/local/bin/node");
    // Not executable: a shell goes on.
    fs::set_permissions(
        host.path("usr/local/bin/node"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("set");
    assert_eq!(
        guest(host.resolve("node", &["usr/local/bin", "usr/bin"], &[])),
        "/usr/bin/node"
    );
}

#[test]
fn alternatives_are_followed_through_the_skeleton() {
    let host = Host::new();
    // On this made-up host the link leads to the real /etc; in the guest it does not.
    let found = host
        .resolve("/usr/bin/awk", &[], &[])
        .expect("the guest sees it");
    assert_eq!(
        (found.guest.as_str(), found.host),
        ("/usr/bin/awk", host.path("usr/bin/mawk"))
    );
}

#[test]
fn a_version_manager_is_named_with_the_mount_that_brings_it_in() {
    let host = Host::new();
    host.program("home/ada/.pyenv/shims/python3", b"#!/usr/bin/env bash\n");
    let error = host
        .resolve("python3", &["home/ada/.pyenv/shims", "usr/bin"], &[])
        .expect_err("out of sight");
    let CommandError::Outside {
        directory,
        alternative,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        *directory,
        host.path("home/ada/.pyenv").display().to_string()
    );
    assert_eq!(alternative.as_deref(), Some("/usr/bin/python3"));
    let text = error.to_string();
    assert!(
        text.contains(&format!("mounts: [\"{directory}:{directory}:ro\"]")),
        "{text}"
    );

    // With the mount of the error it is found.
    let mount = (
        host.path("home/ada/.pyenv"),
        host.path("home/ada/.pyenv").display().to_string(),
    );
    let found = host.resolve(
        "python3",
        &["home/ada/.pyenv/shims", "usr/bin"],
        &[("home/ada/.pyenv", mount.1.as_str())],
    );
    // Its interpreter is env, which /usr has.
    assert_eq!(guest(found), format!("{}/shims/python3", mount.1));
}

#[test]
fn a_link_that_leads_out_of_sight_names_where_it_leads() {
    let host = Host::new();
    let target = host.program("home/ada/.nvm/versions/node/v22/bin/node", b"\x7fELF");
    host.link(&target, "usr/local/bin/node");
    let error = host
        .resolve("node", &["usr/local/bin", "usr/bin"], &[])
        .expect_err("out of sight");
    let CommandError::Outside {
        found, directory, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(*found, target);
    assert_eq!(*directory, host.path("home/ada/.nvm").display().to_string());
}

#[test]
fn programs_of_a_mounted_project_are_found_where_the_guest_has_them() {
    let host = Host::new();
    let mounts = [("home/ada/project", "/app")];
    host.program("home/ada/project/server", b"\x7fELF");
    host.program("home/ada/project/sub/run", b"\x7fELF");
    host.link("../../usr/bin", "home/ada/elsewhere");
    for (program, expected) in [
        ("./server", "/app/server"),
        ("sub/run", "/app/sub/run"),
        ("/app/server", "/app/server"),
        ("sub/../server", "/app/sub/../server"),
    ] {
        let found = host
            .resolve(program, &[], &mounts)
            .expect("the guest sees it");
        assert_eq!(found.guest, expected);
        assert!(
            found.host.starts_with(host.path("home/ada/project")),
            "{found:?}"
        );
    }
    // A name that PATH leads to in the mount.
    let found = host.resolve("run", &["home/ada/project/sub"], &mounts);
    assert_eq!(guest(found), "/app/sub/run");

    let missing = host.resolve("./sevrer", &[], &mounts).expect_err("missing");
    let text = missing.to_string();
    assert!(matches!(missing, CommandError::Missing { .. }));
    assert!(
        text.contains("/app/sevrer") && text.contains("home/ada/project/sevrer"),
        "{text}"
    );

    fs::set_permissions(
        host.path("home/ada/project/server"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("set");
    let refused = host
        .resolve("./server", &[], &mounts)
        .expect_err("not executable");
    assert!(refused.to_string().contains("chmod +x"), "{refused}");
    let refused = host
        .resolve("./sub", &[], &mounts)
        .expect_err("a directory");
    assert!(matches!(refused, CommandError::NotExecutable { .. }));
    let refused = host.resolve("./server", &[], &[]).expect_err("no mount");
    assert!(
        refused.to_string().contains("no mount covers it"),
        "{refused}"
    );
}

#[test]
fn links_of_a_mount_mean_what_they_mean_in_the_guest() {
    let host = Host::new();
    let mounts = [("home/ada/project", "/app")];
    host.link("/usr/bin/python3", "home/ada/project/.venv/bin/python");
    host.link("../../../secret", "home/ada/project/out");
    host.link("loop", "home/ada/project/loop");
    host.program("secret", b"\x7fELF");
    let found = host
        .resolve(".venv/bin/python", &[], &mounts)
        .expect("the guest sees it");
    assert_eq!(found.guest, "/app/.venv/bin/python");
    assert_eq!(found.host, host.path("usr/bin/python3"));
    // On the host it leads to a program; in the guest `..` ends at the root.
    assert!(host.path("home/ada/project/out").exists());
    assert!(host.resolve("./out", &[], &mounts).is_err());
    let error = host.resolve("./loop", &[], &mounts).expect_err("a circle");
    assert!(matches!(error, CommandError::Links { .. }), "{error}");
}

#[test]
fn a_longer_mount_hides_what_is_below_it() {
    let host = Host::new();
    host.program("a/bin/tool", b"\x7fELF");
    host.program("b/tool", b"\x7fELF");
    let mounts = [("a", "/app"), ("b", "/app/bin")];
    let found = host
        .resolve("bin/tool", &[], &mounts)
        .expect("the guest sees it");
    assert_eq!(found.host, host.path("b/tool"));
}

#[test]
fn the_interpreter_of_a_script_must_be_in_sight() {
    let host = Host::new();
    let mounts = [("project", "/app")];
    host.program("project/good", b"#!/usr/bin/env node\n");
    host.program("project/short", b"#! /bin/sh -e\n");
    host.program("project/bad", b"#!/no/such/interpreter -x\n");
    assert_eq!(guest(host.resolve("./good", &[], &mounts)), "/app/good");
    assert_eq!(guest(host.resolve("./short", &[], &mounts)), "/app/short");
    let error = host
        .resolve("./bad", &[], &mounts)
        .expect_err("no interpreter");
    assert!(
        error.to_string().contains("/no/such/interpreter"),
        "{error}"
    );
}

#[test]
fn typing_errors_get_a_suggestion() {
    let host = Host::new();
    let error = host
        .resolve("ndoe", &["usr/bin"], &[])
        .expect_err("no such program");
    assert!(
        error.to_string().contains("did you mean `node`?"),
        "{error}"
    );
    let error = host
        .resolve("pyhton3", &["usr/bin"], &[])
        .expect_err("no such program");
    assert!(error.to_string().contains("`python3`"), "{error}");
    let error = host
        .resolve("zzzzzzzz", &["usr/bin"], &[])
        .expect_err("no such program");
    assert!(error.to_string().contains("install it"), "{error}");
    assert!(matches!(
        host.resolve("", &[], &[]),
        Err(CommandError::Empty)
    ));
}
