//! What a Linux guest sees. Each test boots a VM.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;
mod process;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use harness::{Playground, Server, boot, export, immutable};
use iii_proto::vfs::VfsEvent;

fn root() -> iii_proto::vfs::VfsExport {
    immutable("root", Path::new("/"))
}

#[test]
fn programs_of_the_host_run_and_files_are_shared() {
    let playground = Playground::new();
    let work = playground.directory("work");
    fs::write(work.join("from-host"), "hello\n").unwrap();
    let mut server = Server::start(vec![root(), export("work", &work)]);
    let console = boot(
        &playground,
        &mut server,
        "set -e; cd /mnt/work; uname -r; cat from-host; stat -c 'owner %u:%g' from-host /usr
         umask 027; echo guest > made; chown 1000:1000 made; chown 0:0 made || echo refused
         mkdir d; stat -c 'mode %a %u' made d; rm from-host; sync",
    );
    let (status, events) = server.end();
    assert!(status.success(), "{status} {events:?} {console}");
    assert!(console.contains("STATUS=0"), "{console}");
    for line in [
        "hello",
        "owner 1000:1000",
        "owner 0:0",
        "refused",
        "mode 640 1000",
        "mode 750 1000",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
    assert!(matches!(events[0], VfsEvent::Serving { .. }));
    assert!(!work.join("from-host").exists());
    let made = fs::metadata(work.join("made")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o640);
    assert_eq!(made.uid(), fs::metadata(&work).unwrap().uid());
}

/// The promise of the inode budget: 60,000 files under `ulimit -n 4096`, and programs still start.
#[test]
fn a_guest_that_looks_at_60000_files_still_execs() {
    let playground = Playground::new();
    let work = playground.directory("work");
    for directory in 0..60 {
        let directory = work.join(directory.to_string());
        fs::create_dir(&directory).unwrap();
        for file in 0..1000 {
            fs::write(directory.join(file.to_string()), "").unwrap();
        }
    }
    let exports = vec![root(), export("work", &work)];
    let mut server = Server::start_ordinary(&playground, exports, 4096);
    let console = boot(
        &playground,
        &mut server,
        "cd /mnt/work; echo found $(find . -type f -size -1 | wc -l)
         python3 -c 'print(\"exec\", 40 + 2)'; ls -d /mnt/work/59/999; perl -e 'print 6 * 7, qq(\\n)'",
    );
    let (status, events) = server.end();
    assert!(status.success(), "{status} {console}");
    assert!(console.contains("found 60000"), "{console}");
    assert!(console.contains("exec 42"), "{console}");
    assert!(console.contains("STATUS=0"), "{console}");
    assert!(events.contains(&VfsEvent::Serving {
        descriptor_limit: 4096
    }));
    let pressure = |event: &VfsEvent| matches!(event, VfsEvent::InodePressure { .. });
    let exhausted = |event: &VfsEvent| matches!(event, VfsEvent::InodesExhausted { .. });
    assert!(events.iter().any(pressure));
    assert!(!events.iter().any(exhausted), "{events:?}");
}

#[test]
fn programs_find_the_file_system_that_they_expect() {
    let playground = Playground::new();
    let work = playground.directory("work");
    let library = playground.directory("library");
    fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(library.join("file"), "host").unwrap();
    let edited = work.join("edited");
    fs::write(&edited, "before").unwrap();
    let script = playground.path().join("semantics.py");
    fs::write(&script, include_str!("semantics.py")).unwrap();

    let mut read_only = export("library", &library);
    read_only.read_only = true;
    let exports = vec![root(), export("work", &work), read_only];
    let mut server = Server::start_ordinary(&playground, exports, 4096);
    let host = {
        let (work, ready) = (work.clone(), work.join("ready"));
        std::thread::spawn(move || {
            while !ready.exists() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            fs::write(edited, "after!").unwrap();
            fs::write(work.join("late"), "").unwrap();
        })
    };
    let command = format!("cd /mnt/work; python3 {} /mnt/library", script.display());
    let console = boot(&playground, &mut server, &command);
    let (status, events) = server.end();
    assert!(status.success(), "{status} {events:?} {console}");
    assert!(console.contains("STATUS=0"), "{console}");
    assert_eq!(console.matches("ok ").count(), 14, "{console}");
    host.join().unwrap();
    assert_eq!(fs::read_dir(&library).unwrap().count(), 1);
    // Files that the guest's root made are the server's, and nobody's set-id program.
    let made = fs::metadata(work.join("suid")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
}
