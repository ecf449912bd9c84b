//! `root: host`: the host's own `/usr`, and a skeleton around it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::skeleton::{Skeleton, SkeletonEntry};
use crate::{etc, generated, paths, skeleton};

/// Tag of the export that holds `/usr`.
pub const USR_TAG: &str = "usr";

/// Links that a merged `/usr` puts in the root. The first three exist on every such host.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib64", "lib32", "libx32"];
const REQUIRED: usize = 3;

/// A directory of the host that the root is made of. Always read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootExport {
    /// Names it between host and guest.
    pub tag: String,
    /// On the host.
    pub host_path: PathBuf,
    /// Where the guest mounts it.
    pub guest_path: String,
}

/// The host's toolchain as a guest's root.
#[derive(Clone, Debug)]
pub struct HostRoot {
    /// What is made, sorted by path.
    pub skeleton: Vec<SkeletonEntry>,
    /// What is mounted.
    pub exports: Vec<RootExport>,
    /// What of `/etc` was left out, and why; for `doctor`.
    pub notes: Vec<String>,
}

/// The host cannot serve as a root.
#[derive(Debug, thiserror::Error)]
pub enum HostRootError {
    /// No `/usr` to speak of, or directories beside it.
    #[error(
        "failed to use this host as a root (`root: host`): {} is {found}, and a merged /usr is \
         wanted (/bin, /sbin and /lib as links into /usr); name an image instead, as \
         `image: debian:12-slim`",
        path.display()
    )]
    NotMerged {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The host's root could not be looked at.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HostRoot {
    /// Looks at this host.
    pub fn discover() -> Result<Self, HostRootError> {
        Self::discover_in(Path::new("/"))
    }

    /// As [`Self::discover`] for a host whose root is seen at `host_root`.
    pub fn discover_in(host_root: &Path) -> Result<Self, HostRootError> {
        let usr = host_root.join("usr");
        if !usr.is_dir() {
            return Err(HostRootError::NotMerged {
                path: usr,
                found: "not a directory",
            });
        }
        let mut entries = Skeleton::default();
        for (at, name) in MERGED.into_iter().enumerate() {
            if let Some(target) = merged_link(host_root, name, at < REQUIRED)? {
                entries.symlink(&format!("/{name}"), &target);
            }
        }
        generated::add(&mut entries);
        let mut notes = Vec::new();
        etc::copy(host_root, &mut entries, &mut notes);
        for note in &notes {
            tracing::debug!("{note}");
        }
        let export = RootExport {
            tag: USR_TAG.to_owned(),
            host_path: usr,
            guest_path: "/usr".to_owned(),
        };
        Ok(Self {
            skeleton: entries.finish(),
            exports: vec![export],
            notes,
        })
    }

    /// Identifies the skeleton: what is made from it can be kept under this name.
    pub fn digest(&self) -> String {
        skeleton::digest(&self.skeleton)
    }
}

/// The target of the merge link `name`, which leads into `/usr`.
fn merged_link(
    host_root: &Path,
    name: &str,
    required: bool,
) -> Result<Option<String>, HostRootError> {
    let path = host_root.join(name);
    let not_merged = |found| HostRootError::NotMerged {
        path: path.clone(),
        found,
    };
    match fs::read_link(&path) {
        Ok(target) => {
            let target = target
                .to_str()
                .ok_or_else(|| not_merged("a link to no UTF-8 path"))?;
            let absolute = paths::join("/", target);
            if paths::below(&absolute, "/usr").is_none_or(str::is_empty) {
                return Err(not_merged("a link that leads elsewhere"));
            }
            Ok(Some(target.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if required {
                Err(not_merged("missing"))
            } else {
                Ok(None)
            }
        }
        // EINVAL: it is there and no link.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(not_merged("a directory of its own"))
        }
        Err(source) => Err(HostRootError::Read { path, source }),
    }
}
