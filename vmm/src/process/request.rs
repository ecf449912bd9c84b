//! Turns a [`ChildSpec`] into what the shim is sent, after checking it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{IoSlice, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use iii_proto::codec::encode_spec;
use iii_proto::shim::{Confinement, MAX_DESCRIPTORS, ShimRequest};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::error::SpawnError;
use super::spec::{ChildSpec, Stdio};
use crate::cgroup::Leaf;

/// A request that is ready to be sent.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The encoded [`ShimRequest`], in a memfd of its own.
    request: OwnedFd,
    /// In the order of its targets; that of the cgroup behind them.
    descriptors: Vec<OwnedFd>,
    /// Held until nothing of the child is left.
    pub(super) cgroup: Option<Arc<Leaf>>,
}

impl Prepared {
    /// Checks the spec and encodes it.
    pub(super) fn new(spec: ChildSpec) -> Result<Self, SpawnError> {
        check(&spec).map_err(|reason| SpawnError::Invalid {
            label: spec.label.clone(),
            reason,
        })?;
        let mut targets = Vec::new();
        let mut descriptors = Vec::new();
        for (stdio, target) in [(spec.stdin, 0), (spec.stdout, 1), (spec.stderr, 2)] {
            match stdio {
                Stdio::Null => {}
                Stdio::Fd(fd) => {
                    targets.push(target);
                    descriptors.push(fd);
                }
            }
        }
        for (fd, target) in spec.inherit {
            targets.push(target);
            descriptors.push(fd);
        }
        let cgroup = spec.cgroup;
        if let Some(leaf) = &cgroup {
            let entrance = leaf.entrance().map_err(|source| SpawnError::Shim {
                label: spec.label.clone(),
                shim: "iii-shim".into(),
                source,
            })?;
            descriptors.push(entrance);
        }
        let bytes = |text: &OsStr| text.as_bytes().to_vec();
        let program = bytes(spec.program.as_os_str());
        let request = ShimRequest {
            // A process id always fits: the kernel's limit is 2^22.
            parent_pid: std::process::id().cast_signed(),
            args: std::iter::once(program.clone())
                .chain(spec.args.iter().map(|arg| bytes(arg)))
                .collect(),
            program,
            env: spec
                .env
                .iter()
                .map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat())
                .collect(),
            cwd: bytes(spec.cwd.as_os_str()),
            targets,
            rlimits: spec
                .rlimits
                .iter()
                .map(|limit| (limit.resource, limit.soft, limit.hard))
                .collect(),
            nice: spec.nice,
            namespaces: spec.namespaces,
            allow_user_namespace: spec.allow_user_namespace,
            confinement: spec.confinement,
            joins_cgroup: cgroup.is_some(),
        };
        let encoded = encode_spec(&request).map_err(|source| SpawnError::Encode {
            label: spec.label.clone(),
            source,
        })?;
        let request = memfd(&encoded).map_err(|source| SpawnError::Shim {
            label: spec.label,
            shim: "iii-shim".into(),
            source,
        })?;
        Ok(Self {
            request,
            descriptors,
            cgroup,
        })
    }

    /// Sends it to a shim. One message: the socket buffer takes it whole or not at all.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        let all: Vec<BorrowedFd<'_>> = std::iter::once(&self.request)
            .chain(&self.descriptors)
            .map(AsFd::as_fd)
            .collect();
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // `check` has bounded the descriptors, so that the space suffices.
        let fits = control.push(SendAncillaryMessage::ScmRights(&all));
        debug_assert!(fits);
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
    }
}

fn memfd(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("iii-shim-request", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

fn check(spec: &ChildSpec) -> Result<(), String> {
    let absolute = |what: &str, path: &Path| {
        if path.is_absolute() {
            Ok(())
        } else {
            Err(format!("the {what} {path:?} is not an absolute path"))
        }
    };
    absolute("program", &spec.program)?;
    absolute("working directory", &spec.cwd)?;

    if let Some(Confinement {
        read,
        write,
        devices,
        execute,
        reopen: _,
        threads: _,
    }) = &spec.confinement
    {
        for path in read.iter().chain(write).chain(devices).chain(execute) {
            absolute("reachable file", Path::new(OsStr::from_bytes(path)))?;
        }
    }

    let texts = [
        spec.program.as_os_str(),
        spec.cwd.as_os_str(),
        spec.label.as_ref(),
    ]
    .into_iter()
    .chain(spec.args.iter().map(|arg| arg.as_os_str()))
    .chain(
        spec.env
            .iter()
            .flat_map(|(k, v)| [k.as_os_str(), v.as_os_str()]),
    );
    for text in texts {
        if text.as_bytes().contains(&0) {
            return Err(format!("{text:?} holds a zero byte"));
        }
    }
    if let Some((key, _)) = spec
        .env
        .iter()
        .find(|(key, _)| key.is_empty() || key.as_bytes().contains(&b'='))
    {
        return Err(format!("{key:?} is no name of an environment variable"));
    }

    let mut seen = HashSet::new();
    for (_, target) in &spec.inherit {
        if *target < 3 {
            return Err(format!(
                "descriptor {target} is a standard stream; give it as stdin, stdout or stderr"
            ));
        }
        if !seen.insert(*target) {
            return Err(format!("descriptor {target} is given twice"));
        }
    }
    // Three are kept for the standard streams.
    if spec.inherit.len() + 3 > MAX_DESCRIPTORS {
        return Err(format!(
            "{} descriptors are inherited, at most {} can be",
            spec.inherit.len(),
            MAX_DESCRIPTORS - 3
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl FnOnce(&mut ChildSpec)) -> String {
        let mut spec = ChildSpec::new("/bin/true", "test");
        change(&mut spec);
        Prepared::new(spec).unwrap_err().to_string()
    }

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn specs_that_cannot_be_carried_out_are_refused() {
        assert!(fault(|s| s.program = "true".into()).contains("absolute"));
        assert!(fault(|s| s.cwd = "here".into()).contains("absolute"));
        assert!(
            fault(|s| {
                s.arg("a\0b");
            })
            .contains("zero byte")
        );
        assert!(
            fault(|s| {
                s.env("A=B", "c");
            })
            .contains("environment")
        );
        assert!(fault(|s| s.inherit = vec![(fd(), 2)]).contains("standard stream"));
        assert!(fault(|s| s.inherit = vec![(fd(), 5), (fd(), 5)]).contains("twice"));
        let many = |s: &mut ChildSpec| {
            (0..=MAX_DESCRIPTORS).for_each(|_| {
                s.inherit(fd());
            })
        };
        assert!(fault(many).contains("at most"));
    }

    #[test]
    fn inherited_descriptors_get_the_lowest_free_number() {
        let mut spec = ChildSpec::new("/bin/true", "test");
        assert_eq!(spec.inherit(fd()), 3);
        spec.inherit.push((fd(), 4));
        assert_eq!(spec.inherit(fd()), 5);
    }
}
