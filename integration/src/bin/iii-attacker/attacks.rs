//! What an attacker tries from within a VMM.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};
use rustix::process::{Resource, getrlimit};

use crate::sys;

/// Files that every host has, which no VMM needs.
const SECRETS: [&str; 4] = ["/etc/shadow", "/etc/passwd", "/etc/hostname", "/root"];
/// Name of an abstract socket on which the test listens.
const TARGET: &str = "iii-attack-target";
/// Processes that are looked for by number.
const PROCESSES: i32 = 65_536;
/// Memory that is locked, and threads that are made: more than any VMM needs.
const LOCKED: usize = 1 << 20;
const THREADS: usize = 2000;

/// What came of an attempt: `Err` is what kept it from succeeding.
pub(crate) type Outcome = Result<String, String>;
/// What is tried.
pub(crate) type Attempt = fn() -> Outcome;

/// What is tried from every VMM's place, in this order.
pub(crate) const ATTEMPTS: [(&str, Attempt); 16] = [
    ("environment", environment),
    // Before namespaces, the owner of a new one of which has them all.
    ("capabilities", capabilities),
    ("secrets", secrets),
    ("names", names),
    ("programs", programs),
    ("write", write),
    ("connect", connect),
    ("abstract", abstract_socket),
    ("clone3", clone3),
    ("processes", processes),
    ("memory", memory),
    ("namespaces", namespaces),
    ("core", core),
    ("lock", lock),
    ("threads", threads),
    // Last: where it is not held, there are children of it.
    ("fork", fork),
];

pub(crate) fn said<T>(results: impl IntoIterator<Item = (String, Result<T, String>)>) -> Outcome {
    let (mut through, mut held) = (Vec::new(), Vec::new());
    for (what, result) in results {
        match result {
            Ok(_) => through.push(what),
            Err(why) => held.push(format!("{what}: {why}")),
        }
    }
    if through.is_empty() {
        Err(held.join(", "))
    } else {
        Ok(through.join(", "))
    }
}

fn environment() -> Outcome {
    let names: Vec<String> = std::env::vars_os()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    if names.is_empty() {
        Err("it is empty".into())
    } else {
        Ok(names.join(" "))
    }
}

fn secrets() -> Outcome {
    said(SECRETS.map(|path| {
        let opened = if Path::new(path).is_dir() {
            fs::read_dir(path).map(drop)
        } else {
            File::open(path).map(drop)
        };
        (path.to_owned(), opened.map_err(|e| e.to_string()))
    }))
}

/// Whatever has a name at the top that is not part of what a VMM is made of.
fn names() -> Outcome {
    let entries = fs::read_dir("/").map_err(|e| e.to_string())?;
    let harmless = ["usr", "lib", "lib64", "lib32", "proc", "dev", "nix", "gnu"];
    let found: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !harmless.contains(&name.as_str()))
        .filter(|name| fs::read_dir(Path::new("/").join(name)).is_ok())
        .collect();
    if found.is_empty() {
        Err("nothing else is there".into())
    } else {
        Ok(found.join(" "))
    }
}

/// In a child: a success would not come back.
fn programs() -> Outcome {
    said(["/bin/true", "/usr/bin/id", "/bin/sh"].map(|path| {
        let run = Command::new(path).arg("-c").arg("true").status();
        (path.to_owned(), run.map_err(|e| e.to_string()))
    }))
}

fn write() -> Outcome {
    let places = ["/", "/tmp", "/usr/lib", "/dev/shm", "/proc/self/fd"];
    said(places.map(|place| {
        let path: PathBuf = Path::new(place).join("iii-attack");
        let made = File::create(&path).map_err(|e| e.to_string());
        if made.is_ok() {
            // The host is ours to clean.
            fs::remove_file(&path).unwrap_or(());
        }
        (place.to_owned(), made)
    }))
}

fn connect() -> Outcome {
    let patience = Duration::from_millis(300);
    let targets = ["127.0.0.1:1", "[::1]:1", "192.0.2.1:80"];
    said(targets.map(|target| {
        let address: Result<std::net::SocketAddr, _> = target.parse();
        let result = address.map_err(|e| e.to_string()).and_then(|address| {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(_) => Ok(()),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // Somebody was asked: the host's own network answered.
                    Some(Errno::ECONNREFUSED) | None => Ok(()),
                    Some(_) => Err(error.to_string()),
                },
            }
        });
        (target.to_owned(), result)
    }))
}

/// Abstract sockets have no file to be denied.
fn abstract_socket() -> Outcome {
    let address = SocketAddr::from_abstract_name(TARGET).map_err(|e| e.to_string())?;
    match UnixStream::connect_addr(&address) {
        Ok(_) => Ok("connected".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn fork() -> Outcome {
    let mut children = 0;
    for _ in 0..100 {
        match sys::fork() {
            Ok(ForkResult::Child) => sys::exit(),
            Ok(ForkResult::Parent { .. }) => children += 1,
            Err(errno) if children == 0 => return Err(errno.to_string()),
            Err(_) => break,
        }
    }
    Ok(format!("{children} children"))
}

fn clone3() -> Outcome {
    match sys::clone3() {
        -1 => Err(Errno::last().to_string()),
        child => Ok(format!("process {child}")),
    }
}

/// Processes besides this one and what this one has made.
fn others() -> impl Iterator<Item = i32> {
    let own = std::process::id().cast_signed();
    (1..PROCESSES).filter(move |pid| *pid != own)
}

fn processes() -> Outcome {
    let reached: Vec<i32> = others()
        .filter(|pid| kill(Pid::from_raw(*pid), None).is_ok())
        .collect();
    if reached.is_empty() {
        return Err("no process can be signalled".into());
    }
    // PID 1 of a pid namespace is our own reaper, not the supervisor.
    Ok(format!(
        "{} can be signalled, {} the first",
        reached.len(),
        reached[0]
    ))
}

fn memory() -> Outcome {
    let mut reached = Vec::new();
    for pid in others().take(4096) {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let by_file = open(format!("/proc/{pid}/mem").as_str(), flags, Mode::empty()).is_ok();
        let by_environment = fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| !e.is_empty());
        if by_file || by_environment || sys::seize(pid) == 0 {
            reached.push(pid);
        }
    }
    if reached.is_empty() {
        Err("no process can be looked into".into())
    } else {
        Ok(format!("{} processes", reached.len()))
    }
}

fn namespaces() -> Outcome {
    let wanted = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mount", CloneFlags::CLONE_NEWNS),
    ];
    said(wanted.map(|(name, flag)| {
        let result = unshare(flag).map_err(|errno| errno.to_string());
        (name.to_owned(), result)
    }))
}

fn capabilities() -> Outcome {
    let sets = rustix::thread::capabilities(None).map_err(|e| e.to_string())?;
    let held = sets.effective | sets.permitted;
    if held.is_empty() {
        Err("it has none".into())
    } else {
        Ok(format!("{held:?}"))
    }
}

fn core() -> Outcome {
    match getrlimit(Resource::Core).maximum {
        Some(0) => Err("its memory is never written to a file".into()),
        most => Ok(format!("{most:?}")),
    }
}

fn lock() -> Outcome {
    match sys::lock_memory(LOCKED) {
        Ok(()) => Ok(format!("{LOCKED} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

/// Threads are processes to the kernel, and a VMM must be let make some.
fn threads() -> Outcome {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let mut made = Vec::new();
    let mut refused = None;
    while made.len() < THREADS && refused.is_none() {
        let held = std::sync::Arc::clone(&held);
        let waiting = std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || {
                // Until the sender is dropped.
                held.lock().is_ok_and(|held| held.recv().is_ok())
            });
        match waiting {
            Ok(thread) => made.push(thread),
            Err(error) => refused = Some(error),
        }
    }
    drop(hold);
    let count = made.len();
    for thread in made {
        thread.join().map_err(|_| "a thread panicked".to_owned())?;
    }
    match refused {
        Some(error) => Err(format!("{error} after {count}")),
        None => Ok(format!("{count} of them")),
    }
}

/// A file of somebody else: what can be done to it by its name.
pub(crate) fn file_of_others(path: &str) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let known = Path::new(path);
    said([
        ("read".into(), fs::read(known).map(drop).map_err(text)),
        ("list".into(), fs::read_dir(known).map(drop).map_err(text)),
        (
            "append".into(),
            File::options()
                .append(true)
                .open(known)
                .map(drop)
                .map_err(text),
        ),
        (
            "mode".into(),
            fs::set_permissions(known, fs::Permissions::from_mode(0o777)).map_err(text),
        ),
        ("remove".into(), fs::remove_file(known).map_err(text)),
    ])
}
