//! Boots a VM whose root is the host's own `/`, read-only over virtio-fs, and whose first program
//! is a shell script, with the real `iii-vfs` as an ordinary user would run it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use command_fds::{CommandFdExt, FdMapping};
use iii_firmware::{Firmware, FirmwareOptions};
use iii_proto::codec::FrameReader;
use iii_proto::vfs::{VfsEvent, VfsExport};
use iii_vfs::launch::VfsLaunch;

/// The uid and gid as which the server's own files appear in the guest.
pub(crate) const GUEST: (u32, u32) = (1000, 1000);

/// A directory that the guest's kernel and an unprivileged server can enter.
pub(crate) struct Playground {
    directory: tempfile::TempDir,
}

impl Playground {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

pub(crate) fn export(tag: &str, path: &Path) -> VfsExport {
    VfsExport {
        tag: tag.to_owned(),
        path: path.to_owned(),
        read_only: false,
        guest_uid: GUEST.0,
        guest_gid: GUEST.1,
        listener_fd: -1,
        immutable: false,
        live: false,
    }
}

pub(crate) fn immutable(tag: &str, path: &Path) -> VfsExport {
    VfsExport {
        read_only: true,
        immutable: true,
        live: false,
        ..export(tag, path)
    }
}

/// A running `iii-vfs`.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) events: Arc<Mutex<Vec<VfsEvent>>>,
    pub(crate) devices: Vec<(String, OwnedFd)>,
    stream: UnixStream,
    pressed: Option<mpsc::Receiver<()>>,
    reader: std::thread::JoinHandle<()>,
}

fn inherit(command: &mut Command, descriptors: Vec<(OwnedFd, i32)>) {
    let mappings = descriptors
        .into_iter()
        .map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        })
        .collect();
    command.fd_mappings(mappings).unwrap();
}

impl Server {
    /// Starts one as whoever runs the test.
    pub(crate) fn start(exports: Vec<VfsExport>) -> Self {
        Self::start_after(exports, || {})
    }

    /// Starts one after something has happened to the prepared launch's world.
    pub(crate) fn start_after(exports: Vec<VfsExport>, happens: impl FnOnce()) -> Self {
        let launch = VfsLaunch::prepare("test", exports).unwrap();
        happens();
        Self::spawn(launch, Command::new(env!("CARGO_BIN_EXE_iii-vfs")))
    }

    /// Starts one as an ordinary user with that RLIMIT_NOFILE, soft and hard. Root becomes
    /// `nobody` for it, who can run only a copy in the playground.
    pub(crate) fn start_ordinary(
        playground: &Playground,
        exports: Vec<VfsExport>,
        descriptors: u64,
    ) -> Self {
        let binary = playground.path().join("iii-vfs");
        fs::copy(env!("CARGO_BIN_EXE_iii-vfs"), &binary).unwrap();
        let drop_root = if nix::unistd::geteuid().is_root() {
            "setpriv --reuid=65534 --regid=65534 --clear-groups"
        } else {
            ""
        };
        let script = format!("ulimit -n {descriptors}; exec {drop_root} \"$0\" \"$@\"");
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(script).arg(binary);
        Self::spawn(VfsLaunch::prepare("test", exports).unwrap(), shell)
    }

    fn spawn(launch: VfsLaunch, mut command: Command) -> Self {
        command.args(&launch.args);
        inherit(&mut command, launch.inherited);
        let child = command.spawn().unwrap();
        drop(command);
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let mut stream = launch.events.try_clone().unwrap();
        let (pressure, pressed) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut frames = FrameReader::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                frames.feed(&buffer[..length]);
                while let Some(event) = frames.next::<VfsEvent>().unwrap() {
                    if matches!(event, VfsEvent::InodePressure { .. }) {
                        // Nobody listens in a test that expects none.
                        pressure.send(()).ok();
                    }
                    seen.lock().unwrap().push(event);
                }
            }
        });
        Self {
            child,
            events,
            devices: launch
                .devices
                .into_iter()
                .map(|device| (device.tag, device.stream))
                .collect(),
            stream: launch.events,
            pressed: Some(pressed),
            reader,
        }
    }

    /// Whether it has closed its events.
    pub(crate) fn has_ended(&self) -> bool {
        self.reader.is_finished()
    }

    /// What the end of the supervisor looks like to it.
    pub(crate) fn hang_up(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Waits for its end; its status and all its events.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<VfsEvent>) {
        self.devices.clear();
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        (status, events)
    }
}

fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let options = FirmwareOptions::from_env().unwrap();
        Firmware::locate(&options, &()).unwrap().kernel().to_owned()
    })
}

/// Boots a guest that mounts each export but the root at `/mnt/TAG` and runs `script`; what it
/// printed. The server must serve the host's `/` as `root`.
pub(crate) fn boot(playground: &Playground, server: &mut Server, script: &str) -> String {
    let tags: Vec<&str> = server
        .devices
        .iter()
        .map(|(tag, _)| tag.as_str())
        .filter(|tag| *tag != "root")
        .collect();
    let path = playground.path().join("init");
    fs::write(
        &path,
        format!(
            "#!/bin/sh\n\
             export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/run\n\
             mount -t devtmpfs dev /dev 2>/dev/null; exec </dev/null >/dev/hvc0 2>&1\n\
             mount -t proc proc /proc; mount -t tmpfs run /run; mount -t tmpfs mnt /mnt\n\
             for tag in {tags}; do mkdir /mnt/$tag; mount -t virtiofs $tag /mnt/$tag; done\n\
             (while read line; do echo 2 >/proc/sys/vm/drop_caches; done </dev/hvc0) &\n\
             ({script}\n)\n\
             echo STATUS=$?\n",
            tags = tags.join(" "),
        ),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();

    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,accel=tcg,acpi=off", "-cpu", "max,-svm"])
        .args(["-smp", "1", "-m", "512"])
        .args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on"])
        .args(["-machine", "memory-backend=mem"])
        .arg("-kernel")
        .arg(kernel())
        .arg("-append")
        .arg(format!(
            "console=hvc0 panic=-1 reboot=t quiet root=root rootfstype=virtiofs ro init={}",
            path.display()
        ))
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args([
            "-device",
            "virtio-serial-device",
            "-chardev",
            "stdio,id=con",
        ])
        .args(["-device", "virtconsole,chardev=con"]);
    let mut descriptors = Vec::new();
    for (index, (tag, stream)) in server.devices.drain(..).enumerate() {
        let fd = 10 + index as i32;
        command
            .arg("-chardev")
            .arg(format!("socket,id=vfs{index},fd={fd}"))
            .arg("-device")
            .arg(format!("vhost-user-fs-device,chardev=vfs{index},tag={tag}"));
        descriptors.push((stream, fd));
    }
    inherit(&mut command, descriptors);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut vmm = command.spawn().unwrap();
    drop(command);
    // The supervisor's part: at inode pressure, the guest is told to drop its caches.
    let mut input = vmm.stdin.take().unwrap();
    let pressed = server.pressed.take().unwrap();
    std::thread::spawn(
        move || {
            while pressed.recv().is_ok() && input.write_all(b"d\n").is_ok() {}
        },
    );
    let output = vmm.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}
