//! The cgroup that was handed to this process: looked at, and taken.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use iii_proto::ids::{BootId, WorkerName};
use nix::unistd::{AccessFlags, access, geteuid};

use super::facts::{self, Controller, Decision, Group, Refusal, SUPERVISOR, decide};
use super::leaf::{self, Leaf};
use super::limits::Limits;
use super::{Wish, place};
use crate::host::Acceleration;

/// What the names of leaves begin with.
const LEAF: &str = "vm-";
/// Rounds of moving: what one of our own children starts meanwhile is in the old place again.
const ROUNDS: usize = 16;
/// Steps from a process to one of its ancestors; a longer chain is a stranger's.
const GENERATIONS: usize = 64;

/// What was found, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Below which each VM has a cgroup.
    pub root: PathBuf,
    /// What is limited there.
    pub controllers: Vec<Controller>,
}

/// Whether this process could use cgroups. Changes nothing.
///
/// # Errors
/// [`Refusal`] is the reason why not.
pub fn look(wish: Wish) -> Result<Held, Refusal> {
    let Decision {
        root, controllers, ..
    } = examine(wish)?;
    Ok(Held { root, controllers })
}

/// The cgroup that was handed to this process, taken: all supervisors in it share it.
#[derive(Debug)]
pub struct Delegation {
    held: Held,
    host_memory: u64,
    /// Locked as long as this process lives; no child inherits it.
    _lock: File,
}

static TAKEN: Mutex<Option<Arc<Delegation>>> = Mutex::new(None);

impl Delegation {
    /// Takes it: moves this process and its children into a leaf of their own if they are in the way,
    /// removes what a supervisor that was killed has left, and enables the controllers. Later calls
    /// get the same.
    ///
    /// # Errors
    /// [`Refusal`] is the reason why nothing was taken.
    pub fn take(wish: Wish) -> Result<Arc<Self>, Refusal> {
        if wish == Wish::Off {
            return Err(Refusal::Off);
        }
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(delegation) = &*taken {
            return Ok(Arc::clone(delegation));
        }
        let Decision {
            root,
            must_move,
            controllers,
        } = examine(wish)?;
        let lock = lock(&root)?;
        remove_leaves(&root);
        if must_move {
            move_out_of(&root)?;
        }
        let controllers = enable(&root, &controllers)?;
        tracing::debug!(root = %root.display(), ?controllers, "each VM has a cgroup of its own");
        let delegation = Arc::new(Self {
            held: Held { root, controllers },
            host_memory: host_memory(),
            _lock: lock,
        });
        Ok(Arc::clone(taken.insert(delegation)))
    }

    /// What it is.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// A leaf for this boot. `None`: the kernel gives none, which is logged, and is no reason to run no
    /// VM.
    pub fn leaf(&self, worker: &WorkerName, boot: BootId, vm: &VmSize) -> Option<Arc<Leaf>> {
        let name = format!("{LEAF}{worker}-{boot}");
        let limits = Limits::for_vm(vm.memory, vm.cpus, vm.acceleration, self.host_memory);
        let path = self.held.root.join(&name);
        match Leaf::make(path, &limits, &self.held.controllers) {
            Ok(leaf) => Some(Arc::new(leaf)),
            Err(error) => {
                tracing::warn!(%worker, %error, "failed to make a cgroup; the VM runs without limits");
                None
            }
        }
    }
}

/// What the limits of a VM follow from.
#[derive(Clone, Copy, Debug)]
pub struct VmSize {
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How they are run.
    pub acceleration: Acceleration,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Refusal {
    move |source| Refusal::Failed {
        action,
        path: path.to_owned(),
        source,
    }
}

fn examine(wish: Wish) -> Result<Decision, Refusal> {
    if wish == Wish::Off {
        return Err(Refusal::Off);
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let place = place::find(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
        .map_err(|_| Refusal::NoHierarchy)?;
    let own = group(&place.directory, place.name == Path::new("/"));
    let above = (place.directory != place.mount)
        .then(|| place.directory.parent())
        .flatten();
    let parent = above.map(|path| group(path, place.name.parent() == Some(Path::new("/"))));
    decide(wish, geteuid().as_raw(), &own, parent.as_ref())
}

fn group(path: &Path, is_namespace_root: bool) -> Group {
    let may_write = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    Group {
        marked: is_marked(path),
        owner: fs::metadata(path).map_or(0, |metadata| metadata.uid()),
        writable: may_write(path)
            && may_write(&path.join("cgroup.procs"))
            && may_write(&path.join("cgroup.subtree_control")),
        kind: fs::read_to_string(path.join("cgroup.type"))
            .ok()
            .map(|kind| kind.trim().to_owned()),
        controllers: fs::read_to_string(path.join("cgroup.controllers"))
            .map(|text| facts::controllers(&text))
            .unwrap_or_default(),
        others: processes(path)
            .into_iter()
            .filter(|pid| !is_ours(*pid))
            .count(),
        is_namespace_root,
        path: path.to_owned(),
    }
}

fn is_marked(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 1];
        rustix::fs::getxattr(path, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// Those in the cgroup itself; one that this pid namespace does not know is 0.
fn processes(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether it is this process or descends from it.
fn is_ours(pid: u32) -> bool {
    let own = std::process::id();
    let mut ancestor = Some(pid);
    for _ in 0..GENERATIONS {
        match ancestor {
            Some(pid) if pid == own => return true,
            Some(pid) if pid > 1 => ancestor = parent_of(pid),
            Some(_) | None => return false,
        }
    }
    false
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

fn lock(root: &Path) -> Result<File, Refusal> {
    let directory = File::open(root).map_err(failed("open", root))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(Refusal::Busy(root.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed("lock", root)(source)),
    }
}

/// What a supervisor that was killed has left; its processes have ended with it, or do now.
fn remove_leaves(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let is_leaf = entry.file_name().to_string_lossy().starts_with(LEAF);
        if is_leaf && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            leaf::end(&entry.path());
        }
    }
}

fn move_out_of(root: &Path) -> Result<(), Refusal> {
    let own = root.join(SUPERVISOR);
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make the cgroup", &own)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let entrance = own.join("cgroup.procs");
    for _ in 0..ROUNDS {
        let left = processes(root);
        if left.is_empty() {
            return Ok(());
        }
        let others = left.iter().filter(|pid| !is_ours(**pid)).count();
        if others > 0 {
            return Err(Refusal::Shared {
                cgroup: root.to_owned(),
                others,
            });
        }
        for pid in left {
            match fs::write(&entrance, pid.to_string()) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.map_err(failed("move this process into", &entrance))?,
            }
        }
    }
    Err(Refusal::Shared {
        cgroup: root.to_owned(),
        others: processes(root).len(),
    })
}

/// Those that the kernel lets be used below `root`.
fn enable(root: &Path, controllers: &[Controller]) -> Result<Vec<Controller>, Refusal> {
    let file = root.join("cgroup.subtree_control");
    let mut enabled = Vec::new();
    let mut cause = None;
    for controller in controllers {
        match fs::write(&file, format!("+{controller}")) {
            Ok(()) => enabled.push(*controller),
            Err(error) => {
                tracing::warn!(%controller, %error, "failed to enable a controller");
                cause = Some(error);
            }
        }
    }
    match cause {
        Some(error) if enabled.is_empty() => Err(failed("enable controllers in", &file)(error)),
        Some(_) | None => Ok(enabled),
    }
}

fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "its width is the architecture's")]
    u64::from(info.totalram).saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_children_are_ours_and_nobody_else() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        assert!(is_ours(std::process::id()));
        assert!(is_ours(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_ours(std::os::unix::process::parent_id()));
        assert!(!is_ours(1));
        assert!(!is_ours(0));
    }

    #[test]
    fn what_a_cgroup_holds_is_read_from_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        write("cgroup.type", "domain\n");
        write("cgroup.controllers", "cpuset cpu io pids\n");
        write("cgroup.subtree_control", "");
        write("cgroup.procs", &format!("{}\n0\n", std::process::id()));
        let found = group(directory.path(), true);
        assert_eq!(found.others, 1);
        assert_eq!(found.kind.as_deref(), Some("domain"));
        assert_eq!(found.controllers, [Controller::Pids, Controller::Cpu]);
        assert!(found.writable && !found.marked && found.is_namespace_root);
    }

    #[test]
    fn one_supervisor_at_a_time_has_a_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(Refusal::Busy(_))));
        drop(first);
        lock(directory.path()).unwrap();
    }
}
