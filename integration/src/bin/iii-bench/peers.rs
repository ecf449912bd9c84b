//! Supervisors side by side: from a child's death to its successor's first instruction. All of them
//! supervise the same program on the host at the same time, ours as an ordinary process.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use iii_integration::{binaries, worker_name};
use iii_proto::codec::{FrameReader, encode_frame, encode_spec};
use iii_proto::control::HostMessage;
use iii_proto::guest::{GuestLimits, GuestSpec, GuestUser, Root, Upper, Workload};
use iii_proto::ids::BootId;
use iii_proto::log::LogFrame;

use crate::product::at_once;

/// Lives of the child under each supervisor. It lives longer than three seconds, since runit and s6
/// wait a second on purpose before they restart a child that did not.
const LIVES: usize = 9;

/// The child: notes when it begins, lives, notes when it ends, and ends itself.
const CHILD: &str = r#"
use std::io::Write;
use std::ffi::c_int;
#[repr(C)]
struct Timespec { seconds: i64, nanoseconds: i64 }
extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getpid() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
}
fn now() -> i64 {
    let mut t = Timespec { seconds: 0, nanoseconds: 0 };
    unsafe { clock_gettime(1, &mut t) };
    t.seconds * 1_000_000_000 + t.nanoseconds
}
fn main() {
    let begin = now();
    let mut times = std::fs::OpenOptions::new().append(true).create(true).open("times").unwrap();
    times.write_all(format!("begin {begin}\n").as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(3100));
    times.write_all(format!("end {}\n", now()).as_bytes()).unwrap();
    unsafe { kill(getpid(), 9) };
}
"#;

/// One supervisor at work in a directory of its own.
struct Contestant {
    name: &'static str,
    directory: PathBuf,
    process: Child,
}

impl Contestant {
    /// From each death to the next begin.
    fn gaps(&self) -> Result<Vec<Duration>, String> {
        let times = std::fs::read_to_string(self.directory.join("times"))
            .map_err(|e| format!("{} started nothing: {e}", self.name))?;
        let mut end = None;
        let mut gaps = Vec::new();
        for line in times.lines() {
            let Some((what, time)) = line.split_once(' ') else {
                continue;
            };
            let time: u64 = time.parse().map_err(|e| format!("{line}: {e}"))?;
            match (what, end.take()) {
                ("end", _) => end = Some(time),
                ("begin", Some(end)) => gaps.push(Duration::from_nanos(time.saturating_sub(end))),
                _ => {}
            }
        }
        Ok(gaps)
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // Each ends its child at SIGTERM; what is left of ours ends with its control port.
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // An error means that it has ended by itself.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap_or(());
        }
        drop(self.process.wait());
    }
}

/// The gaps under each supervisor, by name; ours is the last.
pub(crate) fn restarts() -> Result<Vec<(&'static str, Vec<Duration>)>, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let child = build_child(directory.path())?;
    let place = |name: &str| -> Result<PathBuf, String> {
        let place = directory.path().join(name);
        std::fs::create_dir(&place).map_err(|e| e.to_string())?;
        Ok(place)
    };
    let service = |name| -> Result<PathBuf, String> {
        let place = place(name)?;
        std::fs::copy(&child, place.join("run")).map_err(|e| e.to_string())?;
        Ok(place)
    };
    let runit = service("runit")?;
    let s6 = service("s6")?;
    let python = place("supervisord")?;
    let ours = place("vm-init")?;
    let contestants = [
        contestant("runit (runsv)", &runit, Command::new("runsv").arg(&runit))?,
        contestant(
            "s6 (s6-supervise)",
            &s6,
            Command::new("s6-supervise").arg(&s6),
        )?,
        supervisord(&python, &child)?,
        vm_init(&ours, &child)?,
    ];
    // The child's own life is the clock of this measurement.
    let mut results = Vec::new();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        results.clear();
        for contestant in &contestants {
            results.push((contestant.name, contestant.gaps().unwrap_or_default()));
        }
        if results.iter().all(|(_, gaps)| gaps.len() >= LIVES) {
            return Ok(results);
        }
        if let Some((name, gaps)) = results.iter().find(|(_, gaps)| {
            let most = results.iter().map(|(_, g)| g.len()).max().unwrap_or(0);
            gaps.len() + 4 < most
        }) {
            return Err(format!(
                "{name} restarted its child only {} times",
                gaps.len()
            ));
        }
    }
}

fn contestant(
    name: &'static str,
    directory: &Path,
    command: &mut Command,
) -> Result<Contestant, String> {
    let process = command
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("failed to start {name}: {e}"))?;
    Ok(Contestant {
        name,
        directory: directory.to_owned(),
        process,
    })
}

fn supervisord(directory: &Path, child: &Path) -> Result<Contestant, String> {
    let shown = directory.display();
    let settings = format!(
        "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={shown}/pid\n\
         [program:child]\ncommand={}\ndirectory={shown}\nautorestart=true\nstartretries=1000\n\
         stdout_logfile=NONE\nstderr_logfile=NONE\n",
        child.display()
    );
    let file = directory.join("supervisord.conf");
    std::fs::write(&file, settings).map_err(|e| e.to_string())?;
    let mut command = Command::new("supervisord");
    contestant(
        "Python's supervisord",
        directory,
        command.arg("-c").arg(&file),
    )
}

fn vm_init(directory: &Path, child: &Path) -> Result<Contestant, String> {
    let text = |path: &Path| path.display().to_string();
    let spec = GuestSpec {
        proto: iii_proto::PROTOCOL_VERSION,
        boot_id: BootId::from_random(1),
        worker: worker_name("bench"),
        root: Root {
            lowers: Vec::new(),
            skeleton: true,
            upper: Upper::Tmpfs { size_bytes: 0 },
        },
        mounts: Vec::new(),
        network: None,
        workload: Workload {
            command: vec![text(child)],
            env: Vec::new(),
            cwd: text(directory),
            user: GuestUser::Ids {
                name: "bench".into(),
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                home: "/".into(),
            },
            limits: GuestLimits::default(),
            stop_grace_ms: 1000,
            stop_signal: 15,
        },
        restart: at_once(),
        health: None,
        host_time_unix_ns: 0,
        entropy: [1; 32],
        at_rest: iii_proto::guest::AtRest::PowerOff,
        allow_faults: false,
    };
    let file = directory.join("spec");
    let bytes = encode_spec(&spec).map_err(|e| e.to_string())?;
    std::fs::write(&file, bytes).map_err(|e| e.to_string())?;
    let io = |e: std::io::Error| e.to_string();
    let (control, its_control) = UnixStream::pair().map_err(io)?;
    let (log, its_log) = UnixStream::pair().map_err(io)?;
    let mut command = Command::new(binaries().join("vm-init"));
    command.arg("supervise").arg(&file).args(["3", "4"]);
    let mapping = |parent_fd: OwnedFd, child_fd| FdMapping {
        parent_fd,
        child_fd,
    };
    command
        .fd_mappings(vec![
            mapping(its_control.into(), 3),
            mapping(its_log.into(), 4),
        ])
        .map_err(|e| e.to_string())?;
    let contestant = contestant("vm-init, as a plain process", directory, &mut command)?;
    // The mappings hold its ends of the ports.
    drop(command);
    std::thread::spawn(move || serve(control, log));
    Ok(contestant)
}

/// The host's part: takes log frames over, as the supervisor does.
fn serve(control: UnixStream, mut log: UnixStream) {
    use std::io::Write;
    let mut frames = FrameReader::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = log.read(&mut buffer) {
        frames.feed(&buffer[..count]);
        while let Ok(Some(frame)) = frames.next::<LogFrame>() {
            let ack = encode_frame(&HostMessage::LogAck { seq: frame.seq });
            if ack.is_ok_and(|ack| (&control).write_all(&ack).is_err()) {
                return;
            }
        }
    }
}

fn build_child(directory: &Path) -> Result<PathBuf, String> {
    crate::bare::build("child", CHILD, directory)
}
