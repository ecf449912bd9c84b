//! The process `iii-vfs` itself: how it starts, what it gives up, how it ends. No VM.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use iii_proto::vfs::VfsEvent;

use crate::harness::{Playground, Server, export, immutable};

fn serving(server: &Server) -> u64 {
    loop {
        // Looked at before the events: what has ended says nothing more.
        let ended = server.has_ended();
        match server.events.lock().unwrap().first() {
            Some(VfsEvent::Serving { descriptor_limit }) => return *descriptor_limit,
            Some(other) => panic!("{other:?}"),
            None => assert!(!ended, "it has ended"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn status_of(server: &Server, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line[field.len() + 1..].trim().replace('\t', " ")
}

#[test]
fn it_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_iii-vfs"))
        .arg("--version")
        .output()
        .unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_wrong_command_line_is_explained() {
    let output = Command::new(env!("CARGO_BIN_EXE_iii-vfs"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("usage:"));
}

#[test]
fn it_ends_with_success_when_the_vmm_has_gone() {
    let playground = Playground::new();
    let (a, b) = (playground.directory("a"), playground.directory("b"));
    let server = Server::start(vec![export("a", &a), immutable("b", &b)]);
    serving(&server);
    let (status, events) = server.end();
    assert!(status.success(), "{status}");
    assert_eq!(events.len(), 1);
}

#[test]
fn it_is_confined_once_it_serves() {
    let playground = Playground::new();
    let work = playground.directory("work");
    let server = Server::start(vec![export("work", &work)]);
    let limit = serving(&server);
    let process = format!("/proc/{}", server.child.id());
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let open_files = limits.lines().find(|line| line.contains("open files"));
    let words: Vec<&str> = open_files.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], [limit.to_string(), limit.to_string()]);
    assert_eq!(status_of(&server, "NoNewPrivs"), "1");
    assert_eq!(status_of(&server, "Umask"), "0000");
    for thread in fs::read_dir(format!("{process}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    server.end();
}

#[test]
fn it_acts_as_the_owner_of_what_it_serves_and_without_privileges() {
    let playground = Playground::new();
    let work = playground.directory("work");
    let root = nix::unistd::geteuid().is_root();
    let (uid, gid) = if root {
        (4321, 4322)
    } else {
        (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        )
    };
    chown(&work, Some(uid), Some(gid)).unwrap();
    let usr = std::path::Path::new("/usr");
    let server = Server::start(vec![immutable("usr", usr), export("work", &work)]);
    serving(&server);
    assert_eq!(
        status_of(&server, "Uid"),
        format!("{uid} {uid} {uid} {uid}")
    );
    assert_eq!(
        status_of(&server, "Gid"),
        format!("{gid} {gid} {gid} {gid}")
    );
    assert_eq!(status_of(&server, "CapEff"), "0".repeat(16));
    assert_eq!(status_of(&server, "CapPrm"), "0".repeat(16));
    server.end();
    if root {
        let other = playground.directory("other");
        let server = Server::start(vec![export("work", &work), export("other", &other)]);
        let (status, events) = server.end();
        assert!(!status.success());
        let [VfsEvent::Fatal { message }] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert!(message.contains("different users"), "{message}");
        // Of its own directories, root keeps no more than reading without permission.
        let server = Server::start(vec![export("other", &other)]);
        serving(&server);
        let kept = u64::from_str_radix(&status_of(&server, "CapEff"), 16).unwrap();
        assert_eq!(kept & !4, 0, "{kept:x}");
        server.end();
    }
}

#[test]
fn it_ends_when_the_supervisor_is_gone() {
    let playground = Playground::new();
    let work = playground.directory("work");
    let mut server = Server::start(vec![export("work", &work)]);
    serving(&server);
    server.hang_up();
    assert!(!server.child.wait().unwrap().success());
}

#[test]
fn a_directory_that_has_vanished_is_a_cause_that_is_told() {
    let playground = Playground::new();
    let work = playground.directory("work");
    let server = Server::start_after(vec![export("work", &work)], || {
        fs::remove_dir(&work).unwrap();
    });
    let (status, events) = server.end();
    assert_eq!(status.code(), Some(1));
    let [VfsEvent::Fatal { message }] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert!(message.contains("work"), "{message}");
}
