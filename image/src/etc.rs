//! The parts of the host's `/etc` that `/usr` leans on.
//!
//! Without `alternatives` even `awk` is missing; without `ssl` no certificate is trusted; without
//! `ld.so.cache` some libraries are not found. Nothing is taken but what is listed here, and of
//! that only what every user of the host may read.

use std::fs::{self, File, FileType};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use memchr::memmem;

use crate::paths;
use crate::skeleton::Skeleton;

/// Names in `/etc`. One that ends in `*` stands for all that begin so.
const WANTED: [&str; 37] = [
    "alternatives",
    "alpine-release",
    "arch-release",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "ethertypes",
    "fedora-release",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "perl",
    "pki",
    "protocols",
    "python*",
    "redhat-release",
    "rpc",
    "services",
    "ssl",
    "terminfo",
    "timezone",
];

/// The skeleton lies in the guest's memory and is unpacked at every boot. A CA bundle has 0.2 MB
/// and a large `ld.so.cache` 0.5 MB; what is larger than this is data that went astray.
const MAX_FILE: u64 = 2 << 20;
/// Bounds what the guest's memory loses.
const MAX_TOTAL: u64 = 16 << 20;
/// Bounds the time that unpacking takes.
const MAX_ENTRIES: usize = 16_384;
/// Bounds a loop of links.
const MAX_DEPTH: usize = 12;

/// Directories outside of `/etc` and `/usr` that packages keep configuration in, to which links of
/// `/etc` point (certificate bundles of some distributions). What a link finds there is copied.
const COPIED_THROUGH: [&str; 2] = ["/var/lib/ca-certificates", "/var/lib/alternatives"];

/// Copies what is wanted; `notes` gets a line for each thing that was left out.
pub(crate) fn copy(host_root: &Path, skeleton: &mut Skeleton, notes: &mut Vec<String>) {
    let mut copier = Copier {
        host_root,
        skeleton,
        notes,
        total: 0,
        entries: 0,
    };
    let names = match fs::read_dir(host_root.join("etc")) {
        Ok(names) => names,
        Err(error) => {
            copier.note("/etc", &error.to_string());
            return;
        }
    };
    let mut wanted: Vec<(String, FileType)> = names
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().into_string().ok()?,
                entry.file_type().ok()?,
            ))
        })
        .filter(|(name, _)| is_wanted(name))
        .collect();
    // The caps must strike the same entries at each start.
    wanted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in wanted {
        let host = host_root.join("etc").join(&name);
        copier.entry(&host, &format!("/etc/{name}"), kind, 0);
    }
}

/// Whether `/etc/<name>` is among the listed parts.
fn is_wanted(name: &str) -> bool {
    WANTED.iter().any(|wanted| match wanted.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *wanted,
    })
}

const UNREADABLE: &str = "it is not readable by everyone";

struct Copier<'a> {
    host_root: &'a Path,
    skeleton: &'a mut Skeleton,
    notes: &'a mut Vec<String>,
    total: u64,
    entries: usize,
}

impl Copier<'_> {
    fn note(&mut self, path: &str, reason: &str) {
        self.notes
            .push(format!("{path} is not in the guest: {reason}"));
    }

    fn entry(&mut self, host: &Path, guest: &str, kind: FileType, depth: usize) {
        if depth > MAX_DEPTH {
            return self.note(guest, "directories are too deep");
        }
        if self.entries >= MAX_ENTRIES {
            return self.note(guest, &format!("there are more than {MAX_ENTRIES} entries"));
        }
        self.entries += 1;
        if kind.is_symlink() {
            self.link(host, guest, depth);
        } else if kind.is_dir() {
            self.directory(host, guest, depth);
        } else if kind.is_file() {
            self.file(host, guest);
        } else {
            self.note(guest, "it is not a regular file");
        }
    }

    fn directory(&mut self, host: &Path, guest: &str, depth: usize) {
        const READ_AND_SEARCH_BY_OTHERS: u32 = 0o005;
        if guest.ends_with("/private") {
            return self.note(guest, "private keys stay on the host");
        }
        match fs::metadata(host) {
            Ok(metadata)
                if metadata.mode() & READ_AND_SEARCH_BY_OTHERS == READ_AND_SEARCH_BY_OTHERS => {}
            Ok(_) => return self.note(guest, UNREADABLE),
            Err(error) => return self.note(guest, &error.to_string()),
        }
        let entries = match fs::read_dir(host) {
            Ok(entries) => entries,
            Err(error) => return self.note(guest, &error.to_string()),
        };
        self.skeleton.dir(guest, 0o755);
        let mut children = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => match entry.file_name().into_string() {
                    Ok(name) => children.push((name, entry.file_type())),
                    Err(_) => self.note(guest, "a name in it is not UTF-8"),
                },
                Err(error) => self.note(guest, &error.to_string()),
            }
        }
        children.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in children {
            let (host, guest) = (host.join(&name), format!("{guest}/{name}"));
            match kind {
                Ok(kind) => self.entry(&host, &guest, kind, depth + 1),
                Err(error) => self.note(&guest, &error.to_string()),
            }
        }
    }

    fn link(&mut self, host: &Path, guest: &str, depth: usize) {
        let target = match fs::read_link(host) {
            Ok(target) => target,
            Err(error) => return self.note(guest, &error.to_string()),
        };
        let Some(target) = target.to_str() else {
            return self.note(guest, "the link's target is not UTF-8");
        };
        let absolute = paths::join(paths::parent(guest), target);
        if is_manual(&absolute) {
            return;
        }
        if is_visible(&absolute) {
            return self.skeleton.symlink(guest, target);
        }
        if COPIED_THROUGH
            .iter()
            .any(|dir| paths::below(&absolute, dir).is_some())
        {
            let host = self.host_root.join(absolute.trim_start_matches('/'));
            return match fs::symlink_metadata(&host) {
                Ok(metadata) => self.entry(&host, guest, metadata.file_type(), depth + 1),
                Err(error) => self.note(guest, &error.to_string()),
            };
        }
        self.note(
            guest,
            &format!("it is a link to {absolute}, which the guest does not see"),
        );
    }

    fn file(&mut self, host: &Path, guest: &str) {
        const READ_BY_OTHERS: u32 = 0o004;
        let opened = File::open(host).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.note(guest, &error.to_string()),
        };
        if metadata.mode() & READ_BY_OTHERS == 0 {
            return self.note(guest, UNREADABLE);
        }
        if metadata.len() > MAX_FILE {
            return self.note(guest, &format!("its {} bytes are too many", metadata.len()));
        }
        // One byte more than it has: then the first read also sees the end.
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        if let Err(error) = file.take(MAX_FILE).read_to_end(&mut bytes) {
            return self.note(guest, &error.to_string());
        }
        if self.total + bytes.len() as u64 > MAX_TOTAL {
            return self.note(
                guest,
                &format!("more than {MAX_TOTAL} bytes would be copied"),
            );
        }
        if memmem::find(&bytes, b"PRIVATE KEY-----").is_some() {
            return self.note(guest, "private keys stay on the host");
        }
        self.total += bytes.len() as u64;
        let mode = if metadata.mode() & 0o111 == 0 {
            0o644
        } else {
            0o755
        };
        self.skeleton.file(guest, mode, bytes);
    }
}

/// Half of `alternatives` are links to manual pages, which cost time at every boot and serve no
/// worker.
fn is_manual(absolute: &str) -> bool {
    ["/usr/share/man", "/usr/local/share/man", "/usr/local/man"]
        .iter()
        .any(|dir| paths::below(absolute, dir).is_some())
}

/// Whether the guest has what a link to `absolute` means.
fn is_visible(absolute: &str) -> bool {
    const SEEN: [&str; 9] = [
        "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/dev",
    ];
    SEEN.iter().any(|dir| paths::below(absolute, dir).is_some())
        || paths::below(absolute, "/etc")
            .is_some_and(|below| is_wanted(below.split('/').next().unwrap_or("")))
}
