//! What is the same on every host: directories and the guest's own accounts.

use crate::skeleton::{Owner, Skeleton};

/// Directories of the root and their modes. `/root` is open, because a mount below it must be
/// reachable for the workload's user; it is empty otherwise.
const DIRECTORIES: [(&str, u32); 23] = [
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/home", 0o755),
    ("/media", 0o755),
    ("/mnt", 0o755),
    ("/opt", 0o755),
    ("/proc", 0o555),
    ("/root", 0o755),
    ("/run", 0o755),
    ("/srv", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/usr", 0o755),
    ("/var", 0o755),
    ("/var/cache", 0o755),
    ("/var/lib", 0o755),
    ("/var/local", 0o755),
    ("/var/log", 0o755),
    ("/var/mail", 0o755),
    ("/var/opt", 0o755),
    ("/var/spool", 0o755),
    ("/var/tmp", 0o1777),
    ("/etc/opt", 0o755),
];

/// The account of a workload whose spec names none; its home is made here, so that the guest has
/// nothing to write before it starts.
const WORKER: u32 = 1000;

/// No account of the host appears: its users are nobody's business in a guest. No password is
/// valid (`*`), so there is no shadow file to protect.
const PASSWD: &str = "\
root:*:0:0:root:/root:/bin/sh
daemon:*:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:*:2:2:bin:/bin:/usr/sbin/nologin
sys:*:3:3:sys:/dev:/usr/sbin/nologin
mail:*:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:*:33:33:www-data:/var/www:/usr/sbin/nologin
worker:*:1000:1000:worker:/home/worker:/bin/sh
nobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUP: &str = "\
root:*:0:
daemon:*:1:
bin:*:2:
sys:*:3:
adm:*:4:
tty:*:5:
disk:*:6:
mail:*:8:
kmem:*:15:
dialout:*:20:
audio:*:29:
www-data:*:33:
utmp:*:43:
video:*:44:
staff:*:50:
users:*:100:
worker:*:1000:
nogroup:*:65534:
";

const NSSWITCH: &str = "\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
";

const PROFILE: &str = "\
# Login shells only; a worker's own environment comes from its `env:`.
export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"
";

const SHELLS: &str = "/bin/sh\n/bin/bash\n/usr/bin/sh\n/usr/bin/bash\n";

/// Adds everything of this module. `hosts`, `hostname` and `resolv.conf` are written by vm-init.
pub(crate) fn add(skeleton: &mut Skeleton) {
    for (path, mode) in DIRECTORIES {
        skeleton.dir(path, mode);
    }
    skeleton.home(
        "/home/worker",
        Owner {
            uid: WORKER,
            gid: WORKER,
        },
    );
    skeleton.symlink("/var/run", "/run");
    skeleton.symlink("/var/lock", "/run/lock");
    skeleton.symlink("/etc/mtab", "../proc/self/mounts");
    for (path, text) in [
        ("/etc/passwd", PASSWD),
        ("/etc/group", GROUP),
        ("/etc/nsswitch.conf", NSSWITCH),
        ("/etc/profile", PROFILE),
        ("/etc/shells", SHELLS),
    ] {
        skeleton.file(path, 0o644, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skeleton::{self, EntryKind, get};

    #[test]
    fn accounts_are_well_formed_and_hold_root_worker_and_nobody() {
        let rows = |text: &'static str, fields: usize| {
            let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(':').collect()).collect();
            assert!(rows.iter().all(|row| row.len() == fields), "{rows:?}");
            rows
        };
        let (users, groups) = (rows(PASSWD, 7), rows(GROUP, 4));
        for (name, uid) in [("root", "0"), ("worker", "1000"), ("nobody", "65534")] {
            assert!(users.iter().any(|row| row[0] == name && row[2] == uid));
        }
        for user in &users {
            assert!(
                groups.iter().any(|group| group[2] == user[3]),
                "no group for {user:?}"
            );
        }
    }

    #[test]
    fn scratch_directories_are_open_and_sticky_and_home_is_the_workers() {
        let mut skeleton = Skeleton::default();
        add(&mut skeleton);
        let entries = skeleton.finish();
        let home = skeleton::entry(&entries, "/home/worker").unwrap();
        assert_eq!(home.kind, EntryKind::Dir { mode: 0o755 });
        assert_eq!((home.owner.uid, home.owner.gid), (WORKER, WORKER));
        for path in ["/tmp", "/var/tmp"] {
            assert_eq!(get(&entries, path), Some(&EntryKind::Dir { mode: 0o1777 }));
        }
        assert_eq!(get(&entries, "/etc/shadow"), None);
    }
}
