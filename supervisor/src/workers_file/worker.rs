//! One entry of `workers:`.

use iii_actors::spec::{
    GuestArch, ImageSpec, PullPolicy, Reference as ImageReference, Resources, RootSpec, UserSpec,
    WorkerSpec,
};
use iii_proto::ids::WorkerName;

use super::command::command;
use super::depends_on::{Reference, depends_on};
use super::environment::environment;
use super::health::health;
use super::logs::logs;
use super::mounts::{PROJECT, mounts};
use super::network::network;
use super::paths;
use super::ports::{Published, ports};
use super::reader::{Fields, Reader, Setting};
use super::restart::policy;
use super::size;
use crate::disks::{LEAST_DISK, MOST_DISK};

/// Keys of a worker.
pub(crate) const KEYS: &[&str] = &[
    "root",
    "image",
    "pull",
    "platform",
    "entrypoint",
    "path",
    "command",
    "cwd",
    "env",
    "env_file",
    "secrets",
    "resources",
    "ports",
    "mounts",
    "restart",
    "vm_restart",
    "health",
    "network",
    "depends_on",
    "logs",
    "user",
    "stop_grace",
    "boot_deadline",
    "heartbeat_timeout",
];

/// Keys of `root:` where it is a map.
pub(crate) const ROOT_KEYS: &[&str] = &["persist"];

/// Keys of `resources:`.
pub(crate) const RESOURCES_KEYS: &[&str] = &["cpus", "memory", "pids", "open_files", "disk"];

/// Platforms of images, in the words that images use.
pub(crate) const PLATFORMS: &[(&str, GuestArch)] = &[
    ("linux/amd64", GuestArch::X86_64),
    ("linux/arm64", GuestArch::Aarch64),
];

#[cfg(feature = "cli")]
/// The word for guests of an architecture.
pub(crate) fn platform_word(guest: GuestArch) -> &'static str {
    let found = PLATFORMS.iter().find(|(_, arch)| *arch == guest);
    found.map_or(guest.name(), |(word, _)| word)
}

const MIB: u64 = 1 << 20;

/// Below this the guest's kernel and an empty root alone leave no room for a workload.
const LEAST_MEMORY: u64 = 64 * MIB;
const MOST_MEMORY: u64 = 1 << 40;
/// Above this a microVM of QEMU gains nothing and boots far slower.
const MOST_CPUS: u64 = 32;

/// Reads one worker. Faults go to the reader; the spec is whole only if there were none.
pub(crate) fn worker(
    reader: &mut Reader<'_>,
    name: WorkerName,
    setting: &Setting<'_>,
    taken: &mut Vec<Published>,
    references: &mut Vec<Reference>,
) -> Option<WorkerSpec> {
    let fields = reader.fields(setting, KEYS)?;
    let (root, persist) = root(reader, &fields);
    let command = match fields.get("command") {
        Some(s) => command(reader, &s),
        // An image has one of its own; whether it does shows when it is here.
        None if matches!(root, Some(RootSpec::Image(_))) => None,
        None => {
            reader.fault_with_remedy(
                setting,
                "has no `command`",
                "say what runs in the VM, as command: [python3, app.py], or name an image that does",
            );
            None
        }
    };
    let mut spec = WorkerSpec::new(name, command.unwrap_or_default());
    spec.root = root.unwrap_or(spec.root);
    spec.persist = persist;
    let project = fields.get("path");
    spec.mounts = mounts(reader, project.as_ref(), fields.get("mounts").as_ref());
    spec.cwd = match fields.get("cwd") {
        Some(s) => reader.parsed_expanded(&s, working_directory),
        None => project.map(|_| PROJECT.to_owned()),
    };
    let [env, env_file, secrets] = ["env", "env_file", "secrets"].map(|key| fields.get(key));
    (spec.env, spec.secret_env) = environment(reader, env, env_file, secrets);
    if let Some(s) = fields.get("resources") {
        spec.resources = resources(reader, &s, spec.resources);
        if spec.persist.is_some() && spec.resources.disk.is_some() {
            reader.fault_with_remedy(
                &s,
                "has `disk`, the size of a layer in memory, which a root that persists has not",
                "take `disk` out: `root.persist` is the limit",
            );
        }
    }
    if let Some(s) = fields.get("ports") {
        spec.ports = ports(reader, &s, taken);
    }
    if let Some(s) = fields.get("restart") {
        spec.restart = policy(reader, &s, spec.restart);
    }
    if let Some(s) = fields.get("vm_restart") {
        spec.vm_restart = policy(reader, &s, spec.vm_restart);
    }
    spec.health = fields.get("health").and_then(|s| health(reader, &s));
    if let Some(s) = fields.get("depends_on") {
        spec.depends_on = depends_on(reader, &spec.name, &s, references);
    }
    if let Some(s) = fields.get("logs") {
        spec.logs = logs(reader, &s);
    }
    if let Some(s) = fields.get("network") {
        spec.network = network(reader, &s);
    }
    spec.user = fields.get("user").and_then(|s| reader.parsed(&s, user));
    if let Some(s) = fields.get("stop_grace") {
        spec.stop_grace = reader.duration(&s).unwrap_or(spec.stop_grace);
    }
    if let Some(s) = fields.get("boot_deadline") {
        spec.boot_deadline = reader.positive_duration(&s).unwrap_or(spec.boot_deadline);
    }
    if let Some(s) = fields.get("heartbeat_timeout") {
        spec.heartbeat_timeout = reader
            .positive_duration(&s)
            .unwrap_or(spec.heartbeat_timeout);
    }
    Some(spec)
}

/// What the root is, and the size of the disk that keeps changes to it.
fn root(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (Option<RootSpec>, Option<u64>) {
    let Some(s) = fields.get("root") else {
        return (image(reader, fields), None);
    };
    if !s.is_map() {
        if reader.word(&s, &[("host", ())]).is_some() && fields.get("image").is_some() {
            reader.fault_with_remedy(
                &s,
                "`root: host` and `image` cannot both be a worker's root",
                "take one of them away",
            );
        }
        return (image(reader, fields), None);
    }
    let persist = reader
        .fields(&s, ROOT_KEYS)
        .and_then(|settings| settings.get("persist"))
        .and_then(|s| size_within(reader, &s, LEAST_DISK, MOST_DISK));
    (image(reader, fields), persist)
}

/// The image, or else the host's toolchain.
fn image(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<RootSpec> {
    let Some(s) = fields.get("image") else {
        for key in ["pull", "platform", "entrypoint"] {
            if let Some(s) = fields.get(key) {
                reader.fault_with_remedy(
                    &s,
                    format!("`{key}` is for images, and this worker names none"),
                    "add `image: NAME`, or take it away",
                );
            }
        }
        return Some(RootSpec::Host);
    };
    let reference = reader.parsed_expanded(&s, |text| {
        text.parse::<ImageReference>().map_err(|error| {
            format!(
                "is no image name: {}; a name is [REGISTRY/]REPOSITORY[:TAG][@DIGEST], as \
                 debian:12-slim or localhost:5000/team/app@sha256:…",
                error.reason()
            )
        })
    });
    let mut image = ImageSpec::new(reference?);
    if let Some(s) = fields.get("pull") {
        let words = [
            ("missing", PullPolicy::Missing),
            ("always", PullPolicy::Always),
            ("never", PullPolicy::Never),
        ];
        image.pull = reader.word(&s, &words).unwrap_or_default();
    }
    if let Some(s) = fields.get("platform") {
        image.platform = reader.word(&s, PLATFORMS);
    }
    if let Some(s) = fields.get("entrypoint") {
        image.entrypoint = entrypoint(reader, &s);
    }
    Some(RootSpec::Image(image))
}

/// As a command; an empty list stands for none.
fn entrypoint(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<Vec<String>> {
    if setting.is_list() && reader.items(setting).is_empty() {
        return Some(Vec::new());
    }
    command(reader, setting)
}

/// What is given, over `resources`.
pub(crate) fn resources(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    mut resources: Resources,
) -> Resources {
    let Some(fields) = reader.fields(setting, RESOURCES_KEYS) else {
        return resources;
    };
    if let Some(s) = fields.get("cpus")
        && let Some(cpus) = reader.number(&s, 1, MOST_CPUS)
    {
        // Bounded by MOST_CPUS just above.
        resources.cpus = cpus as u8;
    }
    if let Some(s) = fields.get("memory")
        && let Some(memory) = size_within(reader, &s, LEAST_MEMORY, MOST_MEMORY)
    {
        // A VM's memory is counted in whole MiB.
        resources.memory = memory.next_multiple_of(MIB);
    }
    if let Some(s) = fields.get("disk") {
        resources.disk = size_within(reader, &s, MIB, MOST_MEMORY);
    }
    if let Some(s) = fields.get("pids") {
        resources.pids = reader.number(&s, 1, 1 << 22);
    }
    if let Some(s) = fields.get("open_files") {
        resources.open_files = reader.number(&s, 16, 1 << 20);
    }
    resources
}

pub(crate) fn size_within(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    least: u64,
    most: u64,
) -> Option<u64> {
    let bytes = reader.size(setting)?;
    if bytes < least || bytes > most {
        let (bytes, least, most) = (size::format(bytes), size::format(least), size::format(most));
        reader.fault(setting, format!("{bytes} is outside of {least} to {most}"));
        return None;
    }
    Some(bytes)
}

fn working_directory(text: &str) -> Result<String, String> {
    if text == "/" {
        return Ok(text.to_owned());
    }
    paths::guest(text)
}

/// `name`, `name:group`, `uid` or `uid:gid`.
fn user(text: &str) -> Result<UserSpec, String> {
    let help = || format!("{text:?} is not a user: write it as a name, name:group, uid or uid:gid");
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let numeric = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if numeric(user) {
        let group = group.unwrap_or(user);
        let uid = user.parse().map_err(|_| help())?;
        let gid = group.parse().map_err(|_| help())?;
        // (uid_t)-1 means "no change" to the kernel's calls.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(help());
        }
        return Ok(UserSpec::Ids { uid, gid });
    }
    let name = |s: &str| {
        !s.is_empty()
            && s.len() <= 32
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    if !name(user) || !group.is_none_or(name) {
        return Err(help());
    }
    Ok(UserSpec::Named(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let ids = |uid, gid| Ok(UserSpec::Ids { uid, gid });
        assert_eq!(user("0"), ids(0, 0));
        assert_eq!(user("1000:100"), ids(1000, 100));
        assert_eq!(user("nobody"), Ok(UserSpec::Named("nobody".into())));
        assert_eq!(user("a:b"), Ok(UserSpec::Named("a:b".into())));
        for text in [
            "",
            ":",
            "a:",
            "1000:staff",
            "4294967295",
            "99999999999",
            "a b",
        ] {
            assert!(user(text).is_err(), "{text}");
        }
    }
}
