//! Each check: a fact collected, then judged by a function over the fact alone.

use std::fs;
use std::path::{Path, PathBuf};

use iii_firmware::{Finding, FirmwareOptions, FirmwareStatus};
use iii_vmm::helpers::{self, HelperPlaces};
use iii_vmm::host::{Acceleration, HostFacts, virtualisation};
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::vmm::Vmm as _;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::Check;
use crate::workers_file::format_size;

/// Binaries that a worker's processes are started from.
const HELPERS: [&str; 2] = ["iii-shim", "iii-vfs"];

pub(super) fn all() -> Vec<Check> {
    let facts = HostFacts::collect();
    let acceleration = virtualisation(&facts).acceleration;
    let options = FirmwareOptions::from_env();
    let mut checks = vec![
        platform(),
        processor(&facts),
        kvm(&facts),
        qemu(acceleration),
    ];
    match &options {
        Ok(options) => {
            let status = FirmwareStatus::of(options);
            checks.push(firmware(&status));
            checks.push(guest_init(&status));
        }
        Err(error) => checks.push(Check::failure(
            "firmware",
            "firmware",
            error.to_string(),
            None,
        )),
    }
    checks.extend(HELPERS.map(helper));
    checks.push(usr_merge(|name| {
        fs::symlink_metadata(Path::new("/").join(name)).is_ok_and(|meta| meta.is_symlink())
    }));
    checks.push(match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => open_files(hard),
        Err(error) => Check::warning(
            "open-files",
            "open files",
            format!("failed to read the limit: {error}"),
            "run `ulimit -Hn` in your shell",
        ),
    });
    let number = |path| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    checks.push(user_namespaces(
        number("/proc/sys/user/max_user_namespaces"),
        number("/proc/sys/kernel/unprivileged_userns_clone"),
        number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        nix::unistd::geteuid().is_root(),
    ));
    checks.push(cgroups(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        Path::new("/sys/fs/cgroup").exists(),
    ));
    checks.push(memory(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
    ));
    checks.push(mke2fs(crate::disks::mke2fs()));
    if let Ok(options) = &options {
        checks.push(disk(options.home.path()));
    }
    checks
}

fn platform() -> Check {
    let host = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    // What is implemented, which is less than what firmware is pinned for.
    if (std::env::consts::OS, std::env::consts::ARCH) == ("linux", "x86_64") {
        Check::ok("platform", "platform", host)
    } else {
        Check::failure(
            "platform",
            "platform",
            format!("{host} is not supported by this version"),
            Some(String::from("use Linux on x86_64")),
        )
    }
}

fn processor(facts: &HostFacts) -> Check {
    let (id, title) = ("cpu", "cpu");
    if facts.cpu_virtualisation {
        Check::ok(id, title, "has hardware virtualisation (vmx or svm)")
    } else {
        Check::warning(
            id,
            title,
            "shows no hardware virtualisation (neither vmx nor svm)",
            "on your own machine: switch VT-x or AMD-V on in the firmware's setup; on a rented \
             one: take a type with nested virtualisation. Workers run without it, only slower",
        )
    }
}

fn kvm(facts: &HostFacts) -> Check {
    let verdict = virtualisation(facts);
    let (id, title) = ("kvm", "kvm");
    match verdict.acceleration {
        Acceleration::Kvm => Check::ok(id, title, verdict.reason),
        Acceleration::Tcg => Check::warning(
            id,
            title,
            format!("not used: {}", verdict.reason),
            "nothing has to be done: workers run in software (tcg), only slower",
        ),
    }
}

fn qemu(acceleration: Acceleration) -> Check {
    let qemu = Qemu::new(QemuOptions {
        program: None,
        cache_directory: None,
        acceleration,
    });
    match qemu.check() {
        Ok(info) => Check::ok(
            "qemu",
            "qemu",
            format!("{} at {}", info.version, info.path.display()),
        ),
        Err(error) => Check::failure("qemu", "qemu", error.to_string(), None),
    }
}

fn firmware(status: &FirmwareStatus) -> Check {
    let (id, title) = ("firmware", "firmware");
    if let Some(error) = &status.error {
        return Check::failure(id, title, error.clone(), None);
    }
    match status.used.and_then(|used| status.looked.get(used)) {
        Some(look) => {
            let version = match look.finding {
                Finding::Accepted {
                    version: Some(version),
                    ..
                } => format!("libkrunfw {version}"),
                _ => String::from("libkrunfw"),
            };
            let kernel = status.kernel_release.as_ref();
            let kernel = kernel.map_or(String::new(), |release| format!(", guest Linux {release}"));
            Check::ok(
                id,
                title,
                format!("{version} at {}{kernel}", look.path.display()),
            )
        }
        None => Check::warning(
            id,
            title,
            "libkrunfw, which holds the guest's kernel, is not on this host yet",
            "the first run downloads it; to do so now: iii-super firmware fetch",
        ),
    }
}

fn guest_init(status: &FirmwareStatus) -> Check {
    let (id, title) = ("init", "guest init");
    match (&status.init_error, &status.init) {
        (Some(error), _) => Check::failure(id, title, error.clone(), None),
        (None, Some(path)) => Check::ok(id, title, format!("{} (III_INIT_PATH)", path.display())),
        (None, None) => Check::ok(id, title, "embedded in this program"),
    }
}

fn helper(name: &'static str) -> Check {
    match helpers::find(name, &HelperPlaces::default()) {
        Ok(path) => Check::ok(
            name,
            name,
            format!("{}, version {}", path.display(), helpers::VERSION),
        ),
        Err(error) => Check::failure(name, name, error.to_string(), None),
    }
}

fn usr_merge(is_link: impl Fn(&str) -> bool) -> Check {
    let (id, title) = ("usr", "merged /usr");
    let apart: Vec<&str> = ["bin", "sbin", "lib"]
        .into_iter()
        .filter(|name| !is_link(name))
        .collect();
    if apart.is_empty() {
        Check::ok(id, title, "/bin, /sbin and /lib lead into /usr")
    } else {
        Check::failure(
            id,
            title,
            format!("/{} is not a link into /usr", apart.join(", /")),
            Some(String::from(
                "`root: host` shows guests the host's /usr, which is not whole here: use a \
                 distribution with a merged /usr (Debian: apt install usrmerge)",
            )),
        )
    }
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

fn cgroups(unified: bool, any: bool) -> Check {
    let found = match (unified, any) {
        (true, _) => "version 2",
        (false, true) => "version 1",
        (false, false) => "none",
    };
    // The limits of a workload are set by cgroups of the guest's own kernel.
    Check::ok(
        "cgroups",
        "host cgroups",
        format!("{found}; not needed, limits are kept by the guest's kernel"),
    )
}

/// One small worker and what runs beside it.
const LITTLE_MEMORY: u64 = 512 << 20;

fn memory(meminfo: &str) -> Check {
    let (id, title) = ("memory", "free memory");
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024));
    match available {
        Some(bytes) if bytes >= LITTLE_MEMORY => Check::ok(id, title, rough(bytes)),
        Some(bytes) => Check::warning(
            id,
            title,
            format!("only {}", rough(bytes)),
            "a worker takes 256MiB unless its resources.memory says otherwise",
        ),
        None => Check::warning(
            id,
            title,
            "unknown: /proc/meminfo could not be read",
            "mount /proc",
        ),
    }
}

/// libkrunfw, its kernel and room to replace both.
const LITTLE_DISK: u64 = 200 << 20;

/// What makes the disks that outlive a VM.
fn mke2fs(found: Option<PathBuf>) -> Check {
    let (id, title) = ("mke2fs", "mke2fs");
    match found {
        Some(path) => Check::ok(id, title, path.display().to_string()),
        None => Check::warning(
            id,
            title,
            "not found: a worker cannot keep its root between runs",
            "install e2fsprogs (apt-get install e2fsprogs); other workers run without it",
        ),
    }
}

fn disk(home: &Path) -> Check {
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
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let found = format!("{} free for {}", rough(free), home.display());
    let writable = nix::unistd::access(&existing, nix::unistd::AccessFlags::W_OK).is_ok();
    if !writable {
        return Check::failure(
            id,
            title,
            format!("{} cannot be written by this user", existing.display()),
            Some(String::from("name another place with III_HOME")),
        );
    }
    if free < LITTLE_DISK {
        return Check::warning(
            id,
            title,
            found,
            format!("the firmware needs {}", format_size(LITTLE_DISK)),
        );
    }
    Check::ok(id, title, found)
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

    #[test]
    fn facts_are_judged() {
        assert_eq!(usr_merge(|_| true).verdict, Ok);
        let split = usr_merge(|name| name != "bin");
        assert_eq!(split.verdict, Failure);
        assert!(split.found.contains("/bin"));

        assert_eq!(mke2fs(Some("/sbin/mke2fs".into())).verdict, Ok);
        assert_eq!(mke2fs(None).verdict, Warning);

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

        assert_eq!(
            memory("MemTotal: 9 kB\nMemAvailable: 900000 kB\n").found,
            "879 MiB"
        );
        assert_eq!(memory("MemAvailable: 1000 kB\n").verdict, Warning);
        assert_eq!(memory("").verdict, Warning);
    }

    #[test]
    fn the_cache_is_judged_by_its_nearest_ancestor() {
        let dir = tempfile::tempdir().unwrap();
        let check = disk(&dir.path().join("not/yet/there"));
        assert!(check.found.contains("not/yet/there"), "{check:?}");
        assert_ne!(check.verdict, Failure);
    }
}
