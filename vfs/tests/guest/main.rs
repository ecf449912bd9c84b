//! What a Linux guest sees. Each test boots a VM.

mod harness;

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
    let mut server = Server::start(vec![root(), export("work", &work)], None);
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
