//! A guest has taken over its VMM: this program stands in QEMU's place, with QEMU's arguments and
//! descriptors, tries what an attacker would, and tells on the VM's console what came of it, a line
//! per attempt: `attack NAME: held (why)` or `attack NAME: THROUGH (how)`.
#![deny(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};

/// Files that every host has, which no VMM needs.
const SECRETS: [&str; 4] = ["/etc/shadow", "/etc/passwd", "/etc/hostname", "/root"];
/// Name of an abstract socket on which the test listens.
const TARGET: &str = "iii-attack-target";
/// Processes that are looked for by number.
const PROCESSES: i32 = 65_536;

/// What came of an attempt: `Err` is what kept it from succeeding.
type Outcome = Result<String, String>;
/// What is tried.
type Attempt = fn() -> Outcome;

mod sys {
    //! Calls that the libraries do not offer, since nobody should make them.
    #![allow(unsafe_code)]

    use std::os::fd::{BorrowedFd, OwnedFd};

    /// Our own copy of an inherited descriptor.
    pub(super) fn inherited(number: i32) -> nix::Result<OwnedFd> {
        // SAFETY: it was inherited under this number, and nothing in this program closes it.
        nix::unistd::dup(unsafe { BorrowedFd::borrow_raw(number) })
    }

    pub(super) fn fork() -> nix::Result<nix::unistd::ForkResult> {
        // SAFETY: this program has one thread; the child ends by `_exit` at once.
        unsafe { nix::unistd::fork() }
    }

    pub(super) fn exit() -> ! {
        // SAFETY: touches no memory and does not return.
        unsafe { libc::_exit(0) }
    }

    /// `clone3` with no flag: what a newer C library makes a process with.
    pub(super) fn clone3() -> i64 {
        let arguments = [0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
        // SAFETY: the kernel reads `struct clone_args` of 64 bytes from `arguments`. The child, a
        // copy as fork makes it, ends at once.
        unsafe {
            let made = libc::syscall(
                libc::SYS_clone3,
                arguments.as_ptr(),
                size_of_val(&arguments),
            );
            if made == 0 {
                libc::_exit(0);
            }
            made
        }
    }

    /// Becomes another process' tracer, without stopping it; ends with this process.
    pub(super) fn seize(pid: i32) -> i64 {
        // SAFETY: no memory of ours is touched.
        unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--version") {
        // What iii-super asks QEMU for before it starts a VM.
        return match writeln!(std::io::stdout(), "QEMU emulator version 7.2.0") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let Some(mut console) = console(&arguments) else {
        return ExitCode::from(64);
    };
    let attempts: [(&str, Attempt); 13] = [
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
        // Last: where it is not held, there are children of it.
        ("fork", fork),
    ];
    for (name, attempt) in attempts {
        let line = match attempt() {
            Ok(how) => format!("attack {name}: THROUGH ({how})\n"),
            Err(why) => format!("attack {name}: held ({why})\n"),
        };
        if console.write_all(line.as_bytes()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    let threads = std::thread::spawn(|| 1).join().is_ok();
    let line = format!("attacks are over; a thread of its own: {threads}\n");
    if console.write_all(line.as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    // The very last: where it is not held, nobody is left to tell.
    let error = Command::new("/bin/true").exec();
    let line = format!("attack execute: held ({error})\n");
    match console.write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The descriptor that QEMU is told to write the console to.
fn console(arguments: &[String]) -> Option<File> {
    let number = arguments.iter().find_map(|word| {
        let file = word.strip_prefix("fd=")?.strip_suffix(",set=1");
        file.map(str::to_owned)
    });
    let number = number.or_else(|| {
        arguments.iter().find_map(|word| {
            let fd = word.strip_prefix("socket,id=console,fd=")?;
            Some(fd.to_owned())
        })
    })?;
    sys::inherited(number.parse().ok()?).ok().map(File::from)
}

fn said<T>(results: impl IntoIterator<Item = (String, Result<T, String>)>) -> Outcome {
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
