//! Namespaces, as far as the kernel gives them.

use std::fs::OpenOptions;
use std::io::{self, Write};

use iii_proto::shim::{Isolation, Namespace, ShimRequest};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Moves this process (for the pid namespace: its next child) into the wanted namespaces. As root
/// plainly, as an ordinary user by way of a user namespace; refused, it goes on without.
pub(crate) fn enter(request: &ShimRequest) -> Isolation {
    let flags = request
        .namespaces
        .iter()
        .map(|namespace| match namespace {
            Namespace::Pid => CloneFlags::CLONE_NEWPID,
            Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
            Namespace::Network => CloneFlags::CLONE_NEWNET,
        })
        .fold(CloneFlags::empty(), |all, flag| all | flag);
    if flags.is_empty() {
        return Isolation::default();
    }
    // Read before: in the new user namespace nobody has a name yet.
    let (uid, gid) = (geteuid(), getegid());
    let mut user_namespace = false;
    let entered = unshare(flags).or_else(|errno| {
        if errno != Errno::EPERM || !request.allow_user_namespace {
            return Err(errno);
        }
        user_namespace = true;
        unshare(flags | CloneFlags::CLONE_NEWUSER)
    });
    if let Err(errno) = entered {
        return Isolation {
            refused: Some(errno as i32),
            ..Isolation::default()
        };
    }
    let mapped = if user_namespace {
        map_user(uid.as_raw(), gid.as_raw())
    } else {
        Ok(())
    };
    Isolation {
        namespaces: request.namespaces.clone(),
        user_namespace,
        refused: mapped.err().and_then(|error| error.raw_os_error()),
        layers: None,
        cgroup: None,
    }
}

/// Gives the own user and group their own numbers in the new user namespace.
fn map_user(uid: u32, gid: u32) -> io::Result<()> {
    let write = |path: &str, text: String| {
        OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(text.as_bytes())
    };
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    // The kernel's condition for a group map by an ordinary user (user_namespaces(7)).
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
