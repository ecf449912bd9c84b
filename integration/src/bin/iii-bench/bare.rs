//! The peer: QEMU as we start it, with the same kernel and devices, and an init that does nothing
//! but report. No shim, no supervisor, no root, no network to be set up.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use iii_firmware::initramfs::{Initramfs, sealed};
use iii_firmware::{Firmware, FirmwareOptions};
use iii_integration::{binaries, worker_name};
use iii_net::config::{DEFAULT_MTU, GUEST_MAC};
use iii_proto::ids::BootId;
use iii_proto::vfs::VfsExport;
use iii_proto::{CONTROL_PORT, EXEC_PORT, LOG_PORT};
use iii_vfs::launch::VfsLaunch;
use iii_vmm::host::Acceleration;
use iii_vmm::process::ChildSpec;
use iii_vmm::qemu::{Qemu, QemuOptions};
use iii_vmm::tsc;
use iii_vmm::vmm::{ExportSource, VmExport, VmLaunch, VmNetwork, VmPort, Vmm};

/// What the reporting init says.
const REPORT: &str = "reported";

/// Its source: the smallest program that can say a line on the console and end the machine.
const INIT: &str = r#"
use std::ffi::{c_char, c_int, c_ulong, c_void};
extern "C" {
    fn mount(s: *const c_char, t: *const c_char, f: *const c_char, x: c_ulong, d: *const c_void) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn mkdir(path: *const c_char, mode: u32) -> c_int;
}
fn main() {
    unsafe {
        mkdir(c"/dev".as_ptr(), 0o755);
        mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null());
    }
    std::fs::write("/dev/hvc0", "reported\n").unwrap();
    unsafe { reboot(0x0123_4567) };
}
"#;

/// All that does not change between boots.
pub(crate) struct Bare {
    kernel: PathBuf,
    init: Vec<u8>,
    qemu: Qemu,
    vfs: PathBuf,
}

impl Bare {
    pub(crate) fn prepare() -> Result<Self, String> {
        tsc::start();
        let options = FirmwareOptions::from_env().map_err(|e| e.to_string())?;
        let cache_directory = Some(options.home.cache_dir());
        let firmware = Firmware::locate(&options, &()).map_err(|e| e.to_string())?;
        let qemu = Qemu::new(QemuOptions {
            program: None,
            cache_directory,
            acceleration: Acceleration::Tcg,
            guest: None,
        });
        qemu.check().map_err(|e| e.to_string())?;
        Ok(Self {
            kernel: firmware.kernel().to_owned(),
            init: build_init()?,
            qemu,
            vfs: binaries().join("iii-vfs"),
        })
    }

    /// From QEMU's start to init's line.
    pub(crate) fn boot(&self) -> Result<Duration, String> {
        let io = |e: std::io::Error| e.to_string();
        let start = Instant::now();
        let mut medium = Initramfs::new();
        medium.init(&self.init).map_err(|e| e.to_string())?;
        let initrd = sealed(&[&medium.finish()]).map_err(io)?;
        let export = VfsExport {
            tag: "usr".into(),
            path: "/usr".into(),
            read_only: true,
            guest_uid: 0,
            guest_gid: 0,
            listener_fd: -1,
            immutable: true,
            live: false,
        };
        let launch = VfsLaunch::prepare("bare", vec![export]).map_err(|e| e.to_string())?;
        let mut server = ChildSpec::new(self.vfs.clone(), "bare/vfs");
        server.args = launch.args;
        server.inherit = launch.inherited;
        let mut server = spawn(server)?;
        let (console, vmm_console) = UnixStream::pair().map_err(io)?;
        let (_control, vmm_control) = UnixStream::pair().map_err(io)?;
        let (_log, vmm_log) = UnixStream::pair().map_err(io)?;
        let (_exec, vmm_exec) = UnixStream::pair().map_err(io)?;
        let (_host, guest) = iii_net::link_pair().map_err(io)?;
        let port = |name: &str, fd: UnixStream| VmPort {
            name: name.into(),
            fd: fd.into(),
        };
        let spec = self
            .qemu
            .command(VmLaunch {
                worker: worker_name("bare"),
                boot_id: BootId::from_random(1),
                cpus: 1,
                memory_mib: 256,
                kernel: self.kernel.clone(),
                initrd,
                console: vmm_console.into(),
                ports: vec![
                    port(CONTROL_PORT, vmm_control),
                    port(LOG_PORT, vmm_log),
                    port(EXEC_PORT, vmm_exec),
                ],
                network: Some(VmNetwork {
                    fd: guest,
                    mac: GUEST_MAC,
                    mtu: u32::from(DEFAULT_MTU),
                }),
                exports: launch
                    .devices
                    .into_iter()
                    .map(|d| VmExport {
                        tag: d.tag,
                        source: ExportSource::VhostUser(d.stream),
                    })
                    .collect(),
                disks: Vec::new(),
                kernel_words: Vec::new(),
            })
            .map_err(|e| e.to_string())?;
        let mut qemu = spawn(spec)?;
        let mut seen = None;
        for line in BufReader::new(console).lines() {
            // A reset is the end of QEMU.
            let Ok(line) = line else { break };
            if line.contains(REPORT) {
                seen = Some(start.elapsed());
                break;
            }
        }
        qemu.wait().map_err(io)?;
        drop(launch.events);
        server.wait().map_err(io)?;
        seen.ok_or_else(|| "the bare guest did not report".into())
    }
}

/// The child as it is described, without a shim.
fn spawn(spec: ChildSpec) -> Result<std::process::Child, String> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env)
        .current_dir(&spec.cwd);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mappings = spec
        .inherit
        .into_iter()
        .map(|(parent_fd, child_fd): (OwnedFd, i32)| FdMapping {
            parent_fd,
            child_fd,
        })
        .collect();
    command.fd_mappings(mappings).map_err(|e| e.to_string())?;
    command
        .spawn()
        .map_err(|e| format!("failed to start {}: {e}", spec.program.display()))
}

fn build_init() -> Result<Vec<u8>, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let program = build("init", INIT, directory.path())?;
    std::fs::read(program).map_err(|e| e.to_string())
}

/// A static program from its source.
pub(crate) fn build(name: &str, text: &str, directory: &Path) -> Result<PathBuf, String> {
    let source = directory.join(format!("{name}.rs"));
    let program = directory.join(name);
    std::fs::write(&source, text).map_err(|e| e.to_string())?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "--edition",
            "2021",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "opt-level=s",
        ])
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .map_err(|e| format!("failed to run rustc for {name}: {e}"))?;
    if !status.success() {
        return Err(format!("failed to build {name}"));
    }
    Ok(program)
}
