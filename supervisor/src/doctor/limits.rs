//! What the host lets this user have: descriptors, namespaces, cgroups, memory, disk.

use std::fs;
use std::path::{Path, PathBuf};

use iii_vmm::cgroup::{Held, Refusal, VARIABLE, Wish, look};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Check;
use crate::workers_file::format_size;

const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn all() -> Vec<Check> {
    let files = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => open_files(hard),
        Err(error) => Check::warning(
            "open-files",
            "open files",
            format!("failed to read the limit: {error}"),
            "run `ulimit -Hn` in your shell",
        ),
    };
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
    let namespaces = user_namespaces(
        number("/proc/sys/user/max_user_namespaces"),
        number("/proc/sys/kernel/unprivileged_userns_clone"),
        number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        nix::unistd::geteuid().is_root(),
    );
    let cgroup = Cgroup::of_this_process(Path::new(CGROUPS));
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory(&meminfo, cgroup.memory_left);
    vec![files, namespaces, cgroups(look(Wish::from_env())), memory]
}

/// Below this a guest that walks a large tree makes its file server run short.
const FEW_FILES: u64 = 4096;

fn open_files(hard: u64) -> Check {
    let (id, title) = ("open-files", "open files");
    if hard >= FEW_FILES {
        return Check::ok(id, title, format!("up to {hard} per process"));
    }
    Check::warning(
        id,
        title,
        format!("only {hard} per process: file operations of busy guests will be slow"),
        format!("raise the hard limit (ulimit -Hn) to {FEW_FILES} or more"),
    )
}

fn user_namespaces(
    most: Option<u64>,
    debian: Option<u64>,
    apparmor: Option<u64>,
    root: bool,
) -> Check {
    let (id, title) = ("namespaces", "user namespaces");
    let fix = |what: &str| {
        Check::warning(
            id,
            title,
            format!("{what}: VM processes are confined by fewer layers"),
            "nothing has to be done; to have them: allow unprivileged user namespaces",
        )
    };
    match (most, debian, apparmor) {
        (None, ..) => fix("this kernel has none"),
        (Some(0), ..) => fix("switched off (user.max_user_namespaces = 0)"),
        _ if root => Check::ok(id, title, "available"),
        (_, Some(0), _) => fix("switched off (kernel.unprivileged_userns_clone = 0)"),
        (_, _, Some(1..)) => {
            fix("restricted by AppArmor (kernel.apparmor_restrict_unprivileged_userns)")
        }
        _ => Check::ok(id, title, "available to this user"),
    }
}

/// Nothing depends on it: the limits of a workload are kept by the guest's own kernel.
fn cgroups(found: Result<Held, Refusal>) -> Check {
    let (id, title) = ("cgroups", "host cgroups");
    match found {
        Ok(Held { root, controllers }) => {
            let names: Vec<String> = controllers.iter().map(ToString::to_string).collect();
            let found = format!(
                "each VM is limited in {} ({})",
                root.display(),
                names.join(", ")
            );
            Check::ok(id, title, found)
        }
        Err(reason) => {
            let fix = match reason {
                Refusal::Off => format!("unset {VARIABLE}, to have them"),
                _ => String::from(
                    "nothing has to be done; to have them: run iii-super as a service with \
                     Delegate=yes, or as `systemd-run --user --scope -p Delegate=yes iii-super run`",
                ),
            };
            Check {
                fix: Some(fix),
                ..Check::ok(
                    id,
                    title,
                    format!("no limits around a VM beside its own: {reason}"),
                )
            }
        }
    }
}

/// What the control group that this process is in leaves of its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cgroup {
    version: Option<u8>,
    /// What is left of its limit of memory, if it has one.
    memory_left: Option<u64>,
}

impl Cgroup {
    fn of_this_process(mount: &Path) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::read(mount, &own)
    }

    /// `own` is the text of `/proc/self/cgroup` (cgroups(7)).
    fn read(mount: &Path, own: &str) -> Self {
        let group = |controllers: &dyn Fn(&str) -> bool| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                controllers(names).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        if mount.join("cgroup.controllers").exists() {
            let group = mount.join(group(&str::is_empty).unwrap_or_default());
            let left = number(group.join("memory.max"))
                .map(|most| most.saturating_sub(number(group.join("memory.current")).unwrap_or(0)));
            return Self {
                version: Some(2),
                memory_left: left,
            };
        }
        let memory = |names: &str| names.split(',').any(|name| name == "memory");
        let group = mount
            .join("memory")
            .join(group(&memory).unwrap_or_default());
        let left = number(group.join("memory.limit_in_bytes"))
            // Without a limit it holds the largest number of whole pages.
            .filter(|most| *most < 1 << 60)
            .map(|most| {
                most.saturating_sub(number(group.join("memory.usage_in_bytes")).unwrap_or(0))
            });
        Self {
            version: mount.exists().then_some(1),
            memory_left: left,
        }
    }
}

/// One small worker and what runs beside it.
const LITTLE_MEMORY: u64 = 512 << 20;

/// `left`: what the limit of this process's cgroup leaves, if there is one.
fn memory(meminfo: &str, left: Option<u64>) -> Check {
    let (id, title) = ("memory", "free memory");
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024));
    let Some(available) = available else {
        return Check::warning(
            id,
            title,
            "unknown: /proc/meminfo could not be read",
            "mount /proc",
        );
    };
    let (bytes, whose) = match left {
        Some(left) if left < available => (left, ", by the limit of this process's cgroup"),
        Some(_) | None => (available, ""),
    };
    if bytes >= LITTLE_MEMORY {
        return Check::ok(id, title, format!("{}{whose}", rough(bytes)));
    }
    let fix = match whose {
        "" => {
            "a worker takes 256MiB unless its resources.memory says otherwise: end something else"
        }
        _ => {
            "a worker takes 256MiB unless its resources.memory says otherwise: raise the limit of \
              the container or service that this runs in"
        }
    };
    Check::warning(id, title, format!("only {}{whose}", rough(bytes)), fix)
}

/// libkrunfw, its kernel and room to replace both.
const LITTLE_DISK: u64 = 200 << 20;

/// With the firmware there, the room is for what workers keep.
pub(super) fn disk(home: &Path, firmware_is_there: bool) -> Check {
    let (id, title) = ("disk", "cache");
    // The cache may not have been made yet; then its nearest ancestor tells.
    let mut existing = PathBuf::from(home);
    while !existing.exists() && existing.pop() {}
    let stat = match statvfs(&existing) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::failure(
                id,
                title,
                format!("failed to look at {}: {error}", existing.display()),
                Some(String::from("name another place with III_HOME")),
            );
        }
    };
    if !existing.is_dir() {
        return Check::failure(
            id,
            title,
            format!("{} is not a directory", existing.display()),
            Some(String::from(
                "move it away, or name another place with III_HOME",
            )),
        );
    }
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let found = format!("{} free for {}", rough(free), home.display());
    let writable = access(&existing, AccessFlags::W_OK).is_ok();
    if !writable {
        return Check::failure(
            id,
            title,
            format!("{} cannot be written by this user", existing.display()),
            Some(String::from("name another place with III_HOME")),
        );
    }
    judge_room(free, found, firmware_is_there)
}

fn judge_room(free: u64, found: String, firmware_is_there: bool) -> Check {
    let (id, title) = ("disk", "cache");
    if free >= LITTLE_DISK {
        return Check::ok(id, title, found);
    }
    let what = if firmware_is_there {
        String::from("images, disks and output of workers are kept there")
    } else {
        format!("the firmware needs {}", format_size(LITTLE_DISK))
    };
    let fix = format!("{what}: make room, or name another place with III_HOME");
    Check::warning(id, title, found, fix)
}

/// A size for people: one digit behind the point.
fn rough(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1u32 << 30);
    if gib >= 1.0 {
        format!("{gib:.1} GiB")
    } else {
        format!("{:.0} MiB", bytes as f64 / f64::from(1u32 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Failure, Ok, Warning};
    use super::*;
    use iii_vmm::cgroup::Controller;

    #[test]
    fn facts_are_judged() {
        assert_eq!(open_files(1 << 20).verdict, Ok);
        assert_eq!(open_files(1024).verdict, Warning);

        assert_eq!(user_namespaces(Some(100), None, None, false).verdict, Ok);
        for (most, debian, apparmor, root, verdict) in [
            (None, None, None, true, Warning),
            (Some(0), None, None, true, Warning),
            (Some(9), Some(0), None, false, Warning),
            (Some(9), Some(0), None, true, Ok),
            (Some(9), Some(1), Some(1), false, Warning),
            (Some(9), Some(1), Some(0), false, Ok),
        ] {
            let check = user_namespaces(most, debian, apparmor, root);
            assert_eq!(check.verdict, verdict, "{check:?}");
        }

        let plenty = "MemTotal: 9 kB\nMemAvailable: 900000 kB\n";
        assert_eq!(memory(plenty, None).found, "879 MiB");
        assert_eq!(memory(plenty, Some(u64::MAX)).found, "879 MiB");
        let limited = memory(plenty, Some(100 << 20));
        assert_eq!(limited.verdict, Warning);
        assert!(
            limited.found.starts_with("only 100 MiB, by the limit"),
            "{limited:?}"
        );
        assert!(limited.fix.unwrap().contains("container"));
        assert_eq!(memory("MemAvailable: 1000 kB\n", None).verdict, Warning);
        assert_eq!(memory("", None).verdict, Warning);
    }

    #[test]
    fn what_limits_vms_is_told_or_why_nothing_does() {
        let held = Held {
            root: "/cg/iii.service".into(),
            controllers: vec![Controller::Memory, Controller::Pids],
        };
        let check = cgroups(Result::Ok(held));
        assert_eq!(
            check.found,
            "each VM is limited in /cg/iii.service (memory, pids)"
        );
        assert_eq!(check.fix, None);
        let check = cgroups(Err(Refusal::NoHierarchy));
        assert_eq!(check.verdict, Ok);
        assert!(check.found.contains("this host has none"), "{check:?}");
        assert!(check.fix.unwrap().contains("Delegate=yes"));
        let check = cgroups(Err(Refusal::Off));
        assert!(check.fix.unwrap().contains("III_CGROUPS"));
    }

    #[test]
    fn cgroups_of_both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let none = Cgroup::read(&dir.path().join("none"), "");
        assert_eq!(none, Cgroup::default());

        write("one/memory/box/memory.limit_in_bytes", "1000\n");
        write("one/memory/box/memory.usage_in_bytes", "400\n");
        let one = dir.path().join("one");
        let cgroup = Cgroup::read(&one, "4:cpu,memory:/box\n0::/\n");
        assert_eq!((cgroup.version, cgroup.memory_left), (Some(1), Some(600)));
        write(
            "one/memory/box/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(Cgroup::read(&one, "4:memory:/box\n").memory_left, None);

        write("two/cgroup.controllers", "cpu\n");
        write("two/user/memory.max", "max\n");
        let cgroup = Cgroup::read(&dir.path().join("two"), "0::/user\n");
        assert_eq!((cgroup.version, cgroup.memory_left), (Some(2), None));
        write("two/user/memory.max", "5000\n");
        let cgroup = Cgroup::read(&dir.path().join("two"), "0::/user\n");
        assert_eq!(cgroup.memory_left, Some(5000));
    }

    #[test]
    fn the_cache_is_judged_by_its_nearest_ancestor() {
        let fix = |there| format!("{:?}", judge_room(1, "little".into(), there));
        assert!(fix(false).contains("the firmware needs 200MiB"));
        assert!(fix(true).contains("images, disks and output") && !fix(true).contains("firmware"));
        assert_eq!(judge_room(LITTLE_DISK, "much".into(), false).verdict, Ok);

        let dir = tempfile::tempdir().unwrap();
        let check = disk(&dir.path().join("not/yet/there"), true);
        assert!(check.found.contains("not/yet/there"), "{check:?}");
        assert_ne!(check.verdict, Failure);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let check = disk(&file.join(".iii"), true);
        assert_eq!(check.verdict, Failure);
        assert!(check.found.contains("file is not a directory"), "{check:?}");
    }
}
