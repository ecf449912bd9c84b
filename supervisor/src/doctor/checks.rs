//! Each check: a fact collected, then judged by a function over the fact alone.

use std::fs;
use std::path::{Path, PathBuf};

use iii_firmware::platform::{self, Standing};
use iii_firmware::{Finding, FirmwareOptions, FirmwareStatus, Source};
use iii_vmm::choice::{self, ACCELERATION_VARIABLE, AccelerationWish, Known};
use iii_vmm::guest::GuestArch;
use iii_vmm::helpers::{self, Found, HelperPlaces, Origin};
use iii_vmm::host::{Acceleration, Arch, HostFacts};
use iii_vmm::krun;
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::vmm::Vmm as _;

use super::{Check, Verdict, confinement, limits};
use crate::embedded;
use crate::guests;
use crate::host_vmms::{self, Host};
use crate::workers_file::platform_word;

/// Binaries that a worker's processes are started from, whatever runs its VM.
const HELPERS: [&str; 2] = ["iii-shim", "iii-vfs"];

pub(super) fn all() -> Vec<Check> {
    let options = embedded::firmware_options();
    // Without a home nothing that is embedded can be laid.
    let places = options.as_ref().map_or_else(
        |_| HelperPlaces::default(),
        |options| embedded::places(None, &options.home),
    );
    let host = options
        .as_ref()
        .ok()
        .map(|options| Host::look(&options.home));
    let facts = host
        .as_ref()
        .map_or_else(HostFacts::collect, |host| host.facts);
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let mut checks = vec![platform(os, arch), processor(&facts)];
    let mut acceleration = Acceleration::Tcg;
    match AccelerationWish::from_env() {
        Ok(wish) => {
            let known = Known {
                facts: &facts,
                krun: false,
                refuted: host.as_ref().and_then(|host| host.refuted.as_ref()),
            };
            acceleration = choice::acceleration(wish, &known).0;
            let memory = host.as_ref().map(|host| host.verdicts().path());
            checks.push(kvm(wish, &known, memory));
        }
        Err(error) => checks.push(Check::failure("kvm", "kvm", error.to_string(), None)),
    }
    checks.extend([qemu(acceleration), libkrun(acceleration, &places)]);
    let mut firmware_is_there = false;
    match &options {
        Ok(options) => {
            checks.extend(
                GuestArch::ALL
                    .map(|arch| foreign_guests(options, &places, arch))
                    .into_iter()
                    .flatten(),
            );
            let status = FirmwareStatus::of(options);
            let found = firmware(&status);
            firmware_is_there = found.verdict == Verdict::Ok;
            checks.push(found);
            checks.push(guest_init(&status));
        }
        Err(error) => checks.push(Check::failure(
            "firmware",
            "firmware",
            error.to_string(),
            None,
        )),
    }
    checks.extend(HELPERS.map(|name| helper(name, &places)));
    checks.push(confinement::check(&places));
    checks.push(usr_merge(|name| {
        fs::symlink_metadata(Path::new("/").join(name)).is_ok_and(|meta| meta.is_symlink())
    }));
    checks.push(mke2fs(crate::disks::mke2fs()));
    checks.extend(limits::all());
    if let Ok(options) = &options {
        checks.push(limits::disk(options.home.path(), firmware_is_there));
    }
    checks
}

fn platform(os: &str, arch: &str) -> Check {
    let (id, title, host) = ("platform", "platform", format!("{os} {arch}"));
    match platform::row(os, arch).map(|row| (row.standing, row.vmms)) {
        Some((Standing::Proven, _)) => Check::ok(id, title, host),
        Some((Standing::Unproven, vmms)) => Check::warning(
            id,
            title,
            format!(
                "{host}: by {}, which nobody in this project has run there",
                vmms.join(" or ")
            ),
            "nothing has to be done: such guests have been run, in software on another host. Please \
             tell us how it goes",
        ),
        Some((Standing::Planned, _)) | None => Check::failure(
            id,
            title,
            format!("{host} is not supported by this version"),
            Some(String::from("use Linux on x86_64 or aarch64")),
        ),
    }
}

fn processor(facts: &HostFacts) -> Check {
    let (id, title) = ("cpu", "cpu");
    if facts.arch == Arch::Aarch64 {
        // Its flags do not tell.
        Check::ok(
            id,
            title,
            "64-bit ARM; whether it has virtualisation shows in kvm",
        )
    } else if facts.cpu_virtualisation {
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

fn kvm(wish: AccelerationWish, known: &Known<'_>, memory: Option<&Path>) -> Check {
    let (acceleration, reason) = choice::acceleration(wish, known);
    let (id, title) = ("kvm", "kvm");
    match (acceleration, wish, known.refuted, memory) {
        (Acceleration::Kvm, ..) => Check::ok(id, title, reason),
        (Acceleration::Tcg, AccelerationWish::Auto, Some(_), Some(memory)) => Check::warning(
            id,
            title,
            format!("not used: {reason}"),
            format!(
                "nothing has to be done: workers run in software (tcg), only slower. To try it \
                 again: {ACCELERATION_VARIABLE}=kvm, or remove {}",
                memory.display()
            ),
        ),
        (Acceleration::Tcg, ..) => Check::warning(
            id,
            title,
            format!("not used: {reason}"),
            "nothing has to be done: workers run in software (tcg), only slower",
        ),
    }
}

/// Workers run without it, so whatever is wrong with it is no failure.
fn libkrun(acceleration: Acceleration, places: &HelperPlaces) -> Check {
    let (id, title) = ("libkrun", "libkrun");
    match (host_vmms::krun(places), acceleration) {
        (Ok(found), Acceleration::Kvm) => Check::ok(
            id,
            title,
            format!("{} by {}", found.info.version, found.info.path.display()),
        ),
        (Ok(found), Acceleration::Tcg) => Check::ok(
            id,
            title,
            format!(
                "{} by {}; not used: it has no software to run guests by",
                found.info.version,
                found.info.path.display()
            ),
        ),
        (Err(error), _) => Check::warning(
            id,
            title,
            error.to_string(),
            format!("without {} VMs are run by QEMU", krun::HELPER),
        ),
    }
}

fn qemu(acceleration: Acceleration) -> Check {
    let qemu = Qemu::new(QemuOptions {
        program: None,
        cache_directory: None,
        acceleration,
        guest: None,
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
            let place = match look.source {
                Source::Embedded => String::from("embedded in this program"),
                Source::Override | Source::Cache | Source::System | Source::Download => {
                    format!("at {}", look.path.display())
                }
            };
            Check::ok(id, title, format!("{version} {place}{kernel}"))
        }
        None => Check::warning(
            id,
            title,
            "libkrunfw, which holds the guest's kernel, is not on this host yet",
            "the first run downloads it; to do so now: iii-super firmware fetch",
        ),
    }
}

/// Workers of another platform than this host's. Few need them, so that nothing about them is a
/// fault.
fn foreign_guests(
    options: &FirmwareOptions,
    places: &HelperPlaces,
    arch: GuestArch,
) -> Option<Check> {
    if Some(arch) == GuestArch::of_host() {
        return None;
    }
    let word = platform_word(arch);
    let found = match guests::installed(options, places, arch) {
        Ok((vmm, _)) => format!(
            "workers with `platform: {word}` are run in software, by QEMU {} at {}",
            vmm.info.version,
            vmm.info.path.display()
        ),
        Err(error) => format!("only workers with `platform: {word}` would need it: {error}"),
    };
    Some(Check::ok("guests", word, found))
}

fn guest_init(status: &FirmwareStatus) -> Check {
    let (id, title) = ("init", "guest init");
    match (&status.init_error, &status.init) {
        (Some(error), _) => Check::failure(id, title, error.clone(), None),
        (None, Some(path)) => Check::ok(id, title, format!("{} (III_INIT_PATH)", path.display())),
        (None, None) => Check::ok(id, title, "embedded in this program"),
    }
}

fn helper(name: &'static str, places: &HelperPlaces) -> Check {
    let found = helpers::find(name, places).and_then(|_| helpers::look(name, places));
    match found {
        Ok(Found { path, origin }) => {
            let path = path.display();
            let place = match origin {
                Origin::Embedded => format!("embedded in this program, laid at {path}"),
                Origin::Directory | Origin::Variable | Origin::Beside => path.to_string(),
            };
            Check::ok(name, name, format!("{place}, version {}", helpers::VERSION))
        }
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

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Failure, Ok, Warning};
    use super::*;

    #[test]
    fn each_host_is_judged_as_the_table_has_it() {
        assert_eq!(platform("linux", "x86_64").verdict, Ok);
        let unproven = platform("linux", "aarch64");
        assert_eq!(unproven.verdict, Warning);
        assert!(
            unproven.found.contains("by krun or qemu"),
            "{}",
            unproven.found
        );
        assert_eq!(platform("macos", "aarch64").verdict, Failure);
        assert_eq!(platform("linux", "riscv64").verdict, Failure);
    }

    #[test]
    fn facts_are_judged() {
        assert_eq!(usr_merge(|_| true).verdict, Ok);
        let split = usr_merge(|name| name != "bin");
        assert_eq!(split.verdict, Failure);
        assert!(split.found.contains("/bin"));

        assert_eq!(mke2fs(Some("/sbin/mke2fs".into())).verdict, Ok);
        assert_eq!(mke2fs(None).verdict, Warning);
    }
}
